//! Conntrack entries that are ours to delete: which, and how the kernel writes them. Pure but for the last function.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use netlink_packet_core::{DefaultNla, NLA_F_NESTED};
use netlink_packet_netfilter::conntrack::{ConntrackAttribute, ConntrackMessage};

use super::netlink::{Channel, attributes, ipv4};
use super::{FirewallError, is_ours};
use crate::services::{Flow, Forwards, Protocol, VipPort};
use crate::tunnel::Slot;

/// What is to be forgotten.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Forget {
    /// UDP flows to these backends ([`super::vanished`]).
    Flows(Vec<Flow>),
    /// All flows of the tunnel in this slot: when it is taken down.
    Tunnel(Slot),
    /// All flows of all tunnels but those in these slots: what an earlier life left.
    AllBut(Vec<Slot>),
    /// Flows to this VIP that are not sent on to a backend, other than ping, and UDP flows that are sent on to one that these
    /// forwards do not name: they came while the table was not there, or was another that nobody remembers, and would
    /// stay lost. After the table had to be put back.
    Lost(Ipv4Addr, Arc<Forwards>),
}

/// One conntrack entry, IPv4.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// IP protocol.
    pub protocol: u8,
    /// As the first packet came.
    pub original: Side,
    /// As answers come.
    pub reply: Side,
    /// `IPS_…` bits.
    pub status: u32,
    /// The flow's mark.
    pub mark: u32,
}

/// One direction of a flow. Ports are 0 where the protocol has none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Side {
    /// Sender.
    pub from: SocketAddrV4,
    /// Receiver.
    pub to: SocketAddrV4,
}

impl Forget {
    /// Is this entry to be forgotten?
    pub fn matches(&self, entry: &Entry) -> bool {
        const ICMP: u8 = 1;
        const IPS_DST_NAT: u32 = 1 << 5;
        match self {
            Forget::Flows(flows) => {
                entry.protocol == Protocol::Udp.number()
                    && flows.iter().any(|flow| {
                        flow.port.protocol == Protocol::Udp
                            && entry.original.to == SocketAddrV4::new(flow.vip, flow.port.port)
                            && entry.reply.from == flow.backend
                    })
            }
            Forget::Tunnel(slot) => entry.mark & Slot::MARK_MASK == slot.mark(),
            Forget::AllBut(slots) => {
                is_ours(entry.mark) && !slots.iter().any(|slot| entry.mark & Slot::MARK_MASK == slot.mark())
            }
            Forget::Lost(vip, forwards) => {
                let translated = entry.status & IPS_DST_NAT != 0;
                let port = VipPort { protocol: Protocol::Udp, port: entry.original.to.port() };
                let known = || forwards.get(&port).is_some_and(|forward| forward.backends.contains(&entry.reply.from));
                let lost = match entry.protocol {
                    ICMP => false,
                    udp if udp == Protocol::Udp.number() => !translated || !known(),
                    _ => !translated,
                };
                entry.original.to.ip() == vip && lost
            }
        }
    }
}

// `enum ctattr_type` and below, linux/netfilter/nfnetlink_conntrack.h.
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_MARK: u16 = 8;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;

/// Reads an entry; `None` for what is not IPv4.
fn parse(bytes: &[u8]) -> Option<Entry> {
    let (mut original, mut reply, mut status, mut mark) = (None, None, 0, 0);
    for (kind, value) in attributes(bytes) {
        match kind {
            CTA_TUPLE_ORIG => original = side(value),
            CTA_TUPLE_REPLY => reply = side(value),
            CTA_STATUS => status = be_u32(value)?,
            CTA_MARK => mark = be_u32(value)?,
            _ => {}
        }
    }
    let ((protocol, original), (_, reply)) = (original?, reply?);
    Some(Entry { protocol, original, reply, status, mark })
}

fn side(tuple: &[u8]) -> Option<(u8, Side)> {
    let (mut source, mut destination, mut protocol, mut ports) = (None, None, None, (0, 0));
    for (outer, nested) in attributes(tuple) {
        for (inner, value) in attributes(nested) {
            match (outer, inner) {
                (1, 1) => source = be_u32(value),
                (1, 2) => destination = be_u32(value),
                (2, 1) => protocol = value.first().copied(),
                (2, 2) => ports.0 = be_u16(value)?,
                (2, 3) => ports.1 = be_u16(value)?,
                _ => {}
            }
        }
    }
    let from = SocketAddrV4::new(source?.into(), ports.0);
    let to = SocketAddrV4::new(destination?.into(), ports.1);
    Some((protocol?, Side { from, to }))
}

fn be_u32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

