//! What is seen from outside is measured, not intended (I7).

use std::time::Duration;

use anyhow::{Context, Result};
use lab::api::{Kind, Resource};
use lab::clock::{now, until};
use lab::play;
use lab::probe::{Probe, ProbeKind};
use lab::wireguard::Wireguard;

use crate::hold::pass;
use crate::{LATER, LEASE, SOON, spec};

crate::scenarios!(
    status_metrics_and_events_tell_who_leads,
    a_service_shows_its_address_only_while_it_is_served,
    a_standby_writes_nothing_and_a_leader_once_a_second,
    a_second_program_with_the_key_is_told_once_and_takeovers_and_a_new_hub_are_not_taken_for_one,
);

fn status_metrics_and_events_tell_who_leads(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        let leader = world.wait_leader(0, None, SOON)?;
        for sidecar in &world.sidecars {
            let leads = sidecar.node == leader;
            sidecar.wait_ready(SOON)?;
            assert_eq!(sidecar.http_get("/livez")?.0, 200);
            let status = until("its state", SOON, || {
                let status = sidecar.status()?;
                let state = status["tunnels"][0]["state"].as_str().unwrap_or_default().to_owned();
                anyhow::ensure!(state == if leads { "leading" } else { "standby" }, "{status}");
                // A standby that has just started has not read the Lease yet.
                Ok(Some(status).filter(|status| status["tunnels"][0]["holder"].is_string()))
            })?;
            let tunnel = &status["tunnels"][0];
            assert_eq!(status["pod"], sidecar.pod.as_str());
            assert_eq!(status["node"], format!("node{}", sidecar.node));
            assert_eq!((&tunnel["name"], &tunnel["vip"]), (&"wg0".into(), &"10.77.0.2".into()));
            assert_eq!(tunnel["holder"], world.sidecar(leader)?.identity());
            assert_eq!(tunnel["tenureSeconds"].is_number(), leads, "{tunnel}");
            assert_eq!(tunnel["handshakeAgeSeconds"].is_number(), leads, "{tunnel}");
            let metric = |name| sidecar.metric(name, r#"{tunnel="wg0"}"#);
            assert_eq!(metric("wirevip_leader")?, Some(if leads { 1.0 } else { 0.0 }));
            assert_eq!(metric("wirevip_config_valid")?, Some(1.0));
            assert_eq!(metric("wirevip_handshake_age_seconds")?.context("not exported")?.is_nan(), !leads);
            if leads {
                assert!(metric("wirevip_receive_bytes_total")?.is_some_and(|bytes| bytes > 0.0));
                let web = tunnel["forwards"].as_array().context("no forwards")?;
                assert!(web.iter().any(|f| f["service"] == "default/web" && f["port"] == 8080), "{web:?}");
            }
        }
        let pod = &world.sidecar(leader)?.pod;
        until("the Event", SOON, || {
            Ok(world.events()?.iter().any(|e| e.starts_with("TunnelUp") && e.ends_with(pod.as_str())).then_some(()))
        })
    })
}

fn a_service_shows_its_address_only_while_it_is_served(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        let ingress = until("the status", SOON, || Ok(world.ingress("web")?.into_iter().next()))?;
        assert_eq!((&ingress["ip"], &ingress["ipMode"]), (&"10.77.0.2".into(), &"VIP".into()));
        world.kube.patch(
            Resource::Service,
            "default",
            "web",
            serde_json::json!({ "metadata": { "annotations": { "wirevip.io/tunnel": "no-such-tunnel" } } }),
        )?;
        until("the status removed", SOON, || Ok(world.ingress("web")?.is_empty().then_some(())))?;
        Ok(())
    })
}

