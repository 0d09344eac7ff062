//! The table of one tunnel's forwards. Pure.
//!
//! A packet that arrives on the link: its flow is marked → its port is looked up once → its Service's chain picks a
//! backend → it leaves with the pod's address. An answer: the flow's mark becomes the packet's, which the tunnel's
//! routing rule matches. Everything is tied to the link's name or to the tunnel's mark.

use std::net::Ipv4Addr;

use super::forwards_table;
use super::model::{
    Base, Chain, ChainKind, Datatype, Element, ElementValue, Expr, Header, Hook, Meta, Refusal, Reg, Rule, Set,
    SetValue, Table, Verdict, state,
};
use super::phrases::{self as say, rule};
use super::rendezvous;
use super::slots::{self, Slots};
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
    /// Name of the pod's own interface, by which backends are reached.
    pub pod_nic: &'a str,
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
const ARRIVING: &str = "arriving";
const TO_US: &str = "to-us";

/// The table as it should be, sorted. What stands, sorted too, decides about the numbers of slots and about nothing
/// else.
pub fn render(plan: &Plan<'_>, standing: Option<&Table>) -> Table {
    let mut chains = base_chains(plan);
    let mut ports = Vec::with_capacity(plan.forwards.len());
    let mut slots = Slots::new(standing);
    for (port, forward) in plan.forwards {
        ports.push(Element {
            key: port_key(*port),
            value: Some(ElementValue::Verdict(Verdict::Goto(chain_name(*port)))),
            timeout: None,
        });
        chains.extend(service_chains(*port, forward, &mut slots));
    }
    let mut sets = vec![Set {
        name: PORTS.to_owned(),
        key: vec![Datatype::Protocol, Datatype::Port],
        value: SetValue::Verdict,
        timeout: None,
        learns: None,
        elements: ports,
    }];
    sets.extend(slots.into_sets());
    Table { name: forwards_table(plan.tunnel), counters: Vec::new(), sets, chains }.sorted()
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
                // Conntrack asks for no interface: whoever knows a flow of another tunnel's could draw its answers to himself.
                rule([say::from_link(link), say::flow_of_another(plan.slot), drop()]),
                rule([say::from_link(link), say::mark_flow(plan.slot)]),
                // Replies alone, and not the pod's own packets: its "fragmentation needed" must reach the backend.
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
                // A backend that forges its client's packets.
                rule([say::flow_of(plan.slot), say::original(), drop()]),
                rule([say::to_link(link), say::flow_of(plan.slot), say::reply(), say::known_flow(), accept()]),
                rule([say::to_link(link), drop()]),
            ],
        ),
        base(
            "guard-out",
            (ChainKind::Filter, Hook::Output, FILTER),
            // An answer outside its flow's window stays untranslated, comes to the pod itself, and the pod's reset for
            // it would end the living flow (kubernetes#74839).
            vec![rule([
                say::to_link(plan.pod_nic),
                say::ct_state(state::INVALID),
                say::tcp_flags(say::RST, say::RST),
                drop(),
            ])],
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

fn service_chains(port: VipPort, forward: &Forward, slots: &mut Slots<'_>) -> Vec<Chain> {
    let pick = choose(port, forward, slots);
    if forward.source_ranges.is_empty() {
        return vec![inner(&chain_name(port), pick)];
    }
    let picking = format!("{}-pick", chain_name(port));
    let mut gate: Vec<Rule> = forward
        .source_ranges
        .iter()
        .map(|range| rule([say::ipv4(), say::from_network(*range), say::verdict(Verdict::Goto(picking.clone()))]))
        .collect();
    // Dropped, not refused: as kube-proxy does.
    gate.push(say::verdict(Verdict::Drop));
    vec![inner(&chain_name(port), gate), inner(&picking, pick)]
}

fn choose(port: VipPort, forward: &Forward, slots: &mut Slots<'_>) -> Vec<Rule> {
    let (address, to_port) = (Reg(8), Reg(9));
    let dnat = Expr::Dnat { address, port: to_port };
    let mut mine = match forward.backends.as_slice() {
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
    mine.truncate(slots::MOST);
    let (map, offset) = slots.take(port, &mine);
    let mut rule = say::ipv4();
    rule.push(Expr::Payload { base: Header::Network, offset: 12, len: 4, to: client });
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
            offset,
        },
        Expr::Lookup { map, key: slot, to: address },
        dnat,
    ]);
    vec![rule]
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::SocketAddrV4;

    use proptest::collection::{btree_map, btree_set, vec};
    use proptest::prelude::*;

    use super::*;
    use crate::services::Owner;

    fn any_forwards() -> impl Strategy<Value = Forwards> {
        let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Sctp)];
        let port = (protocol, 1u16..).prop_map(|(protocol, port)| VipPort { protocol, port });
        let backend = (any::<u32>(), 1u16..).prop_map(|(ip, port)| SocketAddrV4::new(ip.into(), port));
        let range = (any::<u32>(), 0u8..=32)
            .prop_filter_map("a length up to 32", |(ip, length)| ipnet::Ipv4Net::new(ip.into(), length).ok());
        let forward = (btree_set(backend, 0..40), any::<bool>(), vec(range.prop_map(|range| range.trunc()), 0..4));
        btree_map(
            port,
            forward.prop_map(|(backends, client_ip_affinity, source_ranges)| Forward {
                owner: Owner::ControlPlane,
                backends: backends.into_iter().collect(),
                client_ip_affinity,
                source_ranges,
            }),
            0..30,
        )
    }

    fn rendered(forwards: &Forwards) -> Table {
        let tunnel = TunnelName::new("wg0").unwrap();
        let slot = Slot::new(7).unwrap();
        render(
            &Plan { tunnel: &tunnel, slot, vip: Ipv4Addr::new(10, 0, 0, 1), pod_nic: "eth0", mtu: 1390, forwards },
            None,
        )
    }

    fn targets(table: &Table) -> impl Iterator<Item = &String> {
        let of_rules =
            table.chains.iter().flat_map(|chain| chain.rules.iter().flatten()).filter_map(|expr| match expr {
                Expr::Verdict(Verdict::Jump(chain) | Verdict::Goto(chain)) => Some(chain),
                _ => None,
            });
        let of_maps = table.sets.iter().flat_map(|set| &set.elements).filter_map(|element| match &element.value {
            Some(ElementValue::Verdict(Verdict::Goto(chain))) => Some(chain),
            _ => None,
        });
        of_rules.chain(of_maps)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn each_forward_has_exactly_one_entry_in_the_map_of_ports(forwards in any_forwards()) {
            let table = rendered(&forwards);
            let ports: Vec<&Vec<u8>> = table.set(PORTS).unwrap().elements.iter().map(|element| &element.key).collect();
            let mut expected: Vec<Vec<u8>> = forwards.keys().map(|port| port_key(*port)).collect();
            expected.sort();
            prop_assert_eq!(ports, expected.iter().collect::<Vec<_>>());
        }

        #[test]
        fn names_are_unique_and_all_that_is_named_is_there(forwards in any_forwards()) {
            let table = rendered(&forwards);
            let chains: BTreeSet<&String> = table.chains.iter().map(|chain| &chain.name).collect();
            prop_assert_eq!(chains.len(), table.chains.len());
            for target in targets(&table) {
                prop_assert!(chains.contains(target), "no chain {}", target);
            }
            let sets: BTreeSet<&String> = table.sets.iter().map(|set| &set.name).collect();
            prop_assert_eq!(sets.len(), table.sets.len());
            for name in chains.iter().chain(&sets) {
                let (first, rest) = name.split_at(1);
                prop_assert!(first.bytes().all(|b| b.is_ascii_lowercase()), "nft cannot read {}", name);
                prop_assert!(rest.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'), "nft cannot read {}", name);
            }
        }

        #[test]
        fn every_slot_that_a_hash_can_give_holds_one_of_the_forwards_backends(forwards in any_forwards()) {
            let table = rendered(&forwards);
            let (mut offered, many) = (0, forwards.values().filter(|forward| forward.backends.len() > 1));
            for (port, forward) in &forwards {
                let name = chain_name(*port);
                let picks = table.chains.iter().filter(|c| c.name == name || c.name == format!("{name}-pick"));
                for rule in picks.flat_map(|chain| &chain.rules) {
                    let [.., Expr::Hash { modulus, offset, .. }, Expr::Lookup { map, .. }, _] = rule.as_slice() else {
                        continue;
                    };
                    offered += 1;
                    let set = table.set(map).unwrap();
                    let slots: BTreeSet<Vec<u8>> = (*offset..offset + modulus)
                        .map(|slot| set.elements.iter().find(|element| element.key == slot.to_ne_bytes()).unwrap())
                        .map(|element| match &element.value {
                            Some(ElementValue::Data(value)) => value[..6].to_vec(),
                            other => unreachable!("{other:?}"),
                        })
                        .collect();
                    let backends = forward.backends.iter().map(|b| [&b.ip().octets()[..], &b.port().to_be_bytes()].concat());
                    let backends: BTreeSet<Vec<u8>> = backends.collect();
                    prop_assert!(slots.is_subset(&backends));
                    prop_assert!(forward.client_ip_affinity || slots == backends);
                }
            }
            prop_assert_eq!(offered, many.count());
        }
    }

    #[test]
    fn every_rule_of_a_base_chain_is_tied_to_the_link_the_mark_or_the_pods_own_interface() {
        for chain in rendered(&Forwards::new()).chains.iter().filter(|chain| chain.base.is_some()) {
            for rule in &chain.rules {
                let tied = rule.iter().any(|expr| {
                    matches!(expr, Expr::Meta(Meta::InName | Meta::OutName, _))
                        || matches!(expr, Expr::Ct(super::super::model::Ct::Mark, _))
                });
                assert!(tied, "a rule of {} would touch other tunnels' packets: {rule:?}", chain.name);
            }
        }
    }

    #[test]
    fn as_many_backends_as_a_range_has_numbers_are_used_and_no_more() {
        let backend = |number: u32| SocketAddrV4::new(Ipv4Addr::from(0x0a00_0000 + number), 80);
        let backends: Vec<SocketAddrV4> = (0..9_000).map(backend).collect();
        for client_ip_affinity in [false, true] {
            let (owner, backends) = (Owner::ControlPlane, backends.clone());
            let forward = Forward { owner, backends, client_ip_affinity, source_ranges: vec![] };
            let ports = [80, 81, 80 + 64].map(|port| VipPort { protocol: Protocol::Sctp, port });
            let table = rendered(&ports.map(|port| (port, forward.clone())).into());
            let expected = if client_ip_affinity { 256 } else { 8_192 };
            let keys: BTreeSet<(&String, &Vec<u8>)> = table
                .sets
                .iter()
                .filter(|set| set.name != PORTS)
                .flat_map(|set| set.elements.iter().map(|element| (&set.name, &element.key)))
                .collect();
            assert_eq!(keys.len(), 3 * expected, "no number is used twice");
            for expr in table.chains.iter().flat_map(|chain| chain.rules.iter().flatten()) {
                if let Expr::Hash { modulus, .. } = expr {
                    assert_eq!(*modulus as usize, expected);
                }
            }
        }
    }

    #[test]
    fn forwards_without_backends_have_no_rule_that_sends_anywhere() {
        let forward =
            Forward { owner: Owner::ControlPlane, backends: vec![], client_ip_affinity: true, source_ranges: vec![] };
        let port = VipPort { protocol: Protocol::Tcp, port: 80 };
        let table = rendered(&[(port, forward)].into());
        assert!(
            table.chains.iter().flat_map(|chain| chain.rules.iter().flatten()).all(|e| !matches!(e, Expr::Dnat { .. }))
        );
    }
}