fn be_u16(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

/// Attributes that name exactly this entry: its tuple as the kernel wrote it, zone and id. By mark or zone alone would
/// be one message, but kernels that do not know such a filter ignore it and flush everybody's.
fn exactly(bytes: &[u8]) -> Vec<ConntrackAttribute> {
    attributes(bytes)
        .filter_map(|(kind, value)| {
            let kind = match kind {
                CTA_TUPLE_ORIG => CTA_TUPLE_ORIG | NLA_F_NESTED,
                kind @ (CTA_ID | CTA_ZONE) => kind,
                _ => return None,
            };
            Some(ConntrackAttribute::Other(DefaultNla::new(kind, value.to_vec())))
        })
        .collect()
}

/// Deletes all entries that match, and returns how many went.
pub(super) fn forget(channel: &mut Channel, what: &Forget) -> Result<usize, FirewallError> {
    /// A list of a table that changes may miss entries: read again until it shows none.
    const PASSES: usize = 5;
    let mut gone = 0;
    for _ in 0..PASSES {
        let list = channel.dump(&ipv4(ConntrackMessage::Get(Vec::new())), "listing conntrack entries")?;
        let mut found = false;
        for bytes in &list {
            if parse(bytes).is_some_and(|entry| what.matches(&entry)) {
                found = true;
                let delete = ConntrackMessage::Delete(exactly(bytes));
                // Gone meanwhile is as good.
                if channel.request(ipv4(delete), "deleting a conntrack entry")?.is_some() {
                    gone += 1;
                }
            }
        }
        if !found {
            break;
        }
    }
    Ok(gone)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::{Forward, Owner};

    const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
    const DST_NAT: u32 = 1 << 5;

    fn at(host: [u8; 4], port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(host.into(), port)
    }

    fn entry(protocol: u8, mark: u32, status: u32) -> Entry {
        let (client, backend, pod) = (at([192, 0, 2, 1], 999), at([10, 0, 0, 2], 5353), at([10, 0, 0, 9], 999));
        let original = Side { from: client, to: SocketAddrV4::new(VIP, 53) };
        Entry { protocol, original, reply: Side { from: backend, to: pod }, status, mark }
    }

    #[test]
    fn only_udp_flows_of_that_vip_port_and_backend_are_forgotten() {
        let flow =
            |vip, protocol, port, backend| Forget::Flows(vec![Flow { vip, port: VipPort { protocol, port }, backend }]);
        let (backend, udp) = (at([10, 0, 0, 2], 5353), entry(17, 0x1_0000, DST_NAT));
        assert!(flow(VIP, Protocol::Udp, 53, backend).matches(&udp));
        for other in [
            flow(Ipv4Addr::new(10, 1, 0, 2), Protocol::Udp, 53, backend),
            flow(VIP, Protocol::Udp, 54, backend),
            flow(VIP, Protocol::Tcp, 53, backend),
            flow(VIP, Protocol::Udp, 53, at([10, 0, 0, 2], 53)),
            flow(VIP, Protocol::Udp, 53, at([10, 0, 0, 3], 5353)),
            Forget::Flows(Vec::new()),
        ] {
            assert!(!other.matches(&udp), "{other:?}");
        }
        assert!(!flow(VIP, Protocol::Udp, 53, backend).matches(&entry(6, 0x1_0000, DST_NAT)), "TCP is never cut");
    }

    #[test]
    fn marks_tell_tunnels_apart_and_bits_of_others_do_not_matter() {
        let one = Forget::Tunnel(Slot::new(1).unwrap());
        assert!(one.matches(&entry(6, 0xab01_cdef, 0)));
        assert!(!one.matches(&entry(6, 0xab02_cdef, 0)));
        let all = Forget::AllBut(vec![]);
        assert!(all.matches(&entry(6, 0xab02_cdef, 0)));
        assert!(!all.matches(&entry(6, 0xff00_ffff, 0)), "not ours");
        let but = Forget::AllBut(vec![Slot::new(2).unwrap()]);
        assert!(!but.matches(&entry(6, 0xab02_cdef, 0)));
        assert!(but.matches(&entry(6, 0xab01_cdef, 0)));
    }

    #[test]
    fn lost_flows_are_those_to_the_vip_that_go_nowhere_or_to_no_backend_of_now_and_are_no_ping() {
        let to = |backends: &[SocketAddrV4]| {
            let backends = backends.to_vec();
            let forward =
                Forward { owner: Owner::ControlPlane, backends, client_ip_affinity: false, source_ranges: Vec::new() };
            let port = VipPort { protocol: Protocol::Udp, port: 53 };
            Forget::Lost(VIP, Arc::new([(port, forward)].into_iter().collect()))
        };
        let known = to(&[at([10, 0, 0, 2], 5353)]);
        assert!(known.matches(&entry(17, 0, 0)));
        assert!(!known.matches(&entry(17, 0, DST_NAT)));
        assert!(!known.matches(&entry(1, 0, 0)));
        for forgotten in [to(&[at([10, 0, 0, 3], 5353)]), to(&[]), Forget::Lost(VIP, Arc::default())] {
            assert!(forgotten.matches(&entry(17, 0, DST_NAT)));
            assert!(!forgotten.matches(&entry(6, 0, DST_NAT)), "TCP is never cut");
        }
        assert!(!Forget::Lost(Ipv4Addr::LOCALHOST, Arc::default()).matches(&entry(17, 0, 0)));
    }
}
