//! The API server goes, comes late, answers badly; the Lease is meddled with.

use std::time::Duration;

use anyhow::{Context, Result};
use lab::api::faults::{Fault, Target};
use lab::api::{Kind, Resource};
use lab::client::Proto;
use lab::clock::{now, until};
use lab::sidecar::NAMESPACE;
use lab::{World, plan, play, play_unstarted};
use serde_json::{Value, json};

use crate::{LATER, LEASE, SOON, expect_silence, spec, steady, strict};

crate::scenarios!(
    a_deleted_lease_is_made_again_by_its_leader_without_a_lost_packet,
    a_lease_that_names_another_silences_the_leader_at_once,
    an_emptied_lease_is_taken_again_by_its_leader_and_by_nobody_else,
    a_secret_that_comes_late_is_served,
    an_api_that_comes_late_is_served,
    after_an_outage_a_leader_serves_and_knows_what_changed,
    a_standby_keeps_quiet_while_the_api_is_away,
    a_pod_that_looks_for_its_api_server_by_name_in_vain_still_ends_in_time,
);

mod faults {
    //! What only the lab's own API server can be asked to do.
    use super::Result;
    use lab::api::Kind;

    #[test]
    #[ignore = "needs root"]
    fn dropped_watches_and_a_compacted_history_are_survived() -> Result<()> {
        super::dropped_watches_and_a_compacted_history_are_survived(Kind::Embedded)
    }

    #[test]
    #[ignore = "needs root"]
    fn a_renewal_whose_reply_is_lost_changes_nothing() -> Result<()> {
        super::a_renewal_whose_reply_is_lost_changes_nothing(Kind::Embedded)
    }

    #[test]
    #[ignore = "needs root"]
    fn an_api_that_hangs_makes_nobody_speak_out_of_turn() -> Result<()> {
        super::an_api_that_hangs_makes_nobody_speak_out_of_turn(Kind::Embedded)
    }

    #[test]
    #[ignore = "needs root"]
    fn a_forbidden_call_is_named_with_the_rule_to_add() -> Result<()> {
        super::a_forbidden_call_is_named_with_the_rule_to_add(Kind::Embedded)
    }

    #[test]
    #[ignore = "needs root"]
    fn a_wrong_certificate_is_told_in_a_clear_line() -> Result<()> {
        super::a_wrong_certificate_is_told_in_a_clear_line(Kind::Embedded)
    }
}

fn a_pod_that_looks_for_its_api_server_by_name_in_vain_still_ends_in_time(api: Kind) -> Result<()> {
    play_unstarted(spec(api).nodes(1), |world| {
        world.topology.control.nft(
            "add table ip lab_mute
             add chain ip lab_mute in { type filter hook input priority 0; }
             add rule ip lab_mute in udp dport 53 drop",
        )?;
        let sidecar = world.sidecar_mut(1)?;
        let named = sidecar.kubeconfig.replace(&plan::API.to_string(), "api.example");
        assert_ne!(sidecar.kubeconfig, named);
        sidecar.kubeconfig = named;
        sidecar.prelude = "echo 'options timeout:30' >> /run/lab/resolv.conf".into();
        sidecar.start()?;
        let sidecar = world.sidecar(1)?;
        until("the pod", SOON, || Ok(sidecar.http_get("/livez").is_ok().then_some(())))?;
        until("its question", SOON, || {
            let flows = sidecar.netns.sh("conntrack -L -p udp --dport 53").unwrap_or_default();
            let waits = sidecar.netns.sh("ss -Hun").unwrap_or_default();
            Ok((flows.contains("dport=53") || waits.contains(":53")).then_some(()))
        })?;
        sidecar.stop(Duration::from_secs(3))
    })
}

/// The Lease as it is now, to be written back changed.
fn lease(world: &World) -> Result<Value> {
    Ok(world.kube.get(Resource::Lease, NAMESPACE, &world.spec.tunnels[0].lease())?)
}

fn a_deleted_lease_is_made_again_by_its_leader_without_a_lost_packet(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        let (probe, leader) = steady(world)?;
        let event = now();
        world.kube.delete(Resource::Lease, NAMESPACE, &world.spec.tunnels[0].lease())?;
        assert_eq!(world.wait_leader(0, None, LEASE)?, leader);
        until("two leases", 3 * LEASE, || Ok((now() >= event + 2 * LEASE).then_some(())))?;
        assert_eq!(world.leader(0)?, Some(leader));
        assert_eq!(probe.lost_since(event), 0, "packets were lost");
        for sidecar in world.sidecars.iter().filter(|s| s.node != leader) {
            expect_silence(world, 0, sidecar.node, event)?;
        }
        Ok(())
    })
}

