//! One tunnel's link in this pod: the steps up and down, and the seams to what carries them out.
//!
//! The order up, which keeps a pod silent until its fence is armed:
//!
//! 1. [`LinkBackend::create`]: keyed, UDP port bound, no peer, down. Nothing can be sent.
//! 2. [`HostNet::attach`]: address, MTU, routing table, rules, per-interface settings, up.
//! 3. [`LinkBackend::fresh_peer`]: the hub becomes a peer without a past; a handshake leaves at once.
//!
//! And down, each part idempotent and tried even when another fails: [`LinkBackend::remove`], [`HostNet::detach`].
//!
//! What must hold:
//!
//! - The main routing table is never touched. A tunnel's own table holds one route, the default through its link;
//!   packets get there by their mark or by having the VIP as source. `allowedIPs` only filter, inside WireGuard.
//! - A link is ours if its alias begins with [`ALIAS_PREFIX`], a rule or route if it bears [`ROUTE_PROTOCOL`] or lies in
//!   one of our tables: never because of its name (I3). A foreign link is refused, and left as it is.
//! - Only the private key, the port, the name, the slot and the VIP cost a new link ([`Change`]); every other change
//!   keeps link, session and flows.

use std::fmt;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;

use crate::secret::{PublicKey, SecretKey, TunnelName};

pub use alias::Alias;
pub use errors::{HostError, LinkError};

mod alias;
mod answered;
mod carrier;
mod errors;
pub mod kernel;
pub mod network;
pub mod preflight;
mod probe;
pub mod resolve;
pub mod rtnl;
pub mod stamps;
pub mod system;
pub mod testing;
pub mod userspace;
mod wire;

/// How the alias of every link of ours begins: see [`Alias`].
pub const ALIAS_PREFIX: &str = "wirevip:";

/// What we write as the origin (`RTA_PROTOCOL`, `FRA_PROTOCOL`) of routes and rules; in nobody's list (`rt_protos`).
pub const ROUTE_PROTOCOL: u8 = 0x77;

/// Priority of our rules: before the main table's 32766, after local's 0.
pub const RULE_PRIORITY: u32 = 0x7769;

/// A tunnel's number in this pod, 1 to 255: gives it its own packet mark, conntrack mark and routing table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u8);

impl Slot {
    /// Which bits of packet and conntrack marks are ours.
    pub const MARK_MASK: u32 = 0x00ff_0000;

    /// The slot with this number; `None` for 0.
    pub fn new(number: u8) -> Option<Self> {
        (number > 0).then_some(Self(number))
    }

    /// Packet and conntrack mark, within [`Slot::MARK_MASK`].
    pub const fn mark(self) -> u32 {
        (self.0 as u32) << 16
    }

    /// Number of the tunnel's own routing table: far from what people and CNIs use by hand.
    pub const fn routing_table(self) -> u32 {
        Self::FIRST_TABLE | self.0 as u32
    }

    const FIRST_TABLE: u32 = 0x7769_7000;

    /// Is this the routing table of some slot?
    pub const fn owns_table(table: u32) -> bool {
        table & !0xff == Self::FIRST_TABLE
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slot({})", self.0)
    }
}

/// What `--backend` asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum BackendChoice {
    /// The kernel's WireGuard where it has it, else userspace.
    #[default]
    Auto,
    /// The kernel's or nothing.
    Kernel,
    /// gotatun over TUN.
    Userspace,
}

/// Who carries the packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// The kernel's WireGuard.
    Kernel,
    /// gotatun, in this process, over TUN.
    Userspace,
}

/// The link as it should be while this pod leads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LinkPlan {
    /// Interface name.
    pub name: TunnelName,
    /// Mark and routing table.
    pub slot: Slot,
    /// The tunnel's address.
    pub vip: Ipv4Addr,
    /// Our key.
    pub private_key: SecretKey,
    /// Our UDP port.
    pub listen_port: u16,
    /// Bytes; already derived from the pod NIC where the Secret gives none.
    pub mtu: u16,
    /// The hub.
    pub peer: PeerPlan,
}

