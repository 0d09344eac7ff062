//! The Secret changes while tunnels serve.

use std::net::SocketAddrV4;

use anyhow::{Context, Result};
use lab::api::{Kind, Resource};
use lab::client::{Answer, Client, Proto};
use lab::clock::{now, until};
use lab::download::Download;
use lab::keys::KeyPair;
use lab::probe::{Probe, ProbeKind};
use lab::recorder::Message;
use lab::sidecar::NAMESPACE;
use lab::tunnels::TunnelSpec;
use lab::world::WEB;
use lab::{World, plan, play};

use crate::{LATER, SETTLE, SOON, spec};

crate::scenarios!(
    a_tunnel_that_is_added_serves_beside_the_others,
    a_deleted_or_broken_secret_keeps_the_last_good_settings_serving,
    a_changed_keepalive_keeps_link_and_flows,
    changed_allowed_ips_hold_at_once_and_keep_link_and_flows,
    a_hub_given_another_address_keeps_link_and_flows,
    a_key_that_the_hub_does_not_know_is_told_and_a_right_one_heals,
    no_key_is_ever_told,
);

fn a_tunnel_that_is_added_serves_beside_the_others(api: Kind) -> Result<()> {
    let both = spec(api).tunnels(2);
    lab::play_unstarted(both.without_secret(), |world| {
        world.put_secret(&world.spec.tunnels[..1])?;
        world.start_sidecars()?;
        world.wait_serving_first(LATER)?;
        let probe = Probe::start(&world.topology.client, world.web(), ProbeKind::UdpFlow)?;
        probe.steady_since(now(), 100, SOON)?;
        let event = now();
        world.put_secret(&world.spec.tunnels)?;
        world.wait_serving(LATER)?;
        world.put_secret(&world.spec.tunnels[..1])?;
        until("the Lease of the second given back", LATER, || Ok(world.lease(1)?.filter(|l| l.holder.is_empty())))?;
        assert_eq!(probe.lost_since(event), 0, "the first tunnel lost packets");
        Ok(())
    })
}

fn a_deleted_or_broken_secret_keeps_the_last_good_settings_serving(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        let probe = Probe::start(&world.topology.client, world.web(), ProbeKind::UdpFlow)?;
        probe.steady_since(now(), 100, SOON)?;
        let leader = world.sidecar(world.wait_leader(0, None, SOON)?)?;
        let event = now();
        world.kube.delete(Resource::Secret, NAMESPACE, "wireguard")?;
        probe.steady_since(now(), 200, SOON)?;
        for broken in ["", "wg0:\n", "- a list\n", "wg0: {vip: 10.77.0.2\n", "\t\u{0}\u{1}"] {
            world.put_document(broken)?;
            let valid = || leader.metric("wirevip_config_valid", r#"{tunnel="wg0"}"#);
            until("the fault to be told", SOON, || Ok((valid()? == Some(0.0)).then_some(())))?;
            world.put_secret(&world.spec.tunnels)?;
            until("all to be well again", SOON, || Ok((valid()? == Some(1.0)).then_some(())))?;
        }
        probe.steady_since(now(), 100, SOON)?;
        assert_eq!(probe.lost_since(event), 0, "packets were lost");
        Ok(())
    })
}

/// The interface's index in the leader's pod: another one after a link was made anew (`7: wg0: <…>`).
fn link(world: &World, leader: u8) -> Result<String> {
    let text = world.sidecar(leader)?.netns.sh("ip -o link show wg0")?;
    text.split(':').next().map(str::to_owned).context("no link")
}

/// Writes the Secret, and waits until this pod has taken it.
fn change(world: &World, leader: u8, tunnels: &[TunnelSpec]) -> Result<()> {
    let taken = || world.sidecar(leader)?.metric("wirevip_config_last_change_timestamp_seconds", "");
    let before = until("the metric", SOON, || Ok(Some(taken()?)))?;
    world.put_secret(tunnels)?;
    until("the change to be taken", SOON, || Ok((taken()? != before).then_some(())))
}

fn a_changed_keepalive_keeps_link_and_flows(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        let probe = Probe::start(&world.topology.client, world.web(), ProbeKind::TcpLong)?;
        probe.steady_since(now(), 100, SOON)?;
        let leader = world.wait_leader(0, None, SOON)?;
        let (event, before) = (now(), link(world, leader)?);
        change(world, leader, &[world.spec.tunnels[0].clone().with("persistentKeepalive: 1")])?;
        probe.steady_since(now(), 200, SOON)?;
        assert_eq!((probe.lost_since(event), link(world, leader)?), (0, before));
        Ok(())
    })
}

