//! What is broken under a running sidecar is mended within the contract's times.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lab::api::Kind;
use lab::clock::{now, until};
use lab::faults::outsider;
use lab::netns::Netns;
use lab::probe::{Probe, ProbeKind};
use lab::sidecar::Sidecar;
use lab::{play, play_unstarted};

use crate::{LATER, LEASE, SOON, spec, steady};

crate::scenarios!(
    what_an_outsider_deletes_comes_back,
    a_lost_link_comes_back,
    a_tunnel_that_cannot_be_raised_is_tried_again,
    a_link_of_the_tunnels_name_that_is_not_ours_is_left_alone,
    a_kernel_that_is_slow_with_links_costs_a_leader_no_renewal,
);

/// The contract's 2 s, and as much again for a machine with other work, beside what it stands still.
const BACK: Duration = Duration::from_secs(4);
/// The contract's 5 s, and as much again.
const LINK_BACK: Duration = Duration::from_secs(10);

/// What is in the pod's network but for numbers that a new link or table has anew, and for flows that come and go.
fn shape(sidecar: &Sidecar) -> Result<Vec<String>> {
    // Neither the kernel's own address for IPv6 is ours, nor what the fence's sets (they are no maps) hold for a while.
    let passing = |line: &str| line.starts_with("flow: ") || line.contains("fe80:") || line.starts_with("nft: 0x");
    let learned = |line: &str| line.starts_with("nft: elements") && !line.contains(" : ");
    let traces = sidecar.traces()?.into_iter().filter(|line| !passing(line) && !learned(line)).map(|line| {
        // `link: 7: wg0: <…`: the index.
        match line.split_once(": ") {
            Some((kind @ ("link" | "address"), rest)) => {
                format!("{kind} {}", rest.split_once(": ").map_or(rest, |(_, rest)| rest))
            }
            _ => line,
        }
    });
    let mut shape: Vec<String> = traces.collect();
    shape.sort_unstable();
    Ok(shape)
}

/// Waits until it holds, and insists that it did in time: it counts when it was last looked at in vain, for a look may
/// take long itself, and not what the machine stood still.
fn is_back(what: &str, probe: &Probe, holds: impl Fn() -> Result<bool>) -> Result<()> {
    let lost = now();
    let mut missing = lost;
    until(what, LATER, || {
        let looked = now();
        let found = holds();
        if !matches!(found, Ok(true)) {
            missing = looked;
        }
        Ok(found?.then_some(()))
    })?;
    let took = (missing - lost).saturating_sub(probe.asleep(lost, missing));
    eprintln!("{what}: back after {:?}, last missing after {took:?}", lost.elapsed());
    anyhow::ensure!(took < BACK, "{what}: still missing after {took:?}");
    Ok(())
}

fn forwarding(pod: &Netns, link: &str) -> Result<String> {
    pod.run(|| Ok(std::fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{link}/forwarding"))?.trim().to_owned()))
}

fn what_an_outsider_deletes_comes_back(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        let leader = world.sidecar(world.wait_leader(0, None, SOON)?)?;
        let pod = leader.netns.clone();
        let whole = shape(leader)?;
        let mut deletions: Vec<String> = [
            "nft delete table inet wirevip_wg0",
            "nft delete table inet wirevip_wg0_fence",
            "nft flush table inet wirevip_wg0",
            "nft flush table inet wirevip_wg0_fence",
            "ip link set wg0 down",
            "ip -4 addr flush dev wg0",
        ]
        .map(str::to_owned)
        .into();
        for (priority, table) in outsider::rules(&pod)? {
            deletions.extend([format!("ip rule del priority {priority}"), format!("ip route flush table {table}")]);
        }
        assert!(deletions.len() > 8, "no rules of ours: {deletions:?}");
        let probe = Probe::start(&world.topology.client, world.web(), ProbeKind::UdpFresh)?;
        // A client has its answers back as soon as the rest is.
        let served = |what: &str, since: Instant| {
            probe.answered_since(now(), LATER).with_context(|| what.to_owned())?;
            let silent = probe.silence_since(since);
            anyhow::ensure!(silent < BACK, "{what}: the client was silent for {silent:?}");
            Ok(())
        };
        for deletion in deletions {
            let deleted = now();
            pod.sh(&deletion)?;
            is_back(&format!("what was lost by `{deletion}`"), &probe, || {
                let found = shape(leader)?;
                let missing: Vec<_> = whole.iter().filter(|line| !found.contains(line)).collect();
                anyhow::ensure!(missing.is_empty(), "still missing: {missing:#?}");
                Ok(true)
            })?;
            served(&deletion, deleted)?;
        }
        let changed = now();
        for link in ["eth0", "wg0"] {
            pod.sysctl(&format!("net/ipv4/conf/{link}/forwarding"), "0")?;
            is_back(&format!("forwarding on {link}"), &probe, || Ok(forwarding(&pod, link)? == "1"))?;
        }
        served("forwarding", changed)
    })
}