/// The hub as WireGuard peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerPlan {
    /// Its key.
    pub public_key: PublicKey,
    /// The shared key on top, if any.
    pub preshared_key: Option<SecretKey>,
    /// Resolved address.
    pub endpoint: SocketAddr,
    /// Where its traffic may come from.
    pub allowed_ips: Vec<IpNet>,
    /// Seconds; 0 = off.
    pub persistent_keepalive: u16,
}

/// What WireGuard measured. Counters count from the making of the link: a fresh peer does not set them back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LinkStats {
    /// Since the last completed handshake of the present peer; `None`: none yet.
    pub handshake_age: Option<Duration>,
    /// Bytes received from the hub.
    pub received: u64,
    /// Bytes sent to the hub.
    pub sent: u64,
}

impl LinkPlan {
    /// What it takes to come from `self` to `next`.
    pub fn change_to(&self, next: &LinkPlan) -> Change {
        let LinkPlan { name, slot, vip, private_key, listen_port, mtu, peer } = self;
        if (name, slot, vip, private_key, listen_port)
            != (&next.name, &next.slot, &next.vip, &next.private_key, &next.listen_port)
        {
            Change::NewLink
        } else if peer.public_key != next.peer.public_key {
            Change::NewPeer
        } else if (mtu, peer) != (&next.mtu, &next.peer) {
            Change::InPlace
        } else {
            Change::Nothing
        }
    }
}

/// What a changed plan costs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Change {
    /// Nothing changed.
    Nothing,
    /// [`HostNet::attach`] and [`LinkBackend::update_peer`]: link, session and flows live on.
    InPlace,
    /// [`HostNet::attach`] and [`LinkBackend::fresh_peer`]: the hub is another one; the link lives on.
    NewPeer,
    /// Down with the old plan, up with the new one.
    NewLink,
}

/// The MTU of a tunnel's link from that of the NIC its packets leave by: less the outer IP and UDP headers, WireGuard's
/// 16 bytes of header and its 16-byte tag (WireGuard white paper, 5.4.6). Never less than IPv6's minimum of 1280.
pub fn derived_mtu(nic: u32, hub: SocketAddr) -> u16 {
    let overhead = if hub.is_ipv4() { 60 } else { 80 };
    u16::try_from(nic.saturating_sub(overhead)).unwrap_or(u16::MAX).max(1280)
}

/// Which of the two interfaces a setting is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Device {
    /// The tunnel's link.
    Link,
    /// The pod's own NIC, by which backends are reached.
    Nic,
}

/// One thing that must be so in the kernel while the link is attached; also the doing of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// The link's MTU.
    Mtu(u16),
    /// This address, /32, on the link.
    Address(Ipv4Addr),
    /// IPv4 packets that come in by this device are forwarded (`forwarding=1`).
    Forward(Device),
    /// `rp_filter=2` on the link: its packets come from anywhere, and `all.rp_filter=1` would drop them.
    LooseReversePath,
    /// The link is up. Before its routes: the kernel takes no route by a link that is down, and drops them when one goes down.
    Up,
    /// The default route of this table, through the link.
    Route {
        /// The slot's.
        table: u32,
    },
    /// Packets with this mark go by this table.
    MarkRule {
        /// Within [`Slot::MARK_MASK`].
        mark: u32,
        /// The slot's.
        table: u32,
    },
    /// Packets from this address go by this table.
    SourceRule {
        /// The VIP.
        source: Ipv4Addr,
        /// The slot's.
        table: u32,
    },
}

/// All that must be so for this link, in the order of doing. Undone in reverse.
pub fn steps(plan: &LinkPlan) -> Vec<Step> {
    let table = plan.slot.routing_table();
    vec![
        Step::Mtu(plan.mtu),
        Step::Address(plan.vip),
        Step::LooseReversePath,
        Step::Forward(Device::Link),
        Step::Forward(Device::Nic),
        Step::Up,
        Step::Route { table },
        Step::SourceRule { source: plan.vip, table },
        Step::MarkRule { mark: plan.slot.mark(), table },
    ]
}

