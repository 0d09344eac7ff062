//! A firewall in memory, for tests of what stands on the seam.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::conntrack::{Entry, Forget};
use super::model::{Element, Step, Table, Transaction};
use super::{Firewall, FirewallError, PREFIX, fence_table};
use crate::clock::{Clock, Moment};
use crate::fence;
use crate::secret::TunnelName;

/// How a tunnel's fence stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FenceState {
    /// There is none: all may pass.
    Absent,
    /// Nothing may leave.
    Closed,
    /// Answers may leave.
    Hold,
    /// All may leave until then; what comes after is hold, or closed.
    Lead {
        /// For ever, if none.
        until: Option<Moment>,
        /// Hold comes next.
        then_hold: bool,
    },
}

/// Clones share one set of tables, as processes in one network namespace do.
#[derive(Clone)]
pub struct FakeFirewall {
    clock: Arc<dyn Clock>,
    kernel: Arc<Mutex<Kernel>>,
}

#[derive(Default)]
struct Kernel {
    tables: BTreeMap<String, Table>,
    /// What was committed last, as opposed to what is there.
    written: BTreeMap<String, Table>,
    /// Elements that came after their table, and when they go if they do: by table and set.
    added: BTreeMap<(String, String), Vec<(Element, Option<Moment>)>>,
    counters: BTreeMap<(String, String), u64>,
    entries: Vec<Entry>,
    failing: bool,
}

impl FakeFirewall {
    /// An empty namespace.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, kernel: Arc::default() }
    }

    /// May the tunnel's socket speak freely now? True also where no fence is, as in the kernel.
    pub fn open(&self, tunnel: &TunnelName) -> bool {
        matches!(self.fence(tunnel), FenceState::Absent | FenceState::Lead { .. })
    }

    /// How the tunnel's fence stands now.
    pub fn fence(&self, tunnel: &TunnelName) -> FenceState {
        let (kernel, now) = (self.kernel(), self.clock.now());
        let name = fence_table(tunnel);
        if !kernel.tables.contains_key(&name) {
            return FenceState::Absent;
        }
        let holds = !kernel.members(&name, fence::HOLD, now).is_empty();
        let leads = kernel.added.get(&(name, fence::LEAD.to_owned())).into_iter().flatten().map(|(_, end)| *end);
        let leads: Vec<_> = leads.filter(|end| end.is_none_or(|end| now < end)).collect();
        let until = if leads.contains(&None) { None } else { leads.iter().flatten().max().copied() };
        match (leads.is_empty(), holds) {
            (false, then_hold) => FenceState::Lead { until, then_hold },
            (true, true) => FenceState::Hold,
            (true, false) => FenceState::Closed,
        }
    }

    /// May it still answer once it may speak freely no more?
    pub fn holds(&self, tunnel: &TunnelName) -> bool {
        !self.kernel().members(&fence_table(tunnel), fence::HOLD, self.clock.now()).is_empty()
    }

    /// A packet teaches a set this key, for so long.
    pub fn learn(&self, table: &str, set: &str, key: &[u8], timeout: Duration) {
        let element = Element { key: key.to_vec(), value: None, timeout: Some(timeout) };
        let end = self.clock.now() + timeout;
        self.kernel().added.entry((table.to_owned(), set.to_owned())).or_default().push((element, Some(end)));
    }

    /// The table as it is.
    pub fn table(&self, name: &str) -> Option<Table> {
        self.kernel().tables.get(name).cloned()
    }

    /// An outsider deletes a table.
    pub fn delete_behind_our_back(&self, name: &str) {
        self.kernel().tables.remove(name);
        self.kernel().added.retain(|(table, _), _| table != name);
    }

    /// A flow enters conntrack.
    pub fn track(&self, entry: Entry) {
        self.kernel().entries.push(entry);
    }

    /// All of conntrack.
    pub fn entries(&self) -> Vec<Entry> {
        self.kernel().entries.clone()
    }

    /// A counter moves.
    pub fn count(&self, table: &str, counter: &str, packets: u64) {
        *self.kernel().counters.entry((table.to_owned(), counter.to_owned())).or_default() += packets;
    }

    /// From now on everything fails with "not permitted", or nothing any more.
    pub fn fail(&self, failing: bool) {
        self.kernel().failing = failing;
    }

    fn kernel(&self) -> MutexGuard<'_, Kernel> {
        self.kernel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn working(&self) -> Result<MutexGuard<'_, Kernel>, FirewallError> {
        let kernel = self.kernel();
        if kernel.failing { Err(FirewallError::NotPermitted) } else { Ok(kernel) }
    }
}

