//! The promises of the documentation, kept by the real binary with real packets: each test is a sentence, plays in a
//! world of its own (`lab`), and is measured by a client beyond the hub. Every scenario runs twice: with the lab's
//! API server, and with a real kube-apiserver under the chart's RBAC.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "all functions here are parts of tests")]
#![allow(clippy::print_stderr, reason = "tests tell what they measured")]

mod api;
mod bad_input;
mod claims;
mod clocks;
mod events;
mod far;
mod faults;
mod flows;
mod forwarding;
mod healing;
mod hold;
mod hub;
mod isolation;
mod kernel;
mod kubectl;
mod leftovers;
mod live_secret;
mod metrics;
mod peers;
mod referee;
mod rights;
mod seen;
mod status;
mod takeover;
mod turns;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lab::api::Kind;
use lab::clock::{now, until};
use lab::probe::{Probe, ProbeKind};
use lab::{World, WorldSpec};

/// Lease duration of all worlds here (the default).
const LEASE: Duration = Duration::from_secs(5);
/// For what happens at once, on a machine that has other work too.
const SOON: Duration = Duration::from_secs(5);
/// For what takes a lease or a few seconds by the contract.
const LATER: Duration = Duration::from_secs(20);

/// How long a client waits where it should get no answer.
const SETTLE: Duration = Duration::from_millis(300);

/// The usual world: three nodes, three backends, one tunnel, Service `default/web`.
fn spec(api: Kind) -> WorldSpec {
    WorldSpec::default().bin(env!("CARGO_BIN_EXE_wirevip")).api(api)
}

/// The same without hold: nothing is heard of a pod after its tenure.
fn strict(api: Kind) -> WorldSpec {
    spec(api).args(&["--hold=false"])
}

/// Names scenarios `fn(Kind) -> Result<()>` as tests, once for each API server; more that they need, if anything, is
/// said before them, as it reads with either.
macro_rules! scenarios {
    ($($name:ident),* $(,)?) => {
        crate::scenarios!("needs root", "needs root and kube-apiserver": $($name),*);
    };
    ($embedded:literal, $real:literal: $($name:ident),* $(,)?) => {
        mod embedded {
            $(
                #[test]
                #[ignore = $embedded]
                fn $name() -> anyhow::Result<()> {
                    super::$name(lab::api::Kind::Embedded)
                }
            )*
        }
        mod real {
            $(
                #[test]
                #[ignore = $real]
                fn $name() -> anyhow::Result<()> {
                    super::$name(lab::api::Kind::Real)
                }
            )*
        }
    };
}
pub(crate) use scenarios;

/// After `since` the hub of tunnel `index` heard nothing from the sidecar of `node`.
fn expect_silence(world: &World, index: usize, node: u8, since: Instant) -> Result<()> {
    let heard = world.hubs.get(index).context("no such hub")?.heard();
    let late: Vec<_> = heard.iter().filter(|h| h.at > since && h.node() == Some(node)).collect();
    assert!(late.is_empty(), "node {node} spoke {:?} after it had to be silent: {late:?}", late[0].at - since);
    Ok(())
}

/// A steady UDP flow to `default/web`, and who leads.
fn steady(world: &World) -> Result<(Probe, u8)> {
    let probe = Probe::start(&world.topology.client, world.web(), ProbeKind::UdpFlow)?;
    probe.steady_since(now(), 100, SOON)?;
    Ok((probe, world.wait_leader(0, None, SOON)?))
}

/// Waits until a sidecar says of itself that it stands by.
fn stands_by(world: &World, node: u8) -> Result<()> {
    let sidecar = world.sidecar(node)?;
    until(&format!("{} to stand by", sidecar.pod), LATER, || {
        Ok((sidecar.status()?["tunnels"][0]["state"] == "standby").then_some(()))
    })
}

/// Two moments at most this far apart, whichever is first.
fn apart(a: Instant, b: Instant) -> Duration {
    a.saturating_duration_since(b).max(b.saturating_duration_since(a))
}
