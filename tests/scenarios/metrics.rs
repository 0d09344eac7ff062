//! Every metric of the contract is there from the first valid configuration on, and moves with what it measures.

use anyhow::{Context, Result};
use lab::api::{Kind, Resource};
use lab::clock::{now, until};
use lab::forge;
use lab::plan;
use lab::play;
use lab::probe::{Probe, ProbeKind};
use lab::sidecar::Sidecar;

use crate::{LATER, LEASE, SOON, spec};

crate::scenarios!(
    every_metric_is_there_before_anything_is_measured,
    what_a_leader_measures_moves,
    a_takeover_is_measured_by_its_phases,
    what_the_fence_held_back_is_counted,
);

const WG0: &str = r#"{tunnel="wg0"}"#;

/// The contract's list of what each tunnel has; true: a counter, which is never NaN.
const PER_TUNNEL: [(&str, bool); 12] = [
    ("wirevip_leader", false),
    ("wirevip_holding", false),
    ("wirevip_lease_transitions_total", true),
    ("wirevip_tenure_remaining_seconds", false),
    ("wirevip_handshake_age_seconds", false),
    ("wirevip_receive_bytes_total", true),
    ("wirevip_transmit_bytes_total", true),
    ("wirevip_fence_dropped_packets_total", true),
    ("wirevip_clock_skew_seconds", false),
    ("wirevip_forwards", false),
    ("wirevip_backends", false),
    ("wirevip_config_valid", false),
];
const PHASES: [&str; 4] = ["detect", "lease", "link", "handshake"];

fn value(sidecar: &Sidecar, name: &str, labels: &str) -> Result<f64> {
    sidecar.metric(name, labels)?.with_context(|| format!("{name}{labels} is not exported"))
}

/// Waits until a metric is as wanted.
fn becomes(sidecar: &Sidecar, name: &str, labels: &str, wanted: impl Fn(f64) -> bool) -> Result<f64> {
    until(&format!("{name}{labels} of {}", sidecar.pod), SOON, || {
        let found = value(sidecar, name, labels)?;
        anyhow::ensure!(wanted(found), "it is {found}");
        Ok(Some(found))
    })
}

fn counted(sidecar: &Sidecar, phase: &str) -> Result<f64> {
    value(sidecar, "wirevip_takeover_seconds_count", &format!(r#"{{tunnel="wg0",phase="{phase}"}}"#))
}

fn every_metric_is_there_before_anything_is_measured(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        let leader = world.wait_leader(0, None, SOON)?;
        let standby = world.sidecar(leader % 3 + 1)?;
        standby.wait_ready(SOON)?;
        for (name, counts) in PER_TUNNEL {
            let found = value(standby, name, WG0)?;
            assert!(!(counts && found.is_nan()), "{name} is a counter");
        }
        for name in ["wirevip_tenure_remaining_seconds", "wirevip_handshake_age_seconds", "wirevip_forwards"] {
            assert!(value(standby, name, WG0)?.is_nan(), "{name}: a standby has none");
        }
        for phase in PHASES {
            assert_eq!(counted(standby, phase)?, 0.0);
        }
        assert_eq!(value(standby, "wirevip_leader", WG0)?, 0.0);
        assert_eq!(value(standby, "wirevip_ruleset_apply_seconds_count", "")?, 0.0);
        assert!(value(standby, "wirevip_config_last_change_timestamp_seconds", "")? > 1.7e9);
        let version = format!(r#"{{version="{}"}}"#, env!("CARGO_PKG_VERSION"));
        assert_eq!(value(standby, "wirevip_build_info", &version)?, 1.0);
        assert!(
            value(standby, "wirevip_api_requests_total", r#"{verb="list",resource="services",code="200"}"#)? >= 1.0
        );
        Ok(())
    })
}

fn what_a_leader_measures_moves(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        let leader = world.sidecar(world.wait_leader(0, None, SOON)?)?;
        assert_eq!(value(leader, "wirevip_leader", WG0)?, 1.0);
        // It runs down, and up again with each renewal.
        let (mut last, mut fell, mut rose) = (f64::NAN, false, false);
        until("a tenure that runs down and is renewed", SOON, || {
            let left = value(leader, "wirevip_tenure_remaining_seconds", WG0)?;
            assert!((0.0..LEASE.as_secs_f64()).contains(&left), "{left}");
            (fell, rose) = (fell || left < last, rose || left > last);
            last = left;
            Ok((fell && rose).then_some(()))
        })?;
        let age = becomes(leader, "wirevip_handshake_age_seconds", WG0, |age| age >= 0.0)?;
        becomes(leader, "wirevip_handshake_age_seconds", WG0, |later| later > age)?;

        let bytes = |direction| value(leader, &format!("wirevip_{direction}_bytes_total"), WG0);
        let (received, sent) = (bytes("receive")?, bytes("transmit")?);
        let probe = Probe::start(&world.topology.client, world.web(), ProbeKind::UdpFlow)?;
        probe.steady_since(now(), 300, SOON)?;
        becomes(leader, "wirevip_receive_bytes_total", WG0, |now| now > received + 10_000.0)?;
        becomes(leader, "wirevip_transmit_bytes_total", WG0, |now| now > sent + 10_000.0)?;

        let renewals = r#"{verb="update",resource="leases",code="200"}"#;
        let before = value(leader, "wirevip_api_requests_total", renewals)?;
        becomes(leader, "wirevip_api_requests_total", renewals, |now| now > before)?;

        // The control plane with one endpoint, TCP and UDP with three each.
        becomes(leader, "wirevip_forwards", WG0, |forwards| forwards == 3.0)?;
        becomes(leader, "wirevip_backends", WG0, |backends| backends == 7.0)?;
        let applied = value(leader, "wirevip_ruleset_apply_seconds_count", "")?;
        let web = world.kube.get(Resource::Service, "default", "web")?;
        world.endpoints(&web, &world.all_ready()[..1])?;
        becomes(leader, "wirevip_backends", WG0, |backends| backends == 3.0)?;
        becomes(leader, "wirevip_ruleset_apply_seconds_count", "", |now| now > applied)?;
        assert!(value(leader, "wirevip_ruleset_apply_seconds_sum", "")? > 0.0);
        world.kube.delete(Resource::Service, "default", "web")?;
        becomes(leader, "wirevip_forwards", WG0, |forwards| forwards == 1.0)?;

        let changed = value(leader, "wirevip_config_last_change_timestamp_seconds", "")?;
        world.put_secret(&[world.spec.tunnels[0].clone().with("persistentKeepalive: 7")])?;
        becomes(leader, "wirevip_config_last_change_timestamp_seconds", "", |now| now > changed)?;
        world.put_document("wg0: {}\n")?;
        becomes(leader, "wirevip_config_valid", WG0, |valid| valid == 0.0)?;
        world.put_secret(&world.spec.tunnels)?;
        becomes(leader, "wirevip_config_valid", WG0, |valid| valid == 1.0)?;
        Ok(())
    })
}

