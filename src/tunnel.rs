//! One tunnel's link in this pod: the steps up and down, and the seams to what carries them out.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use crate::secret::{PublicKey, SecretKey, TunnelName};

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
        0x7769_7000 | self.0 as u32
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slot({})", self.0)
    }
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

/// What WireGuard measured. Counters count from the making of the link's peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LinkStats {
    /// Since the last completed handshake of the present peer; `None`: none yet.
    pub handshake_age: Option<Duration>,
    /// Bytes received from the hub.
    pub received: u64,
    /// Bytes sent to the hub.
    pub sent: u64,
}

/// The pod's own network interface, through which hub, API server and backends are reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PodNic {
    /// Interface name.
    pub name: String,
    /// Bytes.
    pub mtu: u16,
}

/// MTU of a tunnel over this NIC to this hub: 60 bytes less over IPv4, 80 over IPv6.
pub fn mtu_for(nic: u16, hub: std::net::IpAddr) -> u16 {
    nic.saturating_sub(if hub.is_ipv4() { 60 } else { 80 })
}
