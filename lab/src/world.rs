//! A whole world: brought up in a second, gone without a trace when dropped.

mod cluster;
mod judged;

use std::net::SocketAddrV4;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use tokio::runtime::Runtime;

pub use self::cluster::LeaseState;
use crate::api::{ApiServer, Kind, Kube, Settings, User};
use crate::backend::Backend;
use crate::census::Census;
use crate::client::{Answer, Client, Proto};
use crate::clock::{now, until};
use crate::dns::Dns;
use crate::hub::Hub;
use crate::keys::KeyPair;
use crate::netns::Netns;
use crate::node::Node;
use crate::plan;
use crate::processes::Processes;
use crate::road::Conditions;
use crate::sidecar::{NAMESPACE, Sidecar};
use crate::topology::Topology;
use crate::tunnels::TunnelSpec;

/// Port of the Service that a world has unless told otherwise.
pub const WEB: u16 = 8080;

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
    /// Which API server.
    pub api: Kind,
    /// Is the Secret there before the sidecars are?
    pub secret: bool,
    /// Port of the Service `default/web` (TCP and UDP, all backends) that is there from the start; `None`: no Service.
    pub web: Option<u16>,
    /// Seconds after which the NAT forgets a UDP flow; `None`: as the kernel does (30 s, 120 s for streams).
    pub nat_forgets: Option<u32>,
    /// The road between the pods (their gateway, that is) and the hubs.
    pub road: Conditions,
    /// Why somebody who is no pod of this world speaks to a hub with a tunnel's key; `None`: nobody may.
    pub stranger: Option<&'static str>,
    /// Why a pod asks for what the chart's rights do not cover; `None`: it must not.
    pub forbidden: Option<&'static str>,
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
            api: Kind::Embedded,
            secret: true,
            web: Some(WEB),
            nat_forgets: None,
            road: Conditions::default(),
            stranger: None,
            forbidden: None,
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

    /// With this API server.
    pub fn api(mut self, kind: Kind) -> Self {
        self.api = kind;
        self
    }

    /// Without the Secret, for now.
    pub fn without_secret(mut self) -> Self {
        self.secret = false;
        self
    }

    /// Without the Service `default/web`.
    pub fn without_web(mut self) -> Self {
        self.web = None;
        self
    }

    /// With a stranger who has a tunnel's key, on purpose: the referee judges the pods among themselves.
    pub fn stranger(mut self, why: &'static str) -> Self {
        self.stranger = Some(why);
        self
    }

    /// With somebody who asks in a pod's name for what the chart's rights do not cover.
    pub fn forbidden(mut self, why: &'static str) -> Self {
        self.forbidden = Some(why);
        self
    }

    /// With this time for a packet from a pod to the hub and its answer.
    pub fn round_trip(mut self, time: Duration) -> Self {
        self.road.round_trip = time;
        self
    }

    /// With so many packets of a hundred lost between pods and hubs, each way.
    pub fn loss(mut self, percent: u8) -> Self {
        self.road.loss = percent;
        self
    }

    /// With packets that overtake others between pods and hubs.
    pub fn reorder(mut self) -> Self {
        self.road.reorder = true;
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
    /// The API server.
    pub api: ApiServer,
    /// The lab's own hand on it.
    pub kube: Kube,
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
    /// The longest that the lab kept a packet on its way so far, on purpose.
    pub(crate) detour: Duration,
    began: Instant,
    processes: Arc<Processes>,
    _runtime: Runtime,
}

impl World {
    /// A whole world: [`World::lay`], every sidecar started, a leader of each tunnel, and the client's first answer.
    pub fn start(spec: WorldSpec) -> Result<Self> {
        let mut world = Self::lay(spec)?;
        let up = world.start_sidecars().and_then(|()| world.wait_serving(Duration::from_secs(20)));
        match up {
            Ok(()) => Ok(world),
            Err(error) => Err(error.context(world.logs())),
        }
    }

    /// Starts every sidecar that does not run.
    pub fn start_sidecars(&mut self) -> Result<()> {
        for sidecar in &mut self.sidecars {
            if !sidecar.running()? {
                sidecar.start()?;
            }
        }
        Ok(())
    }

    /// Waits until each tunnel has a leader and the client gets an answer through its hub.
    pub fn wait_serving(&self, within: Duration) -> Result<()> {
        (0..self.hubs.len()).try_for_each(|index| self.wait_serving_through(index, within))
    }

    /// The same for the first tunnel alone.
    pub fn wait_serving_first(&self, within: Duration) -> Result<()> {
        self.wait_serving_through(0, within)
    }

    fn wait_serving_through(&self, index: usize, within: Duration) -> Result<()> {
        let hub = self.hubs.get(index).context("no such hub")?;
        self.wait_leader(index, None, within)?;
        if let Some(port) = self.spec.web.filter(|_| index == 0) {
            self.client.until(Proto::Tcp, hub.public(port), within, |answer| answer.name().is_some())?;
            return Ok(());
        }
        self.wait_control_plane(index, within)
    }

