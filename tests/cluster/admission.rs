//! What a real API server takes of the chart, and what it says to who forgets the namespace's label.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::api::Resource;
use lab::clock::until;
use lab::cluster::{Cluster, Installed, repository};
use serde_json::{Value, json};

/// For what a controller does in its next rounds.
const SOON: Duration = Duration::from_secs(30);

/// Settings of the chart, each beside the default of all others; last all of them together.
const MATRIX: &[&[&str]] = &[
    &[],
    &["tun=true"],
    &["config.backend=kernel"],
    &["config.backend=userspace"],
    &["config.controlPlane=false"],
    &["config.controlPlanePort=443"],
    &["config.serviceNamespace=default"],
    &["config.hold=false"],
    &["config.leaseDuration=15s", "config.renewDeadline=10s", "config.retryPeriod=2s"],
    &["config.logFormat=json", "config.logLevel=debug"],
    &["extraArgs={--log-level=debug}"],
    &["extraEnv[0].name=RUST_LOG", "extraEnv[0].value=debug"],
    &["http.address=[::]", "http.port=19586"],
    &["secret.create=true", TUNNEL[0], TUNNEL[1], TUNNEL[2], TUNNEL[3]],
    &["serviceAccount.create=false", "serviceAccount.name=default"],
    &["serviceAccount.annotations.example\\.org/role=vip"],
    &["rbac.create=false"],
    &["image.tag=other", "image.pullPolicy=Always", "imagePullSecrets[0].name=registry"],
    &["nameOverride=vip"],
    &["fullnameOverride=vip"],
    &["resources.limits.cpu=1", "resources.requests.memory=64Mi"],
    &["updateStrategy.type=OnDelete", "updateStrategy.rollingUpdate=null"],
    &["updateStrategy.rollingUpdate.maxSurge=0", "updateStrategy.rollingUpdate.maxUnavailable=1"],
    &["priorityClassName="],
    &["terminationGracePeriodSeconds=30"],
    &["nodeSelector.disk=fast", "tolerations[0].operator=Exists"],
    &["podAnnotations.example\\.org/scrape=yes", "podLabels.team=network"],
    &["livenessProbe.initialDelaySeconds=5", "readinessProbe.successThreshold=2"],
];

const TUNNEL: [&str; 4] = [
    "secret.tunnels.wg0.vip=10.99.0.2",
    "secret.tunnels.wg0.privateKey=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE=",
    "secret.tunnels.wg0.peerPublicKey=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAI=",
    "secret.tunnels.wg0.peerEndpoint=hub.example.org:51820",
];

fn chart() -> String {
    repository().join("charts/wirevip").display().to_string()
}

/// What helm renders with these settings.
fn rendered(cluster: &Cluster, settings: &[&str]) -> Result<String> {
    let chart = chart();
    let mut words = vec!["template", "wirevip", &chart, "--namespace", "default"];
    words.extend(settings.iter().flat_map(|setting| ["--set", setting]));
    cluster.helm(&words)
}

#[test]
#[ignore = "needs a cluster, see make cluster-test"]
fn the_api_server_takes_every_object_of_a_matrix_of_values_without_an_unknown_field() -> Result<()> {
    let cluster = Cluster::join()?;
    // Those that would take others away.
    let apart = |setting: &&str| setting.starts_with("rbac.") || setting.starts_with("updateStrategy.");
    let all: Vec<&str> = MATRIX.iter().copied().flatten().copied().filter(|setting| !apart(setting)).collect();
    for settings in MATRIX.iter().copied().chain([all.as_slice()]) {
        let objects = rendered(&cluster, settings)?;
        let apply = ["apply", "--dry-run=server", "--validate=strict", "--output=name", "-f", "-"];
        let taken = cluster.kubectl(&apply, &objects).with_context(|| format!("{settings:?}"))?;
        let expected = objects.lines().filter(|line| line.starts_with("kind: ")).count();
        assert_eq!(taken.lines().count(), expected, "{settings:?}: {taken}");
    }
    let misspelt = rendered(&cluster, &[])?.replacen("hostNetwork:", "hostNetworks:", 1);
    let refused = cluster.kubectl(&["apply", "--dry-run=server", "--validate=strict", "-f", "-"], &misspelt);
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("hostNetworks"), "{refused}");
    Ok(())
}

