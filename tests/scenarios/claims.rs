//! Which Services and ports are ours, who gets what two want, and what the Services' status says of it.

use std::net::Ipv4Addr;

use anyhow::Result;
use lab::api::{Kind, Resource};
use lab::client::{Answer, Proto};
use lab::clock::{now, until};
use lab::probe::{Probe, ProbeKind};
use lab::{World, objects, play};
use serde_json::{Value, json};

use crate::forwarding::expect_exactly;
use crate::{LATER, SOON, spec};

crate::scenarios!(
    kube_vips_annotation_and_load_balancer_ip_name_a_tunnel,
    a_service_that_is_to_be_ignored_is_given_up,
    the_older_service_keeps_a_port_that_two_want,
    a_service_cannot_take_the_control_planes_port,
    the_control_plane_is_forwarded_on_the_port_asked_for,
    without_the_control_plane_nothing_is_forwarded_to_it,
    a_public_address_takes_the_vips_place_in_the_status,
);

fn kube_vips_annotation_and_load_balancer_ip_name_a_tunnel(api: Kind) -> Result<()> {
    play(spec(api).without_web(), |world| {
        let vip = world.spec.tunnels[0].vip;
        let port = |number| [objects::port(Proto::Tcp, number, 8080)];
        let annotated = objects::service_on("annotated", &[vip], &port(81));
        let mut by_ip = objects::service_on("by-ip", &[], &port(82));
        by_ip["metadata"]["annotations"] = json!({});
        by_ip["spec"]["loadBalancerIP"] = vip.to_string().into();
        let mut ignored = objects::service_on("ignored", &[vip], &port(83));
        ignored["metadata"]["annotations"]["kube-vip.io/ignore"] = "true".into();
        let mut foreign = objects::service_on("foreign", &[vip], &port(84));
        foreign["spec"]["loadBalancerClass"] = "example.com/other".into();
        let mut classed = objects::service_on("classed", &[vip], &port(85));
        classed["spec"]["loadBalancerClass"] = "kube-vip.io/kube-vip-class".into();
        // Class wirevip.io/tunnel and no annotation: there is only one tunnel.
        let mut only = objects::service("only", "", &port(86));
        only["metadata"]["annotations"] = json!({});
        let mut unnamed = objects::service_on("unnamed", &[], &port(87));
        unnamed["metadata"]["annotations"] = json!({});
        for service in [annotated, by_ip, ignored, foreign, classed, only, unnamed] {
            world.kube.apply(Resource::Service, service.clone())?;
            world.endpoints(&service, &world.all_ready())?;
        }
        for port in [81, 82, 85, 86] {
            world.client.until(Proto::Tcp, world.hubs[0].public(port), SOON, |a| a.name().is_some())?;
        }
        for port in [83, 84, 87] {
            assert_eq!(world.client.patient(SOON).connect(world.hubs[0].public(port))?, Answer::Refused);
        }
        let ingress = until("the Service's status", SOON, || Ok(world.ingress("annotated")?.into_iter().next()))?;
        assert_eq!(ingress["ip"].as_str().map(str::parse::<Ipv4Addr>), Some(Ok(vip)));
        for other in ["ignored", "foreign", "unnamed"] {
            assert!(world.ingress(other)?.is_empty(), "{other}");
        }
        Ok(())
    })
}

fn a_service_that_is_to_be_ignored_is_given_up(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        until("the Service's status", SOON, || Ok((!world.ingress("web")?.is_empty()).then_some(())))?;
        let ignore = |value: Value| json!({ "metadata": { "annotations": { "kube-vip.io/ignore": value } } });
        world.kube.patch(Resource::Service, "default", "web", ignore("true".into()))?;
        world.client.until(Proto::Tcp, world.web(), SOON, |a| *a == Answer::Refused)?;
        world.client.until(Proto::Udp, world.web(), SOON, |a| *a == Answer::Refused)?;
        until("the status removed", SOON, || Ok(world.ingress("web")?.is_empty().then_some(())))?;
        world.kube.patch(Resource::Service, "default", "web", ignore(Value::Null))?;
        expect_exactly(world, world.web(), &["b0", "b1", "b2"])?;
        until("the status back", SOON, || Ok((!world.ingress("web")?.is_empty()).then_some(())))
    })
}

fn the_older_service_keeps_a_port_that_two_want(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        // The API gives creationTimestamps in whole seconds; the name decides between equals: "web" < "zweit".
        let second = objects::service("zweit", "wg0", &[objects::port(Proto::Tcp, 8080, 8080)]);
        world.kube.apply(Resource::Service, second.clone())?;
        world.endpoints(&second, &world.all_ready()[..1])?;
        until("the Event", SOON, || {
            Ok(world.events()?.contains(&"PortConflict Service/zweit".to_owned()).then_some(()))
        })?;
        expect_exactly(world, world.web(), &["b0", "b1", "b2"])?;
        assert!(world.ingress("zweit")?.is_empty());
        world.kube.delete(Resource::Service, "default", "web")?;
        world.client.until(Proto::Udp, world.web(), SOON, |a| *a == Answer::Refused)?;
        until("the younger one", SOON, || {
            let seen = world.client.spread(Proto::Tcp, world.web(), 20)?;
            Ok((seen.len() == 1 && seen.contains_key("b0")).then_some(()))
        })
    })
}

