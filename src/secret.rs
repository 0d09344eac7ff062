//! The Secret `wireguard`: bytes in, tunnels and every fault at once out.

mod clash;
mod host;
pub mod manifest;
mod parse;
#[cfg(test)]
mod properties;
mod settings;
mod suggest;
mod value;
pub mod watch;
mod yaml;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use serde::Serialize;
use zeroize::{Zeroize, ZeroizeOnDrop};

pub(crate) use host::is_subdomain;
pub use parse::parse;
pub use settings::{Change, Settings};

/// A tunnel's name, which is also the name of its interface: 1 to 15 of `a-z A-Z 0-9 . _ -`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
pub struct TunnelName(String);

impl TunnelName {
    /// The name, if it is one that an interface may have (contract: not `.`, `..`, `lo`).
    pub fn new(name: &str) -> Option<Self> {
        let fits = (1..=15).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
            && !matches!(name, "." | ".." | "lo");
        fits.then(|| Self(name.to_owned()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of this tunnel's Lease: `wirevip-<tunnel>`, lower-cased, `_` → `-`.
    pub fn lease(&self) -> String {
        format!("wirevip-{}", self.0.to_ascii_lowercase().replace('_', "-"))
    }
}

impl fmt::Display for TunnelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// 32 secret bytes: a private or preshared key. Zeroised on drop; never printed.
#[derive(Clone, PartialEq, Eq, Hash, Zeroize, ZeroizeOnDrop)]
pub struct SecretKey([u8; 32]);

impl SecretKey {
    /// Takes the bytes over.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes themselves; whoever copies them zeroises the copy.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(…)")
    }
}

/// A peer's public key, 32 bytes. Not secret, yet not printed either (I8: key material never appears).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PublicKey(…)")
    }
}

/// A host given as an address or as a DNS name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Host {
    /// An address, used as it is.
    Address(IpAddr),
    /// A name, resolved again and again.
    Name(String),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Address(address) => address.fmt(f),
            Host::Name(name) => f.write_str(name),
        }
    }
}

/// Where the hub listens.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Endpoint {
    /// The hub.
    pub host: Host,
    /// Its UDP port.
    pub port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host {
            Host::Address(IpAddr::V6(address)) => write!(f, "[{address}]:{}", self.port),
            _ => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// One sound entry of the Secret, defaults filled in (contract.md, "Secret").
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tunnel {
    /// Tunnel and interface name.
    pub name: TunnelName,
    /// The VIP. IPv4 for now: an IPv6 VIP is a fault.
    pub vip: Ipv4Addr,
    /// Our key, the same in every pod.
    pub private_key: SecretKey,
    /// The hub's key.
    pub peer_public_key: PublicKey,
    /// The shared key on top, if any.
    pub preshared_key: Option<SecretKey>,
    /// The hub.
    pub endpoint: Endpoint,
    /// Where traffic from the hub may come from.
    pub allowed_ips: Vec<IpNet>,
    /// Our UDP port.
    pub listen_port: u16,
    /// Seconds between keepalives; 0 = off.
    pub persistent_keepalive: u16,
    /// MTU of the tunnel's link, if given.
    pub mtu: Option<u16>,
    /// Is the API server forwarded on this VIP?
    pub control_plane: bool,
    /// What goes to the Service status in place of the VIP.
    pub public_address: Option<Host>,
}

/// One thing that is wrong in a document. Holds no key material.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Fault {
    /// Line in the document, from 1.
    pub line: usize,
    /// The tunnel's name as written; `None` where the fault is the whole document's.
    pub tunnel: Option<String>,
    /// The setting.
    pub key: Option<String>,
    /// What is wrong.
    pub message: String,
    /// What would be right.
    pub fix: String,
}

/// What a document says: its sound tunnels, in document order, and all its faults.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Document {
    /// Sound entries.
    pub tunnels: Vec<Tunnel>,
    /// Everything that is wrong, by line.
    pub faults: Vec<Fault>,
    /// Every tunnel with a possible name that has a fault; `faults` has an end, and may tell of none of them.
    pub faulty: BTreeSet<TunnelName>,
    /// The line where each tunnel with a possible name stands, faulty or not.
    pub lines: BTreeMap<TunnelName, usize>,
}

impl Document {
    /// What a Secret without the key `tunnels` says.
    pub fn absent() -> Self {
        let fault = Fault {
            line: 1,
            tunnel: None,
            key: None,
            message: "the Secret has no key `tunnels`".to_owned(),
            fix: "put the map of tunnels under stringData.tunnels".to_owned(),
        };
        Self { faults: vec![fault], ..Self::default() }
    }

    /// Could it be read as a whole? If not, it says nothing about any tunnel.
    pub fn is_readable(&self) -> bool {
        self.faults.iter().all(|fault| fault.tunnel.is_some())
    }
}