#[test]
#[ignore = "needs a cluster, see make cluster-test"]
fn a_namespace_of_level_baseline_gets_no_pods_and_says_why_until_it_has_the_label() -> Result<()> {
    let cluster = Cluster::join()?;
    let labelled = |level: &str| json!({ "metadata": { "name": "strict", "labels": { "pod-security.kubernetes.io/enforce": level } } });
    cluster.kube.apply(Resource::Namespace, labelled("baseline"))?;
    cluster.helm(&["install", "wirevip", &chart(), "--namespace", "strict"])?;
    let told = until("an Event that says why", SOON, || {
        let events = cluster.kube.list(Resource::Event, "strict")?;
        let event = events.into_iter().find(|event| event["reason"] == "FailedCreate");
        Ok(event.and_then(|event| event["note"].as_str().map(str::to_owned)))
    })?;
    assert!(told.contains("violates PodSecurity") && told.contains("NET_ADMIN"), "{told}");
    assert_eq!(cluster.kube.list(Resource::Pod, "strict")?.len(), 0);

    let label = json!({ "metadata": { "labels": { "pod-security.kubernetes.io/enforce": "privileged" } } });
    cluster.kube.patch(Resource::Namespace, "", "strict", label)?;
    until("the pods", SOON, || Ok((cluster.kube.list(Resource::Pod, "strict")?.len() == 3).then_some(())))?;
    cluster.helm(&["uninstall", "wirevip", "--namespace", "strict", "--wait"])?;
    cluster.kubectl(&["delete", "namespace", "strict"], "").map(drop)
}

/// Everything in the cluster with the chart's label, of whatever kind, as `kind/name`.
fn labelled(cluster: &Cluster) -> Result<Vec<String>> {
    let kinds = cluster.kubectl(&["api-resources", "--verbs=list,delete", "--output=name"], "")?;
    let kinds = kinds.lines().collect::<Vec<_>>().join(",");
    let get = ["get", &kinds, "--all-namespaces", "--output=name", "--selector=app.kubernetes.io/instance=wirevip"];
    Ok(cluster.kubectl(&get, "")?.lines().map(str::to_owned).collect())
}

#[test]
#[ignore = "needs a cluster, see make cluster-test"]
fn an_upgrade_serves_on_and_an_uninstall_leaves_nothing_of_the_chart() -> Result<()> {
    Installed::play(&[], |installed| {
        let cluster = &installed.cluster;
        assert!(
            labelled(cluster)?.iter().any(|object| object.starts_with("daemonset")),
            "the label finds what is there"
        );
        let chart = chart();
        let upgrade =
            ["upgrade", "wirevip", &chart, "--namespace=wirevip", "--set=tun=true", "--set=config.hold=false"];
        cluster.helm(&upgrade)?;
        installed.wait_serving()?;
        cluster.helm(&["uninstall", "wirevip", "--namespace=wirevip", "--wait"])?;
        until("the last object to be gone", SOON, || {
            let left = labelled(cluster)?;
            ensure!(left.is_empty(), "left: {left:?}");
            Ok(Some(()))
        })?;
        let address = || -> Result<Value> {
            Ok(cluster.kube.get(Resource::Service, "default", "web")?["status"]["loadBalancer"].take())
        };
        let last = address()?;
        assert!(last["ingress"].is_array(), "the last pod cannot know that none follows: {last}");
        // docs/operations.md
        let clear =
            ["patch", "svc", "web", "--subresource=status", "--type=merge", r#"-p={"status":{"loadBalancer":null}}"#];
        cluster.kubectl(&clear, "")?;
        let cleared = address()?;
        ensure!(cleared.is_null() || cleared == json!({}), "left: {cleared}");
        Ok(())
    })
}
