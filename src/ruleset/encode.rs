//! Transactions as netlink messages. Pure.
//!
//! Attribute numbers that netlink-packet-netfilter does not name are from `linux/netfilter/nf_tables.h`.

use std::time::Duration;

use netlink_packet_core::{DefaultNla, NLA_F_NESTED, NLM_F_APPEND, NLM_F_CREATE};
use netlink_packet_netfilter::nftables::{
    Bitwise, ChainAttribute, ChainMessage, Cmp, DataAttribute, ExpressionAttribute, Expressions, Hook as HookAttribute,
    HookNumber, Immediate, InetHookNumber, ListAttribute, Lookup, Meta as MetaAttribute, MetaKey, NfTablesMessage,
    Operator, Payload, Register, RuleAttribute, RuleMessage, SetAttribute, SetDescription, SetElementAttribute,
    SetElementList, SetElementMessage, SetFlags, SetMessage, TableAttribute, TableMessage, Verdict as Code,
    VerdictAttribute,
};

use super::model::{
    Chain, ChainKind, Ct, Datatype, Element, ElementValue, Expr, Header, Hook, Meta, Refusal, Reg, Rule, Set, SetValue,
    Step, Table, Transaction, Verdict,
};

/// Elements a message: an attribute is at most 64 KiB long, and one element with a chain's name takes about 80 bytes.
const CHUNK: usize = 400;

/// One message of a batch.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) body: NfTablesMessage,
    /// `NLM_F_…`, without REQUEST and ACK.
    pub(super) flags: u16,
    /// What it does, for the error that says it failed.
    pub(super) about: String,
}

/// The messages of a transaction, in the order in which the kernel must see them.
pub(super) fn messages(transaction: &Transaction) -> Vec<Message> {
    let mut out = Vec::new();
    for step in &transaction.0 {
        match step {
            Step::Replace(table) => {
                clear(&mut out, &table.name);
                fill(&mut out, table);
            }
            Step::Delete(name) => clear(&mut out, name),
            Step::Refill { table, set, elements } => {
                let all = elements_of(table, set, Vec::new());
                push(
                    &mut out,
                    NfTablesMessage::DeleteSetElement(all),
                    0,
                    format!("emptying set {set} of table {table}"),
                );
                add_elements(&mut out, table, set, elements);
            }
        }
    }
    out
}

fn push(out: &mut Vec<Message>, body: NfTablesMessage, flags: u16, about: String) {
    out.push(Message { body, flags, about });
}

/// Leaves an absent table absent: added first, since deleting what is not there fails the whole batch.
fn clear(out: &mut Vec<Message>, name: &str) {
    push(out, NfTablesMessage::NewTable(table_named(name)), NLM_F_CREATE, format!("adding table {name}"));
    push(out, NfTablesMessage::DeleteTable(table_named(name)), 0, format!("deleting table {name}"));
}

fn fill(out: &mut Vec<Message>, table: &Table) {
    let Table { name, counters, sets, chains } = table;
    push(out, NfTablesMessage::NewTable(table_named(name)), NLM_F_CREATE, format!("adding table {name}"));
    for counter in counters {
        push(out, new_counter(name, counter), NLM_F_CREATE, format!("adding counter {counter} to table {name}"));
    }
    for set in sets {
        push(out, new_set(name, set), NLM_F_CREATE, format!("adding set {} to table {name}", set.name));
    }
    // All chains before all that may name them.
    for chain in chains {
        push(out, new_chain(name, chain), NLM_F_CREATE, format!("adding chain {} to table {name}", chain.name));
    }
    for set in sets {
        add_elements(out, name, &set.name, &set.elements);
    }
    for chain in chains {
        for (number, rule) in chain.rules.iter().enumerate() {
            let about = format!("adding rule {number} to chain {} of table {name}", chain.name);
            push(out, new_rule(name, &chain.name, rule), NLM_F_CREATE | NLM_F_APPEND, about);
        }
    }
}

fn add_elements(out: &mut Vec<Message>, table: &str, set: &str, elements: &[Element]) {
    for chunk in elements.chunks(CHUNK) {
        let list = elements_of(table, set, chunk.iter().map(element).collect());
        push(out, NfTablesMessage::NewSetElement(list), NLM_F_CREATE, format!("filling set {set} of table {table}"));
    }
}

pub(super) fn table_named(name: &str) -> TableMessage {
    TableMessage { attributes: vec![TableAttribute::Name(name.to_owned())] }
}

