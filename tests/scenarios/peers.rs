//! What others get wrong (docs/peers.md), where no other scenario shows it.

use std::time::Duration;

use anyhow::{Context, Result};
use lab::api::faults::{Fault, Target};
use lab::api::{Kind, Resource};
use lab::client::Proto;
use lab::clock::{now, until};
use lab::objects;
use lab::play;
use lab::sidecar::Sidecar;

use crate::{LATER, LEASE, SOON, spec, steady};

crate::scenarios!(
    a_pod_with_nothing_to_do_leaves_the_processor_alone,
    a_standby_that_takes_over_uses_the_secret_as_it_is_now,
    a_service_that_waits_for_an_address_holds_no_other_up,
    a_hundred_endpoint_changes_cost_the_leader_nothing,
);

mod faults {
    //! What only the lab's own API server can be asked to do.
    use super::Result;
    use lab::api::Kind;

    #[test]
    #[ignore = "needs root"]
    fn a_standby_knew_the_backends_before_it_leads() -> Result<()> {
        super::a_standby_knew_the_backends_before_it_leads(Kind::Embedded)
    }
}

/// Processor time so far, user and system.
fn used(sidecar: &Sidecar) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", sidecar.process()?.id()))?;
    // Fields 14 and 15 of proc(5), in 1/100 s; the name in brackets, the second, may have blanks in it.
    let fields: Vec<&str> = stat.rsplit(')').next().context("a strange /proc/…/stat")?.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).context("a strange /proc/…/stat")?.parse::<u64>().context("no number");
    Ok(Duration::from_millis((ticks(11)? + ticks(12)?) * 10))
}

fn a_pod_with_nothing_to_do_leaves_the_processor_alone(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        // What the start brings passes first: writes come no faster than renewals.
        let started = now();
        until("a lease to pass", 2 * LEASE, || Ok((now() >= started + LEASE).then_some(())))?;
        let before: Vec<Duration> = world.sidecars.iter().map(used).collect::<Result<_>>()?;
        let began = now();
        until("a lease to pass", 2 * LEASE, || Ok((now() >= began + LEASE).then_some(())))?;
        for (sidecar, before) in world.sidecars.iter().zip(before) {
            let share = (used(sidecar)? - before).as_secs_f64() / began.elapsed().as_secs_f64();
            // A debug build; the release takes far less (`make bench`).
            assert!(share < 0.1, "{} took {:.0} % of a core", sidecar.pod, share * 100.0);
        }
        Ok(())
    })
}

fn a_standby_that_takes_over_uses_the_secret_as_it_is_now(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        let (probe, leader) = steady(world)?;
        let taken = |sidecar: &Sidecar| sidecar.metric("wirevip_config_last_change_timestamp_seconds", "");
        let before: Vec<_> = world.sidecars.iter().map(taken).collect::<Result<_>>()?;
        world.put_secret(&[world.spec.tunnels[0].clone().with("mtu: 1312")])?;
        for (sidecar, before) in world.sidecars.iter().zip(before) {
            until("the change to be taken", SOON, || Ok((taken(sidecar)? != before).then_some(())))?;
        }
        world.sidecar(leader)?.sigkill()?;
        let heir = world.wait_leader(0, Some(leader), LEASE + LATER)?;
        probe.steady_since(now(), 100, LATER)?;
        let link = world.sidecar(heir)?.netns.sh("ip link show wg0")?;
        assert!(link.contains("mtu 1312"), "{link}");
        Ok(())
    })
}

fn a_service_that_waits_for_an_address_holds_no_other_up(api: Kind) -> Result<()> {
    play(spec(api).without_web(), |world| {
        let waiting = objects::service_on("a-waiting", &[], &[objects::port(Proto::Tcp, 9000, 9000)]);
        world.kube.apply(Resource::Service, waiting)?;
        let event = now();
        world.serve("web", 8080)?;
        let client = world.client.patient(Duration::from_millis(300));
        client.until(Proto::Tcp, world.web(), SOON, |answer| answer.name().is_some())?;
        eprintln!("served after {:?}", event.elapsed());
        Ok(())
    })
}

fn a_hundred_endpoint_changes_cost_the_leader_nothing(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        let (probe, leader) = steady(world)?;
        let before = world.lease(0)?.context("no Lease")?;
        let event = now();
        for round in 0..100 {
            let note = serde_json::json!({ "metadata": { "annotations": { "round": round.to_string() } } });
            world.kube.patch(Resource::EndpointSlice, "default", "web", note)?;
        }
        until("a lease to pass", 2 * LEASE, || Ok((now() >= event + LEASE).then_some(())))?;
        let after = world.lease(0)?.context("no Lease")?;
        assert_eq!((after.holder, after.transitions), (before.holder, before.transitions));
        assert_eq!((world.leader(0)?, probe.lost_since(event)), (Some(leader), 0));
        Ok(())
    })
}

fn a_standby_knew_the_backends_before_it_leads(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        let (probe, leader) = steady(world)?;
        // From now on nobody can begin to read what is forwarded; what runs already runs on.
        for resource in ["services", "endpointslices"] {
            for verb in ["list", "watch"] {
                world.api.faults()?.add(Target::any().verb(verb).resource(resource), Fault::Refuse(503));
            }
        }
        world.sidecar(leader)?.sigkill()?;
        world.wait_leader(0, Some(leader), LEASE + LATER)?;
        probe.steady_since(now(), 100, LATER)?;
        Ok(())
    })
}
