//! Where the slots of each forward lie: (map, number of the first). Pure.
//!
//! What must hold:
//! - They follow from the forward's own port and from what stands, never from other forwards: so one that changes moves
//!   no other.
//! - A number that stands keeps its value. A forward has two ranges of numbers; when its slots change, they go to the
//!   one where nothing else stands ([`super::difference`] tells why).

use std::collections::BTreeMap;
use std::net::SocketAddrV4;

use super::model::{Datatype, Element, ElementValue, Set, SetValue, Table};
use crate::services::VipPort;

/// Slots of one range. Backends beyond so many get no clients; Kubernetes itself is not meant for so many.
pub(super) const MOST: usize = 1 << RANGE_BITS;
const RANGE_BITS: u32 = 13;

/// So many maps share all forwards, by their port. Neither one map for each, since the kernel finds a map by walking a
/// list of all, nor one for all, since it walks through a map for each rule that names it (1,000 Services of 10 backends
/// took 170 ms in the kernel with one map).
const MAPS: u16 = 64;

const NAME: &str = "backends";

/// The slots of all forwards.
pub(super) struct Slots<'a> {
    standing: Option<&'a Table>,
    maps: BTreeMap<u16, Vec<Element>>,
}

impl<'a> Slots<'a> {
    /// None yet; `standing`, sorted, is what there is in the kernel.
    pub(super) fn new(standing: Option<&'a Table>) -> Self {
        Self { standing, maps: BTreeMap::new() }
    }

    /// Takes a forward's slots in, at most [`MOST`]: the map they are in, and the number of the first.
    pub(super) fn take(&mut self, port: VipPort, slots: &[SocketAddrV4]) -> (String, u32) {
        let map = port.port % MAPS;
        let name = format!("{NAME}-{map}");
        let standing = self.standing.and_then(|table| table.set(&name)).map_or(&[][..], |set| &set.elements);
        let [low, high] = [0, 1].map(|range| elements(first(port, range), slots));
        let is_there = |number: u32| find(standing, &number.to_ne_bytes()).is_some();
        let fits = |elements: &[Element]| {
            elements.iter().all(|element| find(standing, &element.key).is_none_or(|there| there == element))
        };
        // Where it stands already if it can stay there.
        let stay_high = is_there(first(port, 1)) && fits(&high);
        let range = u32::from(stay_high || !fits(&low));
        self.maps.entry(map).or_default().extend(if range == 1 { high } else { low });
        (name, first(port, range))
    }

    /// The maps, those that have slots.
    pub(super) fn into_sets(self) -> impl Iterator<Item = Set> {
        self.maps.into_iter().map(|(map, elements)| Set {
            name: format!("{NAME}-{map}"),
            key: vec![Datatype::Number],
            value: SetValue::Data(vec![Datatype::Ipv4, Datatype::Port]),
            timeout: None,
            learns: None,
            elements,
        })
    }
}

/// Two bits of protocol, sixteen of port, one of range, the rest for the slot.
fn first(port: VipPort, range: u32) -> u32 {
    (port.protocol as u32) << 30 | u32::from(port.port) << 14 | range << RANGE_BITS
}

fn elements(first: u32, slots: &[SocketAddrV4]) -> Vec<Element> {
    (first..).zip(slots).map(|(number, backend)| element(number, *backend)).collect()
}

/// The number in the machine's own order: the hash is computed there. In network order only backend 0 were hit.
fn element(number: u32, backend: SocketAddrV4) -> Element {
    let mut value = backend.ip().octets().to_vec();
    value.extend(backend.port().to_be_bytes());
    value.extend([0; 2]);
    Element { key: number.to_ne_bytes().to_vec(), value: Some(ElementValue::Data(value)), timeout: None }
}

fn find<'a>(elements: &'a [Element], key: &[u8]) -> Option<&'a Element> {
    elements.binary_search_by(|element| element.key.as_slice().cmp(key)).ok().and_then(|place| elements.get(place))
}