fn changed_allowed_ips_hold_at_once_and_keep_link_and_flows(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        let leader = world.wait_leader(0, None, SOON)?;
        let before = link(world, leader)?;
        let probe = Probe::start(&world.topology.client, world.web(), ProbeKind::TcpLong)?;
        probe.steady_since(now(), 100, SOON)?;
        let download = Download::start(&world.client.patient(SOON), world.web())?;
        let hub = Client::new(&world.hubs[0].netns).patient(SETTLE);
        let vip = SocketAddrV4::new(world.hubs[0].vip, WEB);
        let answer = hub.answer(Proto::Udp, vip, SOON)?;
        assert!(answer.name().is_some(), "the hub itself may ask, at first, and gets {answer:?}");
        let event = now();
        let mut tunnel = world.spec.tunnels[0].clone();
        // The client's network alone; then all but in other words.
        tunnel.allowed_ips = "198.51.100.0/24".into();
        change(world, leader, &[tunnel.clone()])?;
        hub.until(Proto::Udp, vip, SOON, |answer| *answer == Answer::Silence)?;
        download.goes_on(1_000_000, SOON)?;
        tunnel.allowed_ips = "0.0.0.0/1, 128.0.0.0/1".into();
        change(world, leader, &[tunnel.clone()])?;
        hub.until(Proto::Udp, vip, SOON, |answer| answer.name().is_some())?;
        download.goes_on(1_000_000, SOON)?;
        probe.steady_since(now(), 200, SOON)?;
        assert_eq!((probe.lost_since(event), link(world, leader)?), (0, before));
        download.finish()?;
        // A client outside them gets nothing.
        tunnel.allowed_ips = "203.0.113.0/24".into();
        change(world, leader, &[tunnel])?;
        let client = world.client.patient(SETTLE);
        client.until(Proto::Udp, world.web(), SOON, |answer| *answer == Answer::Silence)?;
        Ok(())
    })
}

fn a_hub_given_another_address_keeps_link_and_flows(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        let leader = world.wait_leader(0, None, SOON)?;
        let before = link(world, leader)?;
        let probe = Probe::start(&world.topology.client, world.web(), ProbeKind::TcpLong)?;
        probe.steady_since(now(), 100, SOON)?;
        let download = Download::start(&world.client.patient(SOON), world.web())?;
        let other = plan::hub(90);
        world.hubs[0].netns.sh(&format!("ip addr add {other}/25 dev eth0"))?;
        let mut tunnel = world.spec.tunnels[0].clone();
        tunnel.endpoint = format!("{other}:{}", plan::HUB_PORT);
        let event = now();
        change(world, leader, &[tunnel])?;
        until("the pod to speak to the new address", SOON, || {
            let heard = world.hubs[0].heard();
            Ok(heard.iter().any(|h| h.at > event && *h.to.ip() == other && h.kind == Message::Data).then_some(()))
        })?;
        let moved = now();
        download.goes_on(1_000_000, SOON)?;
        probe.steady_since(moved, 200, SOON)?;
        eprintln!("the hub's address changed: {} probes lost", probe.lost_since(event));
        assert_eq!(link(world, leader)?, before);
        download.finish()?;
        Ok(())
    })
}

fn a_key_that_the_hub_does_not_know_is_told_and_a_right_one_heals(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        let mut wrong = world.spec.tunnels[0].clone();
        wrong.private_key = KeyPair::generate().private;
        world.put_secret(&[wrong])?;
        until("the Event", 2 * LATER, || {
            Ok(world.events()?.iter().any(|event| event.starts_with("NoHandshake")).then_some(()))
        })?;
        world.put_secret(&world.spec.tunnels)?;
        world.wait_serving(LATER)
    })
}

fn no_key_is_ever_told(api: Kind) -> Result<()> {
    play(spec(api).args(&["--log-level", "trace"]), |world| {
        let tunnel = world.spec.tunnels[0].clone();
        let mut broken = tunnel.clone();
        broken.private_key.truncate(30);
        world.put_secret(&[broken])?;
        let leader = world.wait_leader(0, None, SOON)?;
        until("the fault to be told", SOON, || {
            Ok((world.sidecar(leader)?.metric("wirevip_config_valid", r#"{tunnel="wg0"}"#)? == Some(0.0)).then_some(()))
        })?;
        let mut told = world.logs();
        for sidecar in &world.sidecars {
            for path in ["/status", "/metrics", "/readyz"] {
                told += &sidecar.http_get(path)?.1;
            }
        }
        for event in world.kube.list(Resource::Event, "")? {
            told += &event.to_string();
        }
        for secret in [&tunnel.private_key, &tunnel.peer_public_key] {
            assert!(!told.contains(&secret[..20]), "key material was told");
        }
        Ok(())
    })
}
