//! Events on the pod, the Secret or the Service that they concern.
//!
//! What must hold: telling never waits; what flaps does not flood the API; what happened while the API was away is
//! told when it is back, with the time at which it happened.

mod ledger;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::Notify;

use self::ledger::{Ledger, Write};
use crate::api::retry::{Backoff, CallError, bounded};
use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::services::ObjectName;

/// Told and not yet written. More than that drops the oldest, of those first that say that a Service is forwarded: a
/// takeover tells so of each, and there may be thousands.
const QUEUE: usize = 256;
/// The API's limits, in bytes.
const NOTE: usize = 1024;
const INSTANCE: usize = 128;
const NAME: usize = 200;

/// What happened. The names are the contract's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Reason {
    /// The tunnel serves.
    TunnelUp,
    /// The tunnel was taken down, or could not be raised.
    TunnelDown,
    /// The Secret has faults.
    InvalidConfiguration,
    /// The hub does not answer.
    NoHandshake,
    /// This clock differs from the last leader's.
    ClockSkew,
    /// Another Service has the port.
    PortConflict,
    /// No endpoint serves the port.
    NoBackends,
    /// The Service is forwarded.
    Forwarded,
    /// The tenure ended before it was renewed, and answers go on.
    Holding,
    /// The tenure ended before it was renewed.
    FenceClosed,
    /// Another program uses the tunnel's key.
    SecondSpeaker,
}

impl Reason {
    fn name(self) -> &'static str {
        match self {
            Reason::TunnelUp => "TunnelUp",
            Reason::TunnelDown => "TunnelDown",
            Reason::InvalidConfiguration => "InvalidConfiguration",
            Reason::NoHandshake => "NoHandshake",
            Reason::ClockSkew => "ClockSkew",
            Reason::PortConflict => "PortConflict",
            Reason::NoBackends => "NoBackends",
            Reason::Forwarded => "Forwarded",
            Reason::Holding => "Holding",
            Reason::FenceClosed => "FenceClosed",
            Reason::SecondSpeaker => "SecondSpeaker",
        }
    }

    /// What was being done, which the API requires.
    fn action(self) -> &'static str {
        match self {
            Reason::TunnelUp | Reason::TunnelDown | Reason::NoHandshake | Reason::SecondSpeaker => "Tunnel",
            Reason::InvalidConfiguration => "Configure",
            Reason::ClockSkew | Reason::Holding | Reason::FenceClosed => "Elect",
            Reason::PortConflict | Reason::NoBackends | Reason::Forwarded => "Forward",
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Reason::TunnelUp | Reason::TunnelDown | Reason::Forwarded => "Normal",
            _ => "Warning",
        }
    }
}

/// Whom an Event concerns.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Regarding {
    /// This pod.
    Pod,
    /// The Secret; its uid, if it is known, so that `kubectl describe` shows the Event.
    Secret {
        /// `metadata.uid`.
        uid: Option<String>,
    },
    /// A Service.
    Service {
        /// Which.
        name: ObjectName,
        /// `metadata.uid`.
        uid: String,
    },
}

/// This pod and its Secret, for the objects that Events refer to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reporter {
    /// The pod's namespace, which is the Secret's.
    pub namespace: String,
    /// The pod's name.
    pub pod_name: String,
    /// The pod's uid.
    pub pod_uid: String,
    /// The Secret's name.
    pub secret_name: String,
}

impl Reporter {
    fn reference(&self, regarding: &Regarding) -> ObjectReference {
        let (kind, namespace, name, uid) = match regarding {
            Regarding::Pod => ("Pod", &self.namespace, &self.pod_name, Some(self.pod_uid.clone())),
            Regarding::Secret { uid } => ("Secret", &self.namespace, &self.secret_name, uid.clone()),
            Regarding::Service { name, uid } => ("Service", &name.namespace, &name.name, Some(uid.clone())),
        };
        ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some(kind.to_owned()),
            namespace: Some(namespace.clone()),
            name: Some(name.clone()),
            uid: uid.filter(|uid| !uid.is_empty()),
            ..ObjectReference::default()
        }
    }

    fn event(&self, told: &Told) -> Event {
        let regarding = self.reference(&told.regarding);
        let name = regarding.name.as_deref().unwrap_or_default();
        // As client-go names them, so that two writers do not meet.
        let name = format!("{}.{:x}", cut(name, NAME), told.at.as_nanosecond());
        Event {
            metadata: ObjectMeta { name: Some(name), namespace: regarding.namespace.clone(), ..ObjectMeta::default() },
            event_time: Some(MicroTime(told.at)),
            action: Some(told.reason.action().to_owned()),
            reason: Some(told.reason.name().to_owned()),
            note: Some(cut(&told.note, NOTE).to_owned()),
            type_: Some(told.reason.kind().to_owned()),
            reporting_controller: Some("wirevip".to_owned()),
            reporting_instance: Some(cut(&self.pod_name, INSTANCE).to_owned()),
            regarding: Some(regarding),
            ..Event::default()
        }
    }
}

