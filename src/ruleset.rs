//! What the kernel is told about packets: forwards in, tables out, and the seam to the kernel.
//!
//! What must hold:
//! - A tunnel's forwards are one table, rendered whole; what is written is the difference to what stands (I4). Every
//!   packet is sent where the old forwards or the new ones say: see [`apply`].
//! - A table matches only its own link and its own marks, so that tunnels never disturb one another (I5).
//! - A forward without backends is refused at once (I6). What is not forwarded is refused where it names the VIP, and
//!   dropped elsewhere.
//! - Whose a table is can be told by its name alone (I3): all begin with [`PREFIX`].
//!
//! Drawing and reasons: design.md, "How the packets go". The fence is [`crate::fence`]; it goes through the same seam.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;

use crate::secret::TunnelName;
use crate::services::{Flow, Forwards, Protocol};
use crate::tunnel::Slot;

mod conntrack;
mod difference;
mod encode;
mod forwards;
pub mod model;
mod netlink;
mod nft;
pub(crate) mod phrases;
mod rendezvous;
mod slots;
mod steps;
pub mod testing;

pub use self::conntrack::{Entry, Forget, Side};
pub use self::forwards::{Plan, render};
pub use self::model::Table;
pub use self::nft::NetlinkFirewall;
pub use self::steps::{Edit, Step, Transaction};

/// How the names of all our tables begin.
pub const PREFIX: &str = "wirevip_";

/// Where tables go. One network namespace: that in which it was opened.
pub trait Firewall: Send {
    /// Does all steps or, on an error, none.
    fn commit(&mut self, transaction: &Transaction) -> Result<(), FirewallError>;

    /// Names of all tables that begin with [`PREFIX`], sorted, whoever made them.
    fn tables(&mut self) -> Result<Vec<String>, FirewallError>;

    /// Is the table there and as this value last committed it? Cheap while nobody else changes anything: meant to be
    /// asked every second. A table that was never committed here is not intact, and one that is found changed never is
    /// again until it is replaced.
    fn intact(&mut self, table: &str) -> Result<bool, FirewallError>;

    /// The table as this value last committed it; `None` if it did not, or the table was found changed since.
    fn written(&mut self, table: &str) -> Option<Arc<Table>>;

    /// Takes a table that an earlier process committed for its own, as it stands, elements of its sets included. `false`:
    /// it is not there, or has not the chains and rules of this one.
    fn adopt(&mut self, table: &Table) -> Result<bool, FirewallError>;

    /// Keys in a set now; none where there is no such set.
    fn members(&mut self, table: &str, set: &str) -> Result<Vec<Vec<u8>>, FirewallError>;

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
        "{step}: the kernel has no such thing: it needs nf_tables with its NAT, conntrack, hash, limit and reject \
         parts (load nf_tables, nft_ct, nft_nat, nft_masq, nft_hash, nft_limit, nft_reject_inet and nf_conntrack_netlink \
         on the node)"
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

/// How [`apply`] went about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Applied {
    /// Only what differs was written; what is the same was never away.
    Difference,
    /// The whole table was: it was not there, or not as it should be.
    Whole,
}

/// Makes the tunnel's table what the plan says.
///
/// A table that stands is not replaced: a packet on its way through a hook asks each chain there which generation of the
/// ruleset it is, and between two chains the answer may change, so that neither the old table nor the new one takes it
/// (seen: a new flow refused within 600 replacements under steady traffic). Chains and maps that stay are always there.
pub fn apply(firewall: &mut dyn Firewall, plan: &Plan<'_>) -> Result<Applied, FirewallError> {
    let standing = firewall.written(&forwards_table(plan.tunnel));
    let table = render(plan, standing.as_deref());
    let difference = standing.as_deref().and_then(|standing| difference::between(standing, &table));
    // Let go, so that the firewall need not copy it.
    drop(standing);
    if let Some(difference) = difference {
        match difference.iter().try_for_each(|transaction| firewall.commit(transaction)) {
            Ok(()) => return Ok(Applied::Difference),
            Err(error) => {
                tracing::warn!(tunnel = %plan.tunnel, %error, "the table was changed by somebody else; replacing it");
            }
        }
    }
    firewall.commit(&Transaction::replace(table))?;
    Ok(Applied::Whole)
}

/// Do the tunnel's forwards stand as [`apply`] last put them?
pub fn stands(firewall: &mut dyn Firewall, tunnel: &TunnelName) -> Result<bool, FirewallError> {
    firewall.intact(&forwards_table(tunnel))
}

