//! Services and EndpointSlices in, forwards of each tunnel out.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use ipnet::Ipv4Net;
use serde::Serialize;

/// A transport protocol that is forwarded.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// IP protocol 6.
    Tcp,
    /// IP protocol 17.
    Udp,
    /// IP protocol 132.
    Sctp,
}

impl Protocol {
    /// The IANA protocol number, as in the IP header.
    pub const fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }
}

/// Whose port a forward is. Sorts and prints as `namespace/name`, or `control-plane`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Owner {
    /// The API server, on the control-plane port.
    ControlPlane,
    /// A Service.
    Service {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

/// A port on the VIP.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VipPort {
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// 1 to 65535.
    pub port: u16,
}

/// What happens to packets for one [`VipPort`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Forward {
    /// Who asked for it.
    pub owner: Owner,
    /// Chosen backends, sorted, each once. Empty: reject at once (I6).
    pub backends: Vec<SocketAddrV4>,
    /// `sessionAffinity: ClientIP`: hash the client's address alone.
    pub client_ip_affinity: bool,
    /// `loadBalancerSourceRanges`; empty = everybody.
    pub source_ranges: Vec<Ipv4Net>,
}

/// All forwards of one tunnel.
pub type Forwards = BTreeMap<VipPort, Forward>;

/// A backend that conntrack may still know: used to drop UDP flows towards backends no longer chosen.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Flow {
    /// The VIP that clients addressed.
    pub vip: Ipv4Addr,
    /// The port they addressed.
    pub port: VipPort,
    /// Where it was sent.
    pub backend: SocketAddrV4,
}
