//! What befalls the API server, and how the pods are known to it, and what it costs a client outside.

use std::time::Duration;

use anyhow::{Result, ensure};
use lab::clock::{now, pause, until};
use lab::cluster::{Installed, Pod, signed_for};

use crate::measure::{Disruption, HANDED_OVER, TAKEN_OVER, Trial, nothing};

/// A token is read from its file again within a minute, and then comes a Lease or two.
const REREAD: Duration = Duration::from_secs(90);
/// A Lease that is not renewed for so long has no leader: three times what one lasts, for any of three may have it next.
const UNRENEWED: Duration = Duration::from_secs(15);

/// How long the control plane is away: `WIREVIP_CLUSTER_OUTAGE` (60) seconds.
fn outage() -> Duration {
    let told = std::env::var("WIREVIP_CLUSTER_OUTAGE").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(told.unwrap_or(60))
}

#[test]
#[ignore = "needs a cluster, see make cluster-test"]
fn a_control_plane_that_is_away_costs_nothing() -> Result<()> {
    let disrupt: Disruption = |installed, _| {
        installed.cluster.sh(&["power", "control", "off"])?;
        pause(outage())?;
        installed.cluster.sh(&["power", "control", "on"])?;
        installed.wait_serving()
    };
    Trial::of(&format!("control plane off for {:?}", outage()), HANDED_OVER).run(disrupt, nothing)
}

#[test]
#[ignore = "needs a cluster, see make cluster-test"]
fn a_new_certificate_of_the_api_server_costs_nothing() -> Result<()> {
    let disrupt: Disruption = |installed, leader| {
        // The connections that are open stay; whoever comes now sees the new one.
        installed.cluster.sh(&["certificate"])?;
        let renewed = installed.renewed()?;
        until("a renewal of the Lease", Duration::from_secs(10), || {
            Ok((installed.renewed()? != renewed).then_some(()))
        })?;
        ensure!(installed.leader()?.as_ref() == Some(leader), "{} leads no more", leader.name);
        installed.cluster.sh(&["power", "control", "off"])?;
        installed.cluster.sh(&["power", "control", "on"])?;
        installed.wait_serving()
    };
    Trial::of("new certificate of the API server, which is restarted", HANDED_OVER).run(disrupt, nothing)
}

#[test]
#[ignore = "needs a cluster, see make cluster-test"]
fn a_token_that_is_rotated_before_it_expires_costs_nothing() -> Result<()> {
    let disrupt: Disruption = |installed, leader| {
        let pods = installed.pods()?;
        let own = pods.iter().map(|pod| installed.token(pod)).collect::<Result<Vec<_>>>()?;
        let end = now() + 2 * REREAD;
        let short = own.iter().map(|token| signed_for(token, 2 * REREAD)).collect::<Result<Vec<_>>>()?;
        // Until every pod has read it. Meanwhile the kubelet may find that the file is not what it wrote.
        let read = now() + Duration::from_secs(70);
        while now() < read {
            put(installed, &pods, &short)?;
            pause(Duration::from_secs(1))?;
        }
        put(installed, &pods, &own)?;
        // The API server remembers for 10 s what a token is worth.
        pause(end.saturating_duration_since(now()) + Duration::from_secs(20))?;
        ensure!(installed.leader()?.as_ref() == Some(leader), "{} leads no more", leader.name);
        let logs = installed.logs();
        ensure!(!logs.contains("(401)"), "a pod was not known to the API server:\n{logs}");
        Ok(())
    };
    Trial::of("ServiceAccount tokens rotated", HANDED_OVER).run(disrupt, nothing)
}

fn put(installed: &Installed, pods: &[Pod], tokens: &[String]) -> Result<()> {
    pods.iter().zip(tokens).try_for_each(|(pod, token)| installed.put_token(pod, token))
}

#[test]
#[ignore = "needs a cluster, see make cluster-test"]
fn pods_whose_tokens_expire_serve_on_and_lead_again_with_the_next() -> Result<()> {
    let disrupt: Disruption = |installed, _| {
        let pods = installed.pods()?;
        let own = pods.iter().map(|pod| installed.token(pod)).collect::<Result<Vec<_>>>()?;
        let expired = own.iter().map(|token| signed_for(token, Duration::ZERO)).collect::<Result<Vec<_>>>()?;
        let (mut renewed, mut since) = (installed.renewed()?, now());
        until("a Lease that nobody renews", 2 * REREAD, || {
            // Again and again: the kubelet may find that the file is not what it wrote.
            put(installed, &pods, &expired)?;
            pause(Duration::from_secs(1))?;
            let seen = installed.renewed()?;
            if seen != renewed {
                (renewed, since) = (seen, now());
            }
            Ok((since.elapsed() > UNRENEWED).then_some(()))
        })?;
        let logs = installed.logs();
        ensure!(logs.contains("(401)"), "nobody was refused:\n{logs}");
        put(installed, &pods, &own)?;
        until("a renewal", REREAD, || Ok((installed.renewed()? != renewed).then_some(())))
    };
    Trial::of("all ServiceAccount tokens expired, later replaced", TAKEN_OVER).run(disrupt, nothing)
}
