//! A firewall in memory, for tests of what stands on the seam.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::conntrack::{Entry, Forget};
use super::model::{Element, ElementValue, Expr, Table, Verdict};
use super::steps::{Edit, Step, Transaction};
use super::{Firewall, FirewallError, PREFIX, fence_table};
use crate::clock::{Clock, Moment};
use crate::fence;
use crate::secret::TunnelName;

mod packets;

pub use self::packets::Packet;

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

#[derive(Clone, Default)]
struct Kernel {
    tables: BTreeMap<String, Arc<Table>>,
    /// What was committed last, as opposed to what is there.
    written: BTreeMap<String, Arc<Table>>,
    /// Elements that came after their table, and when they go if they do: by table and set.
    added: BTreeMap<String, BTreeMap<String, Vec<Added>>>,
    counters: BTreeMap<(String, String), u64>,
    /// When a packet last passed a limit: by table, then by chain and place in it.
    limits: BTreeMap<String, BTreeMap<(String, usize), Moment>>,
    entries: Vec<Entry>,
    failing: bool,
}

/// An element, and when it goes.
type Added = (Element, Option<Moment>);

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
        let leads = kernel.elements(&name, fence::LEAD).map(|(_, end)| *end);
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
        self.kernel().learn(table, set, key, Some(timeout), self.clock.now());
    }

    /// The table as it is.
    pub fn table(&self, name: &str) -> Option<Table> {
        self.kernel().tables.get(name).map(|table| (**table).clone())
    }

    /// An outsider deletes a table.
    pub fn delete_behind_our_back(&self, name: &str) {
        self.kernel().clear(name);
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
        self.kernel().count(table, counter, packets);
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
        self.added.remove(name);
        self.counters.retain(|(table, _), _| table != name);
        self.limits.remove(name);
    }

    fn elements(&self, table: &str, set: &str) -> impl Iterator<Item = &Added> {
        self.added.get(table).and_then(|sets| sets.get(set)).into_iter().flatten()
    }

    /// Adds the key, or begins its time anew. `false`: the set is full. `timeout`: in place of the set's own.
    fn learn(&mut self, table: &str, set: &str, key: &[u8], timeout: Option<Duration>, now: Moment) -> bool {
        let Some(described) = self.tables.get(table).and_then(|table| table.set(set)) else { return false };
        let (timeout, most) = (timeout.or(described.timeout), described.learns.unwrap_or(u32::MAX));
        let elements = self.added.entry(table.to_owned()).or_default().entry(set.to_owned()).or_default();
        elements.retain(|(element, end)| element.key != key && end.is_none_or(|end| now < end));
        let room = elements.len() < most as usize;
        if room {
            elements.push((Element { key: key.to_vec(), value: None, timeout }, timeout.map(|timeout| now + timeout)));
        }
        room
    }

    fn count(&mut self, table: &str, counter: &str, packets: u64) {
        *self.counters.entry((table.to_owned(), counter.to_owned())).or_default() += packets;
    }

    fn members(&self, table: &str, set: &str, now: Moment) -> Vec<Vec<u8>> {
        let all = self.elements(table, set);
        all.filter(|(_, end)| end.is_none_or(|end| now < end)).map(|(element, _)| element.key.clone()).collect()
    }

    fn table(&mut self, name: &str) -> Result<&mut Table, FirewallError> {
        let table = self.tables.get_mut(name).map(Arc::make_mut);
        table.ok_or_else(|| refused(&format!("finding table {name}")))
    }

    /// Does the step, or part of it and then fails.
    fn carry_out(&mut self, step: &Step, now: Moment) -> Result<(), FirewallError> {
        match step {
            Step::Replace(table) => {
                self.clear(&table.name);
                let table = Arc::new(table.clone());
                self.tables.insert(table.name.clone(), Arc::clone(&table));
                self.written.insert(table.name.clone(), table);
            }
            Step::Delete(name) => {
                self.clear(name);
                self.written.remove(name);
            }
            Step::Refill { table, set, elements } => {
                if self.tables.get(table).is_none_or(|table| table.set(set).is_none()) {
                    return Err(refused(&format!("emptying set {set} of table {table}")));
                }
                let added = elements.iter().map(|e| (e.clone(), e.timeout.map(|timeout| now + timeout))).collect();
                self.added.entry(table.clone()).or_default().insert(set.clone(), added);
            }
            Step::Edit { table, edits } => {
                for edit in edits {
                    let present = self.table(table)?;
                    if !possible(present, edit) {
                        return Err(refused(&format!("{edit:?} in table {table}")));
                    }
                    edit.apply(present);
                    if let Some(written) = self.written.get_mut(table) {
                        edit.apply(Arc::make_mut(written));
                    }
                }
            }
        }
        Ok(())
    }
}

