//! The phrases that wirevip's rules are made of, each a few expressions. Pure. All of them use registers 0 to 3 and
//! leave nothing behind in them.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::model::{Ct, Expr, Header, Meta, Reg, Rule, Verdict, state};
use crate::tunnel::Slot;

const R0: Reg = Reg(0);

const UDP_HEADER: u32 = 8;

/// TCP's flags byte: FIN 1, SYN 2, RST 4, ACK 16.
pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const ACK: u8 = 16;

/// A rule out of phrases.
pub(crate) fn rule<const N: usize>(phrases: [Vec<Expr>; N]) -> Rule {
    phrases.into_iter().flatten().collect()
}

/// Arrives on this interface. By name: the table is there before the link is.
pub(crate) fn from_link(name: &str) -> Vec<Expr> {
    vec![Expr::Meta(Meta::InName, R0), Expr::Equal(R0, interface(name))]
}

/// Arrives on any other interface.
pub(crate) fn not_from_link(name: &str) -> Vec<Expr> {
    vec![Expr::Meta(Meta::InName, R0), Expr::Differ(R0, interface(name))]
}

/// Leaves by this interface.
pub(crate) fn to_link(name: &str) -> Vec<Expr> {
    vec![Expr::Meta(Meta::OutName, R0), Expr::Equal(R0, interface(name))]
}

/// IPv4, for what follows to read its header.
pub(crate) fn ipv4() -> Vec<Expr> {
    const NFPROTO_IPV4: u8 = 2;
    vec![Expr::Meta(Meta::Family, R0), Expr::Equal(R0, vec![NFPROTO_IPV4])]
}

/// IPv6, for what follows to read its header.
pub(crate) fn ipv6() -> Vec<Expr> {
    const NFPROTO_IPV6: u8 = 10;
    vec![Expr::Meta(Meta::Family, R0), Expr::Equal(R0, vec![NFPROTO_IPV6])]
}

/// For this IPv4 address.
pub(crate) fn to_address(address: Ipv4Addr) -> Vec<Expr> {
    let mut phrase = ipv4();
    phrase.push(Expr::Payload { base: Header::Network, offset: 16, len: 4, to: R0 });
    phrase.push(Expr::Equal(R0, address.octets().to_vec()));
    phrase
}

/// From this IPv4 network; only where the packet is known to be IPv4.
pub(crate) fn from_network(network: Ipv4Net) -> Vec<Expr> {
    vec![
        Expr::Payload { base: Header::Network, offset: 12, len: 4, to: R0 },
        Expr::Bits { reg: R0, mask: network.netmask().octets().to_vec(), xor: vec![0; 4] },
        Expr::Equal(R0, network.network().octets().to_vec()),
    ]
}

/// Of this IP protocol.
pub(crate) fn protocol(number: u8) -> Vec<Expr> {
    vec![Expr::Meta(Meta::Protocol, R0), Expr::Equal(R0, vec![number])]
}

/// UDP from this port.
pub(crate) fn udp_from(port: u16) -> Vec<Expr> {
    udp(0, port)
}

/// UDP to this port.
pub(crate) fn udp_to(port: u16) -> Vec<Expr> {
    udp(2, port)
}

fn udp(offset: u32, port: u16) -> Vec<Expr> {
    let mut phrase = protocol(17);
    phrase.push(Expr::Payload { base: Header::Transport, offset, len: 2, to: R0 });
    phrase.push(Expr::Equal(R0, port.to_be_bytes().to_vec()));
    phrase
}

/// UDP whose payload begins with this byte.
pub(crate) fn udp_begins(byte: u8) -> Vec<Expr> {
    vec![Expr::Payload { base: Header::Transport, offset: UDP_HEADER, len: 1, to: R0 }, Expr::Equal(R0, vec![byte])]
}

/// UDP with so many bytes of payload, and no more: of several messages that the kernel has yet to part, all count.
pub(crate) fn udp_holds(bytes: u16) -> Vec<Expr> {
    const LENGTH: u32 = 4;
    let length = (8 + bytes).to_be_bytes().to_vec();
    vec![Expr::Payload { base: Header::Transport, offset: LENGTH, len: 2, to: R0 }, Expr::Equal(R0, length)]
}

/// Makes this the first byte of a UDP payload.
pub(crate) fn udp_begin_with(byte: u8) -> Vec<Expr> {
    vec![Expr::Load(R0, vec![byte]), Expr::WriteUdp { offset: UDP_HEADER, len: 1, from: R0 }]
}

/// Loads the four bytes of UDP payload from `offset` on.
pub(crate) fn udp_word(offset: u32) -> Expr {
    Expr::Payload { base: Header::Transport, offset: UDP_HEADER + offset, len: 4, to: R0 }
}

