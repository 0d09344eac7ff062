//! client-go's own elector and ours on one Lease: they take turns, and ours is silent while the other holds.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::api::{Kind, Resource, User};
use lab::assets::asset;
use lab::clock::{now, until};
use lab::kubeconfig::KubeconfigFile;
use lab::probe::{Probe, ProbeKind};
use lab::processes::Process;
use lab::sidecar::NAMESPACE;
use lab::{World, play};
use nix::sys::signal::Signal;

use crate::{LATER, LEASE, SOON, stands_by, strict};

crate::scenarios!(
    "needs root and client-go's elector", "needs root, kube-apiserver and client-go's elector":
    client_gos_elector_and_ours_take_turns,
);

/// The other candidate's identity, and its name in the API server's log.
const OTHER: &str = "client-go";

/// A candidate for the first tunnel's Lease that is client-go's (`lab/kube/elector`), with the sidecars' own rights.
struct Other {
    kubeconfig: KubeconfigFile,
    lease: String,
    process: Option<Process>,
}

impl Other {
    fn new(world: &World) -> Result<Self> {
        let kubeconfig = KubeconfigFile::new(&world.api.kubeconfig(User::Sidecar(OTHER.into())))?;
        Ok(Self { kubeconfig, lease: world.spec.tunnels[0].lease(), process: None })
    }

    fn start(&mut self, world: &World) -> Result<()> {
        let mut command = world.topology.control.command(&asset("elector")?);
        command.arg("--kubeconfig").arg(self.kubeconfig.path());
        command.args(["--namespace", NAMESPACE, "--name", &self.lease, "--identity", OTHER]);
        self.process = Some(world.processes().start(OTHER, command)?);
        Ok(())
    }

    fn process(&self) -> Result<&Process> {
        self.process.as_ref().context("client-go's candidate was never started")
    }

    /// Waits until it has seen who leads: from then on its wait for the end of the Lease runs.
    fn sees(&self, leader: &str) -> Result<()> {
        let line = format!("leader \"{leader}\"\n");
        until("client-go to see the leader", SOON, || {
            self.process()?.expect_running()?;
            Ok(self.process()?.log().contains(&line).then_some(()))
        })
    }

    /// Waits until the Lease names it and it believes so itself.
    fn leads(&self, world: &World, within: Duration) -> Result<()> {
        until("client-go to lead", within, || {
            let process = self.process()?;
            process.expect_running()?;
            let holder = world.lease(0)?.map(|lease| lease.holder);
            ensure!(holder.as_deref() == Some(OTHER), "the Lease names {holder:?}");
            Ok(process.log().lines().any(|line| line == "leading").then_some(()))
        })
        .with_context(|| format!("client-go's log:\n{}", self.process().map(Process::log).unwrap_or_default()))
    }

    /// SIGTERM: it gives the Lease back and ends.
    fn gives_back(&self) -> Result<()> {
        self.process()?.signal(Signal::SIGTERM)?;
        let status = self.process()?.wait_exit(SOON)?;
        ensure!(status.success(), "client-go's candidate ended with {status}: {}", self.process()?.log());
        Ok(())
    }
}

/// A turn of one candidate: from its first write of the Lease to another's, or to now.
struct Turn {
    who: String,
    from: Instant,
    last: Instant,
    to: Instant,
}

/// Who held the Lease when. Standbys of either kind write nothing, so whoever writes holds, or gives back.
fn turns(world: &World) -> Result<Vec<Turn>> {
    let mut turns: Vec<Turn> = Vec::new();
    let writes = world.lease_writes(0)?;
    for (at, who) in writes.into_iter().filter(|(_, who)| who != "admin") {
        match turns.last_mut() {
            Some(turn) if turn.who == who => turn.last = at,
            before => {
                if let Some(turn) = before {
                    turn.to = at;
                }
                turns.push(Turn { who, from: at, last: at, to: at });
            }
        }
    }
    if let Some(turn) = turns.last_mut() {
        turn.to = now();
    }
    Ok(turns)
}

/// Waits until ours leads and the client has answers again.
fn ours_leads(world: &World, probe: &Probe, event: Instant, what: &str) -> Result<()> {
    world.wait_leader(0, None, LEASE + LATER)?;
    probe.steady_since(event, 100, LATER)?;
    eprintln!("{what}: gap {:?}", probe.gap_since(event).length());
    Ok(())
}

fn client_gos_elector_and_ours_take_turns(api: Kind) -> Result<()> {
    play(strict(api).nodes(1), |world| {
        let probe = Probe::start(&world.topology.client, world.web(), ProbeKind::UdpFlow)?;
        probe.steady_since(now(), 100, SOON)?;
        let ours = world.sidecar(1)?.identity();
        let mut other = Other::new(world)?;

        // Each gives back in turn: nobody waits for the Lease to run out.
        other.start(world)?;
        other.sees(&ours)?;
        let event = now();
        world.sidecar(1)?.stop(SOON)?;
        other.leads(world, SOON)?;
        world.sidecar_mut(1)?.start()?;
        stands_by(world, 1)?;
        other.gives_back()?;
        ours_leads(world, &probe, event, "given back by ours, then by client-go")?;

        // Each is killed in turn: the other waits for the end of the Lease.
        other.start(world)?;
        other.sees(&ours)?;
        let event = world.sidecar(1)?.sigkill()?;
        other.leads(world, LEASE + LATER)?;
        world.sidecar_mut(1)?.start()?;
        stands_by(world, 1)?;
        other.process()?.sigkill()?;
        ours_leads(world, &probe, event, "ours killed, then client-go")?;

        // The Lease is given to the other by hand, under ours as it leads.
        let event = now();
        until("the Lease handed over by hand", SOON, || {
            let mut lease = world.kube.get(Resource::Lease, NAMESPACE, &world.spec.tunnels[0].lease())?;
            lease["spec"]["holderIdentity"] = OTHER.into();
            Ok(world.kube.replace(Resource::Lease, lease).ok())
        })?;
        stands_by(world, 1)?;
        let heard = world.hubs[0].heard();
        let last = heard.iter().filter(|packet| packet.node() == Some(1)).map(|packet| packet.at).max();
        eprintln!(
            "ours spoke for {:?} after the Lease named another",
            last.map(|at| at.saturating_duration_since(event))
        );
        other.start(world)?;
        other.leads(world, SOON)?;
        other.gives_back()?;
        ours_leads(world, &probe, event, "taken from ours by hand")?;

        // Over the whole course: no packet of ours while the other held, and no turn began before its time.
        let turns = turns(world)?;
        let order: Vec<&str> = turns.iter().map(|turn| turn.who.as_str()).collect();
        let pod = world.sidecar(1)?.pod.as_str();
        assert_eq!(order, [pod, OTHER, pod, OTHER, pod, OTHER, pod]);
        for turn in turns.iter().filter(|turn| turn.who == OTHER) {
            let heard = world.hubs[0].heard();
            let spoken: Vec<_> = heard.iter().filter(|p| (turn.from..turn.to).contains(&p.at)).collect();
            assert!(spoken.is_empty(), "ours spoke while client-go held the Lease: {spoken:?}");
        }
        // The third and fifth turn begin after a kill.
        for (killed, next) in [(&turns[2], &turns[3]), (&turns[3], &turns[4])] {
            let waited = next.from - killed.last;
            assert!(waited >= LEASE, "{} took the Lease {waited:?} after the last renewal", next.who);
        }
        Ok(())
    })
}
