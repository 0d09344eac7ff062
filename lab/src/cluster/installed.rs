//! The chart on the cluster, and backends to forward to.

use std::net::SocketAddrV4;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};

use super::{Cluster, repository};
use crate::api::Resource;
use crate::client::Proto;
use crate::clock::until;
use crate::objects;
use crate::plan;
use crate::sidecar::NAMESPACE;
use crate::tunnels::document;
use crate::world::WEB;

/// From `helm install` to an answer at the client.
const UP: Duration = Duration::from_secs(60);
const LEAST: Duration = Duration::from_secs(30);
/// How long helm and kubectl wait for what they delete. Kubelets and controllers that were without an API server look again
/// after up to a minute; a node that a failed test left broken deletes nothing.
const GONE: &str = "--timeout=180s";

/// One of the DaemonSet's pods.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// The machine it runs on: `n1`, `n2`, …
    pub node: String,
}

/// wirevip as a user installs it, and the Service `default/web` with three backends.
pub struct Installed {
    /// Where.
    pub cluster: Cluster,
}

impl Installed {
    /// Plays with it in a cluster that is up, with these settings of the chart (`--set`); afterwards it is removed, and an
    /// error or a panic comes with the pods' logs.
    pub fn play(settings: &[&str], scenario: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let mut installed = Self { cluster: Cluster::join()? };
        let played = catch_unwind(AssertUnwindSafe(|| {
            installed.install(settings)?;
            scenario(&mut installed)
        }));
        let ended = match played {
            Ok(Ok(())) => return installed.remove(),
            Ok(Err(error)) => error,
            // The panic's own text is on stderr already.
            Err(_) => anyhow!("the scenario panicked"),
        };
        let logs = installed.logs();
        let removed = installed.remove().err().map(|error| format!("; and {error:#}")).unwrap_or_default();
        Err(anyhow!("{ended:#}{removed}").context(logs))
    }

    /// `helm install` with these settings, after all that README.md asks for; waits until it serves.
    fn install(&self, settings: &[&str]) -> Result<()> {
        self.namespace()?;
        self.write_secret()?;
        self.cluster.kubectl(&["apply", "-f", "-"], &backends().to_string())?;
        let chart = repository().join("charts/wirevip").display().to_string();
        let mut words = vec!["install", "wirevip", &chart, "--namespace", NAMESPACE, "--set=tun=true"];
        words.extend(settings.iter().flat_map(|setting| ["--set", setting]));
        self.cluster.helm(&words)?;
        self.wait_serving()
    }

    /// Writes the Secret with the tunnel as it is now.
    pub fn write_secret(&self) -> Result<()> {
        let document = document(std::slice::from_ref(&self.cluster.tunnel));
        self.cluster.kube.apply(Resource::Secret, objects::secret(NAMESPACE, &document))?;
        Ok(())
    }

    /// The namespace, as README.md says.
    fn namespace(&self) -> Result<()> {
        let labels = json!({ "pod-security.kubernetes.io/enforce": "privileged" });
        let namespace = json!({ "metadata": { "name": NAMESPACE, "labels": labels } });
        Ok(self.cluster.kube.apply(Resource::Namespace, namespace).map(drop)?)
    }

    /// Waits until all pods are ready and the client gets answers over TCP and UDP, and reaches the API server.
    pub fn wait_serving(&self) -> Result<()> {
        let Cluster { client, hub, .. } = &self.cluster;
        for wait in ["daemonset/wirevip --namespace=wirevip", "deployment/web --namespace=default"] {
            let words: Vec<&str> = ["rollout", "status", "--timeout=60s"].into_iter().chain(wait.split(' ')).collect();
            self.cluster.kubectl(&words, "")?;
        }
        for proto in [Proto::Tcp, Proto::Udp] {
            client.until(proto, self.web(), UP, |answer| answer.name().is_some())?;
        }
        let control_plane = hub.public(plan::API_SOCKET.port());
        until("the API server through the hub", LEAST, || {
            Ok(matches!(client.connect(control_plane)?, crate::client::Answer::Text(_)).then_some(()))
        })
    }

    /// Where the client finds the Service `default/web`.
    pub fn web(&self) -> SocketAddrV4 {
        self.cluster.hub.public(WEB)
    }

    /// Where those in the cluster find it: its ClusterIP.
    pub fn web_inside(&self) -> Result<SocketAddrV4> {
        let service = self.cluster.kube.get(Resource::Service, "default", "web")?;
        let address = service["spec"]["clusterIP"].as_str().context("the Service has no ClusterIP")?;
        Ok(SocketAddrV4::new(address.parse()?, WEB))
    }

    /// Waits until no backend but `count` is left, those that are leaving included.
    pub fn wait_backends(&self, count: usize) -> Result<()> {
        until(&format!("{count} backends"), LEAST, || {
            Ok((self.cluster.kube.list(Resource::Pod, "default")?.len() == count).then_some(()))
        })
    }

    /// A kubeconfig of the administrator for this address of the API server, whose certificate must have `name`.
    pub fn kubeconfig_at(&self, server: SocketAddrV4, name: &str) -> Result<String> {
        let admin = std::fs::read_to_string(super::keys().join("admin.conf"))?;
        let own = format!("\"https://{}\"", plan::API_SOCKET);
        anyhow::ensure!(admin.contains(&own), "the administrator's kubeconfig does not name {own}");
        Ok(admin.replace(&own, &format!("\"https://{server}\", tls-server-name: \"{name}\"")))
    }

