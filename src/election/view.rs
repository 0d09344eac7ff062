//! What one candidate has seen of the Lease, and until when that binds it.
//!
//! A record that another holds is valid for its published duration from the moment it was first *seen here*; time in
//! which our own reads failed does not count. A holder that vanishes without releasing counts until its term is over
//! (S13): the Lease may have been deleted or emptied under a leader that still speaks.

use std::cmp::Ordering;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;

use super::Record;
use crate::clock::Moment;

#[derive(Clone, Debug)]
pub(super) struct Observed {
    pub(super) record: Record,
    /// When this process first saw this record.
    pub(super) seen: Moment,
    /// The newest object with this record.
    pub(super) lease: Lease,
}

#[derive(Clone, Debug)]
pub(super) struct View {
    identity: String,
    observed: Option<Observed>,
    /// Until when a holder counts that vanished without releasing.
    guard: Option<Moment>,
    /// Since when there is no Lease, as far as is known.
    missing_since: Option<Moment>,
    last_read: Option<Moment>,
    /// How long the last holder that was seen said that it counts.
    term: Option<Duration>,
    /// The most changes of holder that were ever seen.
    transitions: Option<i32>,
    /// No read has succeeded since `last_read`, though one was tried.
    blind: bool,
    /// The newest object that was known when the last read left.
    asked: Option<Lease>,
}

impl View {
    pub(super) fn new(identity: String) -> Self {
        let (observed, guard, missing_since, last_read) = (None, None, None, None);
        let (term, transitions, blind, asked) = (None, None, false, None);
        Self { identity, observed, guard, missing_since, last_read, term, transitions, blind, asked }
    }

    pub(super) fn identity(&self) -> &str {
        &self.identity
    }

    pub(super) fn observed(&self) -> Option<&Observed> {
        self.observed.as_ref()
    }

    pub(super) fn record(&self) -> Option<&Record> {
        self.observed.as_ref().map(|o| &o.record)
    }

    /// The Lease, if it names us.
    pub(super) fn ours(&self) -> Option<&Observed> {
        self.observed.as_ref().filter(|o| o.record.holder == self.identity)
    }

    pub(super) fn held_by_another(&self) -> bool {
        self.record().is_some_and(|r| !r.holder.is_empty() && r.holder != self.identity)
    }

    /// The holder; `None` if there is no Lease or the API is away.
    pub(super) fn holder(&self) -> Option<&str> {
        self.record().filter(|_| !self.blind).map(|r| r.holder.as_str())
    }

    /// A read leaves.
    pub(super) fn asks(&mut self) {
        self.asked = self.observed.as_ref().map(|o| o.lease.clone());
    }

    /// A read is answered by this Lease. One that is older than what was known before the question is no late one: the store
    /// was put back (etcd restored from a backup), and what is known of it never was. Whoever held it since may still speak
    /// for a term.
    pub(super) fn answered(&mut self, now: Moment, lease: &Lease) {
        if !self.asked.take().is_some_and(|asked| older(lease, &asked)) {
            return;
        }
        if let Some(old) = &mut self.observed {
            old.lease.metadata.resource_version = None;
        }
        self.guard_for_a_term(now);
    }

    /// A read has failed.
    pub(super) fn blind(&mut self) {
        self.blind = true;
    }

    /// Has a holder vanished without releasing?
    pub(super) fn guarded(&self) -> bool {
        self.guard.is_some()
    }

    /// Was there never a Lease, or none since one was given back?
    pub(super) fn unmade(&self) -> bool {
        self.missing_since.is_some() && self.guard.is_none()
    }

    /// The number of the next change of holder. It never comes again, though somebody may have set the Lease's back: by it a
    /// session is known to be of an earlier tenure.
    pub(super) fn next_transitions(&self) -> i32 {
        self.transitions.map_or(0, |transitions| transitions.saturating_add(1))
    }

    /// Is anything known of the Lease?
    pub(super) fn known(&self) -> bool {
        self.observed.is_some() || self.missing_since.is_some()
    }

    /// The Lease is ours now: nobody before us counts any more.
    pub(super) fn forget_guard(&mut self) {
        self.guard = None;
    }

    /// See [`super::Elector::due`].
    pub(super) fn due(&self, retry: Duration) -> Moment {
        let Some(last_read) = self.last_read else { return Moment::default() };
        // A holder whose Lease was deleted makes it again; who only waits would not see it if the watch is dead.
        let Some(o) = &self.observed else {
            return self.guard.map(|guard| guard.min(last_read + retry)).unwrap_or_default();
        };
        if !self.held_by_another() {
            return self.guard.unwrap_or_default();
        }
        let probe = if last_read <= o.seen { o.seen + retry * 2 } else { last_read + retry };
        self.held_until().min(probe)
    }

