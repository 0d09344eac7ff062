//! A hub drops a handshake that is not stamped later than the last it saw for the key, and all pods have one key. So pods
//! whose clocks differ could refuse each other's succession. Not in user space.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::api::{Kind, Resource};
use lab::clock::{now, until};
use lab::faults::Ours;
use lab::handshake::Initiation;
use lab::sidecar::NAMESPACE;
use lab::takeover::Takeover;
use lab::wireguard::Wireguard;
use lab::{World, play, play_unstarted};
use serde_json::Value;

use crate::{LATER, LEASE, SETTLE, SOON, stands_by, steady, strict};

crate::scenarios!(
    a_leader_whose_clock_is_set_forward_and_back_is_answered_and_followed_as_soon_as_any,
    a_successor_whose_clock_is_a_minute_behind_is_answered_as_soon_as_any,
    what_stamps_as_the_kernel_does_is_answered_right_after_a_pod_in_user_space,
);

/// So far is the clock of the leader that dies ahead of all others.
pub(crate) const AHEAD: Duration = Duration::from_secs(60);

fn lease(world: &World) -> Result<Value> {
    Ok(world.kube.get(Resource::Lease, NAMESPACE, &world.spec.tunnels[0].lease())?)
}

/// Leaves hub and Lease as a leader does that dies and whose clock was ahead.
pub(crate) fn leave_as_if_ahead(world: &World) -> Result<()> {
    let (tunnel, hub) = (&world.spec.tunnels[0], &world.hubs[0]);
    let shake = |time: Duration, within| {
        let hub = hub.public(hub.port).into();
        Initiation::stamped(tunnel, time)?.send(&world.topology.backends[0], hub, within)
    };
    let time = Duration::try_from(jiff::Timestamp::now().as_duration())?;
    ensure!(shake(time + AHEAD, SOON)?, "the hub did not answer a handshake that was later than all before it");
    ensure!(!shake(time + AHEAD - LEASE, SETTLE)?, "the hub answered a handshake that was older than the last");
    until("its last renewal", SOON, || {
        let mut lease = lease(world)?;
        let renewed: jiff::Timestamp = lease["spec"]["renewTime"].as_str().context("never renewed")?.parse()?;
        lease["spec"]["renewTime"] = format!("{:.6}", renewed + AHEAD).into();
        Ok(world.kube.replace(Resource::Lease, lease).ok())
    })?;
    Ok(())
}

fn a_leader_whose_clock_is_set_forward_and_back_is_answered_and_followed_as_soon_as_any(api: Kind) -> Result<()> {
    play_unstarted(strict(api).args(&["--backend=userspace"]), |world| {
        world.load_shims()?;
        world.start_sidecars()?;
        world.wait_serving(LATER)?;
        world.expect_shims()?;
        let (probe, first) = steady(world)?;
        let (sidecar, tunnel) = (world.sidecar(first)?, world.spec.tunnels[0].lease());
        let began = now();
        for seconds in [60, 0] {
            sidecar.shim()?.set_wall(seconds)?;
            until("a renewal by that clock", SOON, || {
                let lease = world.kube.get(Resource::Lease, NAMESPACE, &tunnel)?;
                let renewed: jiff::Timestamp = lease["spec"]["renewTime"].as_str().context("never renewed")?.parse()?;
                let off = renewed.duration_since(jiff::Timestamp::now()).as_secs() - seconds;
                Ok((off.abs() < 30).then_some(()))
            })?;
            // A new link shakes hands anew.
            Ours::Link.delete(&sidecar.netns)?;
            probe.steady_since(now(), 100, LATER)?;
        }
        let killed = sidecar.sigkill()?;
        let takeover = Takeover::measure(world, 0, &probe, first, killed, LEASE + LATER)?;
        eprintln!("killed after its clock was set forward and back: {takeover}");
        assert!(now() < began + AHEAD, "by now the clocks have caught up, and nothing was shown");
        Ok(())
    })
}

fn a_successor_whose_clock_is_a_minute_behind_is_answered_as_soon_as_any(api: Kind) -> Result<()> {
    let spec = strict(api).args(&["--backend=userspace"]);
    play(spec.stranger("a handshake of the dead leader's, with its stamp"), |world| {
        let (probe, first) = steady(world)?;
        let killed = world.sidecar(first)?.sigkill()?;
        leave_as_if_ahead(world)?;
        let takeover = Takeover::measure(world, 0, &probe, first, killed, LEASE + LATER)?;
        eprintln!("killed, a minute ahead: {takeover}");

        // Whoever follows that one is behind as well, and it says so.
        let noted = lease(world)?["metadata"]["annotations"][wirevip::election::STAMPED].clone();
        assert!(noted.is_string(), "not in the Lease: {:#}", lease(world)?);
        world.sidecar_mut(first)?.start()?;
        stands_by(world, first)?;
        let asked = world.sidecar(takeover.to)?.sigterm()?;
        let second = Takeover::measure(world, 0, &probe, takeover.to, asked, LATER)?;
        eprintln!("given back by one that was behind: {second}");

        let restarted = world.sidecar_mut(second.to)?.restart_in_place(Duration::from_millis(100))?;
        probe.steady_since(restarted, 100, LATER)?;
        assert!(now() < killed + AHEAD, "by now the clocks have caught up, and nothing was shown");
        Ok(())
    })
}

fn what_stamps_as_the_kernel_does_is_answered_right_after_a_pod_in_user_space(api: Kind) -> Result<()> {
    let spec = strict(api).nodes(1).args(&["--backend=userspace"]);
    play(spec.stranger("the other WireGuard"), |world| {
        steady(world)?;
        world.sidecar(1)?.stop(SOON)?;
        // wireguard-go, or the kernel's where it has one.
        let other = Wireguard::rival(&world.topology.backends[0], &world.spec.tunnels[0], world.processes())?;
        // The hub counts in whole seconds, and may have answered both within one.
        until("the hub's answer to the other", 2 * SOON, || Ok(other.shook_hands()?.then_some(())))
    })
}
