//! The table of one tunnel's forwards. Pure.
//!
//! A packet that arrives on the link: its flow is marked → its port is looked up once → its Service's chain picks a
//! backend → it leaves with the pod's address. An answer: the flow's mark becomes the packet's, which the tunnel's
//! routing rule matches. Everything is tied to the link's name or to the tunnel's mark.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::forwards_table;
use super::model::{
    Base, Chain, ChainKind, Datatype, Element, ElementValue, Expr, Header, Hook, Meta, Refusal, Reg, Rule, Set,
    SetValue, Table, Verdict, state,
};
use super::phrases::{self as say, rule};
use super::rendezvous;
use crate::secret::TunnelName;
use crate::services::{Forward, Forwards, Protocol, VipPort};
use crate::tunnel::Slot;

/// All that a tunnel's table follows from.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// The tunnel; its link bears the same name.
    pub tunnel: &'a TunnelName,
    /// Its mark.
    pub slot: Slot,
    /// Its address.
    pub vip: Ipv4Addr,
    /// Bytes that fit through the link.
    pub mtu: u16,
    /// What goes where.
    pub forwards: &'a Forwards,
}

/// Between conntrack (−200) and destination NAT (−100).
const MANGLE: i32 = -150;
const DSTNAT: i32 = -100;
const FILTER: i32 = 0;
const SRCNAT: i32 = 100;

/// Any number will do, as long as it is the same everywhere and for ever.
const SEED: u32 = 0x7769_7265;

/// (protocol, port) → the Service's chain.
const PORTS: &str = "ports";
/// Slot → (address, port), the slots of all forwards one after the other. One map for all, since the kernel finds sets
/// by walking a list: a thousand small ones cost a thousand times a thousand steps.
const BACKENDS: &str = "backends";

const ARRIVING: &str = "arriving";
const TO_US: &str = "to-us";

/// The table as it should be.
pub fn render(plan: &Plan<'_>) -> Table {
    let mut chains = base_chains(plan);
    let mut ports = Vec::with_capacity(plan.forwards.len());
    let mut slots = Vec::new();
    for (port, forward) in plan.forwards {
        ports.push(Element {
            key: port_key(*port),
            value: Some(ElementValue::Verdict(Verdict::Goto(chain_name(*port)))),
            timeout: None,
        });
        chains.extend(service_chains(*port, forward, &mut slots));
    }
    Table {
        name: forwards_table(plan.tunnel),
        counters: Vec::new(),
        sets: vec![
            Set {
                name: PORTS.to_owned(),
                key: vec![Datatype::Protocol, Datatype::Port],
                value: SetValue::Verdict,
                timeout: None,
                elements: ports,
            },
            Set {
                name: BACKENDS.to_owned(),
                key: vec![Datatype::Number],
                value: SetValue::Data(vec![Datatype::Ipv4, Datatype::Port]),
                timeout: None,
                elements: (0u32..).zip(slots).map(slot_element).collect(),
            },
        ],
        chains,
    }
}

fn base_chains(plan: &Plan<'_>) -> Vec<Chain> {
    let link = plan.tunnel.as_str();
    let mss = plan.mtu.saturating_sub(40);
    let drop = || say::verdict(Verdict::Drop);
    let accept = || say::verdict(Verdict::Accept);
    vec![
        base(
            "marks-in",
            (ChainKind::Filter, Hook::Prerouting, MANGLE),
            vec![
                rule([say::from_link(link), say::mark_flow(plan.slot)]),
                // Replies alone: a backend that forges its client's packets must not reach the tunnel with them. Nor do
                // the pod's own packets get a mark: its "fragmentation needed" must reach the backend.
                rule([say::not_from_link(link), say::flow_of(plan.slot), say::reply(), say::mark_packet(plan.slot)]),
            ],
        ),
        base(
            "marks-out",
            (ChainKind::Filter, Hook::Output, MANGLE),
            vec![rule([say::to_link(link), say::mark_flow(plan.slot)])],
        ),
        base(
            "translate",
            (ChainKind::Nat, Hook::Prerouting, DSTNAT),
            vec![rule([
                say::from_link(link),
                say::to_address(plan.vip),
                say::verdict(Verdict::Jump(ARRIVING.to_owned())),
            ])],
        ),
        inner(
            ARRIVING,
            vec![
                // A TCP flow that begins in its middle is a predecessor's: untranslated it comes to TO_US, and is reset.
                rule([say::tcp_flags_not(say::FIN | say::SYN | say::RST | say::ACK, say::SYN), accept()]),
                look_up_port(),
            ],
        ),
        base(
            "clamp",
            (ChainKind::Filter, Hook::Forward, MANGLE),
            [say::from_link(link), say::to_link(link)]
                .into_iter()
                .map(|way| rule([way, say::tcp_flags(say::SYN | say::RST, say::SYN), say::lower_mss(mss)]))
                .collect(),
        ),
        base(
            "guard-through",
            (ChainKind::Filter, Hook::Forward, FILTER),
            vec![
                rule([say::from_link(link), say::flow_of(plan.slot), say::translated(), say::original(), accept()]),
                rule([say::from_link(link), drop()]),
                rule([say::to_link(link), say::flow_of(plan.slot), say::reply(), say::known_flow(), accept()]),
                rule([say::to_link(link), drop()]),
            ],
        ),
        base(
            "guard-in",
            (ChainKind::Filter, Hook::Input, FILTER),
            vec![rule([say::from_link(link), say::verdict(Verdict::Goto(TO_US.to_owned()))])],
        ),
        inner(TO_US, refusals(plan.vip)),
        base(
            "masquerade",
            (ChainKind::Nat, Hook::Postrouting, SRCNAT),
            vec![rule([say::flow_of(plan.slot), say::translated(), vec![Expr::Masquerade]])],
        ),
    ]
}

