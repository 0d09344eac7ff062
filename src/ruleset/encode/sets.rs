//! Sets and their elements as netlink attributes.

use std::time::Duration;

use netlink_packet_netfilter::nftables::{
    DataAttribute, ListAttribute, NfTablesMessage, SetAttribute, SetDescription, SetElementAttribute, SetElementList,
    SetElementMessage, SetFlags, SetMessage,
};

use super::expressions::verdict_data;
use crate::ruleset::model::{Datatype, Element, ElementValue, Set, SetValue};

pub(super) fn new_set(table: &str, set: &Set) -> NfTablesMessage {
    const VERDICT: u32 = 0xffff_ff00;
    let mut flags = SetFlags::empty();
    let mut attributes = vec![
        SetAttribute::Table(table.to_owned()),
        SetAttribute::Name(set.name.clone()),
        SetAttribute::KeyType(type_of(&set.key)),
        SetAttribute::KeyLen(length_of(&set.key)),
        SetAttribute::Id(1),
    ];
    if set.key == [Datatype::Number] {
        // For nft's listing alone: `NFTNL_UDATA_SET_KEYBYTEORDER`, four bytes, host order. Else slot 1 reads 0x1000000.
        let mut order = vec![0, 4];
        order.extend(1u32.to_ne_bytes());
        attributes.push(SetAttribute::UserData(order));
    }
    match &set.value {
        SetValue::Nothing => {}
        SetValue::Verdict => {
            flags |= SetFlags::Map;
            attributes.push(SetAttribute::DataType(VERDICT));
        }
        SetValue::Data(types) => {
            flags |= SetFlags::Map;
            attributes.push(SetAttribute::DataType(type_of(types)));
            attributes.push(SetAttribute::DataLen(length_of(types)));
        }
    }
    if let Some(timeout) = set.timeout {
        flags |= SetFlags::Timeout;
        attributes.push(SetAttribute::Timeout(milliseconds(timeout)));
    }
    if set.learns.is_some() {
        flags |= SetFlags::Eval;
    }
    // One that learns would grow for ever without. The others are given none: they change with the forwards, and the
    // kernel takes a size for a bound.
    if let Some(size) = set.learns {
        attributes.push(SetAttribute::Description(vec![SetDescription::Size(size)]));
    }
    attributes.push(SetAttribute::Flags(flags));
    NfTablesMessage::NewSet(SetMessage { attributes })
}

/// nft's own numbers for types (`enum datatypes`), six bits each; the kernel keeps them for nft's listing.
fn type_of(types: &[Datatype]) -> u32 {
    types.iter().fold(0, |all, datatype| {
        let one = match datatype {
            Datatype::Ipv4 => 7,
            Datatype::Ipv6 => 8,
            Datatype::Protocol => 12,
            Datatype::Port => 13,
            // "mark": the one 32-bit number in the machine's own order.
            Datatype::Number => 19,
        };
        all << 6 | one
    })
}

fn length_of(types: &[Datatype]) -> u32 {
    match types {
        [one] => one.bytes(),
        several => several.iter().map(|datatype| datatype.bytes().next_multiple_of(4)).sum(),
    }
}

pub(super) fn elements_of(
    table: &str,
    set: &str,
    elements: Vec<ListAttribute<SetElementAttribute>>,
) -> SetElementMessage {
    let mut attributes = vec![SetElementList::Table(table.to_owned()), SetElementList::Set(set.to_owned())];
    // Without a list at all, a deletion takes everything.
    if !elements.is_empty() {
        attributes.push(SetElementList::Elements(elements));
    }
    SetElementMessage { attributes }
}

pub(super) fn element(element: &Element) -> ListAttribute<SetElementAttribute> {
    let mut attributes = vec![key(element)];
    if let Some(value) = &element.value {
        attributes.push(SetElementAttribute::Data(match value {
            ElementValue::Verdict(verdict) => verdict_data(verdict),
            ElementValue::Data(bytes) => DataAttribute::Value(bytes.clone()),
        }));
    }
    if let Some(timeout) = element.timeout {
        attributes.push(SetElementAttribute::Timeout(milliseconds(timeout)));
    }
    ListAttribute::Element(attributes)
}

/// The element as a deletion names it.
pub(super) fn key_of(element: &Element) -> ListAttribute<SetElementAttribute> {
    ListAttribute::Element(vec![key(element)])
}

fn key(element: &Element) -> SetElementAttribute {
    SetElementAttribute::Key(DataAttribute::Value(element.key.clone()))
}

pub(super) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_several_parts_are_padded_and_keys_of_one_are_not() {
        assert_eq!(length_of(&[Datatype::Port]), 2);
        assert_eq!(length_of(&[Datatype::Protocol, Datatype::Port]), 8);
        assert_eq!(type_of(&[Datatype::Protocol, Datatype::Port]), 12 << 6 | 13);
    }
}
