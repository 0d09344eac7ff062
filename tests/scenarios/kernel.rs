//! What only the kernel's WireGuard shows: it goes on without the process that set it up, and so do fence and hold.
//! Gaps are printed, not asserted: here they are measured on an emulated machine.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lab::api::Kind;
use lab::clock::{now, until};
use lab::probe::Probe;
use lab::recorder::{Heard, Message};
use lab::takeover::{Takeover, milliseconds};
use lab::{World, WorldSpec, gaps, play};

use crate::clocks::{AHEAD, leave_as_if_ahead};
use crate::events::told;
use crate::hold::{becomes, expect_no_word_of_its_own, pass};
use crate::{LATER, LEASE, expect_silence, stands_by, steady};

/// A world whose pods and hub use the kernel's WireGuard.
fn spec(nodes: u8, args: &[&str]) -> WorldSpec {
    crate::spec(Kind::Embedded).nodes(nodes).args(&["--backend=kernel"]).args(args)
}

/// Longer than the kernel's WireGuard takes for a keepalive of its own (5 s), for another try at a handshake (5 s), and
/// for a new handshake with a peer that does not answer (15 s).
const WIREGUARDS_OWN_TIMERS: Duration = Duration::from_secs(22);

/// From `event` on a client misses nothing until the successor speaks, and little then; the hub stays with that.
fn is_missed_by_nobody(world: &World, probe: &Probe, leader: u8, event: Instant, what: &str) -> Result<()> {
    let takeover = Takeover::measure(world, 0, probe, leader, event, LEASE + LATER)?;
    let taken = takeover.lease.context("nobody wrote the Lease")?;
    let before = gaps::longest(&probe.samples(), event, taken);
    eprintln!("{what}: longest silence before the takeover {:.1} ms; {takeover}", milliseconds(before.length()));
    assert_eq!(probe.lost(event, taken), 0, "{what}: noticed before the takeover");
    pass(now() + Duration::from_secs(3));
    expect_no_word_of_its_own(world, leader, event + LEASE, now())?;
    assert_eq!(world.leader(0)?, Some(takeover.to));
    assert_eq!(world.hubs[0].serves()?, Some(takeover.to));
    Ok(())
}

#[test]
#[ignore = "needs root and kernel WireGuard"]
fn a_killed_leader_is_missed_by_nobody_until_its_successor_has_the_hub() -> Result<()> {
    play(spec(3, &[]), |world| {
        let (probe, leader) = steady(world)?;
        let event = world.sidecar(leader)?.sigkill()?;
        is_missed_by_nobody(world, &probe, leader, event, "SIGKILL")
    })
}

#[test]
#[ignore = "needs root and kernel WireGuard"]
fn a_frozen_leader_is_missed_by_nobody_until_its_successor_has_the_hub() -> Result<()> {
    play(spec(3, &[]), |world| {
        let (probe, leader) = steady(world)?;
        let event = world.sidecar(leader)?.freeze()?;
        is_missed_by_nobody(world, &probe, leader, event, "SIGSTOP")?;
        let thawed = world.sidecar(leader)?.thaw()?;
        stands_by(world, leader)?;
        assert_eq!(probe.lost_since(thawed), 0, "the waking disturbed the client");
        Ok(())
    })
}