fn a_standby_writes_nothing_and_a_leader_once_a_second(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        let leader = world.sidecar(world.wait_leader(0, None, SOON)?)?.pod.clone();
        // What the start brings (Events, status) is over when nothing but renewals came for two seconds.
        let writes = |world: &lab::World, from: usize| {
            let requests = world.api.requests();
            let wrote = |r: &&lab::api::Request| matches!(r.verb.as_str(), "create" | "update" | "patch" | "delete");
            let ours = requests.iter().skip(from).filter(|r| r.user.starts_with("wirevip-n")).filter(wrote);
            ours.map(|r| (r.user.clone(), r.resource.clone())).collect::<Vec<_>>()
        };
        let renews = |(user, resource): &(String, String)| *user == leader && resource == "leases";
        let (mut from, mut quiet) = (0, now());
        until("the end of the start", 2 * LATER, || {
            let count = world.api.requests().len();
            if !writes(world, from).iter().all(renews) {
                quiet = now();
            }
            from = count;
            Ok((quiet.elapsed() >= Duration::from_secs(2)).then_some(()))
        })?;
        let begun = now();
        pass(begun + Duration::from_secs(10));
        let seen = writes(world, from);
        let most = usize::try_from(begun.elapsed().as_secs())? + 1;
        assert!(seen.iter().all(renews), "{seen:?}");
        assert!((5..=most).contains(&seen.len()), "{} renewals in {:?}", seen.len(), begun.elapsed());
        Ok(())
    })
}

/// Restarts a leader in its pod while nothing reaches the hub, which goes on in the session of the process before.
fn restart_unheard(world: &mut lab::World, leader: u8) -> Result<()> {
    let hub = world.hubs[0].netns.clone();
    hub.nft("table ip deaf { chain in { type filter hook input priority raw; udp dport 51820 drop; }; }")?;
    world.sidecar_mut(leader)?.restart_in_place(Duration::from_millis(100))?;
    let pod = world.sidecar(leader)?.netns.clone();
    let foreign = || -> Result<u64> {
        let listed = pod.sh("nft list counter inet wirevip_wg0_fence foreign").unwrap_or_default();
        Ok(listed.split_whitespace().skip_while(|word| *word != "packets").nth(1).map_or(Ok(0), str::parse)?)
    };
    until("packets in the old session", LATER, || Ok((foreign()? > 0).then_some(())))?;
    let (first, event) = (foreign()?, now());
    until("more of them, for longer than it settles", LATER, || {
        Ok((foreign()? > first + 100 && now() > event + SOON).then_some(()))
    })?;
    hub.nft("delete table ip deaf")
}

fn a_second_program_with_the_key_is_told_once_and_takeovers_and_a_new_hub_are_not_taken_for_one(
    api: Kind,
) -> Result<()> {
    play(spec(api).stranger("the second program with the key"), |world| {
        let told = |world: &lab::World| -> Result<usize> {
            Ok(world.events()?.iter().filter(|event| event.starts_with("SecondSpeaker")).count())
        };
        let lines = |world: &lab::World| {
            world.sidecars.iter().map(|s| s.log().matches("sessions that are not ours").count()).sum::<usize>()
        };
        // Under traffic the hub speaks all the time, also in the sessions of those who are gone.
        let probe = Probe::start(&world.topology.client, world.web(), ProbeKind::UdpFlow)?;
        let steady = |world: &lab::World| -> Result<u8> {
            probe.answered_since(now(), LEASE + LATER)?;
            probe.steady_since(now(), 600, LATER)?;
            world.wait_leader(0, None, SOON)
        };
        let leader = steady(world)?;
        world.sidecar(leader)?.sigterm()?;
        world.sidecar(leader)?.wait_exit(SOON)?;
        world.start_sidecars()?;
        let leader = steady(world)?;
        restart_unheard(world, leader)?;
        let leader = steady(world)?;
        world.sidecar(leader)?.sigkill()?;
        world.wait_leader(0, Some(leader), LEASE + LATER)?;
        world.start_sidecars()?;
        steady(world)?;
        world.hubs[0].restart()?;
        steady(world)?;
        assert_eq!((told(world)?, lines(world)), (0, 0), "nobody else was there: {}", world.logs());
        drop(probe);

        // Nobody asks any more: the leader's own probes are enough.
        let rival = Wireguard::rival(&world.topology.backends[0], &world.spec.tunnels[0], world.processes())?;
        until("the Event", 2 * LATER, || Ok((told(world)? > 0).then_some(())))?;
        let event = now();
        until("more of the same", 2 * LATER, || Ok((now() >= event + 2 * LEASE).then_some(())))?;
        assert_eq!(lines(world), 1, "once is enough: {}", world.logs());
        drop(rival);
        Ok(())
    })
}
