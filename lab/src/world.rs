//! A whole world: brought up in a second, gone without a trace when dropped.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tokio::runtime::Runtime;

use crate::backend::Backend;
use crate::census::Census;
use crate::client::Client;
use crate::dns::Dns;
use crate::hub::Hub;
use crate::keys::KeyPair;
use crate::node::Node;
use crate::plan;
use crate::processes::Processes;
use crate::sidecar::Sidecar;
use crate::topology::Topology;
use crate::tunnels::TunnelSpec;

/// What a world should be like.
#[derive(Clone, Debug)]
pub struct WorldSpec {
    /// The sidecar's program.
    pub bin: PathBuf,
    /// Nodes with a sidecar, 1 to 200. Besides them there is the worker, node 0, without one.
    pub nodes: u8,
    /// The node of each backend.
    pub backends: Vec<u8>,
    /// The port on which all backends listen, TCP and UDP.
    pub backend_port: u16,
    /// MTU of all pods' links.
    pub pod_mtu: u32,
    /// The tunnels; each has a hub of its own.
    pub tunnels: Vec<TunnelSpec>,
    /// Arguments for the sidecars after `run`.
    pub args: Vec<String>,
    /// Seconds after which the NAT forgets a UDP flow; `None`: as the kernel does (30 s, 120 s for streams).
    pub nat_forgets: Option<u32>,
}

impl Default for WorldSpec {
    fn default() -> Self {
        Self {
            bin: PathBuf::from("wirevip"),
            nodes: 3,
            backends: vec![0, 0, 0],
            backend_port: 8080,
            pod_mtu: 1500,
            tunnels: vec![TunnelSpec::numbered(0)],
            args: Vec::new(),
            nat_forgets: None,
        }
    }
}

impl WorldSpec {
    /// With this program as sidecar.
    pub fn bin(mut self, bin: impl AsRef<Path>) -> Self {
        self.bin = bin.as_ref().to_owned();
        self
    }

    /// With this many nodes that have a sidecar.
    pub fn nodes(mut self, nodes: u8) -> Self {
        self.nodes = nodes;
        self
    }

    /// With a backend on each of these nodes.
    pub fn backends(mut self, nodes: &[u8]) -> Self {
        self.backends = nodes.to_vec();
        self
    }

    /// With pod links of this MTU.
    pub fn pod_mtu(mut self, mtu: u32) -> Self {
        self.pod_mtu = mtu;
        self
    }

    /// With this many tunnels, `wg0`, `wg1`, …, each with a hub of its own.
    pub fn tunnels(mut self, count: u8) -> Self {
        self.tunnels = (0..count).map(TunnelSpec::numbered).collect();
        self
    }

    /// With more arguments after `run`.
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|arg| (*arg).to_owned()));
        self
    }
}

/// A running world. Fields are in the order in which they go down.
pub struct World {
    /// The sidecars, by node number − 1.
    pub sidecars: Vec<Sidecar>,
    /// The hubs, one a tunnel.
    pub hubs: Vec<Hub>,
    /// Backend pods.
    pub backends: Vec<Backend>,
    /// The cluster's name server.
    pub dns: Dns,
    /// Asks from beyond the hub.
    pub client: Client,
    /// Nodes, by number; 0 is the worker.
    pub nodes: Vec<Node>,
    /// All namespaces.
    pub topology: Topology,
    /// What it was asked to be, with the keys filled in.
    pub spec: WorldSpec,
    processes: Arc<Processes>,
    _runtime: Runtime,
}

impl World {
    /// Lays the network, starts hubs, backends and DNS. Sidecars are there but not started.
    pub fn lay(mut spec: WorldSpec) -> Result<Self> {
        let hubs = u8::try_from(spec.tunnels.len()).context("too many tunnels")?;
        let topology = Topology::lay(spec.nodes, hubs, &spec.backends, spec.pod_mtu)?;
        if let Some(seconds) = spec.nat_forgets {
            let seconds = seconds.to_string();
            topology.gateway.sysctls(&[
                ("net/netfilter/nf_conntrack_udp_timeout", &seconds),
                ("net/netfilter/nf_conntrack_udp_timeout_stream", &seconds),
            ])?;
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("lab")
            .enable_all()
            .build()
            .context("no runtime")?;
        let processes = Arc::new(Processes::new()?);
        let mut running = Vec::new();
        for ((netns, index), tunnel) in topology.hubs.iter().zip(0..).zip(&mut spec.tunnels) {
            let pods = KeyPair::generate();
            let hub = Hub::start(netns, index, &pods, tunnel.preshared_key.as_deref(), &processes)?;
            tunnel.private_key = pods.private;
            tunnel.peer_public_key.clone_from(&hub.keys.public);
            running.push(hub);
        }
        let mut backends = Vec::new();
        for ((netns, index), node) in topology.backends.iter().zip(0..).zip(&spec.backends) {
            let address = plan::backend(*node, index);
            backends.push(Backend::start(&format!("b{index}"), netns, address, spec.backend_port, runtime.handle())?);
        }
        let nodes: Vec<Node> =
            topology.nodes.iter().zip(0..).map(|(netns, number)| Node { number, netns: netns.clone() }).collect();
        let mut sidecars = Vec::new();
        for (pod, node) in topology.pods.iter().zip(nodes.iter().skip(1)) {
            let mut sidecar = Sidecar::new(node.number, pod, &node.netns, spec.bin.clone(), &processes);
            sidecar.args.extend(spec.args.iter().cloned());
            sidecars.push(sidecar);
        }
        let dns = Dns::start(&topology.control, runtime.handle())?;
        let client = Client::new(&topology.client);
        Ok(Self { sidecars, hubs: running, backends, dns, client, nodes, topology, spec, processes, _runtime: runtime })
    }

    /// The sidecar on node `number` (from 1).
    pub fn sidecar(&self, number: u8) -> Result<&Sidecar> {
        self.sidecars.iter().find(|s| s.node == number).ok_or_else(|| anyhow!("node {number} has no sidecar"))
    }

    /// The sidecar on node `number` (from 1), to start it.
    pub fn sidecar_mut(&mut self, number: u8) -> Result<&mut Sidecar> {
        self.sidecars.iter_mut().find(|s| s.node == number).ok_or_else(|| anyhow!("node {number} has no sidecar"))
    }

    /// For processes of a test's own: they end with the world.
    pub fn processes(&self) -> &Processes {
        &self.processes
    }

    /// What this world consists of, to look for afterwards.
    pub fn census(&self) -> Result<Census> {
        let namespaces = self.topology.all().into_iter().map(|netns| Ok((netns.inode()?, netns.name().to_owned())));
        Ok(Census { namespaces: namespaces.collect::<Result<_>>()?, processes: self.processes.ids() })
    }

    /// Takes the world down and insists that nothing of it is left on the machine.
    pub fn finish(self) -> Result<()> {
        let census = self.census()?;
        drop(self);
        census.expect_gone(Duration::from_secs(5))
    }

    /// All logs of the sidecars, for messages of failed tests.
    pub fn logs(&self) -> String {
        self.sidecars.iter().map(|s| format!("──── {} ────\n{}", s.pod, s.log())).collect()
    }
}