    /// Until when the Lease may not be taken; in the past if it is free. Ours is free to us.
    pub(super) fn held_until(&self) -> Moment {
        let guard = self.guard.unwrap_or_default();
        match &self.observed {
            Some(o) if self.held_by_another() => guard.max(o.seen + o.record.duration()),
            _ => guard,
        }
    }

    /// Since when the Lease is free, or from when it will be, as far as is known.
    pub(super) fn free_since(&self) -> Moment {
        let released = self.observed.as_ref().filter(|o| o.record.holder.is_empty()).map(|o| o.seen);
        self.held_until().max(released.or(self.missing_since).unwrap_or_default())
    }

    /// A read has succeeded. For how long none did before.
    fn read(&mut self, now: Moment) -> Duration {
        let unseen =
            if self.blind { self.last_read.map_or(Duration::ZERO, |last| now.since(last)) } else { Duration::ZERO };
        self.blind = false;
        self.last_read = Some(now);
        unseen
    }

    /// Time in which reads failed does not count as the silence of another that holds the Lease. Of our own record it does:
    /// while we did not see, others may have had their terms.
    fn excuse(&mut self, unseen: Duration) {
        self.guard = self.guard.map(|guard| guard + unseen);
        let others = self.held_by_another();
        if let Some(old) = self.observed.as_mut().filter(|_| others) {
            old.seen = old.seen + unseen;
        }
    }

    /// Takes a Lease from an answer or a watch. True if the record changed; an older one than we know is passed over.
    pub(super) fn absorb(&mut self, now: Moment, lease: Lease) -> bool {
        let unseen = self.read(now);
        let record = Record::from(&lease);
        match &mut self.observed {
            Some(old) if older(&lease, &old.lease) => return false,
            Some(old) if old.record == record => {
                let written = old.lease.metadata.resource_version != lease.metadata.resource_version;
                old.lease = lease;
                self.excuse(unseen);
                if written && record.is_emptied() {
                    self.guard_for_a_term(now);
                }
                return false;
            }
            _ => {}
        }
        self.transitions = self.transitions.max(Some(record.transitions));
        if record.is_release() {
            self.guard = None;
        } else {
            self.keep_guard(now, Some(&record));
        }
        if !record.holder.is_empty() {
            self.term = Some(record.duration());
        }
        self.observed = Some(Observed { record, seen: now, lease });
        self.missing_since = None;
        true
    }

    /// There is no Lease. Gives our own last record, if it was ours.
    pub(super) fn missing(&mut self, now: Moment) -> Option<Record> {
        let unseen = self.read(now);
        self.excuse(unseen);
        self.keep_guard(now, None);
        self.missing_since.get_or_insert(now);
        self.observed.take().map(|o| o.record).filter(|r| r.holder == self.identity)
    }

    /// A holder that is replaced or vanishes without a release may speak on for a term. It counts from now and not from
    /// when it was last seen, since between the two there may have been holders that we, cut off, did not see: also where we
    /// were the last that we saw, and our own term is over. A candidate that is new in the Lease has such a term itself.
    fn keep_guard(&mut self, now: Moment, successor: Option<&Record>) {
        if self.ours().is_some_and(|old| old.seen + old.record.duration() > now) {
            return;
        }
        if successor.or(self.record()).is_some_and(Record::is_emptied) {
            self.guard_for_a_term(now);
        }
        let Some(old) = self.observed.as_ref().filter(|old| !old.record.holder.is_empty()) else { return };
        let goes_on = |new: &Record| new.holder == old.record.holder && new.duration() >= old.record.duration();
        if successor.is_some_and(goes_on) {
            return;
        }
        // Our own name: most likely a write of ours whose answer was lost, and that waited for its time.
        let ours = successor.is_some_and(|new| new.holder == self.identity);
        let from = if ours { old.seen } else { now };
        self.guard = self.guard.max(Some(from + old.record.duration()));
    }

    /// Somebody's hand emptied the Lease, once more perhaps, or took away one that was emptied. It may have had a holder in
    /// between that a candidate without a watch did not see.
    fn guard_for_a_term(&mut self, now: Moment) {
        self.guard = self.guard.max(self.term.map(|term| now + term));
    }
}

/// Whether `a` is an older state of the Lease than `b`. A watch may lag behind our own answers, and what it then shows
/// must not look like news. Resource versions compare as decimal numbers (Kubernetes KEP-5504, and etcd revisions
/// before); where they are not numbers nothing is known to be older.
fn older(a: &Lease, b: &Lease) -> bool {
    let version = |lease: &Lease| {
        let text = lease.metadata.resource_version.clone()?;
        text.bytes().all(|b| b.is_ascii_digit()).then(|| text.trim_start_matches('0').to_owned())
    };
    match (version(a), version(b)) {
        (Some(a), Some(b)) => a.len().cmp(&b.len()).then_with(|| a.cmp(&b)) == Ordering::Less,
        _ => false,
    }
}
