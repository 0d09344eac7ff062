//! What the kernel is told about packets: forwards in, tables out, and the seam to the kernel.
//!
//! What must hold:
//! - A tunnel's forwards are one table, rendered whole and replaced whole in one transaction (I4). Packets see the old
//!   one or the new one, never something between.
//! - A table matches only its own link and its own marks, so that tunnels never disturb one another (I5).
//! - A forward without backends is refused at once (I6). What is not forwarded is refused where it names the VIP, and
//!   dropped elsewhere.
//! - Whose a table is can be told by its name alone (I3): all begin with [`PREFIX`].
//!
//! Drawing and reasons: design.md, "How the packets go". The fence is [`crate::fence`]; it goes through the same seam.

use std::io;
use std::net::Ipv4Addr;

use crate::secret::TunnelName;
use crate::services::{Flow, Forwards, Protocol};
use crate::tunnel::Slot;

mod conntrack;
mod encode;
mod forwards;
pub mod model;
mod netlink;
mod nft;
pub(crate) mod phrases;
mod rendezvous;
pub mod testing;

pub use self::conntrack::{Entry, Forget, Side};
pub use self::forwards::{Plan, render};
pub use self::model::{Table, Transaction};
pub use self::nft::NetlinkFirewall;

/// How the names of all our tables begin.
pub const PREFIX: &str = "wirevip_";

/// Where tables go. One network namespace: that in which it was opened.
pub trait Firewall: Send {
    /// Does all steps or, on an error, none.
    fn commit(&mut self, transaction: &Transaction) -> Result<(), FirewallError>;

    /// Names of all tables that begin with [`PREFIX`], sorted, whoever made them.
    fn tables(&mut self) -> Result<Vec<String>, FirewallError>;

    /// Is the table there and as this value last committed it? Cheap while nobody else changes anything: meant to be
    /// asked every second. A table that was never committed here is not intact.
    fn intact(&mut self, table: &str) -> Result<bool, FirewallError>;

    /// Packets counted since the table was last replaced.
    fn counted(&mut self, table: &str, counter: &str) -> Result<u64, FirewallError>;

    /// Deletes conntrack entries; returns how many.
    fn forget(&mut self, what: &Forget) -> Result<usize, FirewallError>;
}

/// Why the kernel did not do as told. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// EPERM.
    #[error("the kernel lets us change neither nftables nor conntrack: give the container the capability NET_ADMIN")]
    NotPermitted,
    /// The kernel lacks something.
    #[error(
        "{step}: the kernel has no such thing: it needs nf_tables with its NAT, conntrack, hash and reject parts \
         (load nf_tables, nft_ct, nft_nat, nft_masq, nft_hash, nft_reject_inet and nf_conntrack_netlink on the node)"
    )]
    Unsupported {
        /// The message that failed.
        step: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Any other refusal.
    #[error("{step}: the kernel refused it{detail}; is another program changing tables named wirevip_…?")]
    Refused {
        /// The message that failed.
        step: String,
        /// The kernel's own words, if any, with a colon before them.
        detail: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The socket to the kernel failed.
    #[error("cannot talk to the kernel's netfilter; nothing to be done here, it is tried again")]
    Socket(#[source] io::Error),
    /// The kernel's answer makes no sense.
    #[error("the kernel's answer about {what} cannot be read: please report this with the kernel's version")]
    Garbled {
        /// What was asked.
        what: &'static str,
    },
}

/// Name of the table that holds a tunnel's forwards.
pub fn forwards_table(tunnel: &TunnelName) -> String {
    format!("{PREFIX}{}", unambiguous(tunnel))
}

/// Name of the table that holds a tunnel's fence.
pub fn fence_table(tunnel: &TunnelName) -> String {
    format!("{PREFIX}{}{FENCE}", unambiguous(tunnel))
}

const FENCE: &str = "_fence";

/// The tunnel's name, or a longer one: else the forwards of a tunnel called `a_fence` and the fence of `a` were one.
fn unambiguous(tunnel: &TunnelName) -> String {
    let name = tunnel.as_str();
    if name.trim_end_matches('_').ends_with(FENCE) { format!("{name}_") } else { name.to_owned() }
}

/// UDP flows that stand on backends no longer chosen, to be forgotten once `new` is in the kernel: UDP has no end by
/// which conntrack could tell, and a client that keeps sending would be sent to the dead backend for ever
/// (kube-proxy: `pkg/proxy/conntrack/cleanup.go`). TCP and SCTP flows are never cut.
pub fn vanished(old: &Forwards, new: &Forwards, vip: Ipv4Addr) -> Vec<Flow> {
    let gone = |port, backend| !new.get(port).is_some_and(|forward| forward.backends.contains(backend));
    old.iter()
        .filter(|(port, _)| port.protocol == Protocol::Udp)
        .flat_map(|(port, forward)| forward.backends.iter().map(move |backend| (port, backend)))
        .filter(|(port, backend)| gone(port, backend))
        .map(|(port, backend)| Flow { vip, port: *port, backend: *backend })
        .collect()
}

/// Does this conntrack or packet mark say "ours"?
pub(crate) const fn is_ours(mark: u32) -> bool {
    mark & Slot::MARK_MASK != 0
}