impl Kernel {
    fn clear(&mut self, name: &str) {
        self.tables.remove(name);
        self.added.retain(|(table, _), _| table != name);
        self.counters.retain(|(table, _), _| table != name);
    }

    fn members(&self, table: &str, set: &str, now: Moment) -> Vec<Vec<u8>> {
        let all = self.added.get(&(table.to_owned(), set.to_owned())).into_iter().flatten();
        all.filter(|(_, end)| end.is_none_or(|end| now < end)).map(|(element, _)| element.key.clone()).collect()
    }

    /// What the kernel would refuse, before anything is changed: a set that is not there.
    fn check(&self, transaction: &Transaction) -> Result<(), FirewallError> {
        let mut present: Vec<&Table> = self.tables.values().collect();
        for step in &transaction.0 {
            match step {
                Step::Replace(table) => {
                    present.retain(|other| other.name != table.name);
                    present.push(table);
                }
                Step::Delete(name) => present.retain(|other| other.name != *name),
                Step::Refill { table, set, .. } => {
                    let there = present.iter().any(|t| t.name == *table && t.sets.iter().any(|s| s.name == *set));
                    if !there {
                        return Err(FirewallError::Refused {
                            step: format!("emptying set {set} of table {table}"),
                            detail: String::new(),
                            source: std::io::Error::from(std::io::ErrorKind::NotFound),
                        });
                    }
                }
            }
        }
        Ok(())
    }
}

impl Firewall for FakeFirewall {
    fn commit(&mut self, transaction: &Transaction) -> Result<(), FirewallError> {
        let now = self.clock.now();
        let mut kernel = self.working()?;
        kernel.check(transaction)?;
        for step in &transaction.0 {
            match step {
                Step::Replace(table) => {
                    kernel.clear(&table.name);
                    kernel.tables.insert(table.name.clone(), table.clone());
                    kernel.written.insert(table.name.clone(), table.clone());
                }
                Step::Delete(name) => {
                    kernel.clear(name);
                    kernel.written.remove(name);
                }
                Step::Refill { table, set, elements } => {
                    let added = elements.iter().map(|e| (e.clone(), e.timeout.map(|timeout| now + timeout))).collect();
                    kernel.added.insert((table.clone(), set.clone()), added);
                }
            }
        }
        Ok(())
    }

    fn tables(&mut self) -> Result<Vec<String>, FirewallError> {
        Ok(self.working()?.tables.keys().filter(|name| name.starts_with(PREFIX)).cloned().collect())
    }

    fn intact(&mut self, table: &str) -> Result<bool, FirewallError> {
        let kernel = self.working()?;
        Ok(kernel.written.contains_key(table) && kernel.written.get(table) == kernel.tables.get(table))
    }

    fn adopt(&mut self, table: &Table) -> Result<bool, FirewallError> {
        let mut kernel = self.working()?;
        let same = kernel.tables.get(&table.name) == Some(table);
        if same {
            kernel.written.insert(table.name.clone(), table.clone());
        }
        Ok(same)
    }

    fn members(&mut self, table: &str, set: &str) -> Result<Vec<Vec<u8>>, FirewallError> {
        let now = self.clock.now();
        Ok(self.working()?.members(table, set, now))
    }

    fn counted(&mut self, table: &str, counter: &str) -> Result<u64, FirewallError> {
        let kernel = self.working()?;
        Ok(kernel.counters.get(&(table.to_owned(), counter.to_owned())).copied().unwrap_or(0))
    }

    fn forget(&mut self, what: &Forget) -> Result<usize, FirewallError> {
        let mut kernel = self.working()?;
        let before = kernel.entries.len();
        kernel.entries.retain(|entry| !what.matches(entry));
        Ok(before - kernel.entries.len())
    }
}
