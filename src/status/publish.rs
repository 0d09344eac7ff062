//! Writes `status.loadBalancer.ingress` of the Services of the tunnels that this pod leads.
//!
//! Needs no `get`: what stands in the status is known from the watch, each patch carries the `resourceVersion` that it
//! was made from, and after a conflict the watch's next object is waited for. No object is patched twice at one
//! version for one result, so neither a server that drops a field nor another writer can draw us into a loop.
//!
//! On a hand-over entries stay, for the successor's are the same. They go when the tunnel is removed from the Secret:
//! [`Publisher::set`] with no Services, then [`Publisher::settled`] before the Lease is released.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;

use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::ingress::{Publication, Publications};
use crate::api::retry::{Backoff, CallError, bounded};
use crate::secret::TunnelName;
use crate::services::ObjectName;
use crate::services::objects::{Ingress, WireService};
use crate::services::watch::Inputs;

/// Where the status is written.
pub trait StatusStore: Send + Sync + 'static {
    /// Merge-patches a Service's `status` subresource, with the version that it must have. Returns the new version.
    fn patch(&self, name: &ObjectName, patch: Value) -> impl Future<Output = Result<String, CallError>> + Send;
}

/// The API server.
#[derive(Clone)]
pub struct ApiStatusStore(pub Client);

impl StatusStore for ApiStatusStore {
    async fn patch(&self, name: &ObjectName, patch: Value) -> Result<String, CallError> {
        let api: Api<WireService> = Api::namespaced(self.0.clone(), &name.namespace);
        let params = PatchParams { field_manager: Some("wirevip".to_owned()), ..PatchParams::default() };
        let written = bounded(api.patch_status(&name.name, &params, &Patch::Merge(patch))).await?;
        Ok(kube::ResourceExt::resource_version(&written).unwrap_or_default())
    }
}

/// Hands the tunnels' publications to the task that writes them. Clones share it.
#[derive(Clone)]
pub struct Publisher {
    wanted: Arc<watch::Sender<Wanted>>,
    settled: watch::Receiver<Settled>,
}

#[derive(Clone, Debug, Default)]
struct Wanted {
    generation: u64,
    publications: Arc<Publications>,
}

impl Wanted {
    fn change(&mut self, change: impl FnOnce(&mut Publications)) {
        change(Arc::make_mut(&mut self.publications));
        self.generation += 1;
    }
}

/// Which tunnels still have something to write, as of a generation of [`Wanted`]. `None`: the Services are not known.
#[derive(Clone, Debug, Default)]
struct Settled {
    generation: u64,
    unwritten: Option<BTreeSet<TunnelName>>,
}

impl Publisher {
    /// Starts the task. It runs until the publisher and all its clones are gone, or the inputs end.
    pub fn spawn(store: impl StatusStore, inputs: watch::Receiver<Arc<Inputs>>) -> Self {
        let (wanted, receiver) = watch::channel(Wanted::default());
        let (sender, settled) = watch::channel(Settled::default());
        tokio::spawn(write(store, inputs, receiver, sender));
        Self { wanted: Arc::new(wanted), settled }
    }

    /// What a tunnel says from now on. Standbys say it too (`Role::Standby`).
    pub fn set(&self, name: &TunnelName, publication: Publication) {
        self.wanted.send_if_modified(|wanted| {
            let changed = wanted.publications.of(name) != Some(&publication);
            if changed {
                wanted.change(|publications| publications.set(name, publication));
            }
            changed
        });
    }

    /// Forgets a tunnel, and leaves its entries.
    pub fn remove(&self, name: &TunnelName) {
        self.wanted.send_if_modified(|wanted| {
            let changed = wanted.publications.of(name).is_some();
            if changed {
                wanted.change(|publications| publications.remove(name));
            }
            changed
        });
    }

    /// Returns when all that was set for this tunnel so far is written. For as long as the API is away it does not:
    /// bound it.
    pub async fn settled(&self, name: &TunnelName) {
        let generation = self.wanted.borrow().generation;
        let mut settled = self.settled.clone();
        let done = |settled: &Settled| {
            settled.generation >= generation && settled.unwritten.as_ref().is_some_and(|left| !left.contains(name))
        };
        // An error means that the task is gone: nothing more will be written.
        let _ = settled.wait_for(done).await;
    }
}

/// A patch that was tried, so that it is not tried again in vain.
struct Tried {
    version: String,
    ingress: Vec<Ingress>,
    /// Whose entries it changed.
    asking: BTreeSet<TunnelName>,
    /// The object has changed since: the watch will tell, and this version is not to be patched any more.
    moved_on: bool,
    /// The API took it.
    written: bool,
}