/// What comes here is forwarded nowhere: no backends, no such port, middle of an unknown flow, or not the VIP at all.
/// Refused here and not before DNAT: rejecting in prerouting needs Linux 5.9, and a refused packet's flow is forgotten
/// before it is ever entered in conntrack either way.
fn refusals(vip: Ipv4Addr) -> Vec<Rule> {
    const ECHO_REQUEST: u8 = 8;
    let drop = || say::verdict(Verdict::Drop);
    vec![
        rule([say::to_address(vip), say::icmp(ECHO_REQUEST), say::verdict(Verdict::Accept)]),
        // Out of its flow's window: a late duplicate. A reset for it could hit the living flow (kubernetes#74839). But
        // conntrack also calls the FIN of an unknown flow invalid, and that one waits for an answer.
        rule([say::ct_state(state::INVALID), say::tcp_flags(say::FIN, 0), drop()]),
        rule([say::to_address(vip), say::protocol(6), vec![Expr::Reject(Refusal::TcpReset)]]),
        rule([say::to_address(vip), vec![Expr::Reject(Refusal::PortUnreachable)]]),
        drop(),
    ]
}

fn look_up_port() -> Rule {
    vec![
        Expr::Meta(Meta::Protocol, Reg(0)),
        Expr::Payload { base: Header::Transport, offset: 2, len: 2, to: Reg(1) },
        Expr::VerdictMap { map: PORTS.to_owned(), key: Reg(0) },
    ]
}

fn service_chains(port: VipPort, forward: &Forward, slots: &mut Vec<SocketAddrV4>) -> Vec<Chain> {
    let pick = choose(port, forward, slots);
    if forward.source_ranges.is_empty() {
        return vec![inner(&chain_name(port), pick)];
    }
    let picking = format!("{}-pick", chain_name(port));
    let mut gate: Vec<Rule> = forward
        .source_ranges
        .iter()
        .map(|range| rule([say::from_network(*range), say::verdict(Verdict::Goto(picking.clone()))]))
        .collect();
    // Dropped, not refused: as kube-proxy does.
    gate.push(say::verdict(Verdict::Drop));
    vec![inner(&chain_name(port), gate), inner(&picking, pick)]
}

fn choose(port: VipPort, forward: &Forward, slots: &mut Vec<SocketAddrV4>) -> Vec<Rule> {
    let (address, to_port) = (Reg(8), Reg(9));
    let dnat = Expr::Dnat { address, port: to_port };
    let mine = match forward.backends.as_slice() {
        // Left untranslated it comes to TO_US, which refuses it.
        [] => return Vec::new(),
        [only] => {
            let value = |bytes: &[u8]| bytes.to_vec();
            return vec![vec![
                Expr::Load(address, value(&only.ip().octets())),
                Expr::Load(to_port, value(&only.port().to_be_bytes())),
                dnat,
            ]];
        }
        many if forward.client_ip_affinity => rendezvous::slots(port, many),
        many => many.to_vec(),
    };
    let (client, slot) = (Reg(0), Reg(4));
    let mut rule = vec![Expr::Payload { base: Header::Network, offset: 12, len: 4, to: client }];
    if !forward.client_ip_affinity {
        rule.push(Expr::Payload { base: Header::Transport, offset: 0, len: 2, to: Reg(1) });
    }
    rule.extend([
        Expr::Hash {
            from: client,
            len: if forward.client_ip_affinity { 4 } else { 8 },
            to: slot,
            modulus: u32::try_from(mine.len()).unwrap_or(u32::MAX),
            seed: SEED,
            offset: u32::try_from(slots.len()).unwrap_or(u32::MAX),
        },
        Expr::Lookup { map: BACKENDS.to_owned(), key: slot, to: address },
        dnat,
    ]);
    slots.extend(mine);
    vec![rule]
}

/// The slot in the machine's own order: the hash is computed there. Written in network order, only backend 0 were hit.
fn slot_element((slot, backend): (u32, SocketAddrV4)) -> Element {
    let mut value = backend.ip().octets().to_vec();
    value.extend(backend.port().to_be_bytes());
    value.extend([0; 2]);
    Element { key: slot.to_ne_bytes().to_vec(), value: Some(ElementValue::Data(value)), timeout: None }
}

fn port_key(port: VipPort) -> Vec<u8> {
    let [high, low] = port.port.to_be_bytes();
    vec![port.protocol.number(), 0, 0, 0, high, low, 0, 0]
}

fn chain_name(port: VipPort) -> String {
    let protocol = match port.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    };
    format!("{protocol}-{}", port.port)
}

fn base(name: &str, (kind, hook, priority): (ChainKind, Hook, i32), rules: Vec<Rule>) -> Chain {
    Chain { name: name.to_owned(), base: Some(Base { kind, hook, priority }), rules }
}

fn inner(name: &str, rules: Vec<Rule>) -> Chain {
    Chain { name: name.to_owned(), base: None, rules }
}
