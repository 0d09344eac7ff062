//! What is forwarded, how it is spread, and what is not let through.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::Result;
use lab::api::{Kind, Kube, Resource, User};
use lab::client::{Answer, Client, Proto};
use lab::clock::until;
use lab::objects::{self, Condition};
use lab::{World, plan, play};

use crate::{LATER, SOON, spec};

crate::scenarios!(
    the_api_server_answers_through_the_vip_with_a_valid_certificate,
    three_backends_share_tcp_and_udp_evenly,
    only_ready_backends_are_asked_and_with_none_clients_are_refused_at_once,
    serving_backends_that_leave_are_used_when_no_other_is_ready,
    slices_named_ports_edits_and_deletion_are_followed,
    source_ranges_are_enforced,
    a_client_stays_with_its_backend_where_affinity_is_asked_for,
    the_tunnel_opens_nothing_but_what_is_forwarded,
    large_answers_and_datagrams_arrive_on_a_small_pod_network,
);

fn the_api_server_answers_through_the_vip_with_a_valid_certificate(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        world.wait_control_plane(0, LATER)?;
        let outside = world.hubs[0].public(plan::API_SOCKET.port()).to_string();
        let kubeconfig = world.api.kubeconfig_at(User::Admin, &outside);
        let kube = Kube::new(&world.topology.client, &kubeconfig)?;
        assert_eq!(kube.list(Resource::Node, "")?.len(), world.nodes.len());
        Ok(())
    })
}

fn three_backends_share_tcp_and_udp_evenly(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        for proto in [Proto::Tcp, Proto::Udp] {
            let seen = world.client.spread(proto, world.web(), 3000)?;
            eprintln!("{proto:?}: {seen:?}");
            assert_eq!(seen.keys().map(String::as_str).collect::<Vec<_>>(), ["b0", "b1", "b2"], "{seen:?}");
            // More than five standard deviations to either side.
            assert!(seen.values().all(|count| (850..=1150).contains(count)), "{seen:?}");
        }
        Ok(())
    })
}

/// Asks until exactly these backends answer, all of them, and nothing is refused.
pub(crate) fn expect_exactly(world: &World, target: SocketAddrV4, names: &[&str]) -> Result<()> {
    until(&format!("answers of {names:?} alone"), LATER, || {
        let seen = world.client.spread(Proto::Tcp, target, 30 * names.len())?;
        let found: Vec<&str> = seen.keys().map(String::as_str).collect();
        anyhow::ensure!(found == names, "{seen:?} answered");
        Ok(Some(()))
    })?;
    let seen = world.client.spread(Proto::Udp, target, 30 * names.len())?;
    assert_eq!(seen.keys().map(String::as_str).collect::<Vec<_>>(), names);
    Ok(())
}

fn only_ready_backends_are_asked_and_with_none_clients_are_refused_at_once(api: Kind) -> Result<()> {
    play(spec(api).without_web(), |world| {
        let web = world.serve("web", 8080)?;
        let target = world.web();
        expect_exactly(world, target, &["b0", "b1", "b2"])?;
        let all = world.all_ready();
        for missing in 0..3 {
            let others: Vec<&str> =
                ["b0", "b1", "b2"].into_iter().enumerate().filter(|(i, _)| *i != missing).map(|(_, n)| n).collect();
            // Once not ready, once deleted.
            let mut endpoints = all.clone();
            endpoints[missing].1 = Condition::NotReady;
            world.endpoints(&web, &endpoints)?;
            expect_exactly(world, target, &others)?;
            world.endpoints(&web, &all)?;
            expect_exactly(world, target, &["b0", "b1", "b2"])?;
            endpoints.remove(missing);
            world.endpoints(&web, &endpoints)?;
            expect_exactly(world, target, &others)?;
        }
        let refused = |answer: &Answer| *answer == Answer::Refused;
        for none in ["no endpoints", "no slice"] {
            if none == "no slice" {
                world.kube.delete(Resource::EndpointSlice, "default", "web")?;
            } else {
                world.endpoints(&web, &[])?;
            }
            world.client.until(Proto::Tcp, target, SOON, refused)?;
            world.client.until(Proto::Udp, target, SOON, refused)?;
            world.endpoints(&web, &all)?;
            expect_exactly(world, target, &["b0", "b1", "b2"])?;
        }
        Ok(())
    })
}

