//! Where the stages leave what they know of themselves, and `/status`, `/readyz`, `/livez` and `/metrics` find it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::{FaultsByTunnel, PodReport, Snapshot, report};
use crate::clock::{Clock, Moment};
use crate::secret::TunnelName;
use crate::tunnel::Backend;

/// A tunnel's actor that has not come round for so long is stuck; it comes round at least every second.
const STUCK_AFTER: Duration = Duration::from_secs(10);

/// Who this pod is.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Pod name.
    pub name: String,
    /// Node name.
    pub node: String,
    /// `holderIdentity` in Leases.
    pub identity: String,
    /// What carries the packets.
    pub backend: Backend,
}

/// See the module's text.
pub struct Board {
    pod: Pod,
    clock: Arc<dyn Clock>,
    notes: Mutex<Notes>,
}

struct Notes {
    tunnels: BTreeMap<TunnelName, Post>,
    faults: FaultsByTunnel,
    /// Why the pod is not ready; `None` once there was a valid configuration.
    unready: Option<String>,
}

struct Post {
    snapshot: watch::Receiver<Snapshot>,
    heartbeat: Moment,
}

impl Board {
    /// An empty board: not ready, because no Secret was seen.
    pub fn new(pod: Pod, clock: Arc<dyn Clock>) -> Self {
        let unready = Some("the Kubernetes API has not answered yet".to_owned());
        Self {
            pod,
            clock,
            notes: Mutex::new(Notes { tunnels: BTreeMap::new(), faults: FaultsByTunnel::new(), unready }),
        }
    }

    /// Who this pod is.
    pub fn pod(&self) -> &Pod {
        &self.pod
    }

    /// A tunnel's actor starts; its snapshots come by this channel.
    pub fn add(&self, name: TunnelName, snapshot: watch::Receiver<Snapshot>) {
        let post = Post { snapshot, heartbeat: self.clock.now() };
        self.notes().tunnels.insert(name, post);
    }

    /// A tunnel's actor has ended.
    pub fn remove(&self, name: &TunnelName) {
        self.notes().tunnels.remove(name);
    }

    /// A tunnel's actor came round.
    pub fn beat(&self, name: &TunnelName) {
        let now = self.clock.now();
        if let Some(post) = self.notes().tunnels.get_mut(name) {
            post.heartbeat = now;
        }
    }

    /// The faults of the last document.
    pub fn set_faults(&self, faults: FaultsByTunnel) {
        self.notes().faults = faults;
    }

    /// Why the pod is not ready yet. Once ready it stays so.
    pub fn not_ready_because(&self, why: String) {
        let mut notes = self.notes();
        if notes.unready.is_some() {
            notes.unready = Some(why);
        }
    }

    /// There was a valid configuration.
    pub fn ready(&self) {
        self.notes().unready = None;
    }

    /// For `/readyz`: `Err` says why not.
    pub fn readiness(&self) -> Result<(), String> {
        self.notes().unready.clone().map_or(Ok(()), Err)
    }

    /// For `/livez`: `Err` names an actor that no longer comes round.
    pub fn liveness(&self) -> Result<(), String> {
        let now = self.clock.now();
        match self.notes().tunnels.iter().find(|(_, post)| now.since(post.heartbeat) > STUCK_AFTER) {
            None => Ok(()),
            Some((name, post)) => {
                Err(format!("tunnel {name} has made no progress for {} s", now.since(post.heartbeat).as_secs()))
            }
        }
    }

    /// The newest snapshot of every tunnel that has an actor.
    pub fn snapshots(&self) -> Vec<(TunnelName, Snapshot)> {
        let notes = self.notes();
        notes.tunnels.iter().map(|(name, post)| (name.clone(), post.snapshot.borrow().clone())).collect()
    }

    /// For `/status`.
    pub fn report(&self) -> PodReport {
        let (now, snapshots) = (self.clock.now(), self.snapshots());
        let notes = self.notes();
        let none = vec![];
        let faults_of = |name: &str| notes.faults.get(name).unwrap_or(&none);
        let mut tunnels: BTreeMap<String, _> =
            snapshots.iter().map(|(name, snapshot)| (name.to_string(), Some(snapshot))).collect();
        for name in notes.faults.keys().filter(|name| !name.is_empty()) {
            tunnels.entry(name.clone()).or_insert(None);
        }
        let mut tunnels: Vec<_> = tunnels
            .into_iter()
            .map(|(name, snapshot)| {
                report(&name, snapshot, faults_of(&name), &self.pod.identity, self.pod.backend, now)
            })
            .collect();
        // A document that cannot be read is every tunnel's fault.
        let faults: Vec<_> = faults_of("").iter().map(super::told).collect();
        for tunnel in &mut tunnels {
            tunnel.faults.extend(faults.iter().cloned());
        }
        PodReport {
            pod: self.pod.name.clone(),
            node: self.pod.node.clone(),
            version: env!("CARGO_PKG_VERSION"),
            tunnels,
            faults,
        }
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        // A panic elsewhere must not silence the status.
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::TokioClock;
    use crate::secret::Fault;

    #[tokio::test]
    async fn the_faults_of_a_document_that_cannot_be_read_are_told_though_there_is_no_tunnel() {
        let pod = Pod { name: "p".into(), node: "n".into(), identity: "p_u".into(), backend: Backend::Kernel };
        let board = Board::new(pod, Arc::new(TokioClock::new()));
        let fault = Fault {
            line: 3,
            tunnel: None,
            key: None,
            message: "a mapping is not closed".into(),
            fix: "close it".into(),
        };
        board.set_faults([(String::new(), vec![fault])].into());
        let report = board.report();
        assert!(report.tunnels.is_empty());
        assert_eq!(report.faults, ["line 3: a mapping is not closed; close it"]);
    }
}
