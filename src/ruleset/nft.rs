//! The kernel's nftables and conntrack, over netlink.

use std::collections::BTreeMap;
use std::sync::Arc;

use netlink_packet_netfilter::nftables::{
    ChainMessage, GenMessage, NfTablesMessage, RuleAttribute, RuleMessage, SetElementList, SetElementMessage,
    TableMessage,
};

use super::conntrack::{self, Forget};
use super::encode;
use super::model::{Census, Table};
use super::netlink::{Channel, attributes, inet};
use super::steps::{Step, Transaction};
use super::{Firewall, FirewallError, PREFIX};

/// The firewall of the network namespace in which it was opened. Open one and share it: it tells an outsider's changes
/// from its own by counting its own.
#[derive(Debug)]
pub struct NetlinkFirewall {
    channel: Channel,
    written: BTreeMap<String, Written>,
    /// The ruleset's generation at which everything in `written` was as written; `None`: must be looked at.
    sound: Option<u32>,
}

/// What was committed last under a name.
#[derive(Debug)]
struct Written {
    /// The kernel's number of the table: another one bears another, also under the same name.
    handle: Vec<u8>,
    table: Arc<Table>,
}

impl NetlinkFirewall {
    /// Opens it in the calling thread's network namespace. Needs NET_ADMIN from the first commit on.
    pub fn open() -> Result<Self, FirewallError> {
        Ok(Self { channel: Channel::open()?, written: BTreeMap::new(), sound: None })
    }

    /// Number of changes to this namespace's ruleset, by anybody.
    fn generation(&mut self) -> Result<u32, FirewallError> {
        const NFTA_GEN_ID: u16 = 1;
        let get = NfTablesMessage::GetGen(GenMessage { attributes: Vec::new() });
        let answer = self.channel.get(inet(get), "reading the ruleset's generation")?.unwrap_or_default();
        find(&answer, NFTA_GEN_ID)
            .and_then(|bytes| Some(u32::from_be_bytes(bytes.try_into().ok()?)))
            .ok_or(FirewallError::Garbled { what: "the ruleset's generation" })
    }

    /// The table's handle; `None` if it is not there, or switched off.
    fn handle(&mut self, table: &str) -> Result<Option<Vec<u8>>, FirewallError> {
        const NFTA_TABLE_FLAGS: u16 = 2;
        const NFTA_TABLE_HANDLE: u16 = 4;
        const NFT_TABLE_F_DORMANT: u8 = 1;
        let get = NfTablesMessage::GetTable(encode::table_named(table));
        let answer = self.channel.get(inet(get), "looking for a table")?;
        Ok(answer
            .filter(|found| {
                find(found, NFTA_TABLE_FLAGS)
                    .and_then(<[u8]>::last)
                    .is_none_or(|flags| flags & NFT_TABLE_F_DORMANT == 0)
            })
            .and_then(|found| find(&found, NFTA_TABLE_HANDLE).map(<[u8]>::to_vec)))
    }

    /// Counts what is in the table now.
    fn census(&mut self, table: &str, sets: &[String]) -> Result<Census, FirewallError> {
        let chains = NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() });
        let rules = NfTablesMessage::GetRule(RuleMessage { attributes: vec![RuleAttribute::Table(table.to_owned())] });
        // Attribute 1 is the table's name in both. Older kernels list those of all tables.
        let count = |list: Vec<Vec<u8>>| list.iter().filter(|one| is_text(one, 1, table)).count();
        let mut census = Census {
            chains: count(self.channel.dump(&inet(chains), "listing chains")?),
            rules: count(self.channel.dump(&inet(rules), "listing rules")?),
            elements: 0,
        };
        for set in sets {
            let attributes = vec![SetElementList::Table(table.to_owned()), SetElementList::Set(set.clone())];
            let get = NfTablesMessage::GetSetElement(SetElementMessage { attributes });
            let list = self.channel.dump(&inet(get), "listing a set")?;
            census.elements += list.iter().map(|message| elements_in(message)).sum::<usize>();
        }
        Ok(census)
    }

    fn looks_as_written(&mut self, table: &str) -> Result<bool, FirewallError> {
        let Some((handle, expected)) = self.written.get(table).map(|w| (w.handle.clone(), Arc::clone(&w.table))) else {
            return Ok(false);
        };
        if self.handle(table)? != Some(handle) {
            return Ok(false);
        }
        let lasting = expected.sets.iter().filter(|set| set.timeout.is_none());
        let sets: Vec<String> = lasting.map(|set| set.name.clone()).collect();
        Ok(self.census(table, &sets)? == expected.census())
    }

    fn remember(&mut self, step: &Step) -> Result<(), FirewallError> {
        match step {
            Step::Replace(table) => {
                let handle = self.handle(&table.name)?.unwrap_or_default();
                let written = Written { handle, table: Arc::new(table.clone()) };
                self.written.insert(table.name.clone(), written);
            }
            Step::Delete(name) => drop(self.written.remove(name)),
            Step::Refill { .. } => {}
            Step::Edit { table, edits } => {
                if let Some(written) = self.written.get_mut(table) {
                    let table = Arc::make_mut(&mut written.table);
                    edits.iter().for_each(|edit| edit.apply(table));
                }
            }
        }
        Ok(())
    }
}