fn serving_backends_that_leave_are_used_when_no_other_is_ready(api: Kind) -> Result<()> {
    play(spec(api).without_web(), |world| {
        let web = world.serve("web", 8080)?;
        let [b0, b1, b2] = [0, 1, 2].map(|i| world.backends[i].address);
        world.endpoints(&web, &[(b0, Condition::Leaving), (b1, Condition::Unsaid), (b2, Condition::NotReady)])?;
        expect_exactly(world, world.web(), &["b1"])?;
        world.endpoints(&web, &[(b0, Condition::Leaving), (b1, Condition::Leaving), (b2, Condition::NotReady)])?;
        expect_exactly(world, world.web(), &["b0", "b1"])
    })
}

fn slices_named_ports_edits_and_deletion_are_followed(api: Kind) -> Result<()> {
    play(spec(api).without_web(), |world| {
        let mut port = objects::port(Proto::Tcp, 80, 0);
        port["targetPort"] = "http".into();
        let mut service = objects::service("named", "wg0", &[port, objects::port(Proto::Udp, 80, 8080)]);
        world.kube.apply(Resource::Service, service.clone())?;
        let all = world.all_ready();
        world.kube.apply(Resource::EndpointSlice, objects::slice("named-a", &service, 8080, &all[..1]))?;
        world.kube.apply(Resource::EndpointSlice, objects::slice("named-b", &service, 8080, &all[1..]))?;
        expect_exactly(world, world.hubs[0].public(80), &["b0", "b1", "b2"])?;
        world.kube.delete(Resource::EndpointSlice, "default", "named-a")?;
        expect_exactly(world, world.hubs[0].public(80), &["b1", "b2"])?;
        // The port moves: the old one is not answered any more.
        service = world.kube.get(Resource::Service, "default", "named")?;
        service["spec"]["ports"][0]["port"] = 81.into();
        world.kube.replace(Resource::Service, service)?;
        world.client.until(Proto::Tcp, world.hubs[0].public(81), SOON, |a| a.name().is_some())?;
        world.client.until(Proto::Tcp, world.hubs[0].public(80), SOON, |a| *a == Answer::Refused)?;
        world.kube.delete(Resource::Service, "default", "named")?;
        world.client.until(Proto::Tcp, world.hubs[0].public(81), SOON, |a| *a == Answer::Refused)?;
        world.client.until(Proto::Udp, world.hubs[0].public(80), SOON, |a| *a == Answer::Refused)?;
        Ok(())
    })
}

fn source_ranges_are_enforced(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        let patch = |range: &str| serde_json::json!({ "spec": { "loadBalancerSourceRanges": [range] } });
        world.kube.patch(Resource::Service, "default", "web", patch("203.0.113.0/24"))?;
        let client = world.client.patient(Duration::from_millis(300));
        client.until(Proto::Tcp, world.web(), SOON, |a| a.name().is_none())?;
        assert_eq!(client.who(Proto::Udp, world.web())?.name(), None);
        world.kube.patch(Resource::Service, "default", "web", patch("198.51.100.0/24"))?;
        client.until(Proto::Tcp, world.web(), SOON, |a| a.name().is_some())?;
        Ok(())
    })
}

/// Which backend serves each of twelve client addresses, by TCP and by UDP: one for all source ports of a client.
fn served_by(world: &World) -> Result<Vec<String>> {
    let mut served = Vec::new();
    for last in 20..32 {
        let address = Ipv4Addr::new(198, 51, 100, last);
        world.topology.client.ip(&[
            format!("addr replace {address}/24 dev eth0"),
            format!("route replace default via {} src {address}", plan::CLIENT_ROUTER),
        ])?;
        for proto in [Proto::Tcp, Proto::Udp] {
            let seen = world.client.spread(proto, world.web(), 10)?;
            anyhow::ensure!(seen.len() == 1, "{address} is served by {seen:?}");
            served.extend(seen.into_keys());
        }
    }
    Ok(served)
}

