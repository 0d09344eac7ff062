//! Transactions as netlink messages. Pure.
//!
//! Attribute numbers that netlink-packet-netfilter does not name are from `linux/netfilter/nf_tables.h`.

use netlink_packet_core::{DefaultNla, NLA_F_NESTED, NLM_F_APPEND, NLM_F_CREATE};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Hook as HookAttribute, HookNumber, InetHookNumber, NfTablesMessage, RuleAttribute,
    RuleMessage, SetAttribute, SetMessage, TableAttribute, TableMessage,
};

use self::expressions::expression;
use self::sets::{element, elements_of, key_of, new_set};
use super::model::{Base, ChainKind, Element, Hook, Rule, Set, Table};
use super::steps::{Edit, Step, Transaction};

mod expressions;
mod sets;

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
            Step::Edit { table, edits } => edits.iter().for_each(|each| edit(&mut out, table, each)),
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
        add_set(out, name, set);
    }
    // All chains before all that may name them.
    for chain in chains {
        add_chain(out, name, &chain.name, chain.base);
    }
    for set in sets {
        add_elements(out, name, &set.name, &set.elements);
    }
    for chain in chains {
        add_rules(out, name, &chain.name, &chain.rules);
    }
}

fn edit(out: &mut Vec<Message>, table: &str, edit: &Edit) {
    match edit {
        Edit::AddSet(set) => add_set(out, table, set),
        Edit::AddChain(chain) => add_chain(out, table, chain, None),
        Edit::AddElements { set, elements } => add_elements(out, table, set, elements),
        Edit::Rewrite { chain, rules } => {
            let all = vec![RuleAttribute::Table(table.to_owned()), RuleAttribute::Chain(chain.clone())];
            let all = NfTablesMessage::DeleteRule(RuleMessage { attributes: all });
            push(out, all, 0, format!("emptying chain {chain} of table {table}"));
            add_rules(out, table, chain, rules);
        }
        Edit::DropElements { set, elements } => {
            for chunk in elements.chunks(CHUNK) {
                let list = elements_of(table, set, chunk.iter().map(key_of).collect());
                let about = format!("deleting from set {set} of table {table}");
                push(out, NfTablesMessage::DeleteSetElement(list), 0, about);
            }
        }
        Edit::DropChain(chain) => {
            let attributes = vec![ChainAttribute::Table(table.to_owned()), ChainAttribute::Name(chain.clone())];
            let about = format!("deleting chain {chain} of table {table}");
            push(out, NfTablesMessage::DeleteChain(ChainMessage { attributes }), 0, about);
        }
        Edit::DropSet(set) => {
            let attributes = vec![SetAttribute::Table(table.to_owned()), SetAttribute::Name(set.clone())];
            let about = format!("deleting set {set} of table {table}");
            push(out, NfTablesMessage::DeleteSet(SetMessage { attributes }), 0, about);
        }
    }
}

fn add_set(out: &mut Vec<Message>, table: &str, set: &Set) {
    push(out, new_set(table, set), NLM_F_CREATE, format!("adding set {} to table {table}", set.name));
}

fn add_chain(out: &mut Vec<Message>, table: &str, chain: &str, base: Option<Base>) {
    push(out, new_chain(table, chain, base), NLM_F_CREATE, format!("adding chain {chain} to table {table}"));
}

fn add_rules(out: &mut Vec<Message>, table: &str, chain: &str, rules: &[Rule]) {
    for (number, rule) in rules.iter().enumerate() {
        let about = format!("adding rule {number} to chain {chain} of table {table}");
        push(out, new_rule(table, chain, rule), NLM_F_CREATE | NLM_F_APPEND, about);
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

fn new_chain(table: &str, chain: &str, base: Option<Base>) -> NfTablesMessage {
    let mut attributes = vec![ChainAttribute::Table(table.to_owned()), ChainAttribute::Name(chain.to_owned())];
    if let Some(base) = base {
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
    use crate::ruleset::model::{Datatype, ElementValue, SetValue, Verdict};

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
}