/// Which steps are to be done again, given what was seen.
pub fn missing(plan: &LinkPlan, seen: &[Step]) -> Vec<Step> {
    steps(plan).into_iter().filter(|step| !seen.contains(step)).collect()
}

/// The NIC by which the pod reaches the world: that of its default route.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Nic {
    /// Interface name.
    pub name: String,
    /// Interface index.
    pub index: u32,
    /// Bytes.
    pub mtu: u32,
    /// Its first IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// Has it an IPv6 address of more than link scope?
    pub ipv6: bool,
}

/// A link that an earlier life of this process left, up and with a session: it may be serving still.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// Its tunnel.
    pub name: TunnelName,
    /// What it says of itself.
    pub alias: Alias,
}

/// What an earlier life had left, and is gone now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Swept {
    /// Links with our alias.
    pub links: usize,
    /// Rules of ours.
    pub rules: usize,
    /// Routes of ours.
    pub routes: usize,
}

/// Makes WireGuard links and tells the hub's peer from them. Links are known by their tunnel's name.
///
/// One call at a time for each tunnel; calls for different tunnels may overlap.
pub trait LinkBackend: Send + Sync + 'static {
    /// Which one this is.
    fn backend(&self) -> Backend;

    /// Makes the link: keyed, its UDP port bound, marked as ours, without a peer, down. It sends nothing.
    fn create(&self, plan: &LinkPlan) -> impl Future<Output = Result<(), LinkError>> + Send;

    /// Handshakes of this tunnel's key may have been stamped up to `latest` by others: ours must be later from now on.
    /// Nothing where the kernel stamps them.
    fn stamp_after(&self, _tunnel: &TunnelName, _latest: Timestamp) {}

    /// Puts the hub in as a peer without a past, in place of any other, and has a handshake leave before it returns.
    /// Also the way to send a lost handshake again: a fresh peer waits for no timer of WireGuard's.
    fn fresh_peer(&self, plan: &LinkPlan) -> impl Future<Output = Result<(), LinkError>> + Send;

    /// Changes the hub's peer in place (endpoint, preshared key, allowed IPs, keepalive); its session lives on. A new
    /// preshared key counts from the next handshake.
    fn update_peer(&self, plan: &LinkPlan) -> impl Future<Output = Result<(), LinkError>> + Send;

    /// Notes on the link of which tenure its session is, for a later life of this process to find. Nothing where the link
    /// ends with the process.
    fn inscribe(&self, plan: &LinkPlan, transitions: i32) -> impl Future<Output = Result<(), LinkError>> + Send;

    /// Where the link's only peer is; `None` where no link outlives its process.
    fn hub(&self, tunnel: &TunnelName) -> impl Future<Output = Result<Option<SocketAddr>, LinkError>> + Send;

    /// The link was made after this plan by an earlier life, with this peer: from now on it is changed in place.
    fn adopt(&self, plan: &LinkPlan);

    /// What was measured; [`LinkError::Lost`] when the link is no more.
    fn stats(&self, tunnel: &TunnelName) -> impl Future<Output = Result<LinkStats, LinkError>> + Send;

    /// Removes the link. Returns when no packet can leave by it; fine if there is none.
    fn remove(&self, tunnel: &TunnelName) -> impl Future<Output = Result<(), LinkError>> + Send;
}