fn a_client_stays_with_its_backend_where_affinity_is_asked_for(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        let patch = serde_json::json!({ "spec": { "sessionAffinity": "ClientIP" } });
        world.kube.patch(Resource::Service, "default", "web", patch)?;
        let before = until("one backend for each client", LATER, || Ok(Some(served_by(world)?)))?;
        let leader = world.wait_leader(0, None, SOON)?;
        world.sidecar(leader)?.stop(SOON)?;
        world.wait_leader(0, Some(leader), LATER)?;
        world.wait_serving(LATER)?;
        // A flow of UDP comes back by itself, a question that was lost on the way does not.
        world.client.until(Proto::Udp, world.web(), SOON, |answer| answer.name().is_some())?;
        assert_eq!(served_by(world)?, before, "a successor picks the same backend");
        // One backend goes: its clients move, the others stay.
        let gone = before[0].clone();
        let left: Vec<_> = world.backends.iter().filter(|b| b.name != gone).collect();
        let endpoints: Vec<_> = left.iter().map(|b| (b.address, Condition::Ready)).collect();
        let web = world.kube.get(Resource::Service, "default", "web")?;
        world.endpoints(&web, &endpoints)?;
        let after = until("the gone backend unused", LATER, || {
            Ok(Some(served_by(world)?).filter(|served| !served.contains(&gone)))
        })?;
        eprintln!("clients of {before:?} went to {after:?}");
        assert!(before.iter().any(|name| *name != gone), "this would prove nothing");
        for (before, after) in before.iter().zip(&after).filter(|(before, _)| **before != gone) {
            assert_eq!(before, after, "a client of a backend that stayed was moved");
        }
        Ok(())
    })
}

fn the_tunnel_opens_nothing_but_what_is_forwarded(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        let quick = Duration::from_millis(300);
        let (hub, leader) = (&world.hubs[0], world.wait_leader(0, None, SOON)?);
        let from_hub = Client::new(&hub.netns);
        world.wait_control_plane(0, LATER)?;
        assert!(hub.netns.sh(&format!("ping -c 1 -W 2 {}", hub.vip)).is_ok(), "the VIP answers ping");
        assert!(matches!(from_hub.patient(SOON).connect(SocketAddrV4::new(hub.vip, 6443))?, Answer::Text(_)));
        for port in [plan::HTTP_PORT, 22, 9999] {
            let target = SocketAddrV4::new(hub.vip, port);
            assert_eq!(from_hub.patient(SOON).connect(target)?, Answer::Refused, "port {port}");
            assert_eq!(from_hub.answer(Proto::Udp, target, SOON)?, Answer::Refused, "port {port}");
        }
        // What lies behind the VIP, even if the hub routes there.
        hub.reach_into(&["10.20.0.0/16", "10.10.0.0/24"])?;
        let from_hub = from_hub.patient(quick);
        for target in [
            world.backends[0].socket(),
            SocketAddrV4::new(plan::sidecar(leader), plan::HTTP_PORT),
            SocketAddrV4::new(plan::sidecar(leader % 3 + 1), plan::HTTP_PORT),
            plan::API_SOCKET,
        ] {
            assert_eq!(from_hub.connect(target)?, Answer::Silence, "{target}");
            assert_eq!(from_hub.who(Proto::Udp, target)?, Answer::Silence, "{target}");
        }
        // From a backend into the tunnel: through the sidecar's pod as a router.
        let backend = &world.backends[0].netns;
        let before = hub.peer()?.received;
        let node = &world.nodes[usize::from(leader)].netns;
        for netns in [backend, node] {
            for target in [plan::hub_in_tunnel(0), plan::CLIENT] {
                let via = if std::ptr::eq(netns, node) { plan::sidecar(leader) } else { plan::pod_gateway(0) };
                netns.sh(&format!("ip route replace {target}/32 via {via}"))?;
                let asked = Client::new(netns).patient(quick).who(Proto::Udp, SocketAddrV4::new(target, 9))?;
                assert_eq!(asked.name(), None);
                netns.sh(&format!("ip route del {target}/32"))?;
            }
        }
        let sent = hub.peer()?.received - before;
        assert!(sent < 1000, "{sent} bytes came out of the tunnel: more than keepalives and probes");
        // The pod's own port stays open to its node.
        assert_eq!(world.sidecar(leader)?.http_get("/livez")?.0, 200);
        Ok(())
    })
}

fn large_answers_and_datagrams_arrive_on_a_small_pod_network(api: Kind) -> Result<()> {
    play(spec(api).pod_mtu(1450), |world| {
        for _ in 0..3 {
            world.client.patient(SOON).download(world.web(), 5_000_000)?;
            world.client.patient(SOON).upload(world.web(), 5_000_000)?;
        }
        for size in [1200, 1400, 1472, 4000, 20_000] {
            // A first large datagram may be what teaches the backend the path's MTU.
            until(&format!("a datagram of {size} bytes"), SOON, || {
                Ok(Some(world.client.datagram(world.web(), size)?))
            })?;
        }
        Ok(())
    })
}
