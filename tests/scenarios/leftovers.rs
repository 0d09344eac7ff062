//! Whatever ends a sidecar, nothing of it is left in its pod's network (I3), and the Lease is given back only when it
//! is silent (I2).

use std::time::Duration;

use anyhow::{Context, Result};
use lab::api::{Kind, Resource};
use lab::client::Proto;
use lab::clock::{now, until};
use lab::sidecar::{NAMESPACE, Sidecar};
use lab::{World, WorldSpec, objects, play, play_unstarted};

use crate::{LATER, LEASE, SOON, expect_silence, spec, strict};

crate::scenarios!(
    a_standby_that_stops_leaves_nothing,
    a_leader_that_stops_leaves_nothing_and_gives_the_lease_back_when_silent,
    a_rising_leader_that_stops_leaves_nothing,
    a_leader_that_stops_as_it_loses_its_lease_leaves_nothing,
    a_leader_that_stops_while_the_api_is_away_leaves_nothing,
    a_falling_leader_that_is_told_twice_leaves_nothing_for_long,
    a_killed_leader_cleans_up_at_its_next_start_without_the_api,
    a_removed_tunnel_leaves_nothing,
    the_pods_own_network_stays_as_it_was_while_a_tunnel_is_up,
);

/// Nothing in the pod's network but what was there before.
pub fn expect_clean(sidecar: &Sidecar, before: &[String], within: Duration) -> Result<()> {
    until("a clean pod network", within, || {
        let now = sidecar.traces()?;
        let new: Vec<_> = now.iter().filter(|line| !before.contains(line)).collect();
        let gone: Vec<_> = before.iter().filter(|line| !now.contains(line)).collect();
        anyhow::ensure!(new.is_empty() && gone.is_empty(), "left over: {new:#?}; missing: {gone:#?}");
        Ok(Some(()))
    })
    .with_context(|| sidecar.log())
}

/// A leader has one of each: else a test that finds nothing afterwards would prove nothing.
fn expect_all_of_it(sidecar: &Sidecar, before: &[String]) -> Result<()> {
    let new: Vec<_> = sidecar.traces()?.into_iter().filter(|line| !before.contains(line)).collect();
    for kind in ["link: ", "address: ", "rule: ", "route: ", "nft: ", "flow: "] {
        assert!(new.iter().any(|line| line.starts_with(kind)), "a leader without a {kind}{new:#?}");
    }
    Ok(())
}

/// A world whose pods' networks were looked at before anything ran in them.
fn world_with_record(spec: WorldSpec, scenario: impl FnOnce(&mut World, &[Vec<String>]) -> Result<()>) -> Result<()> {
    play_unstarted(spec, |world| {
        let before: Vec<Vec<String>> = world.sidecars.iter().map(Sidecar::traces).collect::<Result<_>>()?;
        scenario(world, &before)
    })
}

fn up(world: &mut World) -> Result<u8> {
    world.start_sidecars()?;
    // One that is asked to stop before it runs at all ends by the signal, which is not what is tested here.
    for sidecar in &world.sidecars {
        sidecar.wait_ready(LATER)?;
    }
    world.wait_serving(LATER)?;
    world.wait_leader(0, None, SOON)
}

fn at(node: u8) -> usize {
    usize::from(node) - 1
}

fn a_standby_that_stops_leaves_nothing(api: Kind) -> Result<()> {
    world_with_record(spec(api), |world, before| {
        let standby = up(world)? % 3 + 1;
        world.sidecar(standby)?.stop(SOON)?;
        expect_clean(world.sidecar(standby)?, &before[at(standby)], Duration::ZERO)
    })
}

fn a_leader_that_stops_leaves_nothing_and_gives_the_lease_back_when_silent(api: Kind) -> Result<()> {
    world_with_record(strict(api), |world, before| {
        let leader = up(world)?;
        let others: Vec<u8> = [1, 2, 3].into_iter().filter(|node| *node != leader).collect();
        for node in &others {
            world.sidecar(*node)?.stop(SOON)?;
        }
        expect_all_of_it(world.sidecar(leader)?, &before[at(leader)])?;
        let event = world.sidecar(leader)?.sigterm()?;
        assert!(world.sidecar(leader)?.wait_exit(Duration::from_secs(3))?.success());
        expect_clean(world.sidecar(leader)?, &before[at(leader)], Duration::ZERO)?;
        let log = world.sidecar(leader)?.log();
        assert!(!log.contains("ERROR"), "nothing is wrong with an orderly end: {log}");
        assert_eq!(world.lease(0)?.context("no Lease")?.holder, "", "the Lease was not given back");
        // The last one: the first may be a renewal that was under way.
        let pod = &world.sidecar(leader)?.pod;
        let written = world.lease_writes(0)?.into_iter().rfind(|(at, user)| *at >= event && user == pod);
        let (released, _) = written.context("no release in the API server's log")?;
        expect_silence(world, 0, leader, released)
    })
}

fn a_rising_leader_that_stops_leaves_nothing(api: Kind) -> Result<()> {
    world_with_record(spec(api), |world, before| {
        world.hubs[0].silence(true)?;
        world.start_sidecars()?;
        let rising = world.wait_leader(0, None, LATER)?;
        until("it to rise", SOON, || {
            let sidecar = world.sidecar(rising)?;
            let linked = sidecar.traces()?.iter().any(|line| line.contains("wg0"));
            Ok((linked && sidecar.status()?["tunnels"][0]["state"] == "rising").then_some(()))
        })?;
        world.sidecar(rising)?.stop(SOON)?;
        expect_clean(world.sidecar(rising)?, &before[at(rising)], Duration::ZERO)
    })
}

