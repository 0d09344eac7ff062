//! Several tunnels: each serves by itself, and what befalls one costs the others nothing (I5).

use std::time::Duration;

use anyhow::Result;
use lab::api::faults::{Fault, Target};
use lab::api::{Kind, Resource};
use lab::client::Proto;
use lab::clock::{now, until};
use lab::objects;
use lab::probe::{Probe, ProbeKind};
use lab::sidecar::NAMESPACE;
use lab::{World, plan, play};
use serde_json::Value;

use crate::{LATER, SETTLE, SOON, spec};

crate::scenarios!(
    two_tunnels_serve_one_service_and_answers_return_as_they_came,
    a_broken_key_costs_the_other_tunnel_no_packet,
    the_death_of_one_tunnels_leader_leaves_the_others_status_alone,
    a_tunnel_that_is_removed_takes_its_status_along_before_its_lease,
    two_tunnels_in_one_pod_swap_their_ports_in_one_document,
);

/// Service `default/both` on the VIPs of both tunnels.
pub(crate) fn serve_both(world: &World) -> Result<()> {
    let vips: Vec<_> = world.spec.tunnels.iter().map(|tunnel| tunnel.vip).collect();
    let ports = [objects::port(Proto::Tcp, 9000, 8080), objects::port(Proto::Udp, 9000, 8080)];
    let service = objects::service_on("both", &vips, &ports);
    world.kube.apply(Resource::Service, service.clone())?;
    world.endpoints(&service, &world.all_ready())?;
    for hub in &world.hubs {
        world.client.until(Proto::Tcp, hub.public(9000), SOON, |a| a.name().is_some())?;
    }
    Ok(())
}

/// The VIPs in a Service's status, sorted.
fn vips_of(ingress: &[Value]) -> Vec<String> {
    let mut vips: Vec<String> = ingress.iter().map(|i| i["ip"].as_str().unwrap_or_default().to_owned()).collect();
    vips.sort_unstable();
    vips
}

fn expect_status(world: &World, vips: &[&str]) -> Result<()> {
    until(&format!("{vips:?} in the Service's status"), SOON, || {
        let found = vips_of(&world.ingress("both")?);
        anyhow::ensure!(found == vips, "it says {found:?}");
        Ok(Some(()))
    })
}

fn two_tunnels_serve_one_service_and_answers_return_as_they_came(api: Kind) -> Result<()> {
    play(spec(api).tunnels(2), |world| {
        serve_both(world)?;
        expect_status(world, &["10.77.0.2", "10.77.1.2"])?;
        for (index, hub) in world.hubs.iter().enumerate() {
            for proto in [Proto::Tcp, Proto::Udp] {
                let other = &world.hubs[1 - index];
                let before = (hub.peer()?.received, other.peer()?.received);
                let seen = world.client.spread(proto, hub.public(9000), 300)?;
                assert_eq!(seen.keys().map(String::as_str).collect::<Vec<_>>(), ["b0", "b1", "b2"], "{seen:?}");
                let after = (hub.peer()?.received, other.peer()?.received);
                assert!(after.0 - before.0 > 10_000, "answers came through hub {index}");
                assert!(after.1 - before.1 < 2_000, "none through the other");
            }
        }
        Ok(())
    })
}

