//! What is broken under a running sidecar is mended within the contract's times.

use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Context, Result};
use lab::api::Kind;
use lab::client::Proto;
use lab::clock::{now, until};
use lab::faults::outsider;
use lab::netns::Netns;
use lab::sidecar::Sidecar;
use lab::{play, play_unstarted};

use crate::{LATER, SOON, spec};

crate::scenarios!(
    what_an_outsider_deletes_comes_back,
    a_lost_link_comes_back,
    a_tunnel_that_cannot_be_raised_is_tried_again,
    a_link_of_the_tunnels_name_that_is_not_ours_is_left_alone,
);

/// The contract's 2 s, and as much again for a machine with other work.
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
        for deletion in deletions {
            pod.sh(&deletion)?;
            let deleted = now();
            until(&format!("what was lost by `{deletion}`"), BACK, || {
                let found = shape(leader)?;
                let missing: Vec<_> = whole.iter().filter(|line| !found.contains(line)).collect();
                anyhow::ensure!(missing.is_empty(), "still missing: {missing:#?}");
                Ok(Some(()))
            })?;
            eprintln!("`{deletion}`: all back after {:?}", deleted.elapsed());
            world.client.until(Proto::Tcp, world.web(), BACK, |answer| answer.name().is_some()).context(deletion)?;
        }
        for link in ["eth0", "wg0"] {
            pod.sysctl(&format!("net/ipv4/conf/{link}/forwarding"), "0")?;
            until(&format!("forwarding on {link}"), BACK, || Ok((forwarding(&pod, link)? == "1").then_some(())))?;
        }
        world.client.until(Proto::Tcp, world.web(), BACK, |answer| answer.name().is_some())?;
        Ok(())
    })
}

fn a_lost_link_comes_back(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        let leader = world.sidecar(world.wait_leader(0, None, SOON)?)?;
        leader.netns.sh("ip link del wg0")?;
        let deleted = now();
        world.client.until(Proto::Tcp, world.web(), LINK_BACK, |answer| answer.name().is_some())?;
        eprintln!("a deleted link: served again after {:?}", deleted.elapsed());
        assert_eq!(world.leader(0)?, Some(leader.node), "no reason to change the leader");
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
        until("more tries", BACK, || Ok((failures()? >= Some(before + 2.0)).then_some(())))?;
        until("the Event", LATER, || {
            Ok(world.events()?.contains(&format!("TunnelDown Pod/{}", sidecar.pod)).then_some(()))
        })?;
        assert!(world.ingress("web")?.is_empty(), "nothing serves (I7)");
        drop(taken);
        let free = now();
        // A pod that could not raise it may have stepped down for another: its Lease is free at once.
        world.wait_serving(LINK_BACK)?;
        eprintln!("a port that was taken: served {:?} after it is free", free.elapsed());
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
