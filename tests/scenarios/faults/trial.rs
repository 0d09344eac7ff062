//! One fault, or two, and all that must hold afterwards.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::api::Kind;
use lab::client::Proto;
use lab::clock::{now, pause};
use lab::faults::{Fault, HUB_NAME, Injected};
use lab::probe::{Probe, ProbeKind};
use lab::sidecar::Sidecar;
use lab::world::LeaseState;
use lab::{World, WorldSpec, keys, leaks, plan};

use crate::leftovers::expect_clean;
use crate::{LATER, SOON};

/// Within this time of a fault's end the client is served.
const BACK: Duration = Duration::from_secs(12);

/// More than a packet: what a path that drops the big ones would not carry.
const DOWNLOAD: u64 = 50_000;

/// What is played.
pub struct Trial {
    /// For people; a pair's has its seed.
    pub name: String,
    /// May the pods hold?
    pub hold: bool,
    /// The fault.
    pub first: Fault,
    /// Another, and how long after the first.
    pub second: Option<(Fault, Duration)>,
}

/// A world in which faults can be injected: the hub has a name, keys of both kinds are in use, logs say much.
pub fn spec(hold: bool) -> WorldSpec {
    let mut spec = crate::spec(Kind::Embedded)
        .args(&["--log-level=debug", &format!("--hold={hold}")])
        .stranger("another program with the same key is one of the faults");
    spec.tunnels[0].endpoint = format!("{HUB_NAME}:{}", plan::HUB_PORT);
    spec.tunnels[0].preshared_key = Some(keys::preshared());
    spec
}

/// A world's pods, as they were before anything ran in them.
pub struct Trials {
    before: Vec<Vec<String>>,
}

/// A fault that is on, and until when.
struct Lasting {
    injected: Injected,
    until: Instant,
}

impl Trials {
    /// Starts a world's sidecars.
    pub fn begin(world: &mut World) -> Result<Self> {
        world.name_hub()?;
        world.load_shims()?;
        let before = world.sidecars.iter().map(Sidecar::traces).collect::<Result<_>>()?;
        Self { before }.start(world)
    }

    fn start(self, world: &mut World) -> Result<Self> {
        world.start_sidecars()?;
        world.wait_serving(LATER)?;
        world.expect_shims()?;
        Ok(self)
    }

    /// Lets the faults befall it, looks at what they left, and gives it back with its sidecars started anew.
    pub fn play(&self, world: &mut World, trial: &Trial) -> Result<()> {
        let Trial { name, hold, first, second } = trial;
        if first.is_about_the_hub() || second.is_some_and(|(second, _)| second.is_about_the_hub()) {
            // Two of the leader's probes, of which one leaves every 2 s.
            pause(Duration::from_secs(5))?;
        }
        let probe = Probe::start(&world.topology.client, world.web(), ProbeKind::UdpFlow)?;
        probe.steady_since(now(), 50, SOON)?;
        let leader = world.wait_leader(0, None, SOON)?;
        let led = world.lease(0)?;
        let began = now();
        let mut lasting = vec![inject(world, *first, leader)?];
        if let Some((second, after)) = second {
            pause(*after)?;
            let victim = world.hubs[0].heard().last().and_then(|heard| heard.node()).unwrap_or(leader);
            lasting.push(inject(world, *second, victim)?);
        }
        let end = heal_all(world, lasting, second.is_none() && first.is_harmless(*hold))?;
        let back = served(world, end)?;
        let gap = probe.gap_since(began).length();
        drop(probe);
        if second.is_none() && first.leaves_the_leader() {
            let turn =
                |lease: Option<LeaseState>| lease.map(|LeaseState { holder, transitions, .. }| (holder, transitions));
            let (before, after) = (turn(led), turn(world.lease(0)?));
            ensure!(before == after, "{before:?} led before, and {after:?} after it");
        }
        world.judge()?;
        self.clear_away(world)?;
        eprintln!("survived: {name}; served again {back:.1?} after its end, gap {gap:.1?} since its beginning");
        world.start_sidecars()?;
        world.wait_serving(LATER)
    }

    /// Stops everything: nothing may be left but logs without keys.
    fn clear_away(&self, world: &World) -> Result<()> {
        for sidecar in &world.sidecars {
            sidecar.wait_ready(LATER)?;
        }
        for sidecar in &world.sidecars {
            sidecar.sigterm()?;
        }
        for (sidecar, before) in world.sidecars.iter().zip(&self.before) {
            let status = sidecar.wait_exit(SOON)?;
            ensure!(status.success(), "{} ended with {status}", sidecar.pod);
            expect_clean(sidecar, before, Duration::ZERO)?;
        }
        let tunnel = &world.spec.tunnels[0];
        let keys = [
            ("the tunnel's private key", tunnel.private_key.as_str()),
            ("its preshared key", tunnel.preshared_key.as_deref().unwrap_or_default()),
            ("the hub's private key", &world.hubs[0].keys.private),
        ];
        let told = leaks::found(&world.processes().logs(), &keys);
        ensure!(told.is_empty(), "in the logs: {}", told.join(", "));
        Ok(())
    }
}

fn inject(world: &mut World, fault: Fault, victim: u8) -> Result<Lasting> {
    let injected = world.inject(fault, victim)?;
    Ok(Lasting { injected, until: now() + fault.lasts() })
}

/// Heals each fault in its time; one that keeps the lab itself from the API server goes before the others. When the last
/// one ended. Before a `harmless` one ends a client is served.
fn heal_all(world: &mut World, mut lasting: Vec<Lasting>, harmless: bool) -> Result<Instant> {
    let mut end = now();
    while let Some(due) = lasting.iter().map(|lasting| lasting.until).min() {
        pause(due.saturating_duration_since(now()))?;
        let blind = lasting.iter().position(|lasting| lasting.injected.fault.is_without_api());
        let place = blind.or_else(|| lasting.iter().position(|lasting| lasting.until == due));
        let Lasting { injected, .. } = lasting.swap_remove(place.context("no fault is due")?);
        if harmless {
            world.client.until(Proto::Tcp, world.web(), SOON, |answer| answer.name().is_some())?;
            world.client.patient(SOON).download(world.web(), DOWNLOAD).context("while it lasted")?;
        }
        end = now();
        injected.heal(world)?;
    }
    Ok(end)
}

/// Waits until the client is served, with a flow of its own and with whole connections; how long after `end` that was.
fn served(world: &World, end: Instant) -> Result<Duration> {
    let probe = Probe::start(&world.topology.client, world.web(), ProbeKind::UdpFlow)?;
    let left = || BACK.saturating_sub(end.elapsed());
    let answered = probe.answered_since(end, left())?;
    probe.steady_since(answered, 50, left())?;
    world.client.until(Proto::Tcp, world.web(), left(), |answer| answer.name().is_some())?;
    world.client.patient(SOON).download(world.web(), DOWNLOAD)?;
    Ok(answered - end)
}