    /// The pods of the DaemonSet.
    pub fn pods(&self) -> Result<Vec<Pod>> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let pods = self.cluster.kube.list(Resource::Pod, NAMESPACE)?;
        Ok(pods
            .iter()
            .map(|p| Pod { name: text(&p["metadata"]["name"]), node: text(&p["spec"]["nodeName"]) })
            .collect())
    }

    /// Process id of a pod's container, as its node's machine counts.
    pub fn process(&self, pod: &Pod) -> Result<String> {
        let object = self.cluster.kube.get(Resource::Pod, NAMESPACE, &pod.name)?;
        let id = object["status"]["containerStatuses"][0]["containerID"].as_str().unwrap_or_default();
        let id = id.strip_prefix("containerd://").with_context(|| format!("{} has no container", pod.name))?;
        let tasks = self.cluster.sh(&["in", &pod.node, "ctr", "--namespace", "k8s.io", "tasks", "list"])?;
        let task = tasks.lines().find(|line| line.starts_with(id)).context("containerd does not know the container")?;
        Ok(task.split_whitespace().nth(1).context("a task without a process")?.to_owned())
    }

    /// Why the container before the present one ended, as the kubelet says; empty if there was none.
    pub fn last_end(&self, pod: &Pod) -> Result<String> {
        let object = self.cluster.kube.get(Resource::Pod, NAMESPACE, &pod.name)?;
        let reason = &object["status"]["containerStatuses"][0]["lastState"]["terminated"]["reason"];
        Ok(reason.as_str().unwrap_or_default().to_owned())
    }

    /// Runs a command of the node in a pod's network namespace; what it printed.
    pub fn in_pod(&self, pod: &Pod, words: &[&str]) -> Result<String> {
        let process = self.process(pod)?;
        self.cluster.sh(&[&["in", &pod.node, "nsenter", "--net", "--target", &process, "--"], words].concat())
    }

    fn lease(&self) -> Result<Value> {
        Ok(self.cluster.kube.get(Resource::Lease, NAMESPACE, &self.cluster.tunnel.lease())?)
    }

    /// When the Lease was last renewed, as it says.
    pub fn renewed(&self) -> Result<String> {
        Ok(self.lease()?["spec"]["renewTime"].to_string())
    }

    /// The pod that the Lease names, if it is there.
    pub fn leader(&self) -> Result<Option<Pod>> {
        let lease = self.lease()?;
        let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
        Ok(self.pods()?.into_iter().find(|pod| holder.split('_').next() == Some(&pod.name)))
    }

    /// Waits until the Lease names a pod other than this.
    pub fn wait_leader(&self, not: Option<&Pod>) -> Result<Pod> {
        until("a leader in the Lease", LEAST, || Ok(self.leader()?.filter(|pod| Some(pod) != not)))
    }

    /// What every pod logged, and its Events.
    pub fn logs(&self) -> String {
        let say = |words: &[&str]| self.cluster.kubectl(words, "").unwrap_or_else(|error| format!("{error:#}"));
        let logs = say(&["logs", "-n", NAMESPACE, "-l", "app.kubernetes.io/name=wirevip", "--prefix", "--tail=200"]);
        format!("{}\n{logs}", say(&["get", "pods,events", "--all-namespaces"]))
    }

    /// Uninstalls the chart; nothing that it made is left, but the Leases and the Secret with the namespace.
    fn remove(&self) -> Result<()> {
        self.cluster.helm(&["uninstall", "wirevip", "--namespace", NAMESPACE, "--wait", "--ignore-not-found", GONE])?;
        self.cluster.kubectl(&["delete", "--ignore-not-found", GONE, "-f", "-"], &backends().to_string())?;
        self.cluster.kubectl(&["delete", "namespace", "--ignore-not-found", GONE, NAMESPACE], "").map(drop)
    }
}

/// `default/web`: a Deployment of three pods, one a node if it can be, and the Service that forwards to them.
fn backends() -> Value {
    let labels = json!({ "app": "web" });
    let me = json!({ "name": "POD", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } });
    let container = json!({
        "name": "web", "image": "localhost/backend:1", "args": ["$(POD)", WEB.to_string()], "env": [me],
        "readinessProbe": { "tcpSocket": { "port": WEB }, "periodSeconds": 1 },
    });
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "web", "namespace": "default" },
        "spec": { "replicas": 3, "selector": { "matchLabels": labels }, "template": {
            "metadata": { "labels": labels },
            "spec": {
                "containers": [container],
                // More than it serves on when it is asked to go.
                "terminationGracePeriodSeconds": 5,
                "topologySpreadConstraints": [{
                    "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
                    "labelSelector": { "matchLabels": labels },
                }],
            },
        } },
    });
    let mut service =
        objects::service("web", "wg0", &[objects::port(Proto::Tcp, WEB, WEB), objects::port(Proto::Udp, WEB, WEB)]);
    service["apiVersion"] = "v1".into();
    service["kind"] = "Service".into();
    service["spec"]["selector"] = labels;
    json!({ "apiVersion": "v1", "kind": "List", "items": [deployment, service] })
}