impl Firewall for NetlinkFirewall {
    fn commit(&mut self, transaction: &Transaction) -> Result<(), FirewallError> {
        let before = self.sound.take();
        self.channel.batch(encode::messages(transaction))?;
        for step in &transaction.0 {
            self.remember(step)?;
        }
        // Each commit counts one: if the count is higher, somebody else was at it too, and we must look. One that does
        // nothing, such as emptying an empty set, counts none, and would hide somebody else's.
        let counts =
            transaction.0.iter().any(|step| !matches!(step, Step::Refill { elements, .. } if elements.is_empty()));
        let now = self.generation()?;
        self.sound = before.filter(|before| counts && before.wrapping_add(1) == now).map(|_| now);
        Ok(())
    }

    fn tables(&mut self) -> Result<Vec<String>, FirewallError> {
        let get = NfTablesMessage::GetTable(TableMessage { attributes: Vec::new() });
        let list = self.channel.dump(&inet(get), "listing tables")?;
        let mut names: Vec<String> =
            list.iter().filter_map(|one| text(find(one, 1)?)).filter(|name| name.starts_with(PREFIX)).collect();
        names.sort();
        Ok(names)
    }

    fn intact(&mut self, table: &str) -> Result<bool, FirewallError> {
        if !self.written.contains_key(table) {
            return Ok(false);
        }
        let now = self.generation()?;
        if self.sound == Some(now) {
            return Ok(true);
        }
        let names: Vec<String> = self.written.keys().cloned().collect();
        for name in names {
            if !self.looks_as_written(&name)? {
                self.written.remove(&name);
            }
        }
        // What changed while we looked is looked at next time.
        self.sound = Some(now);
        Ok(self.written.contains_key(table))
    }

    fn written(&mut self, table: &str) -> Option<Arc<Table>> {
        self.written.get(table).map(|written| Arc::clone(&written.table))
    }

    fn counted(&mut self, table: &str, counter: &str) -> Result<u64, FirewallError> {
        const NFTA_OBJ_DATA: u16 = 4;
        const NFTA_COUNTER_PACKETS: u16 = 2;
        let answer = self.channel.get(inet(encode::get_counter(table, counter)), "reading a counter")?;
        let Some(answer) = answer else { return Ok(0) };
        find(&answer, NFTA_OBJ_DATA)
            .and_then(|data| find(data, NFTA_COUNTER_PACKETS))
            .and_then(|bytes| Some(u64::from_be_bytes(bytes.try_into().ok()?)))
            .ok_or(FirewallError::Garbled { what: "a counter" })
    }

    fn forget(&mut self, what: &Forget) -> Result<usize, FirewallError> {
        conntrack::forget(&mut self.channel, what)
    }
}

fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

fn is_text(bytes: &[u8], kind: u16, expected: &str) -> bool {
    find(bytes, kind).and_then(text).is_some_and(|found| found == expected)
}

fn text(bytes: &[u8]) -> Option<String> {
    Some(String::from_utf8_lossy(bytes.strip_suffix(&[0])?).into_owned())
}

fn elements_in(message: &[u8]) -> usize {
    const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
    find(message, NFTA_SET_ELEM_LIST_ELEMENTS).map_or(0, |list| attributes(list).count())
}