fn a_lease_that_names_another_silences_the_leader_at_once(api: Kind) -> Result<()> {
    play(strict(api), |world| {
        let (probe, leader) = steady(world)?;
        let event = now();
        until("the Lease overwritten", SOON, || {
            let mut object = lease(world)?;
            let transitions = object["spec"]["leaseTransitions"].as_i64().unwrap_or(0);
            object["spec"]["holderIdentity"] = "somebody-else".into();
            object["spec"]["leaseTransitions"] = (transitions + 1).into();
            // A conflict with a renewal is tried again.
            Ok(world.kube.replace(Resource::Lease, object).ok())
        })?;
        let overwritten = now();
        // Far less than a lease: it is told by its watch.
        until("the leader's silence", Duration::from_secs(3), || {
            let quiet = now() - Duration::from_millis(300);
            Ok((quiet > overwritten && expect_silence_since(world, leader, quiet)).then_some(()))
        })?;
        // Whoever is written there never renews; after its lease one of us takes over and all is well.
        let heir = world.wait_leader(0, None, LEASE + LATER)?;
        probe.steady_since(now(), 100, SOON)?;
        eprintln!("a Lease overwritten by hand: gap {:?}, node {heir} leads", probe.gap_since(event).length());
        Ok(())
    })
}

fn expect_silence_since(world: &World, node: u8, since: std::time::Instant) -> bool {
    !world.hubs[0].heard().iter().any(|heard| heard.at > since && heard.node() == Some(node))
}

fn an_emptied_lease_is_taken_again_by_its_leader_and_by_nobody_else(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        let (probe, leader) = steady(world)?;
        let event = now();
        for empty in [json!(""), Value::Null] {
            until("the Lease emptied", SOON, || {
                let mut object = lease(world)?;
                object["spec"]["holderIdentity"] = empty.clone();
                Ok(world.kube.replace(Resource::Lease, object).ok())
            })?;
            assert_eq!(world.wait_leader(0, None, LATER)?, leader);
        }
        let emptied = now();
        until("a lease", 3 * LEASE, || Ok((now() >= emptied + LEASE).then_some(())))?;
        assert_eq!((world.leader(0)?, probe.lost_since(event)), (Some(leader), 0));
        for sidecar in world.sidecars.iter().filter(|s| s.node != leader) {
            expect_silence(world, 0, sidecar.node, event)?;
        }
        Ok(())
    })
}

fn a_secret_that_comes_late_is_served(api: Kind) -> Result<()> {
    play_unstarted(spec(api).without_secret(), |world| {
        world.start_sidecars()?;
        for sidecar in &world.sidecars {
            until("/readyz to say why it is not ready", SOON, || {
                let (code, why) = sidecar.http_get("/readyz")?;
                Ok((code == 503 && why.contains("wireguard")).then_some(()))
            })?;
            assert_eq!(sidecar.http_get("/livez")?.0, 200);
        }
        world.put_secret(&world.spec.tunnels)?;
        world.wait_serving(LATER)
    })
}

fn an_api_that_comes_late_is_served(api: Kind) -> Result<()> {
    play_unstarted(spec(api), |world| {
        world.api.stop()?;
        world.start_sidecars()?;
        for sidecar in &world.sidecars {
            until("/readyz to say why it is not ready", SOON, || {
                let (code, why) = sidecar.http_get("/readyz")?;
                Ok((code == 503 && why.contains("API")).then_some(()))
            })?;
        }
        world.api.resume()?;
        world.wait_serving(LATER)
    })
}