fn a_broken_key_costs_the_other_tunnel_no_packet(api: Kind) -> Result<()> {
    play(spec(api).tunnels(2), |world| {
        serve_both(world)?;
        let sound = Probe::start(&world.topology.client, world.hubs[0].public(9000), ProbeKind::UdpFlow)?;
        let faulty = Probe::start(&world.topology.client, world.hubs[1].public(9000), ProbeKind::UdpFlow)?;
        for probe in [&sound, &faulty] {
            probe.steady_since(now(), 100, SOON)?;
        }
        let event = now();
        let mut tunnels = world.spec.tunnels.clone();
        tunnels[1].private_key = "not base64!".into();
        tunnels[0] = tunnels[0].clone().with("persistentKeepalive: 7");
        world.put_secret(&tunnels)?;
        let leader = world.wait_leader(1, None, SOON)?;
        let valid = |node| world.sidecar(node)?.metric("wirevip_config_valid", r#"{tunnel="wg1"}"#);
        until("the fault to be told", SOON, || Ok((valid(leader)? == Some(0.0)).then_some(())))?;
        until("the Event", SOON, || {
            Ok(world.events()?.iter().any(|event| event.starts_with("InvalidConfiguration")).then_some(()))
        })?;
        // The good settings of the faulty one serve on, too.
        for probe in [&sound, &faulty] {
            probe.steady_since(now(), 200, SOON)?;
            assert_eq!(probe.lost_since(event), 0, "packets were lost");
        }
        let logs = world.logs();
        assert!(!logs.contains("not base64!"), "key material was logged");
        for name in ["wg0", "wg1"] {
            let tells = |line: &str| line.contains(&format!("tunnel={name}")) && line.contains(": leading");
            assert!(logs.lines().any(tells), "no line says who leads {name}:\n{logs}");
        }
        world.put_secret(&world.spec.tunnels)?;
        until("all to be well again", SOON, || Ok((valid(leader)? == Some(1.0)).then_some(())))?;
        assert_eq!(sound.lost_since(event), 0);
        Ok(())
    })
}

fn the_death_of_one_tunnels_leader_leaves_the_others_status_alone(api: Kind) -> Result<()> {
    play(spec(api).tunnels(2).nodes(2), |world| {
        serve_both(world)?;
        expect_status(world, &["10.77.0.2", "10.77.1.2"])?;
        // Each tunnel on a pod of its own: by hand, if one pod has both.
        let first = world.wait_leader(0, None, SOON)?;
        if world.wait_leader(1, None, SOON)? == first {
            let other = world.sidecar(3 - first)?.identity();
            until("the second Lease handed to the other pod", SOON, || {
                let mut lease = world.kube.get(Resource::Lease, NAMESPACE, &world.spec.tunnels[1].lease())?;
                lease["spec"]["holderIdentity"] = other.clone().into();
                Ok(world.kube.replace(Resource::Lease, lease).ok())
            })?;
        }
        world.wait_serving(LATER)?;
        expect_status(world, &["10.77.0.2", "10.77.1.2"])?;
        let probe = Probe::start(&world.topology.client, world.hubs[0].public(9000), ProbeKind::UdpFlow)?;
        probe.steady_since(now(), 100, SOON)?;
        let event = now();
        let dying = world.wait_leader(1, Some(first), SOON)?;
        world.sidecar(dying)?.sigkill()?;
        let heir = world.wait_leader(1, Some(dying), LATER)?;
        assert_ne!(heir, dying);
        world.client.until(Proto::Tcp, world.hubs[1].public(9000), LATER, |a| a.name().is_some())?;
        assert_eq!(probe.lost_since(event), 0, "the other tunnel lost packets");
        expect_status(world, &["10.77.0.2", "10.77.1.2"])
    })
}

fn a_tunnel_that_is_removed_takes_its_status_along_before_its_lease(api: Kind) -> Result<()> {
    play(spec(api).tunnels(2), |world| {
        serve_both(world)?;
        expect_status(world, &["10.77.0.2", "10.77.1.2"])?;
        let probe = Probe::start(&world.topology.client, world.hubs[0].public(9000), ProbeKind::UdpFlow)?;
        probe.steady_since(now(), 100, SOON)?;
        if let Ok(faults) = world.api.faults() {
            // Slower than a tunnel goes down: a pod that did not wait would be caught.
            let slow = Fault::Delay(Duration::from_millis(700));
            faults.add(Target::any().verb("patch").resource("services/status"), slow);
        }
        let event = now();
        world.put_secret(&world.spec.tunnels[..1])?;
        until("the Lease given back", LATER, || Ok(world.lease(1)?.filter(|lease| lease.holder.is_empty())))?;
        assert_eq!(vips_of(&world.ingress("both")?), ["10.77.0.2"], "its entry went before its Lease");
        assert_eq!(world.client.patient(SETTLE).who(Proto::Tcp, world.hubs[1].public(9000))?.name(), None);
        assert_eq!(probe.lost_since(event), 0, "the other tunnel lost packets");
        Ok(())
    })
}

/// The UDP ports that are bound in a pod.
fn ports_in(world: &World, node: u8) -> Result<Vec<u16>> {
    // `  12: 00000000:CA6C 00000000:0000 07 …`
    let text = world.sidecar(node)?.netns.sh("cat /proc/net/udp /proc/net/udp6")?;
    let local = text.lines().filter_map(|line| line.split_whitespace().nth(1)?.rsplit_once(':'));
    let mut ports: Vec<_> = local.filter_map(|(_, port)| u16::from_str_radix(port, 16).ok()).collect();
    // WireGuard may have one socket for both families, or one for each.
    ports.sort_unstable();
    ports.dedup();
    Ok(ports)
}

fn two_tunnels_in_one_pod_swap_their_ports_in_one_document(api: Kind) -> Result<()> {
    // One node, so both tunnels are led by one pod, and each wants what the other has.
    play(spec(api).tunnels(2).nodes(1), |world| {
        serve_both(world)?;
        assert_eq!(ports_in(world, 1)?, [51820, 51821]);
        for ports in [[51821, 51820], [51820, 51821]] {
            let explicit = world.spec.tunnels.iter().cloned().zip(ports);
            let tunnels: Vec<_> = explicit.map(|(tunnel, port)| tunnel.with(&format!("listenPort: {port}"))).collect();
            world.put_secret(&tunnels)?;
            for (hub, port) in world.hubs.iter().zip(ports) {
                // As the pod's packets enter the NAT.
                let flow = format!("src={} dst={} sport={port} ", plan::sidecar(1), hub.address);
                until(&format!("a flow with {flow}"), LATER, || {
                    Ok(world.topology.gateway.sh("conntrack -L -p udp")?.contains(&flow).then_some(()))
                })?;
                for proto in [Proto::Tcp, Proto::Udp] {
                    world.client.until(proto, hub.public(9000), LATER, |a| a.name().is_some())?;
                }
            }
            assert_eq!(ports_in(world, 1)?, [51820, 51821]);
            assert_eq!(world.sidecar(1)?.metric("wirevip_config_valid", r#"{tunnel="wg1"}"#)?, Some(1.0));
        }
        Ok(())
    })
}
