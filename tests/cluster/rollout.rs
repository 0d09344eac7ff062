//! A Deployment behind a Service is rolled while clients ask.

use anyhow::Result;
use lab::clock::now;
use lab::cluster::{Installed, node_netns};
use lab::probe::{Probe, ProbeKind};

use crate::measure::{WITHIN, runs};

/// Before and after the rollout.
const STEADY: usize = 100;

#[test]
#[ignore = "needs a cluster, see make cluster-test"]
fn a_deployment_rolled_under_load_loses_no_request_that_it_does_not_lose_inside() -> Result<()> {
    Installed::play(&[], |installed| {
        for run in 1..=runs() {
            let outside = Probe::start(&installed.cluster.client.netns, installed.web(), ProbeKind::TcpRequest)?;
            let inside = Probe::start(&node_netns(1)?, installed.web_inside()?, ProbeKind::TcpRequest)?;
            for probe in [&outside, &inside] {
                probe.steady_since(now(), STEADY, WITHIN)?;
            }
            let event = now();
            installed.cluster.kubectl(&["rollout", "restart", "deployment/web"], "")?;
            installed.cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"], "")?;
            installed.wait_backends(3)?;
            for probe in [&outside, &inside] {
                probe.steady_since(now(), STEADY, WITHIN)?;
            }
            let [outside, inside] = [outside, inside].map(|probe| {
                let gap = probe.gap_since(event).length();
                let samples = probe.finish();
                let asked = samples.iter().filter(|sample| sample.sent >= event);
                (asked.clone().count(), asked.filter(|sample| sample.answered.is_none()).count(), gap)
            });
            eprintln!(
                "Deployment rolled, run {run}: (asked, lost, longest silence) {outside:?} outside, {inside:?} inside"
            );
            assert!(outside.1 <= inside.1, "lost outside: {}, inside: {}", outside.1, inside.1);
        }
        Ok(())
    })
}