fn after_an_outage_a_leader_serves_and_knows_what_changed(api: Kind) -> Result<()> {
    play(strict(api), |world| {
        let (probe, leader) = steady(world)?;
        let event = now();
        world.api.stop()?;
        until("the outage", 8 * LEASE, || Ok((now() >= event + 4 * LEASE).then_some(())))?;
        // Without hold nobody may speak once the tenure is over.
        expect_silence(world, 0, leader, event + LEASE)?;
        world.api.resume()?;
        let back = now();
        world.endpoints(&world.kube.get(Resource::Service, "default", "web")?, &world.all_ready()[..1])?;
        // The contract's 3 s and 5 s, and as much again for a machine with other work.
        let answered = probe.answered_since(back, Duration::from_secs(6))?;
        eprintln!("API back after 20 s: answered after {:?}", answered - back);
        until("what changed meanwhile", Duration::from_secs(10), || {
            let seen = world.client.spread(Proto::Tcp, world.web(), 20)?;
            Ok((seen.len() == 1 && seen.contains_key("b0")).then_some(()))
        })?;
        eprintln!("and what changed meanwhile is in force after {:?}", now() - back);
        Ok(())
    })
}

fn a_standby_keeps_quiet_while_the_api_is_away(api: Kind) -> Result<()> {
    play(strict(api), |world| {
        let (_probe, leader) = steady(world)?;
        let event = now();
        world.api.stop()?;
        world.sidecar(leader)?.sigkill()?;
        // A tunnel of the kernel's outlives the process; the fence does not outlive the tenure.
        let over = now() + LEASE;
        until("two leases", 4 * LEASE, || Ok((now() >= over + LEASE).then_some(())))?;
        for sidecar in &world.sidecars {
            expect_silence(world, 0, sidecar.node, if sidecar.node == leader { over } else { event })?;
        }
        world.api.resume()?;
        world.wait_leader(0, Some(leader), LATER)?;
        world.wait_serving(LATER)
    })
}

fn dropped_watches_and_a_compacted_history_are_survived(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        let (probe, leader) = steady(world)?;
        let event = now();
        world.api.compact()?;
        world.api.faults()?.drop_watches();
        // Not a change of `web`: a datagram's answer that is under way when its backend is taken away is lost.
        world.serve("more", 81)?;
        world.client.until(Proto::Tcp, world.hubs[0].public(81), SOON, |answer| answer.name().is_some())?;
        assert_eq!((world.leader(0)?, probe.lost_since(event)), (Some(leader), 0));
        Ok(())
    })
}

fn a_renewal_whose_reply_is_lost_changes_nothing(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        let (probe, leader) = steady(world)?;
        let event = now();
        world.api.faults()?.next(3, Target::any().verb("update").resource("leases"), Fault::LoseReply);
        until("two leases", 4 * LEASE, || Ok((now() >= event + 2 * LEASE).then_some(())))?;
        assert_eq!((world.leader(0)?, probe.lost_since(event)), (Some(leader), 0));
        Ok(())
    })
}

fn an_api_that_hangs_makes_nobody_speak_out_of_turn(api: Kind) -> Result<()> {
    play(strict(api), |world| {
        let (probe, leader) = steady(world)?;
        let event = now();
        world.api.freeze()?;
        until("two leases", 4 * LEASE, || Ok((now() >= event + 2 * LEASE).then_some(())))?;
        expect_silence(world, 0, leader, event + LEASE)?;
        for sidecar in world.sidecars.iter().filter(|s| s.node != leader) {
            expect_silence(world, 0, sidecar.node, event)?;
        }
        world.api.thaw()?;
        probe.answered_since(now(), Duration::from_secs(6))?;
        Ok(())
    })
}

fn a_forbidden_call_is_named_with_the_rule_to_add(api: Kind) -> Result<()> {
    play_unstarted(spec(api), |world| {
        world.api.faults()?.add(Target::any().resource("endpointslices"), Fault::Refuse(403));
        world.start_sidecars()?;
        let sidecar = &world.sidecars[0];
        until("the line", LATER, || {
            let log = sidecar.log();
            Ok(log.lines().any(|l| l.contains("endpointslices") && l.contains("discovery.k8s.io")).then_some(()))
        })
        .with_context(|| sidecar.log())?;
        world.api.faults()?.clear();
        world.wait_serving(LATER)
    })
}

fn a_wrong_certificate_is_told_in_a_clear_line(api: Kind) -> Result<()> {
    play_unstarted(spec(api), |world| {
        world.api.faults()?.wrong_certificate(true);
        world.start_sidecars()?;
        let sidecar = &world.sidecars[0];
        until("the line", LATER, || Ok(sidecar.log().contains("certificate").then_some(())))?;
        assert_eq!(sidecar.http_get("/livez")?.0, 200);
        world.api.faults()?.clear();
        world.wait_serving(LATER)
    })
}