fn a_takeover_is_measured_by_its_phases(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        let leader = world.wait_leader(0, None, SOON)?;
        let others: Vec<u8> = world.sidecars.iter().map(|s| s.node).filter(|node| *node != leader).collect();
        for node in &others {
            becomes(world.sidecar(*node)?, "wirevip_lease_transitions_total", WG0, f64::is_finite)?;
        }
        let before = value(world.sidecar(others[0])?, "wirevip_lease_transitions_total", WG0)?;
        world.sidecar(leader)?.sigkill()?;
        let heir = world.wait_leader(0, Some(leader), LEASE + LATER)?;
        world.wait_serving(LATER)?;
        for node in others {
            let sidecar = world.sidecar(node)?;
            becomes(sidecar, "wirevip_lease_transitions_total", WG0, |now| now == before + 1.0)?;
            let took = if node == heir { 1.0 } else { 0.0 };
            becomes(sidecar, "wirevip_leader", WG0, |leads| leads == took)?;
            for phase in PHASES {
                until("the phases", SOON, || Ok((counted(sidecar, phase)? == took).then_some(())))?;
            }
        }
        // A killed leader is silent for what is left of its lease: between one renewal and the next, give or take.
        let labels = r#"{tunnel="wg0",phase="detect"}"#;
        let silent = value(world.sidecar(heir)?, "wirevip_takeover_seconds_sum", labels)?;
        assert!(silent >= LEASE.as_secs_f64() - 0.1, "taken {silent} s after its last sign of life");
        Ok(())
    })
}

fn what_the_fence_held_back_is_counted(api: Kind) -> Result<()> {
    play(spec(api), |world| {
        let leader = world.sidecar(world.wait_leader(0, None, SOON)?)?;
        let before = value(leader, "wirevip_fence_dropped_packets_total", WG0)?;
        let from = std::net::SocketAddrV4::new(plan::sidecar(leader.node), plan::HUB_PORT);
        let to = std::net::SocketAddrV4::new(world.hubs[0].address, plan::HUB_PORT);
        leader.freeze()?;
        until("the end of the tenure", 2 * LEASE, || {
            Ok((!forge::send(&leader.netns, from, to, &[9; 40])?).then_some(()))
        })?;
        for _ in 0..10 {
            assert!(!forge::send(&leader.netns, from, to, &[9; 40])?);
        }
        leader.thaw()?;
        becomes(leader, "wirevip_fence_dropped_packets_total", WG0, |dropped| dropped >= before + 11.0)?;
        Ok(())
    })
}