/// The pod's own network: addresses, routes, rules, per-interface settings.
pub trait HostNet: Send + Sync + 'static {
    /// The NIC of the default route.
    fn nic(&self) -> impl Future<Output = Result<Nic, HostError>> + Send;

    /// Links of an earlier life that may be serving still: the kernel's, ours, up, with a session.
    fn found(&self) -> impl Future<Output = Result<Vec<Found>, HostError>> + Send;

    /// Removes what an earlier life left in this namespace (I3), but for these links with their rules and routes: call it
    /// before anything else.
    fn sweep(&self, but: &[Found]) -> impl Future<Output = Result<Swept, HostError>> + Send;

    /// Removes such a link with its rules and routes after all.
    fn discard(&self, found: &Found) -> impl Future<Output = Result<(), HostError>> + Send;

    /// Does whatever of [`steps`] is not so yet, and says what that was: also the repair of [`HostNet::drift`].
    fn attach(&self, plan: &LinkPlan) -> impl Future<Output = Result<Vec<Step>, HostError>> + Send;

    /// What of [`steps`] is not so any more. Cheap: once a second does no harm.
    fn drift(&self, plan: &LinkPlan) -> impl Future<Output = Result<Vec<Step>, HostError>> + Send;

    /// Sends the packet that a living hub answers, see `tunnel/probe.rs`.
    fn probe(&self, plan: &LinkPlan) -> impl Future<Output = Result<(), HostError>> + Send;

    /// Takes rules, routes and address away, the link itself excepted; all of it, whatever fails. Fine if there is none.
    fn detach(&self, plan: &LinkPlan) -> impl Future<Output = Result<(), HostError>> + Send;
}

#[cfg(test)]
mod tests {
    use super::testing::plan;
    use super::*;

    #[test]
    fn a_change_costs_no_more_than_it_must() {
        let plan = plan("wg0");
        type Case = (Change, fn(&mut LinkPlan));
        let cases: [Case; 11] = [
            (Change::Nothing, |_| {}),
            (Change::InPlace, |plan| plan.mtu = 1300),
            (Change::InPlace, |plan| plan.peer.persistent_keepalive = 25),
            (Change::InPlace, |plan| plan.peer.preshared_key = None),
            (Change::InPlace, |plan| plan.peer.endpoint.set_port(9)),
            (Change::InPlace, |plan| plan.peer.allowed_ips.clear()),
            (Change::NewPeer, |plan| plan.peer.public_key = PublicKey([9; 32])),
            (Change::NewLink, |plan| plan.private_key = SecretKey::new([9; 32])),
            (Change::NewLink, |plan| plan.listen_port += 1),
            (Change::NewLink, |plan| plan.vip = Ipv4Addr::new(10, 99, 0, 3)),
            (Change::NewLink, |plan| plan.slot = Slot(2)),
        ];
        for (number, (cost, change)) in cases.into_iter().enumerate() {
            let mut next = plan.clone();
            change(&mut next);
            assert_eq!(plan.change_to(&next), cost, "case {number}");
        }
    }

    #[test]
    fn what_is_missing_is_done_in_order_and_a_link_goes_up_before_it_gets_routes() {
        let plan = plan("wg0");
        let all = steps(&plan);
        assert_eq!(missing(&plan, &[]), all);
        assert_eq!(missing(&plan, &all), []);
        let place = |step: Step| all.iter().position(|other| *other == step);
        let table = plan.slot.routing_table();
        assert!(place(Step::Up) < place(Step::Route { table }));
        // An MTU other than the planned one is no MTU at all.
        let mut seen = all.clone();
        seen[0] = Step::Mtu(1300);
        assert_eq!(missing(&plan, &seen), [Step::Mtu(1420)]);
    }

    #[test]
    fn every_slot_has_a_table_and_a_mark_of_its_own() {
        let slots: Vec<_> = (0..=255).filter_map(Slot::new).collect();
        assert_eq!(slots.len(), 255);
        for slot in &slots {
            assert!(Slot::owns_table(slot.routing_table()));
            assert_eq!(slot.mark() & !Slot::MARK_MASK, 0);
            assert_ne!(slot.mark(), 0, "no mark is everybody's mark");
        }
        assert!(![0, 253, 254, 255, 0x7769_6fff, 0x7769_7100].into_iter().any(Slot::owns_table));
    }
}
