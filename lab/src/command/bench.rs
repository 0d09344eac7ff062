//! `lab bench`: distributions of what a client loses, and what a pod costs when nothing happens.

mod churn;
mod cutoff;
mod handover;
mod idle;
mod outage;
mod restarts;
mod scale;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use lab::clock::now;
use lab::gaps::Distribution;
use lab::probe::{Probe, ProbeKind};
use lab::takeover::{Takeover, milliseconds};
use lab::{World, WorldSpec};

use super::demo::Loss;
use super::screen::Screen;

const WITHIN: Duration = Duration::from_secs(30);

/// What can be measured alone.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// What a client loses when the leader goes.
    Takeovers,
    /// What a hand-over costs beyond a round trip, near the hub and far from it (100 runs unless told otherwise).
    Handover,
    /// A leader that sends at full rate is cut off from the API server alone.
    Cutoff,
    /// The whole API server is away.
    Outage,
    /// A container that is killed and restarted in place.
    Restarts,
    /// A container's start.
    Starts,
    /// A pod while nothing happens.
    Idle,
    /// Endpoints that change among 1,000 Services.
    Churn,
    /// Many tunnels and 1,000 Services over five pods; only when asked for.
    Scale,
}

/// How often and how long.
#[derive(Clone, Copy)]
pub struct Extent {
    /// Runs of each kind; `None`: what the part is meant for.
    pub runs: Option<u32>,
    /// How long the API server is away.
    pub outage: Duration,
    /// Tunnels of the part with many.
    pub tunnels: u8,
}

impl Extent {
    fn runs(self) -> u32 {
        self.runs.unwrap_or(30)
    }
}

/// Measures everything that needs no more than a small machine, or one part, and prints it.
pub fn run(spec: &WorldSpec, only: Option<Part>, extent: Extent) -> Result<()> {
    let wanted = |part| only.map_or(part != Part::Scale, |only| only == part);
    let screen = Screen::default();
    let size = std::fs::metadata(&spec.bin).context("cannot read the program")?.len();
    screen.tell(&format!("program: {:.1} MB; times in ms\n", size as f64 / 1e6));
    for (part, measure) in PARTS {
        if wanted(part) {
            measure(spec, extent, &screen)?;
        }
    }
    Ok(())
}

type Measure = fn(&WorldSpec, Extent, &Screen) -> Result<()>;

const PARTS: [(Part, Measure); 9] = [
    (Part::Takeovers, |spec, extent, screen| within(spec.clone(), |world| takeovers(world, extent.runs(), screen))),
    (Part::Handover, handover::measure),
    (Part::Cutoff, |spec, extent, screen| within(spec.clone(), |world| cutoff::measure(world, extent.runs(), screen))),
    (Part::Outage, |spec, extent, screen| outage::measure(spec, extent.outage, screen)),
    (Part::Restarts, restarts::measure),
    (Part::Starts, |spec, extent, screen| within(spec.clone(), |world| starts(world, extent.runs(), screen))),
    (Part::Idle, |spec, _, screen| within(spec.clone(), |world| idle::measure(world, screen))),
    (Part::Churn, |spec, _, screen| churn::measure(spec.clone(), screen)),
    (Part::Scale, |spec, extent, screen| scale::measure(spec, extent.tunnels, screen)),
];

/// Measures in a world of its own.
fn within(spec: WorldSpec, measure: impl FnOnce(&mut World) -> Result<()>) -> Result<()> {
    let mut world = World::start(spec)?;
    let measured = measure(&mut world);
    let logs = world.logs();
    world.finish()?;
    measured.context(logs)
}

/// One line of a table of distributions.
pub fn line(name: &str, measured: &[Duration]) -> String {
    let Some(d) = Distribution::of(measured) else { return format!("{name:<44} nothing measured") };
    let [p50, p90, p99, max] = [d.p50, d.p90, d.p99, d.max].map(milliseconds);
    format!("{name:<44} p50 {p50:>8.1}  p90 {p90:>8.1}  p99 {p99:>8.1}  max {max:>8.1}  (n={})", d.count)
}

fn takeovers(world: &mut World, runs: u32, screen: &Screen) -> Result<()> {
    for loss in Loss::ALL {
        let mut gaps = Vec::new();
        let mut tcp_gaps = Vec::new();
        let mut phases: BTreeMap<usize, (&str, Vec<Duration>)> = BTreeMap::new();
        for _ in 0..runs {
            let udp = Probe::start(&world.topology.client, world.web(), ProbeKind::UdpFlow)?;
            let tcp = Probe::start(&world.topology.client, world.web(), ProbeKind::TcpAsk)?;
            udp.steady_since(now(), 100, WITHIN)?;
            tcp.steady_since(now(), 100, WITHIN)?;
            let leader = world.wait_leader(0, None, WITHIN)?;
            let event = loss.strike(world, leader)?;
            let takeover = Takeover::measure(world, 0, &udp, leader, event, WITHIN)?;
            tcp.steady_since(takeover.gap.to, 100, WITHIN)?;
            gaps.push(takeover.gap.length());
            tcp_gaps.push(tcp.gap_since(event).length());
            for (place, (name, length)) in takeover.phases().into_iter().enumerate() {
                phases.entry(place).or_insert((name, Vec::new())).1.push(length);
            }
            drop((udp, tcp));
            loss.heal(world, leader)?;
        }
        screen.tell(&line(&format!("{}: gap, UDP", loss.name()), &gaps));
        screen.tell(&line(&format!("{}: gap, new TCP", loss.name()), &tcp_gaps));
        for (name, lengths) in phases.values() {
            screen.tell(&line(&format!("    {name}"), lengths));
        }
    }
    Ok(())
}

/// From the start of a standby's container to its `/readyz`.
fn starts(world: &mut World, runs: u32, screen: &Screen) -> Result<()> {
    let leader = world.wait_leader(0, None, WITHIN)?;
    let standby = world.sidecars.iter().map(|s| s.node).find(|node| *node != leader).context("no standby")?;
    let mut times = Vec::new();
    for _ in 0..runs {
        world.sidecar(standby)?.stop(WITHIN)?;
        let started = world.sidecar_mut(standby)?.start()?;
        world.sidecar(standby)?.wait_ready(WITHIN)?;
        times.push(now().duration_since(started));
    }
    screen.tell(&line("start of the container to ready", &times));
    Ok(())
}