async fn write(
    store: impl StatusStore,
    mut inputs: watch::Receiver<Arc<Inputs>>,
    mut wanted: watch::Receiver<Wanted>,
    settled: watch::Sender<Settled>,
) {
    let mut tried: BTreeMap<ObjectName, Tried> = BTreeMap::new();
    let mut failing = Failing::default();
    let mut backoff = Backoff::default();
    loop {
        let known = inputs.borrow_and_update().clone();
        let Wanted { generation, publications } = wanted.borrow_and_update().clone();
        let mut unwritten = BTreeSet::new();
        let (mut failed, mut again) = (false, false);
        tried.retain(|name, _| known.service(name).is_some());
        failing.retain(|name| known.service(name).is_some());
        let mut services: Vec<_> = known.services().iter().collect();
        services.sort_by_key(|service| failing.turn(&service.name));
        for service in services {
            let Some((ingress, asking)) = publications.merge(service) else {
                // Right by what is known; but what is known may be older than what we have written ourselves.
                let stale = |before: &&Tried| before.moved_on && before.version == service.resource_version;
                if let Some(before) = tried.get(&service.name).filter(stale).filter(|b| b.ingress != service.ingress) {
                    unwritten.extend(before.asking.clone());
                }
                continue;
            };
            if let Some(before) = tried.get(&service.name).filter(|before| before.version == service.resource_version) {
                let same = before.ingress == ingress;
                if before.moved_on || same {
                    if !(same && before.written) {
                        unwritten.extend(asking);
                    }
                    continue;
                }
            }
            // Newer state makes the rest of this round stale, and a failed call will fail again.
            if failed || stale(&inputs) || stale(&wanted) {
                unwritten.extend(asking);
                continue;
            }
            let patch = json!({
                "metadata": {"resourceVersion": service.resource_version},
                "status": {"loadBalancer": {"ingress": ingress}},
            });
            let version = service.resource_version.clone();
            match store.patch(&service.name, patch).await {
                Ok(new) => {
                    backoff.reset();
                    failing.over(&service.name);
                    tracing::info!(service = %service.name, entries = ingress.len(), "Service status written");
                    let moved_on = new != version;
                    tried.insert(service.name.clone(), Tried { version, ingress, asking, moved_on, written: true });
                }
                // Changed or deleted meanwhile: the watch brings what it is now.
                Err(error) if matches!(error.code(), Some(404 | 409)) => {
                    unwritten.extend(asking.clone());
                    let failed = Tried { version, ingress, asking, moved_on: true, written: false };
                    tried.insert(service.name.clone(), failed);
                }
                // The API will not take this from us; only another object or result is worth another try.
                Err(error) if error.code() == Some(422) => {
                    tracing::warn!(service = %service.name, error = %crate::api::chain(&error), "Service status refused");
                    unwritten.extend(asking.clone());
                    let refused = Tried { version, ingress, asking, moved_on: false, written: false };
                    tried.insert(service.name.clone(), refused);
                }
                Err(error) => {
                    unwritten.extend(asking);
                    again = true;
                    // Most likely the next call would fail as well, unless it is this object alone that is refused.
                    failed = !is_of_the_object(&error) || !failing.begins(&service.name);
                    let error = crate::api::chain(&error);
                    if failed {
                        tracing::debug!(service = %service.name, %error, "Service status not written");
                    } else {
                        tracing::warn!(service = %service.name, %error, "Service status not written; it is tried again");
                    }
                }
            }
        }
        let unwritten = known.services.is_some().then_some(unwritten);
        settled.send_replace(Settled { generation, unwritten });
        if again {
            // Not cut short by changes: they must not turn the waits into a storm.
            tokio::time::sleep(backoff.wait()).await;
            if wanted.has_changed().is_err() || inputs.has_changed().is_err() {
                return;
            }
            continue;
        }
        tokio::select! {
            changed = inputs.changed() => if changed.is_err() { return },
            changed = wanted.changed() => if changed.is_err() { return },
        }
    }
}

/// Services whose status is refused for now, e.g. by an admission webhook: they come after all others, and of them the one
/// that was tried longest ago comes first. So none of them keeps another waiting.
#[derive(Default)]
struct Failing {
    turns: BTreeMap<ObjectName, u64>,
    last: u64,
}

impl Failing {
    /// By which the Services of a round are ordered.
    fn turn(&self, name: &ObjectName) -> u64 {
        self.turns.get(name).copied().unwrap_or_default()
    }

    /// It was refused just now. Is that new?
    fn begins(&mut self, name: &ObjectName) -> bool {
        self.last += 1;
        self.turns.insert(name.clone(), self.last).is_none()
    }

    fn over(&mut self, name: &ObjectName) {
        self.turns.remove(name);
    }

    fn retain(&mut self, mut there: impl FnMut(&ObjectName) -> bool) {
        self.turns.retain(|name, _| there(name));
    }
}

/// Was there an answer, and one that need not be the same for other objects?
fn is_of_the_object(error: &CallError) -> bool {
    error.code().is_some_and(|code| !matches!(code, 401 | 429 | 503 | 504))
}

fn stale<T>(receiver: &watch::Receiver<T>) -> bool {
    receiver.has_changed().unwrap_or(true)
}

#[cfg(test)]
mod tests;
