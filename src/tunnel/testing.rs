//! Links and a pod network in memory, for tests of whole daemons: they record every call, fail on demand, and never
//! wait, so that paused time works.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{
    Alias, Backend, Found, HostError, HostNet, LinkBackend, LinkError, LinkPlan, LinkStats, Nic, PeerPlan, Slot, Step,
    Swept, missing,
};
use crate::clock::{Clock, Moment, TokioClock};
use crate::secret::{Endpoint, Host, PublicKey, SecretKey, Tunnel, TunnelName};

/// A plan with everything in it, for the tunnel of this name.
pub fn plan(name: &str) -> LinkPlan {
    let Some((name, slot)) = TunnelName::new(name).zip(Slot::new(1)) else {
        unreachable!("not a tunnel's name: {name}")
    };
    LinkPlan {
        name,
        slot,
        vip: Ipv4Addr::new(10, 99, 0, 2),
        private_key: SecretKey::new([0x71; 32]),
        listen_port: 51820,
        mtu: 1420,
        peer: PeerPlan {
            public_key: PublicKey([0x72; 32]),
            preshared_key: Some(SecretKey::new([0x73; 32])),
            endpoint: SocketAddr::from(([192, 0, 2, 1], 51820)),
            allowed_ips: vec![ipnet::IpNet::V4(ipnet::Ipv4Net::default())],
            persistent_keepalive: 5,
        },
    }
}

/// Settings with all that must be told, for the tunnel of this name.
pub fn settings(name: &str) -> Tunnel {
    let Some(name) = TunnelName::new(name) else { unreachable!("not a tunnel's name: {name}") };
    Tunnel {
        name,
        vip: Ipv4Addr::new(10, 77, 0, 2),
        private_key: SecretKey::new([1; 32]),
        peer_public_key: PublicKey([2; 32]),
        preshared_key: None,
        endpoint: Endpoint { host: Host::Address([192, 0, 2, 1].into()), port: 51820 },
        allowed_ips: vec![ipnet::IpNet::V4(ipnet::Ipv4Net::default())],
        listen_port: 51820,
        persistent_keepalive: 5,
        mtu: None,
        control_plane: true,
        public_address: None,
    }
}

/// What was called, and of which tunnel.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Call {
    /// [`LinkBackend::create`]
    Create,
    /// [`LinkBackend::fresh_peer`]
    FreshPeer,
    /// [`LinkBackend::update_peer`]
    UpdatePeer,
    /// [`LinkBackend::remove`]
    Remove,
    /// [`HostNet::sweep`]
    Sweep,
    /// [`HostNet::discard`]
    Discard,
    /// [`HostNet::attach`]
    Attach,
    /// [`HostNet::detach`]
    Detach,
}

/// One pod's links and network. Clones are the same pod.
#[derive(Clone, Debug, Default)]
pub struct FakePod {
    state: Arc<Mutex<State>>,
    clock: TokioClock,
}

#[derive(Debug)]
struct State {
    calls: Vec<(Call, Option<TunnelName>)>,
    failures: HashMap<Call, u32>,
    links: BTreeMap<TunnelName, FakeLink>,
    hub_answers: bool,
    foreign: Vec<String>,
    nic: Nic,
}

/// What of a link is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    /// When the present peer was put in without a past, by tokio's clock since the making of the pod.
    pub session: Option<Moment>,
    /// It has completed a handshake.
    pub answered: bool,
    /// Every step of its attachment holds.
    pub whole: bool,
}

#[derive(Debug)]
struct FakeLink {
    plan: LinkPlan,
    peer: Option<PeerPlan>,
    peer_since: Moment,
    done: Vec<Step>,
    handshake: Option<Moment>,
    received: u64,
    sent: u64,
    /// Of the tenure in which the session began.
    transitions: Option<i32>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            calls: Vec::new(),
            failures: HashMap::new(),
            links: BTreeMap::new(),
            hub_answers: true,
            foreign: vec!["eth0".to_owned()],
            nic: Nic {
                name: "eth0".to_owned(),
                index: 2,
                mtu: 1450,
                ipv4: Some(Ipv4Addr::new(10, 244, 1, 7)),
                ipv6: false,
            },
        }
    }
}

impl FakePod {
    /// A pod with a NIC of MTU 1450 and a hub that answers.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every call so far that changes something, in order.
    pub fn calls(&self) -> Vec<(Call, Option<TunnelName>)> {
        self.state().calls.clone()
    }

    /// The next `times` calls of this kind fail, without effect.
    pub fn fail(&self, call: Call, times: u32) {
        self.state().failures.insert(call, times);
    }