/// TCP whose flags within `mask` are exactly `flags`.
pub(crate) fn tcp_flags(mask: u8, flags: u8) -> Vec<Expr> {
    tcp_flags_then(mask, Expr::Equal(R0, vec![flags]))
}

/// TCP whose flags within `mask` are anything but `flags`.
pub(crate) fn tcp_flags_not(mask: u8, flags: u8) -> Vec<Expr> {
    tcp_flags_then(mask, Expr::Differ(R0, vec![flags]))
}

fn tcp_flags_then(mask: u8, compare: Expr) -> Vec<Expr> {
    let mut phrase = protocol(6);
    phrase.push(Expr::Payload { base: Header::Transport, offset: 13, len: 1, to: R0 });
    phrase.push(Expr::Bits { reg: R0, mask: vec![mask], xor: vec![0] });
    phrase.push(compare);
    phrase
}

/// ICMP of this type.
pub(crate) fn icmp(kind: u8) -> Vec<Expr> {
    let mut phrase = protocol(1);
    phrase.push(Expr::Payload { base: Header::Transport, offset: 0, len: 1, to: R0 });
    phrase.push(Expr::Equal(R0, vec![kind]));
    phrase
}

/// In one of these conntrack states.
pub(crate) fn ct_state(bits: u32) -> Vec<Expr> {
    vec![Expr::Ct(Ct::State, R0), any_bit(bits), Expr::Differ(R0, vec![0; 4])]
}

/// Established or related.
pub(crate) fn known_flow() -> Vec<Expr> {
    ct_state(state::ESTABLISHED | state::RELATED)
}

/// Of a flow that was sent on to another address.
pub(crate) fn translated() -> Vec<Expr> {
    const IPS_DST_NAT: u32 = 1 << 5;
    vec![Expr::Ct(Ct::Status, R0), any_bit(IPS_DST_NAT), Expr::Differ(R0, vec![0; 4])]
}

fn any_bit(bits: u32) -> Expr {
    Expr::Bits { reg: R0, mask: bits.to_ne_bytes().to_vec(), xor: vec![0; 4] }
}

/// In the direction of the flow's first packet.
pub(crate) fn original() -> Vec<Expr> {
    vec![Expr::Ct(Ct::Direction, R0), Expr::Equal(R0, vec![0])]
}

/// Against the direction of the flow's first packet.
pub(crate) fn reply() -> Vec<Expr> {
    vec![Expr::Ct(Ct::Direction, R0), Expr::Equal(R0, vec![1])]
}

/// Of a flow that came through this tunnel.
pub(crate) fn flow_of(slot: Slot) -> Vec<Expr> {
    vec![Expr::Ct(Ct::Mark, R0), any_bit(Slot::MARK_MASK), Expr::Equal(R0, slot.mark().to_ne_bytes().to_vec())]
}

/// Of a flow that came through another tunnel of ours.
pub(crate) fn flow_of_another(slot: Slot) -> Vec<Expr> {
    let differs = |mark: u32| Expr::Differ(R0, mark.to_ne_bytes().to_vec());
    vec![Expr::Ct(Ct::Mark, R0), any_bit(Slot::MARK_MASK), differs(0), differs(slot.mark())]
}

/// Marks the flow as this tunnel's; others' bits of the mark stay.
pub(crate) fn mark_flow(slot: Slot) -> Vec<Expr> {
    vec![Expr::Ct(Ct::Mark, R0), set_mark_bits(slot), Expr::SetCtMark(R0)]
}

/// Marks the packet for this tunnel's routing table; others' bits of the mark stay.
pub(crate) fn mark_packet(slot: Slot) -> Vec<Expr> {
    vec![Expr::Meta(Meta::Mark, R0), set_mark_bits(slot), Expr::SetMark(R0)]
}

fn set_mark_bits(slot: Slot) -> Expr {
    let keep = !Slot::MARK_MASK;
    Expr::Bits { reg: R0, mask: keep.to_ne_bytes().to_vec(), xor: slot.mark().to_ne_bytes().to_vec() }
}

/// Lowers the maximum segment size that a SYN announces.
pub(crate) fn lower_mss(to: u16) -> Vec<Expr> {
    vec![Expr::Load(R0, to.to_be_bytes().to_vec()), Expr::LowerMss(R0)]
}

/// Ends the rule with a verdict.
pub(crate) fn verdict(verdict: Verdict) -> Vec<Expr> {
    vec![Expr::Verdict(verdict)]
}

/// An interface's name as the kernel compares it: IFNAMSIZ bytes, zero-padded.
fn interface(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes
}
