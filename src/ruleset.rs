//! What the kernel is told about packets: forwards in, tables out, and the seam to the kernel.
//!
//! What must hold:
//! - A tunnel's forwards are one table, rendered whole and replaced whole (I4). Every packet finds the old one or the
//!   new one: see [`apply`].
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

/// Name of the table that takes over while that of the forwards is replaced, and in turn with it where there are
/// [`MANY`] forwards. No tunnel's name has a slash in it.
fn relief_table(tunnel: &TunnelName) -> String {
    format!("{}/relief", forwards_table(tunnel))
}

/// From so many forwards on a table is not written twice: 1,000 of 10 backends cost 30 ms each time.
const MANY: usize = 200;

/// Puts the tunnel's forwards in place of those that stand, without losing a packet; and clears up if an earlier
/// attempt ended halfway.
///
/// Not by one transaction: a packet on its way through a hook asks each chain there which generation of the ruleset it
/// is, and between two chains the answer may change, so that neither the old table nor the new one takes it (seen: a new
/// flow refused within 600 replacements under steady traffic). So a second table with the new forwards stands by while
/// the first is replaced; for an instant what either forwards is forwarded.
pub fn apply(firewall: &mut dyn Firewall, plan: &Plan<'_>) -> Result<(), FirewallError> {
    let table = render(plan);
    let (name, relief) = (table.name.clone(), relief_table(plan.tunnel));
    let present = firewall.tables()?;
    if !present.contains(&name) {
        firewall.commit(&Transaction::replace(table))?;
        return if present.contains(&relief) { firewall.commit(&Transaction::delete(&relief)) } else { Ok(()) };
    }
    firewall.commit(&Transaction::replace(Table { name: relief.clone(), ..table.clone() }))?;
    if plan.forwards.len() >= MANY {
        return firewall.commit(&Transaction::delete(&name));
    }
    firewall.commit(&Transaction::replace(table))?;
    firewall.commit(&Transaction::delete(&relief))
}

/// Do the tunnel's forwards stand as [`apply`] last put them?
pub fn stands(firewall: &mut dyn Firewall, tunnel: &TunnelName) -> Result<bool, FirewallError> {
    Ok(firewall.intact(&forwards_table(tunnel))? || firewall.intact(&relief_table(tunnel))?)
}

/// Takes the tunnel's forwards away.
pub fn remove(tunnel: &TunnelName) -> Transaction {
    Transaction::delete(&forwards_table(tunnel)).then(Transaction::delete(&relief_table(tunnel)))
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
                [forwards_table(&name), relief_table(&name), fence_table(&name)]
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

    #[test]
    fn many_forwards_are_written_once_and_their_two_tables_take_turns() {
        let clock = Arc::new(TokioClock::new());
        let mut firewall = FakeFirewall::new(clock);
        let tunnel = name("wg0");
        let many: Vec<_> = (1..=MANY as u16).map(|port| (Protocol::Tcp, port, [1].as_slice())).collect();
        let (many, few) = (forwards(&many), forwards(&[]));
        let slot = Slot::new(1).unwrap();
        for (round, (forwards, standing)) in [
            (&many, "wirevip_wg0"),
            (&many, "wirevip_wg0/relief"),
            (&many, "wirevip_wg0"),
            (&many, "wirevip_wg0/relief"),
            (&few, "wirevip_wg0"),
            (&few, "wirevip_wg0"),
        ]
        .into_iter()
        .enumerate()
        {
            let plan = Plan { tunnel: &tunnel, slot, vip: Ipv4Addr::LOCALHOST, pod_nic: "eth0", mtu: 1390, forwards };
            apply(&mut firewall, &plan).unwrap();
            assert_eq!(firewall.tables().unwrap(), [standing], "round {round}");
            assert!(stands(&mut firewall, &tunnel).unwrap(), "round {round}");
        }
        firewall.delete_behind_our_back("wirevip_wg0");
        assert!(!stands(&mut firewall, &tunnel).unwrap());
    }

    #[test]
    fn one_table_is_left_after_each_apply_also_after_one_that_ended_halfway() {
        let clock = Arc::new(TokioClock::new());
        let mut firewall = FakeFirewall::new(clock);
        let (tunnel, forwards) = (name("wg0"), Forwards::new());
        let slot = Slot::new(1).unwrap();
        let plan =
            Plan { tunnel: &tunnel, slot, vip: Ipv4Addr::LOCALHOST, pod_nic: "eth0", mtu: 1390, forwards: &forwards };
        assert!(!stands(&mut firewall, &tunnel).unwrap());
        for round in 0..4 {
            apply(&mut firewall, &plan).unwrap();
            assert_eq!(firewall.tables().unwrap(), ["wirevip_wg0"], "round {round}");
            assert!(stands(&mut firewall, &tunnel).unwrap());
        }
        // The relief was not taken away.
        firewall.commit(&Transaction::replace(render(&plan))).unwrap();
        let mut second = render(&plan);
        second.name = relief_table(&tunnel);
        firewall.commit(&Transaction::replace(second)).unwrap();
        apply(&mut firewall, &plan).unwrap();
        assert_eq!(firewall.tables().unwrap().len(), 1);
        firewall.commit(&remove(&tunnel)).unwrap();
        assert_eq!(firewall.tables().unwrap(), Vec::<String>::new());
    }
}
