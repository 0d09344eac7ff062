//! Faults on demand, for the embedded API server: which requests go wrong, how, and how often.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

/// Which requests a fault is for; what is not said matches all.
#[derive(Clone, Debug, Default)]
pub struct Target {
    /// A pod's name, `admin`, or any other user name.
    pub user: Option<String>,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`.
    pub verb: Option<String>,
    /// `leases`, `services/status`.
    pub resource: Option<String>,
}

impl Target {
    /// Every request but the lab's own.
    pub fn any() -> Self {
        Self::default()
    }

    pub fn user(mut self, name: &str) -> Self {
        self.user = Some(name.into());
        self
    }

    pub fn verb(mut self, verb: &str) -> Self {
        self.verb = Some(verb.into());
        self
    }

    pub fn resource(mut self, resource: &str) -> Self {
        self.resource = Some(resource.into());
        self
    }

    fn hits(&self, user: &str, verb: &str, resource: &str) -> bool {
        let same = |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|wanted| wanted == is);
        // The lab's own client is hit only when it is meant by name: it must be able to mend what it broke.
        let meant = self.user.is_some() || user != "admin";
        meant && same(&self.user, user) && same(&self.verb, verb) && same(&self.resource, resource)
    }
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Answered this much later.
    Delay(Duration),
    /// Refused with this HTTP code, not applied.
    Refuse(u16),
    /// Applied, then the connection is cut.
    LoseReply,
    /// The connection is cut, nothing applied.
    Cut,
    /// Never answered, not applied, the connection stays.
    Hang,
    /// A watch that is told at once that its version is too old (410 in the stream); other requests get 410.
    Gone,
}

/// The faults that are on.
#[derive(Clone, Debug)]
pub struct Faults {
    rules: Arc<Mutex<Vec<Rule>>>,
    added: Arc<AtomicU64>,
    dropped: Arc<watch::Sender<u64>>,
    stuck: Arc<watch::Sender<bool>>,
    wrong_certificate: Arc<watch::Sender<bool>>,
}

/// A fault that is on, to take it away again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FaultId(u64);

#[derive(Debug)]
struct Rule {
    id: FaultId,
    target: Target,
    fault: Fault,
    left: Option<u32>,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            rules: Arc::default(),
            added: Arc::default(),
            stuck: Arc::new(watch::Sender::new(false)),
            dropped: Arc::new(watch::Sender::new(0)),
            wrong_certificate: Arc::new(watch::Sender::new(false)),
        }
    }
}

impl Faults {
    /// From now on, until it is removed.
    pub fn add(&self, target: Target, fault: Fault) -> FaultId {
        self.put(target, fault, None)
    }

    /// The next `times` requests that it hits.
    pub fn next(&self, times: u32, target: Target, fault: Fault) {
        self.put(target, fault, Some(times));
    }

    fn put(&self, target: Target, fault: Fault, left: Option<u32>) -> FaultId {
        let id = FaultId(self.added.fetch_add(1, Ordering::Relaxed));
        self.rules().push(Rule { id, target, fault, left });
        id
    }

    /// Takes one away.
    pub fn remove(&self, id: FaultId) {
        self.rules().retain(|rule| rule.id != id);
    }

    /// All is well again, watches and certificate included. Requests that hang already go on hanging.
    pub fn clear(&self) {
        self.rules().clear();
        self.stick_watches(false);
        self.wrong_certificate(false);
    }

    /// Ends every open watch now, in the way a timeout does.
    pub fn drop_watches(&self) {
        self.dropped.send_modify(|count| *count += 1);
    }

    /// Watches stay open, and new ones open, but nothing comes by them; or what waited comes now.
    pub fn stick_watches(&self, stuck: bool) {
        self.stuck.send_replace(stuck);
    }

    /// New connections see a certificate of another authority.
    pub fn wrong_certificate(&self, wrong: bool) {
        self.wrong_certificate.send_replace(wrong);
    }

    pub(super) fn has_wrong_certificate(&self) -> bool {
        *self.wrong_certificate.borrow()
    }

    pub(super) fn watches_stuck(&self) -> watch::Receiver<bool> {
        self.stuck.subscribe()
    }

    pub(super) fn watch_drops(&self) -> watch::Receiver<u64> {
        self.dropped.subscribe()
    }

    /// What this request must suffer, in the order in which the faults were added.
    pub(super) fn strike(&self, user: &str, verb: &str, resource: &str) -> Vec<Fault> {
        let mut struck = Vec::new();
        self.rules().retain_mut(|rule| {
            if rule.target.hits(user, verb, resource) {
                struck.push(rule.fault);
                rule.left = rule.left.map(|left| left.saturating_sub(1));
            }
            rule.left != Some(0)
        });
        struck
    }

    fn rules(&self) -> std::sync::MutexGuard<'_, Vec<Rule>> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_hits_what_it_is_for_and_as_often_as_told() {
        let faults = Faults::default();
        faults.next(2, Target::any().verb("update").resource("leases"), Fault::LoseReply);
        assert!(faults.strike("pod-0", "get", "leases").is_empty());
        assert!(faults.strike("admin", "update", "leases").is_empty());
        assert_eq!(faults.strike("pod-0", "update", "leases"), [Fault::LoseReply]);
        assert_eq!(faults.strike("pod-1", "update", "leases"), [Fault::LoseReply]);
        assert!(faults.strike("pod-1", "update", "leases").is_empty());
    }

    #[test]
    fn a_fault_that_is_taken_away_leaves_the_others() {
        let faults = Faults::default();
        let slow = faults.add(Target::any(), Fault::Delay(Duration::from_secs(1)));
        faults.add(Target::any(), Fault::Refuse(500));
        faults.remove(slow);
        assert_eq!(faults.strike("pod-0", "get", "leases"), [Fault::Refuse(500)]);
    }
}
