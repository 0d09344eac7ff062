//! The real cluster of `make cluster`: a hub and a client beyond its NAT, and words to speak to it.
//!
//! The cluster's own part (control plane, nodes, containers, CNI) is made by `lab/setup/cluster.sh`. What is outside comes
//! from here, and is what a [`crate::World`] has: so probes, hubs and gaps mean the same in both.

mod installed;
mod tokens;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use tokio::runtime::Runtime;

pub use self::installed::{Installed, Pod};
pub use self::tokens::signed_for;
use crate::api::Kube;
use crate::client::Client;
use crate::dns::Dns;
use crate::hub::Hub;
use crate::keys::KeyPair;
use crate::netns::Netns;
use crate::plan;
use crate::processes::Processes;
use crate::road::Conditions;
use crate::topology::Outside;
use crate::tunnels::TunnelSpec;

/// Nodes of the cluster.
pub const NODES: u8 = 3;

/// The cluster that is up, with a hub and a client outside.
pub struct Cluster {
    /// The lab's own hand on its API.
    pub kube: Kube,
    /// The hub of its tunnel.
    pub hub: Hub,
    /// Asks from beyond the hub.
    pub client: Client,
    /// The one tunnel, keys filled in.
    pub tunnel: TunnelSpec,
    /// The name server that the nodes ask, and the cluster's DNS for what is not its own.
    pub dns: Dns,
    _runtime: Runtime,
    outside: Outside,
    _processes: Arc<Processes>,
}

impl Cluster {
    /// Lays what is outside, and a cable from the NAT to the cluster's LAN. All but the cluster goes with the value.
    pub fn join() -> Result<Self> {
        let lan = Netns::open(Path::new("/run/netns/wirevip-lan")).context("no cluster is up; see `make cluster`")?;
        let sources: Vec<String> = (1..=NODES).map(|number| format!("{}/24", plan::pod_network(number))).collect();
        let outside = Outside::lay(1, &sources, Conditions::default())?;
        // The kernel takes its time to clear away the gateway of the test before, and its cable with it.
        let _ = lan.ip(&["link del gateway"]);
        outside.gateway.cable("cluster", &lan, "gateway", 1500)?;
        lan.ip(&["link set gateway master lan"])?;
        // Always the same: the nodes remember the gateway of the test before, and would call it for 10 s.
        outside.gateway.ip(&["link set cluster master lan", "link set lan address 02:00:0a:0a:00:01"])?;
        let routes = (1..=NODES).map(|n| format!("route add {}/24 via {}", plan::pod_network(n), plan::node(n)));
        outside.gateway.ip(&routes.collect::<Vec<_>>())?;

        let processes = Arc::new(Processes::new()?);
        let (pods, mut tunnel) = (KeyPair::generate(), TunnelSpec::numbered(0));
        let hub = Hub::start(outside.hubs.first().context("no hub")?, 0, &pods, None, &processes)?;
        tunnel.private_key = pods.private;
        tunnel.peer_public_key.clone_from(&hub.keys.public);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let kubeconfig = std::fs::read_to_string(keys().join("admin.conf"))?;
        Ok(Self {
            kube: Kube::new(&lan, &kubeconfig)?,
            hub,
            client: Client::new(&outside.client),
            tunnel,
            dns: Dns::start(&outside.gateway, runtime.handle())?,
            _runtime: runtime,
            outside,
            _processes: processes,
        })
    }

    /// Has the client's network send what is for the VIP to the hub, as it is for those in the hub's VPN.
    pub fn route_to_vip(&self) -> Result<()> {
        self.outside.internet.ip(&[format!("route replace {}/32 via {}", self.tunnel.vip, self.hub.address)])
    }

    /// Runs `lab/setup/cluster.sh` with these words, e.g. `["power", "n1", "off"]`; what it printed.
    pub fn sh(&self, words: &[&str]) -> Result<String> {
        script(words, "")
    }

    /// `kubectl` as administrator, from the LAN; what it printed.
    pub fn kubectl(&self, words: &[&str], input: &str) -> Result<String> {
        script(&[&["kubectl"], words].concat(), input)
    }

    /// `helm` as administrator, from the LAN; what it printed.
    pub fn helm(&self, words: &[&str]) -> Result<String> {
        script(&[&["helm"], words].concat(), "")
    }
}

/// IPv4 forwarding, `0` or `1`, in pods that are made from now on.
pub fn forwarding(value: &str) -> Result<()> {
    script(&["forwarding", value], "").map(drop)
}

/// The network namespace of a node, for who asks from inside.
pub fn node_netns(number: u8) -> Result<Netns> {
    Netns::open(Path::new(&format!("/run/netns/wirevip-n{number}")))
}

/// Where the cluster's keys and kubeconfigs are.
pub fn keys() -> PathBuf {
    repository().join("target/cluster/state/keys")
}

/// The repository's top.
pub fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// What it printed on stdout; where it failed, an error with what it said on stderr.
fn script(words: &[&str], input: &str) -> Result<String> {
    let mut child = Command::new(repository().join("lab/setup/cluster.sh"))
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start lab/setup/cluster.sh")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("`cluster.sh {}` failed: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