fn elements_of(table: &str, set: &str, elements: Vec<ListAttribute<SetElementAttribute>>) -> SetElementMessage {
    let mut attributes = vec![SetElementList::Table(table.to_owned()), SetElementList::Set(set.to_owned())];
    // Without a list at all, a deletion takes everything.
    if !elements.is_empty() {
        attributes.push(SetElementList::Elements(elements));
    }
    SetElementMessage { attributes }
}

fn element(element: &Element) -> ListAttribute<SetElementAttribute> {
    let mut attributes = vec![SetElementAttribute::Key(DataAttribute::Value(element.key.clone()))];
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

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn new_counter(table: &str, name: &str) -> NfTablesMessage {
    const NFT_OBJECT_COUNTER: u32 = 1;
    NfTablesMessage::NewObject(vec![
        text(1, table),
        text(2, name),
        number(3, NFT_OBJECT_COUNTER),
        DefaultNla::new(4 | NLA_F_NESTED, Vec::new()),
    ])
}

/// A request for a counter's value.
pub(super) fn get_counter(table: &str, name: &str) -> NfTablesMessage {
    const NFT_OBJECT_COUNTER: u32 = 1;
    NfTablesMessage::GetObject(vec![text(1, table), text(2, name), number(3, NFT_OBJECT_COUNTER)])
}

fn new_set(table: &str, set: &Set) -> NfTablesMessage {
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
    // A set of known size gets the kernel's plain hash table, which is faster to fill and to look up; one that learns
    // would grow for ever without.
    let filled = || u32::try_from(set.elements.len().max(1)).unwrap_or(u32::MAX);
    if let Some(size) = set.learns.or_else(|| set.timeout.is_none().then(filled)) {
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

fn new_chain(table: &str, chain: &Chain) -> NfTablesMessage {
    let mut attributes = vec![ChainAttribute::Table(table.to_owned()), ChainAttribute::Name(chain.name.clone())];
    if let Some(base) = chain.base {
        let hook = match base.hook {
            Hook::Prerouting => InetHookNumber::PreRouting,
            Hook::Input => InetHookNumber::LocalIn,
            Hook::Forward => InetHookNumber::Forward,
            Hook::Output => InetHookNumber::LocalOut,
            Hook::Postrouting => InetHookNumber::PostRouting,
        };
        let kind = match base.kind {
            ChainKind::Filter => "filter",
            ChainKind::Nat => "nat",
        };
        attributes.push(ChainAttribute::Hook(vec![
            HookAttribute::Number(HookNumber::Inet(hook)),
            HookAttribute::Priority(base.priority.cast_unsigned()),
        ]));
        attributes.push(ChainAttribute::Type(kind.to_owned()));
    }
    NfTablesMessage::NewChain(ChainMessage { attributes })
}

fn new_rule(table: &str, chain: &str, rule: &Rule) -> NfTablesMessage {
    NfTablesMessage::NewRule(RuleMessage {
        attributes: vec![
            RuleAttribute::Table(table.to_owned()),
            RuleAttribute::Chain(chain.to_owned()),
            RuleAttribute::Expressions(rule.iter().map(expression).collect()),
        ],
    })
}

fn expression(expr: &Expr) -> ListAttribute<ExpressionAttribute> {
    match expr {
        Expr::Meta(key, to) => Expressions::Meta(vec![
            MetaAttribute::Key(meta_key(*key)),
            MetaAttribute::DestinationRegister(register(*to)),
        ])
        .into(),
        Expr::SetMark(from) => {
            Expressions::Meta(vec![MetaAttribute::Key(MetaKey::Mark), MetaAttribute::SourceRegister(register(*from))])
                .into()
        }
        Expr::Ct(key, to) => other("ct", vec![number(2, ct_key(*key)), reg(1, *to)]),
        Expr::SetCtMark(from) => other("ct", vec![number(2, ct_key(Ct::Mark)), reg(4, *from)]),
        Expr::Payload { base, offset, len, to } => {
            let base = match base {
                Header::Network => 1,
                Header::Transport => 2,
            };
            Expressions::Payload(vec![
                Payload::DestinationRegister(register(*to)),
                Payload::Base(base),
                Payload::Offset(*offset),
                Payload::Len(*len),
            ])
            .into()
        }
        Expr::Bits { reg, mask, xor } => Expressions::Bitwise(vec![
            Bitwise::SourceRegister(register(*reg)),
            Bitwise::DestinationRegister(register(*reg)),
            Bitwise::Length(u32::try_from(mask.len()).unwrap_or(u32::MAX)),
            Bitwise::Mask(DataAttribute::Value(mask.clone())),
            Bitwise::Xor(DataAttribute::Value(xor.clone())),
        ])
        .into(),
        Expr::Equal(from, bytes) => compare(*from, Operator::Equal, bytes),
        Expr::Differ(from, bytes) => compare(*from, Operator::NotEqual, bytes),
        Expr::Load(to, bytes) => Expressions::Immediate(vec![
            Immediate::DestinationRegister(register(*to)),
            Immediate::Data(DataAttribute::Value(bytes.clone())),
        ])
        .into(),
        Expr::Contains { set, key } => lookup(set, *key, None),
        Expr::Learn { set, key, timeout } => {
            const NFT_DYNSET_OP_UPDATE: u32 = 1;
            let mut attributes = vec![text(1, set), number(3, NFT_DYNSET_OP_UPDATE), reg(4, *key)];
            attributes.extend(timeout.map(|timeout| long(6, milliseconds(timeout))));
            other("dynset", attributes)
        }
        Expr::Lookup { map, key, to } => lookup(map, *key, Some(register(*to))),
        Expr::VerdictMap { map, key } => lookup(map, *key, Some(Register::Verdict)),
        Expr::Hash { from, len, to, modulus, seed, offset } => other(
            "hash",
            vec![
                reg(1, *from),
                reg(2, *to),
                number(3, *len),
                number(4, *modulus),
                number(5, *seed),
                number(6, *offset),
                number(7, 0),
            ],
        ),
        Expr::Dnat { address, port } => {
            const NFT_NAT_DNAT: u32 = 1;
            const NFPROTO_IPV4: u32 = 2;
            other("nat", vec![number(1, NFT_NAT_DNAT), number(2, NFPROTO_IPV4), reg(3, *address), reg(5, *port)])
        }
        Expr::Masquerade => other("masq", Vec::new()),
        Expr::Reject(refusal) => {
            // Type, then code; code 1 of the abstract type 2 is "port unreachable" in both families.
            let (kind, code) = match refusal {
                Refusal::TcpReset => (1, 0),
                Refusal::PortUnreachable => (2, 1),
            };
            other("reject", vec![number(1, kind), DefaultNla::new(2, vec![code])])
        }
        Expr::LowerMss(from) => {
            const TCPOPT_MSS: u8 = 2;
            const NFT_EXTHDR_OP_TCPOPT: u32 = 1;
            other(
                "exthdr",
                vec![
                    DefaultNla::new(2, vec![TCPOPT_MSS]),
                    number(3, 2),
                    number(4, 2),
                    number(6, NFT_EXTHDR_OP_TCPOPT),
                    reg(7, *from),
                ],
            )
        }
        Expr::WriteUdp { offset, len, from } => {
            const NFT_PAYLOAD_TRANSPORT_HEADER: u32 = 2;
            const NFT_PAYLOAD_CSUM_INET: u32 = 1;
            const CHECKSUM: u32 = 6;
            let (csum_type, csum_offset) = (number(6, NFT_PAYLOAD_CSUM_INET), number(7, CHECKSUM));
            let place = vec![number(2, NFT_PAYLOAD_TRANSPORT_HEADER), number(3, *offset), number(4, *len)];
            other("payload", [place, vec![reg(5, *from), csum_type, csum_offset]].concat())
        }
        Expr::Limit { packets, seconds } => {
            // One token at most: an unused one is no credit for a burst.
            const BURST: u32 = 1;
            const NFT_LIMIT_PKTS: u32 = 0;
            other("limit", vec![long(1, *packets), long(2, *seconds), number(3, BURST), number(4, NFT_LIMIT_PKTS)])
        }
        Expr::Count(name) => {
            const NFT_OBJECT_COUNTER: u32 = 1;
            other("objref", vec![number(1, NFT_OBJECT_COUNTER), text(2, name)])
        }
        Expr::Verdict(verdict) => Expressions::Immediate(vec![
            Immediate::DestinationRegister(Register::Verdict),
            Immediate::Data(verdict_data(verdict)),
        ])
        .into(),
    }
}

fn verdict_data(verdict: &Verdict) -> DataAttribute {
    const NF_DROP: u32 = 0;
    const NF_ACCEPT: u32 = 1;
    let (code, chain) = match verdict {
        Verdict::Drop => (Code::Other(NF_DROP), None),
        Verdict::Accept => (Code::Other(NF_ACCEPT), None),
        Verdict::Return => (Code::Return, None),
        Verdict::Jump(chain) => (Code::Jump, Some(chain)),
        Verdict::Goto(chain) => (Code::Goto, Some(chain)),
    };
    let mut attributes = vec![VerdictAttribute::Code(code)];
    attributes.extend(chain.map(|chain| VerdictAttribute::Chain(chain.clone())));
    DataAttribute::Verdict(attributes)
}

fn compare(from: Reg, operator: Operator, bytes: &[u8]) -> ListAttribute<ExpressionAttribute> {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(register(from)),
        Cmp::Op(operator),
        Cmp::Data(DataAttribute::Value(bytes.to_vec())),
    ])
    .into()
}

fn lookup(set: &str, key: Reg, to: Option<Register>) -> ListAttribute<ExpressionAttribute> {
    let mut attributes = vec![Lookup::Set(set.to_owned()), Lookup::SourceRegister(register(key))];
    attributes.extend(to.map(Lookup::DestinationRegister));
    Expressions::Lookup(attributes).into()
}

fn other(kind: &str, attributes: Vec<DefaultNla>) -> ListAttribute<ExpressionAttribute> {
    Expressions::Other { expression_type: kind.to_owned(), attributes }.into()
}

fn meta_key(key: Meta) -> MetaKey {
    match key {
        Meta::Family => MetaKey::Nfproto,
        Meta::Protocol => MetaKey::L4Proto,
        Meta::InName => MetaKey::Iifname,
        Meta::OutName => MetaKey::Oifname,
        Meta::Mark => MetaKey::Mark,
    }
}

fn ct_key(key: Ct) -> u32 {
    match key {
        Ct::State => 0,
        Ct::Direction => 1,
        Ct::Status => 2,
        Ct::Mark => 3,
    }
}

/// `NFT_REG32_00` is 8.
fn register_number(reg: Reg) -> u32 {
    8 + u32::from(reg.0)
}

fn register(reg: Reg) -> Register {
    Register::Other(register_number(reg))
}

fn reg(kind: u16, reg: Reg) -> DefaultNla {
    number(kind, register_number(reg))
}

fn number(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_be_bytes().to_vec())
}