fn a_lost_link_comes_back(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        let leader = world.sidecar(world.wait_leader(0, None, SOON)?)?;
        let probe = Probe::start(&world.topology.client, world.web(), ProbeKind::UdpFresh)?;
        probe.steady_since(now(), 100, SOON)?;
        let received = || leader.metric("wirevip_receive_bytes_total", r#"{tunnel="wg0"}"#);
        let before = received()?.context("no bytes counted")?;
        let deleted = now();
        leader.netns.sh("ip link del wg0")?;
        let gone = now();
        probe.answered_since(gone, LATER)?;
        let silent = probe.silence_since(deleted);
        eprintln!("a deleted link: served again after {:?}, silent for {silent:?}", deleted.elapsed());
        assert!(silent < LINK_BACK, "served again only after {silent:?}");
        assert_eq!(world.leader(0)?, Some(leader.node), "no reason to change the leader");
        assert!(received()? >= Some(before), "what the lost link had carried is not counted any more");
        Ok(())
    })
}

fn a_tunnel_that_cannot_be_raised_is_tried_again(api: Kind) -> Result<()> {
    play_unstarted(spec(api), |world| {
        // Another program has the port, in every pod.
        let taken = world.sidecars.iter().map(|s| s.netns.run(|| Ok(UdpSocket::bind("[::]:51820")?)));
        let taken: Vec<UdpSocket> = taken.collect::<Result<_>>()?;
        world.start_sidecars()?;
        let unlucky = world.wait_leader(0, None, LATER)?;
        let sidecar = world.sidecar(unlucky)?;
        until("the reason in its status", LATER, || {
            let status = sidecar.status()?;
            Ok(status["tunnels"][0]["faults"].to_string().contains("51820").then_some(()))
        })?;
        let failures = || sidecar.metric("wirevip_errors_total", r#"{stage="tunnel"}"#);
        let before = failures()?.context("no failure counted")?;
        // By itself, before it would let another pod try.
        until("more tries", SOON, || Ok((failures()? >= Some(before + 2.0)).then_some(())))?;
        until("the Event", LATER, || {
            Ok(world.events()?.contains(&format!("TunnelDown Pod/{}", sidecar.pod)).then_some(()))
        })?;
        assert!(world.ingress("web")?.is_empty(), "nothing serves (I7)");
        let probe = Probe::start(&world.topology.client, world.web(), ProbeKind::UdpFresh)?;
        drop(taken);
        let free = now();
        // A pod that could not raise it may have stepped down for another: its Lease is free at once.
        let served = probe.answered_since(free, 2 * LATER)?;
        let took = (served - free).saturating_sub(probe.asleep(free, served));
        eprintln!("a port that was taken: served {took:?} after it is free");
        assert!(took < LINK_BACK, "served only {took:?} after the port is free");
        Ok(())
    })
}

fn a_link_of_the_tunnels_name_that_is_not_ours_is_left_alone(api: Kind) -> Result<()> {
    play_unstarted(spec(api).nodes(1), |world| {
        let pod = world.sidecar(1)?.netns.clone();
        pod.sh("ip link add wg0 type bridge")?;
        world.start_sidecars()?;
        let sidecar = world.sidecar(1)?;
        until("the reason in its status", LATER, || {
            Ok(sidecar.status()?["tunnels"][0]["faults"].to_string().contains("wg0").then_some(()))
        })?;
        assert!(pod.sh("ip -d link show wg0")?.contains("bridge"), "it took a link that is not its own");
        pod.sh("ip link del wg0")?;
        world.wait_serving(LINK_BACK + LATER)?;
        sidecar.stop(SOON)?;
        pod.sh("ip link add wg0 type bridge")?;
        world.sidecar_mut(1)?.start()?;
        world.sidecar(1)?.wait_ready(LATER)?;
        assert!(pod.sh("ip -d link show wg0")?.contains("bridge"), "the clean-up at start took it");
        Ok(())
    })
}

/// All network namespaces of a node share the lock that its kernel changes links under, and somebody else may hold it.
fn a_kernel_that_is_slow_with_links_costs_a_leader_no_renewal(api: Kind) -> Result<()> {
    play_unstarted(spec(api), |world| {
        world.load_shims()?;
        world.start_sidecars()?;
        world.wait_serving(LATER)?;
        world.expect_shims()?;
        let (probe, leader) = steady(world)?;
        let transitions = || Ok::<_, anyhow::Error>(world.lease(0)?.context("no Lease")?.transitions);
        let (sidecar, before, slow) = (world.sidecar(leader)?, transitions()?, now());
        sidecar.shim()?.slow(Duration::from_secs(3))?;
        until("two leases", 3 * LEASE, || Ok((now() >= slow + 2 * LEASE).then_some(())))?;
        assert_eq!((world.leader(0)?, transitions()?), (Some(leader), before));
        assert_eq!(probe.lost_since(slow), 0, "answers were lost");
        assert!(!sidecar.log().contains("the tenure is over"), "{}", sidecar.log());
        sidecar.sigterm()?;
        sidecar.wait_exit(Duration::from_secs(3))?;
        Ok(())
    })
}