/// The longest beginning of at most `most` bytes.
fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

/// Something that happened.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Told {
    regarding: Regarding,
    reason: Reason,
    note: String,
    at: Timestamp,
}

/// Where Events are told. Clones share it.
#[derive(Clone)]
pub struct Events {
    queue: Arc<Queue>,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
}

#[derive(Default)]
struct Queue {
    told: Mutex<VecDeque<Told>>,
    news: Notify,
}

impl Queue {
    /// Appends; `false` if another had to go for it.
    fn push(&self, told: Told) -> bool {
        let mut queue = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = queue.len() < QUEUE;
        if !fits {
            let least = queue.iter().position(|told| told.reason == Reason::Forwarded);
            queue.remove(least.unwrap_or_default());
        }
        queue.push_back(told);
        drop(queue);
        self.news.notify_one();
        fits
    }

    async fn pop(&self) -> Told {
        loop {
            let first = self.told.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            match first {
                Some(told) => return told,
                None => self.news.notified().await,
            }
        }
    }
}

/// Where Events are written.
pub trait EventStore: Send + Sync + 'static {
    /// Creates an Event.
    fn create(&self, event: &Event) -> impl Future<Output = Result<(), CallError>> + Send;

    /// Says that the Event of this name happened again: so often in all, last at that time.
    fn repeat(
        &self,
        namespace: &str,
        name: &str,
        count: i32,
        last: Timestamp,
    ) -> impl Future<Output = Result<(), CallError>> + Send;
}

/// The API server.
#[derive(Clone)]
pub struct ApiEventStore(pub Client);

impl EventStore for ApiEventStore {
    async fn create(&self, event: &Event) -> Result<(), CallError> {
        let namespace = event.metadata.namespace.as_deref().unwrap_or("default");
        let api: Api<Event> = Api::namespaced(self.0.clone(), namespace);
        bounded(api.create(&PostParams::default(), event)).await.map(drop)
    }

    async fn repeat(&self, namespace: &str, name: &str, count: i32, last: Timestamp) -> Result<(), CallError> {
        let api: Api<Event> = Api::namespaced(self.0.clone(), namespace);
        let series = json!({"series": {"count": count, "lastObservedTime": MicroTime(last)}});
        bounded(api.patch(name, &PatchParams::default(), &Patch::Merge(series))).await.map(drop)
    }
}

impl Events {
    /// Starts the task that writes Events. It runs for as long as the process.
    pub fn spawn(store: impl EventStore, reporter: Reporter, clock: Arc<dyn Clock>, metrics: Metrics) -> Self {
        let events = Self { queue: Arc::default(), clock, metrics };
        tokio::spawn(write(store, reporter, events.clone()));
        events
    }

    /// Tells of something. Returns at once. Never put key material into a note.
    pub fn tell(&self, regarding: Regarding, reason: Reason, note: impl Into<String>) {
        let told = Told { regarding, reason, note: note.into(), at: self.clock.wall() };
        if !self.queue.push(told) {
            self.metrics.error("events");
        }
    }
}

async fn write(store: impl EventStore, reporter: Reporter, events: Events) {
    let mut ledger = Ledger::default();
    let mut backoff = Backoff::default();
    loop {
        let told = events.queue.pop().await;
        let Some(mut write) = ledger.enter(&told) else { continue };
        let mut refusals = 0;
        loop {
            let outcome = match &write {
                Write::Create => {
                    let event = reporter.event(&told);
                    let name = event.metadata.name.clone().unwrap_or_default();
                    store.create(&event).await.map(|()| ledger.created(&told, name))
                }
                Write::Repeat { name, count } => {
                    let namespace = reporter.reference(&told.regarding).namespace.unwrap_or_default();
                    store.repeat(&namespace, name, *count, told.at).await
                }
            };
            match outcome {
                Ok(()) => {
                    backoff.reset();
                    break;
                }
                // The API has forgotten the Event, as it does after an hour.
                Err(error) if error.code() == Some(404) && matches!(write, Write::Repeat { .. }) => {
                    write = Write::Create;
                }
                // An earlier try was written, though its answer was lost.
                Err(error) if error.code() == Some(409) => break,
                Err(error) => {
                    // An absent server is waited for; one that says no is not asked for ever, others are waiting.
                    let allowed = match error.code() {
                        None => u32::MAX,
                        // An API server that has just started knows no rights yet, and refuses everything for a moment.
                        Some(401 | 403 | 429 | 500..) => 5,
                        Some(_) => 0,
                    };
                    if refusals >= allowed {
                        events.metrics.error("events");
                        let error = crate::api::chain(&error);
                        tracing::debug!(reason = told.reason.name(), error, "Event not taken");
                        break;
                    }
                    refusals += u32::from(error.code().is_some());
                    tokio::time::sleep(backoff.wait()).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