/// Is this a backend's answer, and not one of a server that speaks TLS?
fn is_backend(answer: &Answer) -> bool {
    answer.name().is_some_and(|name| name.starts_with('b'))
}

/// A Service that wants the API server's port, TCP and UDP.
fn rival(world: &World) -> Result<()> {
    let ports = [objects::port(Proto::Tcp, 6443, 8080), objects::port(Proto::Udp, 6443, 8080)];
    let rival = objects::service("rival", "wg0", &ports);
    world.kube.apply(Resource::Service, rival.clone())?;
    world.endpoints(&rival, &world.all_ready())?;
    Ok(())
}

fn a_service_cannot_take_the_control_planes_port(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        world.wait_control_plane(0, LATER)?;
        rival(world)?;
        until("the Event", SOON, || {
            Ok(world.events()?.contains(&"PortConflict Service/rival".to_owned()).then_some(()))
        })?;
        // The other protocol's port is nobody's.
        let port = world.hubs[0].public(6443);
        world.client.until(Proto::Udp, port, SOON, |a| a.name().is_some())?;
        assert!(!is_backend(&world.client.who(Proto::Tcp, port)?), "the older one, the API server, keeps its port");
        // A tunnel that no longer forwards the API server has the port free.
        world.put_secret(&[world.spec.tunnels[0].clone().with("controlPlane: false")])?;
        expect_exactly(world, port, &["b0", "b1", "b2"])?;
        world.put_secret(&world.spec.tunnels)?;
        until("the API server again", SOON, || Ok((!is_backend(&world.client.who(Proto::Tcp, port)?)).then_some(())))?;
        world.wait_control_plane(0, LATER)
    })
}

fn the_control_plane_is_forwarded_on_the_port_asked_for(api: Kind) -> Result<()> {
    play(spec(api).args(&["--control-plane-port", "7443"]), |world| {
        // Towards the API server it is the endpoints' own port.
        let asked_for = world.hubs[0].public(7443);
        until("the API server on another port", LATER, || {
            Ok(matches!(world.client.connect(asked_for)?, Answer::Text(_)).then_some(()))
        })?;
        assert_eq!(world.client.patient(SOON).connect(world.hubs[0].public(6443))?, Answer::Refused);
        Ok(())
    })
}

fn without_the_control_plane_nothing_is_forwarded_to_it(api: Kind) -> Result<()> {
    play(spec(api).args(&["--control-plane=false"]), |world| {
        // Long enough for a real API server to have written its EndpointSlice.
        until("the API server's own slice", LATER, || {
            let slices = world.kube.list(Resource::EndpointSlice, "default")?;
            Ok(slices.iter().any(|slice| slice["metadata"]["name"] == "kubernetes").then_some(()))
        })?;
        // What comes later in the same watches is forwarded: so the slice is known by now.
        world.serve("later", 81)?;
        world.client.until(Proto::Tcp, world.hubs[0].public(81), SOON, |a| a.name().is_some())?;
        assert_eq!(world.client.patient(SOON).connect(world.hubs[0].public(6443))?, Answer::Refused);
        Ok(())
    })
}

fn a_public_address_takes_the_vips_place_in_the_status(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        let expect = |entry: Value| {
            until(&format!("{entry} in the status"), SOON, || {
                let found = world.ingress("web")?;
                anyhow::ensure!(found == [entry.clone()], "it says {found:?}");
                Ok(Some(()))
            })
        };
        let hub = world.hubs[0].address.to_string();
        expect(json!({ "ip": "10.77.0.2", "ipMode": "VIP" }))?;
        let probe = Probe::start(&world.topology.client, world.web(), ProbeKind::UdpFlow)?;
        probe.steady_since(now(), 100, SOON)?;
        let event = now();
        let tunnel = &world.spec.tunnels[0];
        world.put_secret(&[tunnel.clone().with(&format!("publicAddress: {hub}"))])?;
        expect(json!({ "ip": hub, "ipMode": "Proxy" }))?;
        world.put_secret(&[tunnel.clone().with("publicAddress: hub.example.com")])?;
        expect(json!({ "hostname": "hub.example.com" }))?;
        world.put_secret(&world.spec.tunnels)?;
        expect(json!({ "ip": "10.77.0.2", "ipMode": "VIP" }))?;
        assert_eq!(probe.lost_since(event), 0, "what is only told changed what is served");
        Ok(())
    })
}