#[test]
#[ignore = "needs root and kernel WireGuard"]
fn without_hold_a_killed_leaders_kernel_is_silent_from_the_tenures_end() -> Result<()> {
    for stop in [false, true] {
        play(spec(1, &["--hold=false"]), |world| {
            let (_probe, leader) = steady(world)?;
            let sidecar = world.sidecar(leader)?;
            let event = if stop { sidecar.freeze()? } else { sidecar.sigkill()? };
            pass(event + LEASE + WIREGUARDS_OWN_TIMERS);
            let called = |h: &Heard| h.outgoing && h.at > event + LEASE && h.kind == Message::Initiation;
            assert!(world.hubs[0].packets().iter().any(called), "the hub never called: this test would prove nothing");
            expect_silence(world, 0, leader, event + LEASE)?;
            if stop {
                world.sidecar(leader)?.thaw()?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root and kernel WireGuard"]
fn a_killed_leader_that_nobody_replaces_answers_on_when_its_session_is_over() -> Result<()> {
    /// A session ends 180 s after its handshake (WireGuard white paper, 6.1): then the hub begins another.
    const LIFE: Duration = Duration::from_secs(180);
    play(spec(1, &[]), |world| {
        let (probe, leader) = steady(world)?;
        let event = world.sidecar(leader)?.sigkill()?;
        pass(event + LIFE + WIREGUARDS_OWN_TIMERS);
        let end = now();
        let gap = gaps::longest(&probe.samples(), event, end);
        eprintln!("killed and alone for {:?}: longest silence {:.1} ms", end - event, milliseconds(gap.length()));
        probe.steady_since(end, 100, LATER)?;
        expect_no_word_of_its_own(world, leader, event + LEASE, end)?;
        let answered = |h: &Heard| !h.outgoing && h.at > event + LEASE && h.kind == Message::Response;
        assert!(world.hubs[0].heard().iter().any(answered), "the session did not end: this test proves nothing");
        Ok(())
    })
}

/// The kernel stamps its handshakes by the wall clock, and nothing else can: docs/operations.md, "No handshake". The dead
/// leader's kernel answers on meanwhile.
#[test]
#[ignore = "needs root and kernel WireGuard"]
fn a_successor_whose_clock_is_behind_says_so_and_has_the_hub_when_its_clock_is_past() -> Result<()> {
    play(spec(2, &[]).stranger("a handshake of the dead leader's, with its stamp"), |world| {
        let (probe, leader) = steady(world)?;
        let killed = world.sidecar(leader)?.sigkill()?;
        leave_as_if_ahead(world)?;
        let next = world.wait_leader(0, Some(leader), LEASE + LATER)?;
        for event in ["ClockSkew", "NoHandshake"] {
            told(world, &format!("{event} Pod/{}", world.sidecar(next)?.pod))?;
        }
        assert!(now() < killed + AHEAD, "the clocks have caught up already");
        assert_eq!(world.hubs[0].serves()?, Some(leader), "the hub took a handshake that was stamped before its last");
        pass(killed + AHEAD);
        until("a handshake that the hub takes", LATER, || Ok((world.hubs[0].serves()? == Some(next)).then_some(())))?;
        let gap = probe.gap_since(killed).length();
        eprintln!("killed {AHEAD:?} ahead: longest silence {:.1} ms", milliseconds(gap));
        assert!(probe.silence_since(killed) < LEASE, "nobody answered meanwhile");
        Ok(())
    })
}

/// Steady traffic through a leader that nobody rivals: on an emulated machine a process may take a lease to start.
fn alone(scenario: impl FnOnce(&mut World, &Probe, u8) -> Result<()>) -> Result<()> {
    play(spec(1, &[]), |world| {
        let (probe, leader) = steady(world)?;
        let before = (world.hubs[0].peer()?.latest_handshake, world.lease(0)?.context("no Lease")?.transitions);
        scenario(world, &probe, leader)?;
        becomes(world, leader, "leading", LATER)?;
        pass(now() + Duration::from_secs(3));
        let log = world.sidecar(leader)?.log();
        assert!(log.contains("took over the tunnel that an earlier life left"), "{log}");
        let after = (world.hubs[0].peer()?.latest_handshake, world.lease(0)?.context("no Lease")?.transitions);
        assert_eq!(before, after, "another handshake, or another tenure: the tunnel was touched");
        Ok(())
    })
}

#[test]
#[ignore = "needs root and kernel WireGuard"]
fn a_leader_killed_and_restarted_in_place_takes_its_tunnel_over() -> Result<()> {
    alone(|world, probe, leader| {
        let event = now();
        world.sidecar_mut(leader)?.restart_in_place(Duration::from_millis(100))?;
        let leads = becomes(world, leader, "leading", LATER)?;
        let gap = probe.gap_since(event).length();
        eprintln!("killed and restarted: leads after {:?}, longest silence {:.1} ms", leads - event, milliseconds(gap));
        assert_eq!(probe.lost_since(event), 0, "the restart cost the client answers");
        Ok(())
    })
}

#[test]
#[ignore = "needs root and kernel WireGuard"]
fn a_leader_killed_and_restarted_without_the_api_holds_on_and_leads_on_when_it_is_back() -> Result<()> {
    alone(|world, probe, leader| {
        world.api.stop()?;
        let event = now();
        world.sidecar_mut(leader)?.restart_in_place(Duration::from_millis(100))?;
        pass(event + 3 * LEASE);
        assert_eq!(probe.lost_since(event), 0, "the restart cost the client answers");
        let resumed = now();
        world.api.resume()?;
        let leads = becomes(world, leader, "leading", LATER)?;
        let gap = probe.gap_since(event).length();
        eprintln!(
            "killed and restarted without the API: leads {:?} after its return, longest silence {:.1} ms",
            leads - resumed,
            milliseconds(gap)
        );
        assert_eq!(probe.lost_since(event), 0, "the API's return cost the client answers");
        Ok(())
    })
}

#[test]
#[ignore = "needs root and kernel WireGuard"]
fn a_leader_restarted_when_another_leads_takes_its_tunnel_down() -> Result<()> {
    play(spec(3, &[]), |world| {
        let (probe, leader) = steady(world)?;
        let event = world.sidecar(leader)?.sigkill()?;
        let takeover = Takeover::measure(world, 0, &probe, leader, event, LEASE + LATER)?;
        pass(now() + Duration::from_secs(3));
        let restarted = world.sidecar_mut(leader)?.start()?;
        until("the old tunnel's end", LATER, || {
            let traces = world.sidecar(leader)?.traces()?;
            Ok(traces.iter().all(|line| !line.contains("wg0")).then_some(()))
        })?;
        stands_by(world, leader)?;
        assert_eq!(world.leader(0)?, Some(takeover.to));
        assert_eq!(probe.lost_since(restarted), 0, "the return disturbed the client");
        Ok(())
    })
}
