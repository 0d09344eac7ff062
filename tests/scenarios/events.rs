//! Each Event of the contract is told, on the object that it concerns. `NoHandshake` is among the hub's scenarios.

use std::time::Duration;

use anyhow::{Context, Result};
use lab::api::{Kind, Resource};
use lab::client::Proto;
use lab::clock::until;
use lab::sidecar::{NAMESPACE, Sidecar};
use lab::{World, objects, play};
use serde_json::Value;

use crate::{LATER, LEASE, SOON, spec, strict};

crate::scenarios!(
    a_tunnel_that_goes_up_and_down_is_told_on_its_pod,
    a_service_that_is_forwarded_has_no_backends_or_no_port_is_told,
    faults_are_told_on_the_secret_and_on_the_service,
    a_tenure_that_was_not_renewed_is_told,
    a_clock_that_differs_is_measured_and_told,
);

pub(crate) fn told(world: &World, event: &str) -> Result<()> {
    until(&format!("the Event {event}"), LATER, || {
        let events = world.events()?;
        anyhow::ensure!(events.iter().any(|told| told == event), "told so far: {events:?}");
        Ok(Some(()))
    })
}

/// Writes the Lease as another holder would, with this `renewTime`; conflicts with renewals are tried again.
fn usurp(world: &World, renewed: jiff::Timestamp) -> Result<()> {
    until("the Lease overwritten", SOON, || {
        let mut lease = world.kube.get(Resource::Lease, NAMESPACE, &world.spec.tunnels[0].lease())?;
        lease["spec"]["holderIdentity"] = "somebody-else".into();
        lease["spec"]["renewTime"] = format!("{renewed:.6}").into();
        Ok(world.kube.replace(Resource::Lease, lease).ok())
    })?;
    Ok(())
}

fn a_tunnel_that_goes_up_and_down_is_told_on_its_pod(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        let pod = world.sidecar(world.wait_leader(0, None, SOON)?)?.pod.clone();
        told(world, &format!("TunnelUp Pod/{pod}"))?;
        assert!(!world.events()?.iter().any(|event| event.starts_with("TunnelDown")), "nothing went down yet");
        usurp(world, jiff::Timestamp::now())?;
        told(world, &format!("TunnelDown Pod/{pod}"))?;
        let closed = format!("FenceClosed Pod/{pod}");
        assert!(!world.events()?.contains(&closed), "it was told in time: no fence had to close");
        Ok(())
    })
}

fn a_service_that_is_forwarded_has_no_backends_or_no_port_is_told(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        told(world, "Forwarded Service/web")?;
        let lonely = objects::service("lonely", "wg0", &[objects::port(Proto::Tcp, 81, 8080)]);
        world.kube.apply(Resource::Service, lonely)?;
        told(world, "NoBackends Service/lonely")?;
        // Younger than `web`, or later in the alphabet.
        world.serve("web-too", 8080)?;
        told(world, "PortConflict Service/web-too")?;
        assert!(!world.events()?.contains(&"PortConflict Service/web".to_owned()), "the older one keeps its port");
        world.client.until(Proto::Tcp, world.web(), SOON, |answer| answer.name().is_some())?;
        Ok(())
    })
}

fn faults_are_told_on_the_secret_and_on_the_service(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        let mut service = objects::service("astray", "no-such-tunnel", &[objects::port(Proto::Tcp, 82, 8080)]);
        service["spec"]["loadBalancerClass"] = "wirevip.io/tunnel".into();
        world.kube.apply(Resource::Service, service)?;
        told(world, "InvalidConfiguration Service/astray")?;
        world.put_document("wg0:\n  vip: 10.77.0.2\n")?;
        told(world, "InvalidConfiguration Secret/wireguard")
    })
}

fn a_tenure_that_was_not_renewed_is_told(api: Kind) -> Result<()> {
    play(strict(api), |world| {
        let leader = world.wait_leader(0, None, SOON)?;
        let sidecar = world.sidecar(leader)?;
        sidecar.freeze()?;
        world.wait_leader(0, Some(leader), LEASE + LATER)?;
        sidecar.thaw()?;
        told(world, &format!("FenceClosed Pod/{}", sidecar.pod))
    })
}

/// The Events that tell how far a pod's clock is off: seconds, and the whole note.
fn told_skews(world: &World, pod: &Sidecar) -> Result<Vec<(f64, String)>> {
    let seconds = |note: &str| note.split_once("clock is ")?.1.split(' ').next()?.parse::<f64>().ok();
    let events = world.kube.list(Resource::Event, "")?;
    let about = |event: &&Value| event["reason"] == "ClockSkew" && event["regarding"]["name"] == pod.pod.as_str();
    let notes = events.iter().filter(about).map(|event| event["note"].as_str().context("no note"));
    notes.map(|note| note.and_then(|note| Ok((seconds(note).context("no seconds")?.abs(), note.to_owned())))).collect()
}

fn a_clock_that_differs_is_measured_and_told(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        let leader = world.wait_leader(0, None, SOON)?;
        let standby = world.sidecar(leader % 3 + 1)?;
        let skew = || {
            let skew = standby.metric("wirevip_clock_skew_seconds", r#"{tunnel="wg0"}"#)?;
            skew.context("not exported").map(|skew| skew.abs())
        };
        until("a first measure", SOON, || Ok((skew()? < 1.0).then_some(())))?;
        // A renewal that takes a second may be told: the machine has other work. A minute is more than that.
        assert!(!told_skews(world, standby)?.iter().any(|(skew, _)| *skew > 60.0), "the clocks agree");
        // Another holder that renews by a clock that is an hour slow. Its first record may be as old as it looks.
        let an_hour_ago = jiff::Timestamp::now() - Duration::from_secs(3600);
        usurp(world, an_hour_ago)?;
        usurp(world, an_hour_ago + Duration::from_secs(1))?;
        until("the skew measured", SOON, || Ok((3500.0..3700.0).contains(&skew()?).then_some(())))?;
        let (_, note) = until("the Event", LATER, || {
            Ok(told_skews(world, standby)?.into_iter().find(|(skew, _)| (3500.0..3700.0).contains(skew)))
        })?;
        assert!(note.contains("time synchronisation"), "{note}");
        // With the next holder of a right clock it is over.
        world.wait_leader(0, None, LEASE + LATER)?;
        world.wait_serving(LATER)
    })
}
