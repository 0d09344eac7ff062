//! What a graceful hand-over costs a client beyond the round trip that a handshake takes.

use std::time::Duration;

use anyhow::Result;
use lab::clock::now;
use lab::probe::{Probe, ProbeKind};
use lab::takeover::Takeover;
use lab::{World, WorldSpec};

use super::super::demo::Loss;
use super::super::screen::Screen;
use super::{Extent, WITHIN, line, within};

/// Near, where the round trip is as long as the machine makes it, and far.
const ROUND_TRIPS: [Duration; 2] = [Duration::ZERO, Duration::from_millis(100)];
const RUNS: u32 = 100;

/// Hands over so many times at each round trip.
pub fn measure(spec: &WorldSpec, extent: Extent, screen: &Screen) -> Result<()> {
    let runs = extent.runs.unwrap_or(RUNS);
    ROUND_TRIPS
        .iter()
        .try_for_each(|round_trip| within(spec.clone().round_trip(*round_trip), |world| hand_over(world, runs, screen)))
}

fn hand_over(world: &mut World, runs: u32, screen: &Screen) -> Result<()> {
    let round_trip = world.spec.road.round_trip;
    let (mut gaps, mut beyond) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        let probe = Probe::start(&world.topology.client, world.web(), ProbeKind::UdpFlow)?;
        probe.steady_since(now(), 100, WITHIN)?;
        let leader = world.wait_leader(0, None, WITHIN)?;
        let event = Loss::Graceful.strike(world, leader)?;
        let gap = Takeover::measure(world, 0, &probe, leader, event, WITHIN)?.gap.length();
        gaps.push(gap);
        beyond.push(gap.saturating_sub(round_trip));
        drop(probe);
        Loss::Graceful.heal(world, leader)?;
    }
    let name = format!("hand-over at {} ms", round_trip.as_millis());
    screen.tell(&line(&format!("{name}: gap, UDP"), &gaps));
    screen.tell(&line(&format!("{name}: gap minus round trip"), &beyond));
    Ok(())
}