fn refused(step: &str) -> FirewallError {
    let source = std::io::Error::from(std::io::ErrorKind::NotFound);
    FirewallError::Refused { step: step.to_owned(), detail: String::new(), source }
}

/// Would the kernel do it? What comes must be new and name only what is there; what goes must be there, and nothing may
/// name it.
fn possible(table: &Table, edit: &Edit) -> bool {
    let has_chain = |name: &str| table.chains.iter().any(|chain| chain.name == name);
    let has_set = |name: &str| table.set(name).is_some();
    let holds = |set: &str, element: &Element| {
        table.set(set).is_some_and(|set| set.elements.iter().any(|other| other.key == element.key))
    };
    let mut expressions = table.chains.iter().flat_map(|chain| chain.rules.iter().flatten());
    let mut elements = table.sets.iter().flat_map(|set| &set.elements);
    match edit {
        Edit::AddSet(set) => !has_set(&set.name) && set.elements.is_empty(),
        Edit::AddChain(chain) => !has_chain(chain),
        Edit::AddElements { set, elements } => {
            has_set(set) && elements.iter().all(|e| !holds(set, e) && target(e).is_none_or(has_chain))
        }
        Edit::Rewrite { chain, rules } => {
            let mut named = rules.iter().flatten().map(named);
            has_chain(chain) && named.all(|(chain, set)| chain.is_none_or(has_chain) && set.is_none_or(has_set))
        }
        Edit::DropElements { set, elements } => elements.iter().all(|element| holds(set, element)),
        Edit::DropChain(chain) => {
            let by_rule = expressions.any(|expr| named(expr).0 == Some(chain));
            has_chain(chain) && !by_rule && !elements.any(|element| target(element) == Some(chain))
        }
        Edit::DropSet(set) => has_set(set) && !expressions.any(|expr| named(expr).1 == Some(set)),
    }
}

/// The chain and the set that an expression names.
fn named(expr: &Expr) -> (Option<&str>, Option<&str>) {
    match expr {
        Expr::Verdict(Verdict::Jump(chain) | Verdict::Goto(chain)) => (Some(chain), None),
        Expr::VerdictMap { map: set, .. }
        | Expr::Lookup { map: set, .. }
        | Expr::Contains { set, .. }
        | Expr::Learn { set, .. } => (None, Some(set)),
        _ => (None, None),
    }
}

/// The chain that an element leads to.
fn target(element: &Element) -> Option<&str> {
    match &element.value {
        Some(ElementValue::Verdict(Verdict::Jump(chain) | Verdict::Goto(chain))) => Some(chain),
        _ => None,
    }
}

impl Firewall for FakeFirewall {
    fn commit(&mut self, transaction: &Transaction) -> Result<(), FirewallError> {
        let now = self.clock.now();
        let mut kernel = self.working()?;
        let mut after = kernel.clone();
        transaction.0.iter().try_for_each(|step| after.carry_out(step, now))?;
        *kernel = after;
        Ok(())
    }

    fn tables(&mut self) -> Result<Vec<String>, FirewallError> {
        Ok(self.working()?.tables.keys().filter(|name| name.starts_with(PREFIX)).cloned().collect())
    }

    fn intact(&mut self, table: &str) -> Result<bool, FirewallError> {
        let mut kernel = self.working()?;
        let intact = kernel.written.get(table).is_some_and(|written| kernel.tables.get(table) == Some(written));
        if !intact {
            kernel.written.remove(table);
        }
        Ok(intact)
    }

    fn written(&mut self, table: &str) -> Option<Arc<Table>> {
        self.kernel().written.get(table).cloned()
    }

    fn adopt(&mut self, table: &Table) -> Result<bool, FirewallError> {
        let mut kernel = self.working()?;
        let same = kernel.tables.get(&table.name).is_some_and(|there| **there == *table);
        if same {
            kernel.written.insert(table.name.clone(), Arc::new(table.clone()));
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
