//! A leader that sends at full rate is cut off from the API server alone: it holds, and a successor has to win the hub.

use anyhow::Result;
use lab::World;
use lab::clock::now;
use lab::download::Download;
use lab::probe::{Probe, ProbeKind};
use lab::takeover::Takeover;

use super::super::demo::Loss;
use super::super::screen::Screen;
use super::{WITHIN, line};

/// Cuts so many leaders off.
pub fn measure(world: &mut World, runs: u32, screen: &Screen) -> Result<()> {
    let (mut calm, mut gaps) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        let probe = Probe::start(&world.topology.client, world.web(), ProbeKind::UdpFlow)?;
        probe.steady_since(now(), 100, WITHIN)?;
        let leader = world.wait_leader(0, None, WITHIN)?;
        let begun = now();
        let flood = Download::flood(&world.client, world.web())?;
        probe.steady_since(now(), 100, WITHIN)?;
        // What the flood alone does to the probes, on a machine that carries both.
        calm.push(probe.gap_since(begun).length());
        let event = Loss::ApiCut.strike(world, leader)?;
        gaps.push(Takeover::measure(world, 0, &probe, leader, event, WITHIN)?.gap.length());
        drop((flood, probe));
        Loss::ApiCut.heal(world, leader)?;
    }
    screen.tell(&line("at full rate, nothing happens: gap, UDP", &calm));
    screen.tell(&line("at full rate, cut off from the API: gap, UDP", &gaps));
    Ok(())
}
