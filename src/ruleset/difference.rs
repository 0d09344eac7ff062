//! From one table to another without touching what is the same in both. Pure.
//!
//! What must hold:
//! - At every instant each rule finds all elements that it can look up. The kernel decides once for each packet and base
//!   chain whether it follows the old rules or the new ones, but looks elements up as of now. So elements come no later
//!   than the rules that look for them, and go in a transaction after those rules.
//! - No element's value changes in place: until Linux 6.17 a lookup may, for an instant, find neither the old value nor
//!   the new one ("netfilter: nf_tables: restart set lookup on base_seq change"). The renderer sees to it.

use std::cmp::Ordering;

use super::model::{Chain, Element, Set, Table};
use super::steps::{Edit, Transaction};

/// Transactions, two at most, that lead from a table that stands to one that should; both must be sorted. `None` if the
/// table must be replaced: a base chain comes, goes or moves, a set is of another kind, a value changes in place.
pub(super) fn between(old: &Table, new: &Table) -> Option<Vec<Transaction>> {
    if (&old.name, &old.counters) != (&new.name, &new.counters) {
        return None;
    }
    let mut changes = Changes::default();
    for pair in joined(&old.sets, &new.sets, |set| set.name.as_str()) {
        changes.of_set(pair)?;
    }
    for pair in joined(&old.chains, &new.chains, |chain| chain.name.as_str()) {
        changes.of_chain(pair)?;
    }
    let Changes { sets, chains, elements, rules, fewer_elements, no_rules, no_chains, no_sets } = changes;
    let wider = [sets, chains, elements, rules].concat();
    let narrower = [fewer_elements, no_rules, no_chains, no_sets].concat();
    let some = [wider, narrower].into_iter().filter(|edits| !edits.is_empty());
    Some(some.map(|edits| Transaction::edit(&new.name, edits)).collect())
}

/// Edits in the order in which the kernel takes them: what is named comes first, and goes last.
#[derive(Default)]
struct Changes {
    sets: Vec<Edit>,
    chains: Vec<Edit>,
    elements: Vec<Edit>,
    rules: Vec<Edit>,
    fewer_elements: Vec<Edit>,
    /// Of chains that go: they may name one another.
    no_rules: Vec<Edit>,
    no_chains: Vec<Edit>,
    no_sets: Vec<Edit>,
}

impl Changes {
    fn of_set(&mut self, pair: Pair<'_, Set>) -> Option<()> {
        match pair {
            Pair::Gone(old) => self.no_sets.push(Edit::DropSet(old.name.clone())),
            Pair::Come(new) => {
                self.sets.push(Edit::AddSet(Set { elements: Vec::new(), ..new.clone() }));
                self.add_elements(new, new.elements.clone());
            }
            Pair::Both(old, new) => {
                let same =
                    (&old.key, &old.value, old.timeout, old.learns) == (&new.key, &new.value, new.timeout, new.learns);
                if !same {
                    return None;
                }
                let (mut come, mut gone) = (Vec::new(), Vec::new());
                for pair in joined(&old.elements, &new.elements, |element| element.key.as_slice()) {
                    match pair {
                        Pair::Gone(old) => gone.push(old.clone()),
                        Pair::Come(new) => come.push(new.clone()),
                        Pair::Both(old, new) if old != new => return None,
                        Pair::Both(..) => {}
                    }
                }
                self.add_elements(new, come);
                if !gone.is_empty() {
                    self.fewer_elements.push(Edit::DropElements { set: new.name.clone(), elements: gone });
                }
            }
        }
        Some(())
    }

    fn add_elements(&mut self, set: &Set, elements: Vec<Element>) {
        if !elements.is_empty() {
            self.elements.push(Edit::AddElements { set: set.name.clone(), elements });
        }
    }

    fn of_chain(&mut self, pair: Pair<'_, Chain>) -> Option<()> {
        let rewrite = |chain: &Chain| Edit::Rewrite { chain: chain.name.clone(), rules: chain.rules.clone() };
        match pair {
            Pair::Gone(Chain { base: Some(_), .. }) | Pair::Come(Chain { base: Some(_), .. }) => return None,
            Pair::Gone(old) => {
                self.no_rules.push(Edit::Rewrite { chain: old.name.clone(), rules: Vec::new() });
                self.no_chains.push(Edit::DropChain(old.name.clone()));
            }
            Pair::Come(new) => {
                self.chains.push(Edit::AddChain(new.name.clone()));
                self.rules.push(rewrite(new));
            }
            Pair::Both(old, new) if old.base != new.base => return None,
            Pair::Both(old, new) if old.rules != new.rules => self.rules.push(rewrite(new)),
            Pair::Both(..) => {}
        }
        Some(())
    }
}

