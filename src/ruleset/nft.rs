//! The kernel's nftables and conntrack, over netlink.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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

/// The firewall of the network namespace in which it was opened. Clones share one socket and what is known. Open one and
/// clone it: it tells an outsider's changes from its own by counting its own.
#[derive(Clone, Debug)]
pub struct NetlinkFirewall(Arc<Mutex<Kernel>>);

#[derive(Debug)]
struct Kernel {
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
    census: Census,
    /// `None`: it was adopted, and what exactly it holds is not known.
    table: Option<Arc<Table>>,
}

impl NetlinkFirewall {
    /// Opens it in the calling thread's network namespace. Needs NET_ADMIN from the first commit on.
    pub fn open() -> Result<Self, FirewallError> {
        let kernel = Kernel { channel: Channel::open()?, written: BTreeMap::new(), sound: None };
        Ok(Self(Arc::new(Mutex::new(kernel))))
    }

    /// Waits for whoever is at it: the kernel, too, takes one change of a namespace's ruleset after the other.
    fn kernel(&self) -> MutexGuard<'_, Kernel> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kernel {
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

    /// Counts what is in the table now, and in these of its sets.
    fn census<'a>(&mut self, table: &str, sets: impl IntoIterator<Item = &'a String>) -> Result<Census, FirewallError> {
        let chains = NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() });
        let rules = NfTablesMessage::GetRule(RuleMessage { attributes: vec![RuleAttribute::Table(table.to_owned())] });
        // Attribute 1 is the table's name in both. Older kernels list those of all tables.
        let count = |list: Vec<Vec<u8>>| list.iter().filter(|one| is_text(one, 1, table)).count();
        let mut census = Census {
            chains: count(self.channel.dump(&inet(chains), "listing chains")?),
            rules: count(self.channel.dump(&inet(rules), "listing rules")?),
            elements: BTreeMap::new(),
        };
        for set in sets {
            let list = self.list(table, set)?;
            census.elements.insert(set.clone(), list.iter().map(|message| elements_in(message).count()).sum());
        }
        Ok(census)
    }

    /// The elements of a set, message by message.
    fn list(&mut self, table: &str, set: &str) -> Result<Vec<Vec<u8>>, FirewallError> {
        let attributes = vec![SetElementList::Table(table.to_owned()), SetElementList::Set(set.to_owned())];
        let get = NfTablesMessage::GetSetElement(SetElementMessage { attributes });
        self.channel.dump(&inet(get), "listing a set")
    }

    fn looks_as_written(&mut self, table: &str) -> Result<bool, FirewallError> {
        let Some((expected, handle)) =
            self.written.get(table).map(|written| (written.census.clone(), written.handle.clone()))
        else {
            return Ok(false);
        };
        let same = self.handle(table)?.is_some_and(|found| found == handle);
        Ok(same && self.census(table, expected.elements.keys())? == expected)
    }

    fn remember(&mut self, step: &Step) -> Result<(), FirewallError> {
        match step {
            Step::Replace(table) => {
                let handle = self.handle(&table.name)?.unwrap_or_default();
                let written = Written { handle, census: table.census(), table: Some(Arc::new(table.clone())) };
                self.written.insert(table.name.clone(), written);
            }
            Step::Delete(name) => drop(self.written.remove(name)),
            Step::Refill { table, set, elements } => {
                if let Some(written) = self.written.get_mut(table) {
                    if let Some(count) = written.census.elements.get_mut(set) {
                        *count = elements.len();
                    }
                    // Its elements are no longer those that it was made with.
                    written.table = None;
                }
            }
            Step::Edit { table, edits } => {
                if let Some(written) = self.written.get_mut(table)
                    && let Some(table) = written.table.as_mut().map(Arc::make_mut)
                {
                    edits.iter().for_each(|edit| edit.apply(table));
                    written.census = table.census();
                }
            }
        }
        Ok(())
    }
}

impl Firewall for NetlinkFirewall {
    fn commit(&mut self, transaction: &Transaction) -> Result<(), FirewallError> {
        self.kernel().commit(transaction)
    }

    fn tables(&mut self) -> Result<Vec<String>, FirewallError> {
        self.kernel().tables()
    }

    fn intact(&mut self, table: &str) -> Result<bool, FirewallError> {
        self.kernel().intact(table)
    }

    fn written(&mut self, table: &str) -> Option<Arc<Table>> {
        self.kernel().written(table)
    }

    fn adopt(&mut self, table: &Table) -> Result<bool, FirewallError> {
        self.kernel().adopt(table)
    }

    fn members(&mut self, table: &str, set: &str) -> Result<Vec<Vec<u8>>, FirewallError> {
        self.kernel().members(table, set)
    }

    fn counted(&mut self, table: &str, counter: &str) -> Result<u64, FirewallError> {
        self.kernel().counted(table, counter)
    }

    fn forget(&mut self, what: &Forget) -> Result<usize, FirewallError> {
        self.kernel().forget(what)
    }
}

impl Firewall for Kernel {
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
        self.written.get(table)?.table.clone()
    }

    fn adopt(&mut self, table: &Table) -> Result<bool, FirewallError> {
        let Some(handle) = self.handle(&table.name)? else { return Ok(false) };
        let (expected, present) = (table.census(), self.census(&table.name, table.census().elements.keys())?);
        let same = (expected.chains, expected.rules) == (present.chains, present.rules);
        if same {
            self.sound = None;
            self.written.insert(table.name.clone(), Written { handle, census: present, table: None });
        }
        Ok(same)
    }

    fn members(&mut self, table: &str, set: &str) -> Result<Vec<Vec<u8>>, FirewallError> {
        const NFTA_SET_ELEM_KEY: u16 = 1;
        const NFTA_DATA_VALUE: u16 = 1;
        let list = self.list(table, set)?;
        list.iter()
            .flat_map(|message| elements_in(message))
            .map(|element| Some(find(find(element, NFTA_SET_ELEM_KEY)?, NFTA_DATA_VALUE)?.to_vec()))
            .collect::<Option<_>>()
            .ok_or(FirewallError::Garbled { what: "a set" })
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

fn elements_in(message: &[u8]) -> impl Iterator<Item = &[u8]> {
    const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
    attributes(find(message, NFTA_SET_ELEM_LIST_ELEMENTS).unwrap_or_default()).map(|(_, element)| element)
}