    /// From now on handshakes are answered at once, or never.
    pub fn hub_answers(&self, answers: bool) {
        let now = self.clock.now();
        let mut state = self.state();
        state.hub_answers = answers;
        if answers {
            // WireGuard's own timers would soon try again.
            for link in state.links.values_mut().filter(|link| link.peer.is_some() && link.handshake.is_none()) {
                link.handshake = Some(now);
            }
        }
    }

    /// The hub answers the present peer's handshake.
    pub fn shake_hands(&self, tunnel: &TunnelName) {
        let now = self.clock.now();
        if let Some(link) = self.state().links.get_mut(tunnel).filter(|link| link.peer.is_some()) {
            link.handshake = Some(now);
            link.received += 92;
        }
    }

    /// Traffic of the tunnel, in bytes.
    pub fn carry(&self, tunnel: &TunnelName, received: u64, sent: u64) {
        if let Some(link) = self.state().links.get_mut(tunnel) {
            link.received += received;
            link.sent += sent;
        }
    }

    /// Somebody deletes the link.
    pub fn lose(&self, tunnel: &TunnelName) {
        self.state().links.remove(tunnel);
    }

    /// Somebody undoes one step.
    pub fn undo(&self, tunnel: &TunnelName, step: Step) {
        if let Some(link) = self.state().links.get_mut(tunnel) {
            link.done.retain(|done| *done != step);
        }
    }

    /// Tunnels with a peer: those that could speak, were it not for the fence.
    pub fn with_peer(&self) -> Vec<TunnelName> {
        let state = self.state();
        state.links.iter().filter(|(_, link)| link.peer.is_some()).map(|(name, _)| name.clone()).collect()
    }

    /// Is anything left of any tunnel?
    pub fn is_clean(&self) -> bool {
        self.state().links.is_empty()
    }

    /// The plan after which the tunnel's link was made, with its present peer.
    pub fn link(&self, tunnel: &TunnelName) -> Option<(LinkPlan, Option<PeerPlan>)> {
        self.state().links.get(tunnel).map(|link| (link.plan.clone(), link.peer.clone()))
    }

    /// How the tunnel's link stands.
    pub fn seen(&self, tunnel: &TunnelName) -> Option<Seen> {
        let state = self.state();
        let link = state.links.get(tunnel)?;
        Some(Seen {
            session: link.peer.as_ref().map(|_| link.peer_since),
            answered: link.handshake.is_some(),
            whole: missing(&link.plan, &link.done).is_empty(),
        })
    }

    /// Records the call; true if it is to fail.
    fn called(&self, call: Call, tunnel: Option<&TunnelName>) -> bool {
        let mut state = self.state();
        state.calls.push((call, tunnel.cloned()));
        match state.failures.get_mut(&call) {
            Some(left) if *left > 0 => {
                *left -= 1;
                true
            }
            _ => false,
        }
    }

    fn link_call(&self, call: Call, tunnel: &TunnelName) -> Result<(), LinkError> {
        match self.called(call, Some(tunnel)) {
            true => Err(LinkError::Failed { doing: "what the test lets fail", source: io::Error::other("on demand") }),
            false => Ok(()),
        }
    }

    fn host_call(&self, call: Call, tunnel: Option<&TunnelName>) -> Result<(), HostError> {
        let doing = || "what the test lets fail".to_owned();
        match self.called(call, tunnel) {
            true => Err(HostError::Failed { doing: doing(), source: io::Error::other("on demand") }),
            false => Ok(()),
        }
    }
}

fn lost(tunnel: &TunnelName) -> LinkError {
    LinkError::Lost { name: tunnel.to_string() }
}

impl LinkBackend for FakePod {
    fn backend(&self) -> Backend {
        Backend::Userspace
    }

    async fn create(&self, plan: &LinkPlan) -> Result<(), LinkError> {
        self.link_call(Call::Create, &plan.name)?;
        let mut state = self.state();
        if state.foreign.iter().any(|name| name == plan.name.as_str()) {
            return Err(LinkError::NameTaken { name: plan.name.to_string() });
        }
        let mut others = state.links.values().filter(|link| link.plan.name != plan.name);
        if others.any(|link| link.plan.listen_port == plan.listen_port) {
            return Err(LinkError::PortTaken { port: plan.listen_port });
        }
        let link = FakeLink {
            plan: plan.clone(),
            peer: None,
            peer_since: Moment::default(),
            done: Vec::new(),
            handshake: None,
            received: 0,
            sent: 0,
            transitions: None,
        };
        state.links.insert(plan.name.clone(), link);
        Ok(())
    }

