//! The hub restarts, moves, or comes late: the contract's times.

use std::time::Duration;

use anyhow::Result;
use lab::api::Kind;
use lab::clock::{now, until};
use lab::probe::{Probe, ProbeKind};
use lab::{World, plan, play, play_unstarted};

use crate::{LATER, SOON, spec};

crate::scenarios!(
    a_restarted_hub_is_served_again,
    a_restarted_hub_is_served_again_though_nobody_asks,
    a_hub_whose_name_moves_is_followed,
    a_hub_that_comes_after_the_pods_is_served,
    pods_that_come_after_the_hub_serve,
    a_dead_hub_makes_no_ping_pong,
);

/// The contract's 7 s, and as much again for a machine with other work.
const HUB_BACK: Duration = Duration::from_secs(14);

/// Lets the leader's first probes be answered (one leaves every 2 s): only then the shorter of the two times counts.
fn hub_is_known_to_answer(world: &World) -> Result<()> {
    let start = now();
    until("two probes", 2 * SOON, || Ok((now() >= start + SOON).then_some(())))?;
    world.wait_serving(SOON)
}

fn a_restarted_hub_is_served_again(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        let probe = Probe::start(&world.topology.client, world.web(), ProbeKind::UdpFlow)?;
        probe.steady_since(now(), 100, SOON)?;
        hub_is_known_to_answer(world)?;
        let event = now();
        world.hubs[0].restart()?;
        let back = probe.answered_since(now(), HUB_BACK)?;
        eprintln!("hub restarted under load: answered again after {:?}", back - event);
        Ok(())
    })
}

fn a_restarted_hub_is_served_again_though_nobody_asks(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        hub_is_known_to_answer(world)?;
        let event = now();
        world.hubs[0].restart()?;
        until("a handshake with the new hub", HUB_BACK, || {
            Ok((world.hubs[0].peer()?.latest_handshake > 0).then_some(()))
        })?;
        eprintln!("hub restarted, idle: heard again after {:?}", event.elapsed());
        Ok(())
    })
}

fn a_hub_whose_name_moves_is_followed(api: Kind) -> Result<()> {
    let mut spec = spec(api);
    spec.tunnels[0].endpoint = format!("hub.example.com:{}", plan::HUB_PORT);
    play_unstarted(spec, |world| {
        world.dns.set("hub.example.com", world.hubs[0].address, 2);
        world.start_sidecars()?;
        world.wait_serving(LATER)?;
        let event = now();
        world.hubs[0].move_to(plan::hub(90))?;
        world.dns.set("hub.example.com", plan::hub(90), 2);
        let probe = Probe::start(&world.topology.client, world.web(), ProbeKind::UdpFresh)?;
        let back = probe.answered_since(event, Duration::from_secs(2) + HUB_BACK)?;
        eprintln!("the hub's name moved: answered again after {:?}", back - event);
        Ok(())
    })
}

fn a_hub_that_comes_after_the_pods_is_served(api: Kind) -> Result<()> {
    play_unstarted(spec(api), |world| {
        world.hubs[0].power_off()?;
        world.start_sidecars()?;
        world.wait_leader(0, None, LATER)?;
        for sidecar in &world.sidecars {
            sidecar.wait_ready(SOON)?;
        }
        until("the complaint", LATER, || {
            Ok(world.events()?.iter().any(|event| event.starts_with("NoHandshake")).then_some(()))
        })?;
        assert!(world.ingress("web")?.is_empty(), "no status before there is a handshake (I7)");
        world.hubs[0].power_on()?;
        world.wait_serving(HUB_BACK)
    })
}

fn pods_that_come_after_the_hub_serve(api: Kind) -> Result<()> {
    play_unstarted(spec(api), |world| {
        until("the hub", SOON, || Ok(world.hubs[0].peer().ok()))?;
        world.start_sidecars()?;
        world.wait_serving(LATER)
    })
}

fn a_dead_hub_makes_no_ping_pong(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        let before = world.lease(0)?.map_or(0, |lease| lease.transitions);
        world.hubs[0].power_off()?;
        let until_then = now() + Duration::from_secs(30);
        until("half a minute", 2 * Duration::from_secs(30), || Ok((now() >= until_then).then_some(())))?;
        let after = world.lease(0)?.map_or(0, |lease| lease.transitions);
        assert!(after - before <= 5, "{} changes of leader in 30 s with a dead hub", after - before);
        world.hubs[0].power_on()?;
        world.wait_serving(LATER)
    })
}