enum Pair<'a, T> {
    Gone(&'a T),
    Come(&'a T),
    Both(&'a T, &'a T),
}

/// Both lists, sorted by `key`, side by side.
fn joined<'a, T, K: Ord + ?Sized + 'a>(
    old: &'a [T],
    new: &'a [T],
    key: impl Fn(&'a T) -> &'a K,
) -> impl Iterator<Item = Pair<'a, T>> {
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    std::iter::from_fn(move || {
        let order = match (old.peek(), new.peek()) {
            (Some(old), Some(new)) => key(old).cmp(key(new)),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return None,
        };
        match order {
            Ordering::Less => old.next().map(Pair::Gone),
            Ordering::Greater => new.next().map(Pair::Come),
            Ordering::Equal => old.next().zip(new.next()).map(|(old, new)| Pair::Both(old, new)),
        }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::{Ipv4Addr, SocketAddrV4};
    use std::sync::Arc;

    use proptest::collection::{btree_map, btree_set, vec};
    use proptest::prelude::*;

    use super::*;
    use crate::clock::TokioClock;
    use crate::ruleset::model::{Datatype, ElementValue, Expr, SetValue, Verdict};
    use crate::ruleset::testing::FakeFirewall;
    use crate::ruleset::{Firewall, Plan, render};
    use crate::secret::TunnelName;
    use crate::services::{Forward, Forwards, Owner, Protocol, VipPort};
    use crate::tunnel::Slot;

    /// Few ports, of which some share a map, and few backends: so that much is the same from one to the next.
    fn any_forwards() -> impl Strategy<Value = Forwards> {
        let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Sctp)];
        let port = (protocol, prop_oneof![Just(80), Just(80 + 64), Just(443)]);
        let backend = (0u8..6).prop_map(|host| SocketAddrV4::new([10, 0, 0, host].into(), 80));
        let ranges = prop_oneof![Just(vec![]), Just(vec!["10.0.0.0/8".parse().unwrap()])];
        let forward = (btree_set(backend, 0..6), proptest::bool::weighted(0.1), ranges);
        btree_map(
            port.prop_map(|(protocol, port)| VipPort { protocol, port }),
            forward.prop_map(|(backends, client_ip_affinity, source_ranges)| Forward {
                owner: Owner::ControlPlane,
                backends: backends.into_iter().collect(),
                client_ip_affinity,
                source_ranges,
            }),
            0..6,
        )
    }

    fn rendered(forwards: &Forwards, mtu: u16, standing: Option<&Table>) -> Table {
        let tunnel = TunnelName::new("wg0").unwrap();
        let (slot, vip) = (Slot::new(7).unwrap(), Ipv4Addr::new(10, 0, 0, 1));
        render(&Plan { tunnel: &tunnel, slot, vip, pod_nic: "eth0", mtu, forwards }, standing)
    }

    /// Addresses and ports that a packet for this port may be sent to, which meets these rules and these elements. `None`
    /// if it is sent nowhere. Panics if a rule may look for an element that is not there.
    fn sent(rules: &Table, elements: &Table, port: VipPort) -> Option<BTreeSet<Vec<u8>>> {
        let [high, low] = port.port.to_be_bytes();
        let key = [port.protocol.number(), 0, 0, 0, high, low, 0, 0];
        let ports = elements.set("ports").unwrap();
        let element = ports.elements.iter().find(|element| element.key == key)?;
        let Some(ElementValue::Verdict(Verdict::Goto(chain))) = &element.value else { unreachable!() };
        let mut targets = BTreeSet::new();
        let mut chains = vec![chain];
        while let Some(name) = chains.pop() {
            // A chain that has come with the element has no rules yet for a packet that follows the old ones.
            let Some(chain) = rules.chains.iter().find(|chain| chain.name == *name) else { continue };
            for rule in &chain.rules {
                match rule.as_slice() {
                    [.., Expr::Verdict(Verdict::Goto(next))] => chains.push(next),
                    [.., Expr::Hash { modulus, offset, .. }, Expr::Lookup { map, .. }, Expr::Dnat { .. }] => {
                        let map = elements.set(map).unwrap_or_else(|| panic!("no map {map}"));
                        targets.extend((*offset..offset + modulus).map(|slot| {
                            let found = map.elements.iter().find(|element| element.key == slot.to_ne_bytes());
                            match found.unwrap_or_else(|| panic!("no slot {slot}")).value.as_ref().unwrap() {
                                ElementValue::Data(value) => value[..6].to_vec(),
                                other => unreachable!("{other:?}"),
                            }
                        }));
                    }
                    [Expr::Load(_, address), Expr::Load(_, port), Expr::Dnat { .. }] => {
                        targets.insert([&address[..], port].concat());
                    }
                    _ => {}
                }
            }
        }
        (!targets.is_empty()).then_some(targets)
    }

    /// Is this how a forward sends, or no forward?
    fn meant(forward: Option<&Forward>, sent: Option<&BTreeSet<Vec<u8>>>) -> bool {
        let bytes = |b: &SocketAddrV4| [&b.ip().octets()[..], &b.port().to_be_bytes()].concat();
        match (forward.filter(|forward| !forward.backends.is_empty()), sent) {
            (None, None) => true,
            (Some(forward), Some(sent)) => {
                let backends: BTreeSet<Vec<u8>> = forward.backends.iter().map(bytes).collect();
                *sent == backends || forward.client_ip_affinity && sent.is_subset(&backends)
            }
            _ => false,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn differences_lead_from_any_forwards_to_any_others_and_every_packet_on_the_way_finds_the_old_or_the_new(
            all in vec((any_forwards(), 1300u16..1302), 1..8),
        ) {
            let mut firewall = FakeFirewall::new(Arc::new(TokioClock::new()));
            let (none, mut standing) = (Forwards::new(), rendered(&Forwards::new(), 1300, None));
            firewall.commit(&Transaction::replace(standing.clone())).unwrap();
            let mut old = &none;
            for (new, mtu) in &all {
                let table = rendered(new, *mtu, Some(&standing));
                let transactions = between(&standing, &table).expect("no difference is too great");
                prop_assert!(transactions.len() <= 2);
                let mut before = standing;
                for transaction in &transactions {
                    prop_assert!(firewall.commit(transaction).is_ok(), "refused: {:?}", transaction);
                    let after = firewall.table("wirevip_wg0").unwrap();
                    for elements in [&before, &after] {
                        for port in old.keys().chain(new.keys()) {
                            let sent = sent(&before, elements, *port);
                            let ok = meant(old.get(port), sent.as_ref()) || meant(new.get(port), sent.as_ref());
                            prop_assert!(ok, "{:?} was sent to {:?}", port, sent);
                        }
                    }
                    before = after;
                }
                for port in old.keys().chain(new.keys()) {
                    prop_assert!(meant(new.get(port), sent(&before, &before, *port).as_ref()));
                }
                prop_assert_eq!(&before, &table);
                (old, standing) = (new, table);
            }
        }
    }

    #[test]
    fn a_change_of_one_forward_touches_nothing_of_another() {
        let one = |port, hosts: &[u8]| {
            let backends = hosts.iter().map(|host| SocketAddrV4::new([10, 0, 0, *host].into(), 80)).collect();
            let owner = Owner::ControlPlane;
            let forward = Forward { owner, backends, client_ip_affinity: false, source_ranges: vec![] };
            (VipPort { protocol: Protocol::Tcp, port }, forward)
        };
        let old = rendered(&[one(80, &[1, 2]), one(144, &[1, 2, 3]), one(208, &[1, 2])].into(), 1390, None);
        let new = rendered(&[one(80, &[1, 2]), one(144, &[2, 3]), one(208, &[1, 2])].into(), 1390, Some(&old));
        let told = format!("{:?}", between(&old, &new).unwrap());
        assert!(told.contains("tcp-144") && !told.contains("tcp-80") && !told.contains("tcp-208"), "{told}");
        assert_eq!(told.matches("Element {").count(), 5, "two numbers come, three go: {told}");
        let grown = rendered(&[one(80, &[1, 2]), one(144, &[2, 3, 4]), one(208, &[1, 2])].into(), 1390, Some(&new));
        let told = format!("{:?}", between(&new, &grown).unwrap());
        assert_eq!(told.matches("Element {").count(), 1, "those that keep their place stay: {told}");
        assert_eq!(between(&new, &new), Some(vec![]));
    }

    #[test]
    fn what_cannot_be_changed_in_place_is_no_difference() {
        let old = rendered(&Forwards::new(), 1390, None);
        let harms: [fn(&mut Table); 6] = [
            |table| table.name.push('x'),
            |table| table.counters.push("x".to_owned()),
            |table| table.chains.retain(|chain| chain.name != "translate"),
            |table| table.chains.iter_mut().filter_map(|c| c.base.as_mut()).for_each(|base| base.priority += 1),
            |table| table.sets[0].key = vec![Datatype::Number],
            |table| table.sets[0].value = SetValue::Nothing,
        ];
        for (number, harm) in harms.iter().enumerate() {
            let mut new = old.clone();
            harm(&mut new);
            assert_eq!(between(&old, &new), None, "{number}");
            assert_eq!(between(&new, &old), None, "{number}, the other way");
        }
        let holding = |value: u8| {
            let mut table = old.clone();
            let value = Some(ElementValue::Data(vec![value]));
            table.sets[0].elements = vec![Element { key: vec![1], value, timeout: None }];
            table
        };
        assert_eq!(between(&holding(1), &holding(2)), None);
    }
}