    async fn fresh_peer(&self, plan: &LinkPlan) -> Result<(), LinkError> {
        self.link_call(Call::FreshPeer, &plan.name)?;
        let now = self.clock.now();
        let mut state = self.state();
        let answered = state.hub_answers.then_some(now);
        let link = state.links.get_mut(&plan.name).ok_or_else(|| lost(&plan.name))?;
        link.peer = Some(plan.peer.clone());
        link.peer_since = now;
        link.handshake = answered;
        link.sent += 148;
        link.received += if answered.is_some() { 92 } else { 0 };
        Ok(())
    }

    async fn update_peer(&self, plan: &LinkPlan) -> Result<(), LinkError> {
        self.link_call(Call::UpdatePeer, &plan.name)?;
        let mut state = self.state();
        let link = state.links.get_mut(&plan.name).ok_or_else(|| lost(&plan.name))?;
        link.peer = Some(plan.peer.clone());
        Ok(())
    }

    async fn inscribe(&self, plan: &LinkPlan, transitions: i32) -> Result<(), LinkError> {
        if let Some(link) = self.state().links.get_mut(&plan.name) {
            link.transitions = Some(transitions);
        }
        Ok(())
    }

    async fn hub(&self, tunnel: &TunnelName) -> Result<Option<SocketAddr>, LinkError> {
        Ok(self.state().links.get(tunnel).and_then(|link| link.peer.as_ref()).map(|peer| peer.endpoint))
    }

    fn adopt(&self, _: &LinkPlan) {}

    async fn stats(&self, tunnel: &TunnelName) -> Result<LinkStats, LinkError> {
        let now = self.clock.now();
        let state = self.state();
        let link = state.links.get(tunnel).ok_or_else(|| lost(tunnel))?;
        let handshake_age = link.handshake.map(|then| now.since(then));
        Ok(LinkStats { handshake_age, received: link.received, sent: link.sent })
    }

    async fn remove(&self, tunnel: &TunnelName) -> Result<(), LinkError> {
        self.link_call(Call::Remove, tunnel)?;
        self.state().links.remove(tunnel);
        Ok(())
    }
}

impl HostNet for FakePod {
    async fn nic(&self) -> Result<Nic, HostError> {
        Ok(self.state().nic.clone())
    }

    async fn found(&self) -> Result<Vec<Found>, HostError> {
        let state = self.state();
        let found = state.links.iter().filter(|(_, link)| link.done.contains(&Step::Up)).filter_map(|(name, link)| {
            let plan = LinkPlan { peer: link.peer.clone()?, ..link.plan.clone() };
            Some(Found { name: name.clone(), alias: Alias::of(&plan, Some(link.transitions?)) })
        });
        Ok(found.collect())
    }

    async fn discard(&self, found: &Found) -> Result<(), HostError> {
        self.host_call(Call::Discard, Some(&found.name))?;
        self.state().links.remove(&found.name);
        Ok(())
    }

    async fn sweep(&self, but: &[Found]) -> Result<Swept, HostError> {
        self.host_call(Call::Sweep, None)?;
        let stays = |name: &TunnelName| but.iter().any(|found| found.name == *name);
        let (kept, swept): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut self.state().links).into_iter().partition(|(name, _)| stays(name));
        self.state().links = kept;
        let links = swept.len();
        Ok(Swept { links, rules: 2 * links, routes: links })
    }

    async fn attach(&self, plan: &LinkPlan) -> Result<Vec<Step>, HostError> {
        self.host_call(Call::Attach, Some(&plan.name))?;
        let done = self.drift(plan).await?;
        if let Some(link) = self.state().links.get_mut(&plan.name) {
            link.done.extend(&done);
        }
        Ok(done)
    }

    async fn drift(&self, plan: &LinkPlan) -> Result<Vec<Step>, HostError> {
        let state = self.state();
        let link = state.links.get(&plan.name).ok_or_else(|| HostError::LinkLost { name: plan.name.to_string() })?;
        Ok(missing(plan, &link.done))
    }

    async fn probe(&self, plan: &LinkPlan) -> Result<(), HostError> {
        let answered = self.state().hub_answers;
        if answered {
            self.carry(&plan.name, 96, 96);
        }
        Ok(())
    }

    async fn detach(&self, plan: &LinkPlan) -> Result<(), HostError> {
        self.host_call(Call::Detach, Some(&plan.name))?;
        if let Some(link) = self.state().links.get_mut(&plan.name) {
            link.done.clear();
        }
        Ok(())
    }
}
