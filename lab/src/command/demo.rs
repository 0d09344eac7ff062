//! `lab demo`: ways to lose a leader, seen by a client.

use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, Result};
use lab::clock::{now, until};
use lab::node::Cut;
use lab::probe::{Probe, ProbeKind};
use lab::takeover::{Takeover, milliseconds};
use lab::{World, WorldSpec, plan};

use super::live;
use super::screen::Screen;

const WITHIN: Duration = Duration::from_secs(30);

/// A way to lose a leader.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// SIGTERM.
    Graceful,
    /// SIGKILL, not restarted until another leads.
    Kill,
    /// Its node is cut off from everything.
    Cut,
    /// Its node is cut off from the API server alone: it holds until another has the hub.
    ApiCut,
}

impl Loss {
    /// All, in the order shown.
    pub const ALL: [Loss; 4] = [Loss::Graceful, Loss::Kill, Loss::Cut, Loss::ApiCut];

    /// A short name.
    pub fn name(self) -> &'static str {
        match self {
            Loss::Graceful => "graceful hand-over",
            Loss::Kill => "leader killed",
            Loss::Cut => "leader's node cut off",
            Loss::ApiCut => "cut off from the API",
        }
    }

    fn story(self, node: u8) -> String {
        match self {
            Loss::Graceful => format!("The pod on node {node} is asked to stop (SIGTERM), as in a rollout or a drain."),
            Loss::Kill => {
                format!("The pod on node {node} is killed (SIGKILL) and not restarted: its Lease must run out.")
            }
            Loss::Cut => format!("Node {node} is cut off from everything: nobody is told, packets just vanish."),
            Loss::ApiCut => {
                format!(
                    "Node {node} is cut off from the API server alone: its pod holds, and answers until another has the hub."
                )
            }
        }
    }

    /// Takes the leader away. When that was.
    pub fn strike(self, world: &World, leader: u8) -> Result<std::time::Instant> {
        match self {
            Loss::Graceful => world.sidecar(leader)?.sigterm(),
            Loss::Kill => world.sidecar(leader)?.sigkill(),
            Loss::Cut | Loss::ApiCut => {
                let at = now();
                let cut = if self == Loss::Cut { Cut::All } else { Cut::Api };
                world.nodes.get(usize::from(leader)).context("no such node")?.cut(cut)?;
                Ok(at)
            }
        }
    }

    /// Brings the old leader back as a standby.
    pub fn heal(self, world: &mut World, node: u8) -> Result<()> {
        match self {
            Loss::Graceful | Loss::Kill => {
                world.sidecar(node)?.wait_exit(WITHIN)?;
                world.sidecar_mut(node)?.start()?;
            }
            Loss::Cut | Loss::ApiCut => world.nodes.get(usize::from(node)).context("no such node")?.heal()?,
        }
        let sidecar = world.sidecar(node)?;
        sidecar.wait_ready(WITHIN)?;
        until(&format!("{} to stand by", sidecar.pod), WITHIN, || {
            Ok((sidecar.status()?["tunnels"][0]["state"] == "standby").then_some(()))
        })
    }
}

/// Shows it all; an error if anything did not work.
pub fn run(spec: WorldSpec) -> Result<()> {
    let screen = Screen::default();
    screen.tell("Bringing up a small internet …");
    let started = now();
    let mut world = World::lay(spec)?;
    screen.tell(&format!("… laid in {:.1} s. The hub is {}.\n", started.elapsed().as_secs_f64(), world.hubs[0].kind));
    screen.tell(&drawing(&world));
    let shown = show(&mut world, &screen);
    screen.let_go();
    match shown {
        Ok(story) => {
            world.finish()?;
            screen.tell(&story);
            screen.tell("Everything is gone again: no process, namespace, link or rule is left.");
            Ok(())
        }
        Err(error) if lab::clock::interrupted() => {
            world.finish()?;
            Err(error)
        }
        Err(error) => Err(error.context(world.logs())),
    }
}

fn show(world: &mut World, screen: &Screen) -> Result<String> {
    let started = now();
    world.start_sidecars()?;
    let udp = Probe::start(&world.topology.client, world.web(), ProbeKind::UdpFlow)?;
    let tcp = Probe::start(&world.topology.client, world.web(), ProbeKind::TcpAsk)?;
    let probes = [("UDP, a packet every 5 ms", &udp), ("TCP, a connection every 5 ms", &tcp)];
    live::during(world, &probes, screen, || {
        world.wait_serving(WITHIN)?;
        probes.iter().try_for_each(|(_, probe)| probe.steady_since(now(), 100, WITHIN))
    })?;
    screen.tell(&format!(
        "\nThe client was first answered {:.1} s after the pods were started.",
        first_answer(&udp, started)
    ));
    let mut story = String::from("\nWhat the client saw: the longest time without an answer.\n");
    for loss in Loss::ALL {
        let leader = world.wait_leader(0, None, WITHIN)?;
        screen.tell(&format!("\n{}", loss.story(leader)));
        let (takeover, tcp_gap) = live::during(world, &probes, screen, || {
            let event = loss.strike(world, leader)?;
            let takeover = Takeover::measure(world, 0, &udp, leader, event, WITHIN)?;
            tcp.steady_since(takeover.gap.to, 100, WITHIN)?;
            Ok((takeover, tcp.gap_since(event)))
        })?;
        screen.tell(&format!("  {takeover}"));
        let _ = writeln!(
            story,
            "  {:<22} UDP {:>8.1} ms   new TCP connections {:>8.1} ms",
            loss.name(),
            milliseconds(takeover.gap.length()),
            milliseconds(tcp_gap.length())
        );
        for (phase, length) in takeover.phases() {
            let _ = writeln!(story, "      {phase:<32} {:>8.1} ms", milliseconds(length));
        }
        loss.heal(world, leader)?;
        live::during(world, &probes, screen, || udp.steady_since(now(), 100, WITHIN))?;
    }
    Ok(story)
}

fn first_answer(probe: &Probe, started: std::time::Instant) -> f64 {
    let first = probe.samples().iter().filter_map(|sample| sample.answered).min();
    first.map_or(0.0, |at| at.duration_since(started).as_secs_f64())
}

fn drawing(world: &World) -> String {
    format!(
        "    client {} ── internet ── hub {}\n                               │\n                     NAT {} (lets nothing in)\n                               │\n    API server {} · backends on node 0 · sidecar pods on nodes 1 to {}\n",
        plan::CLIENT,
        world.hubs[0].address,
        plan::GATEWAY,
        plan::API,
        world.sidecars.len()
    )
}