/// Takes the tunnel's forwards away.
pub fn remove(tunnel: &TunnelName) -> Transaction {
    Transaction::delete(&forwards_table(tunnel))
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::SocketAddrV4;
    use std::sync::Arc;

    use super::testing::FakeFirewall;
    use super::*;
    use crate::clock::TokioClock;
    use crate::services::{Forward, Owner, VipPort};

    fn name(text: &str) -> TunnelName {
        TunnelName::new(text).unwrap()
    }

    #[test]
    fn no_two_tunnels_share_a_table_whatever_they_are_called() {
        let tunnels = ["a", "a_", "a_fence", "a_fence_", "a_fence__", "_fence", "fence", "a_fence_fence", "A"];
        let tables: Vec<String> = tunnels
            .iter()
            .flat_map(|text| {
                let name = name(text);
                [forwards_table(&name), fence_table(&name)]
            })
            .collect();
        assert_eq!(tables.iter().collect::<BTreeSet<_>>().len(), tables.len(), "{tables:?}");
        assert!(tables.iter().all(|table| table.starts_with(PREFIX)));
        assert_eq!(forwards_table(&name("wg0")), "wirevip_wg0");
        assert_eq!(fence_table(&name("wg0")), "wirevip_wg0_fence");
    }

    fn forwards(entries: &[(Protocol, u16, &[u8])]) -> Forwards {
        entries
            .iter()
            .map(|(protocol, port, hosts)| {
                let backends = hosts.iter().map(|host| backend(*host)).collect();
                let owner = Owner::ControlPlane;
                let forward = Forward { owner, backends, client_ip_affinity: false, source_ranges: Vec::new() };
                (VipPort { protocol: *protocol, port: *port }, forward)
            })
            .collect()
    }

    fn backend(host: u8) -> SocketAddrV4 {
        SocketAddrV4::new([10, 0, 0, host].into(), 53)
    }

    #[test]
    fn only_udp_flows_to_backends_no_longer_chosen_vanish() {
        use Protocol::{Sctp, Tcp, Udp};
        let vip = Ipv4Addr::new(10, 1, 0, 1);
        let old =
            forwards(&[(Udp, 53, &[1, 2]), (Udp, 54, &[1]), (Udp, 55, &[1]), (Tcp, 53, &[1, 2]), (Sctp, 53, &[2])]);
        let new = forwards(&[(Udp, 53, &[2, 3]), (Udp, 54, &[]), (Tcp, 53, &[3])]);
        let flow = |port, host| Flow { vip, port: VipPort { protocol: Udp, port }, backend: backend(host) };
        assert_eq!(vanished(&old, &new, vip), [flow(53, 1), flow(54, 1), flow(55, 1)]);
        assert_eq!(vanished(&new, &new, vip), []);
    }

    fn plan<'a>(tunnel: &'a TunnelName, forwards: &'a Forwards) -> Plan<'a> {
        let slot = Slot::new(1).unwrap();
        Plan { tunnel, slot, vip: Ipv4Addr::LOCALHOST, pod_nic: "eth0", mtu: 1390, forwards }
    }

    #[test]
    fn the_whole_table_is_written_only_where_none_stands_as_it_should() {
        use Applied::{Difference, Whole};
        let mut firewall = FakeFirewall::new(Arc::new(TokioClock::new()));
        let tunnel = name("wg0");
        let [few, more] = [&[1, 2][..], &[1, 2, 3]].map(|hosts| forwards(&[(Protocol::Tcp, 80, hosts)]));
        assert!(!stands(&mut firewall, &tunnel).unwrap());
        for (forwards, expected) in [(&few, Whole), (&more, Difference), (&more, Difference), (&few, Difference)] {
            assert_eq!(apply(&mut firewall, &plan(&tunnel, forwards)).unwrap(), expected);
            assert!(stands(&mut firewall, &tunnel).unwrap());
        }
        // Noticed by an audit; or not yet, and then the kernel refuses the difference.
        for audited in [true, false] {
            firewall.delete_behind_our_back("wirevip_wg0");
            assert!(!audited || !stands(&mut firewall, &tunnel).unwrap());
            assert_eq!(apply(&mut firewall, &plan(&tunnel, &more)).unwrap(), Whole, "audited: {audited}");
            assert!(stands(&mut firewall, &tunnel).unwrap());
            assert_eq!(apply(&mut firewall, &plan(&tunnel, &few)).unwrap(), Difference);
        }
        firewall.commit(&remove(&tunnel)).unwrap();
        assert_eq!(firewall.tables().unwrap(), Vec::<String>::new());
        assert_eq!(apply(&mut firewall, &plan(&tunnel, &few)).unwrap(), Whole);
    }
}