fn a_leader_that_stops_as_it_loses_its_lease_leaves_nothing(api: Kind) -> Result<()> {
    world_with_record(spec(api), |world, before| {
        let leader = up(world)?;
        until("the Lease overwritten", SOON, || {
            let mut lease = world.kube.get(Resource::Lease, NAMESPACE, &world.spec.tunnels[0].lease())?;
            lease["spec"]["holderIdentity"] = "somebody-else".into();
            Ok(world.kube.replace(Resource::Lease, lease).ok())
        })?;
        // It falls for some milliseconds: the signal finds it on its way down.
        world.sidecar(leader)?.stop(SOON)?;
        expect_clean(world.sidecar(leader)?, &before[at(leader)], Duration::ZERO)?;
        assert_eq!(world.lease(0)?.context("no Lease")?.holder, "somebody-else", "not ours to give back");
        Ok(())
    })
}

fn a_leader_that_stops_while_the_api_is_away_leaves_nothing(api: Kind) -> Result<()> {
    world_with_record(spec(api), |world, before| {
        let leader = up(world)?;
        world.api.stop()?;
        let event = world.sidecar(leader)?.sigterm()?;
        // The Lease cannot be given back: it runs out. Nothing else may be left for that, nor may the end take longer.
        let status = world.sidecar(leader)?.wait_exit(SOON)?;
        assert!(status.success(), "{status}");
        expect_clean(world.sidecar(leader)?, &before[at(leader)], Duration::ZERO)?;
        eprintln!("stopped without the API after {:?}", event.elapsed());
        world.api.resume()?;
        world.wait_leader(0, Some(leader), LEASE + LATER)?;
        world.wait_serving(LATER)
    })
}

fn a_falling_leader_that_is_told_twice_leaves_nothing_for_long(api: Kind) -> Result<()> {
    world_with_record(spec(api), |world, before| {
        let leader = up(world)?;
        let sidecar = world.sidecar(leader)?;
        let event = sidecar.sigterm()?;
        sidecar.sigterm()?;
        sidecar.wait_exit(Duration::from_secs(3))?;
        // "At once" may leave things behind; they are silent, and the next start clears them.
        world.wait_leader(0, Some(leader), LEASE + LATER)?;
        expect_silence(world, 0, leader, event + LEASE)?;
        world.sidecar_mut(leader)?.start()?;
        world.sidecar(leader)?.wait_ready(SOON)?;
        expect_clean(world.sidecar(leader)?, &before[at(leader)], SOON)
    })
}

fn a_killed_leader_cleans_up_at_its_next_start_without_the_api(api: Kind) -> Result<()> {
    world_with_record(spec(api), |world, before| {
        let leader = up(world)?;
        let event = world.sidecar(leader)?.sigkill()?;
        let left = world.sidecar(leader)?.traces()?;
        assert_ne!(left, before[at(leader)], "a killed process cannot clean up: this test would prove nothing");
        world.api.stop()?;
        world.sidecar_mut(leader)?.start()?;
        expect_clean(world.sidecar(leader)?, &before[at(leader)], SOON)?;
        let cleaned = now();
        expect_silence(world, 0, leader, cleaned)?;
        world.api.resume()?;
        world.wait_serving(LEASE + LATER)?;
        eprintln!("killed, API away, cleaned up after {:?}", cleaned - event);
        Ok(())
    })
}

fn a_removed_tunnel_leaves_nothing(api: Kind) -> Result<()> {
    play_unstarted(spec(api).tunnels(2), |world| {
        let before: Vec<Vec<String>> = world.sidecars.iter().map(Sidecar::traces).collect::<Result<_>>()?;
        up(world)?;
        let leader = world.wait_leader(1, None, SOON)?;
        let vips: Vec<_> = world.spec.tunnels.iter().map(|tunnel| tunnel.vip).collect();
        let service = objects::service_on("both", &vips, &[objects::port(Proto::Tcp, 81, 8080)]);
        world.kube.apply(Resource::Service, service.clone())?;
        world.endpoints(&service, &world.all_ready())?;
        until("both VIPs in the status", LATER, || Ok((world.ingress("both")?.len() == 2).then_some(())))?;
        world.put_secret(&world.spec.tunnels[..1])?;
        until("the Lease given back", LATER, || Ok(world.lease(1)?.filter(|lease| lease.holder.is_empty())))?;
        let left = world.ingress("both")?;
        assert!(left.len() == 1 && left[0]["ip"] == vips[0].to_string(), "{left:?}: the Lease goes after the address");
        if world.leader(0)? == Some(leader) {
            let traces = world.sidecar(leader)?.traces()?;
            assert!(!traces.iter().any(|line| line.contains("wg1")), "{traces:#?}");
        } else {
            expect_clean(world.sidecar(leader)?, &before[at(leader)], SOON)?;
        }
        world.wait_serving_first(SOON)
    })
}

fn the_pods_own_network_stays_as_it_was_while_a_tunnel_is_up(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        let leader = world.wait_leader(0, None, SOON)?;
        let pod = &world.sidecar(leader)?.netns;
        assert_eq!(pod.run(|| Ok(std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward")?))?.trim(), "0");
        let default = pod.sh("ip route show table main default")?;
        assert!(default.contains("dev eth0") && default.lines().count() == 1, "{default}");
        assert!(!pod.sh("ip route show table main")?.contains("wg0"), "the main table is never touched");
        Ok(())
    })
}