fn long(kind: u16, value: u64) -> DefaultNla {
    DefaultNla::new(kind, value.to_be_bytes().to_vec())
}

fn text(kind: u16, value: &str) -> DefaultNla {
    let mut bytes = value.as_bytes().to_vec();
    bytes.push(0);
    DefaultNla::new(kind, bytes)
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable;

    use super::*;

    fn filled(count: u32) -> Table {
        let value = ElementValue::Verdict(Verdict::Goto("a-chain-with-a-rather-long-name".to_owned()));
        let element = |key: u32| Element { key: key.to_ne_bytes().to_vec(), value: Some(value.clone()), timeout: None };
        let (key, elements) = (vec![Datatype::Number], (0..count).map(element).collect());
        let set =
            Set { name: "numbers".to_owned(), key, value: SetValue::Verdict, timeout: None, learns: None, elements };
        Table { name: "wirevip_wg0".to_owned(), sets: vec![set], ..Table::default() }
    }

    #[test]
    fn no_message_outgrows_what_an_attributes_length_can_say() {
        let messages = messages(&Transaction::replace(filled(10_000)));
        assert!(messages.len() > 10, "not split");
        for message in &messages {
            assert!(message.body.buffer_len() < usize::from(u16::MAX), "{}", message.about);
        }
    }

    #[test]
    fn an_absent_table_is_replaced_and_deleted_without_an_error() {
        let kinds = |transaction| -> Vec<&'static str> {
            messages(&transaction)
                .iter()
                .map(|message| match message.body {
                    NfTablesMessage::NewTable(_) => "new",
                    NfTablesMessage::DeleteTable(_) => "delete",
                    _ => "other",
                })
                .collect()
        };
        assert_eq!(kinds(Transaction::replace(Table::default())), ["new", "delete", "new"]);
        assert_eq!(kinds(Transaction::delete("wirevip_wg0")), ["new", "delete"]);
    }

    #[test]
    fn keys_of_several_parts_are_padded_and_keys_of_one_are_not() {
        assert_eq!(length_of(&[Datatype::Port]), 2);
        assert_eq!(length_of(&[Datatype::Protocol, Datatype::Port]), 8);
        assert_eq!(type_of(&[Datatype::Protocol, Datatype::Port]), 12 << 6 | 13);
    }
}