    /// Waits until the client reaches the API server through the hub of tunnel `index`: a real API server tells its
    /// own endpoints a second or two after it answers.
    pub fn wait_control_plane(&self, index: usize, within: Duration) -> Result<()> {
        let control_plane = self.hubs.get(index).context("no such hub")?.public(plan::API_SOCKET.port());
        until("the API server through the hub", within, || {
            Ok(matches!(self.client.connect(control_plane)?, Answer::Text(_)).then_some(()))
        })
    }

    /// Lays the network; starts API server, hubs, backends and DNS. Sidecars are there but not started.
    pub fn lay(mut spec: WorldSpec) -> Result<Self> {
        let began = now();
        let hubs = u8::try_from(spec.tunnels.len()).context("too many tunnels")?;
        let topology = Topology::lay(spec.nodes, hubs, &spec.backends, spec.pod_mtu, spec.road)?;
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
        let api = start_api(&spec, &topology)?;
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
            // A flag of a test's own goes before it.
            sidecar.env.extend(backend().map(|backend| ("WIREVIP_BACKEND".to_owned(), backend)));
            sidecar.kubeconfig = api.kubeconfig(User::Sidecar(sidecar.pod.clone()));
            sidecars.push(sidecar);
        }
        let dns = Dns::start(&topology.control, runtime.handle())?;
        let mut client = Client::new(&topology.client);
        client.patience += spec.road.round_trip * 2;
        let kube = api.kube();
        let detour = spec.road.longest();
        let mut world = Self {
            sidecars,
            api,
            kube,
            hubs: running,
            backends,
            dns,
            client,
            nodes,
            topology,
            spec,
            detour,
            began,
            processes,
            _runtime: runtime,
        };
        world.furnish()?;
        if world.spec.secret {
            world.put_secret(&world.spec.tunnels)?;
        }
        if let Some(port) = world.spec.web {
            world.serve("web", port)?;
        }
        Ok(world)
    }

    /// Where the client finds the Service `default/web` through the first hub.
    pub fn web(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.hubs.first().map_or(plan::hub(0), |hub| hub.address), self.spec.web.unwrap_or(WEB))
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

    /// The same, for those who start more.
    pub(crate) fn shared_processes(&self) -> &Arc<Processes> {
        &self.processes
    }

    /// What this world consists of, to look for afterwards.
    pub fn census(&self) -> Result<Census> {
        let names = |netns: &Netns| (netns.name().to_owned(), netns.mark().to_owned());
        let namespaces = self.topology.all().into_iter().map(|netns| Ok((netns.inode()?, names(netns))));
        Ok(Census { namespaces: namespaces.collect::<Result<_>>()?, processes: self.processes.births() })
    }

    /// Has the referee judge what was said at the hubs, looks that the chart's rights are enough, takes the world down,
    /// and insists that nothing of it is left on the machine.
    pub fn finish(self) -> Result<()> {
        let (census, judged) = (self.census()?, self.judge().and(self.expect_nothing_forbidden()));
        drop(self);
        census.expect_gone(Duration::from_secs(5)).and(judged)
    }

    /// All logs of the sidecars, for messages of failed tests.
    pub fn logs(&self) -> String {
        self.sidecars.iter().map(|s| format!("──── {} ────\n{}", s.pod, s.log())).collect()
    }
}

/// The backend that `WIREVIP_TEST_BACKEND` asks for.
fn backend() -> Option<String> {
    std::env::var("WIREVIP_TEST_BACKEND").ok()
}

fn start_api(spec: &WorldSpec, topology: &Topology) -> Result<ApiServer> {
    let addresses = spec.tunnels.iter().zip(0..).flat_map(|(tunnel, index)| [tunnel.vip, plan::hub(index)]);
    let settings =
        Settings { namespace: NAMESPACE.to_owned(), names: addresses.map(|address| address.to_string()).collect() };
    ApiServer::start_with(spec.api, &topology.control, plan::API_SOCKET.into(), settings)
}

/// Plays a scenario in a world of its own: an error or a panic comes with the sidecars' logs, and afterwards the referee
/// must be content and nothing may be left on the machine.
pub fn play(spec: WorldSpec, scenario: impl FnOnce(&mut World) -> Result<()>) -> Result<()> {
    run(World::start(spec)?, scenario)
}

/// The same with no sidecar started yet.
pub fn play_unstarted(spec: WorldSpec, scenario: impl FnOnce(&mut World) -> Result<()>) -> Result<()> {
    run(World::lay(spec)?, scenario)
}

fn run(mut world: World, scenario: impl FnOnce(&mut World) -> Result<()>) -> Result<()> {
    let played = catch_unwind(AssertUnwindSafe(|| scenario(&mut world)));
    let ended = match played {
        Ok(Ok(())) => return world.finish(),
        Ok(Err(error)) => error,
        // The panic's own text is on stderr already.
        Err(_) => anyhow!("the scenario panicked"),
    };
    // What went wrong may have its cause in what the referee saw.
    let ended = match world.judge() {
        Ok(()) => ended,
        Err(judged) => anyhow!("{ended:#}; and {judged:#}"),
    };
    Err(ended.context(world.logs()))
}
