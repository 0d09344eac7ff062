//! Watches Services and EndpointSlices, and hands on what is known of them as one value.
//!
//! What must hold: nothing that the API deleted stays, whether the deletion was seen or missed; while the API is away
//! the last state stays; a thousand changes a second come out as a few dozen values, and none waits longer than
//! [`SETTLE`].

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::ObjectName;
use super::objects::{EndpointSlice, Service, Slim, name_of};
use crate::api::retry::Backoff;

/// What may not be listed for so long, without a break, counts as empty. An API server that has just started refuses
/// everything until it has read its own rules: to take that for the truth would empty tables that serve.
const REFUSED_FOR: Duration = Duration::from_secs(5);

/// How long changes are gathered before they are handed on.
const SETTLE: Duration = Duration::from_millis(10);
/// A watch is renewed after this long, so that a server that went silent behind a living connection is left.
const WATCH_SECONDS: u32 = 60;
/// Objects asked for at a time: what is parsed but not yet slimmed stays small.
const PAGE: u32 = 100;
/// Selects the EndpointSlices of `default/kubernetes`.
const CONTROL_PLANE_LABEL: &str = "kubernetes.io/service-name=kubernetes";

/// All that is known of the cluster's Services. Each list is in order of name; `None`: not heard of yet; empty also
/// where RBAC forbids to read it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Inputs {
    /// Services of type LoadBalancer, and others that still carry an address in their status.
    pub services: Option<Vec<Arc<Service>>>,
    /// IPv4 EndpointSlices of the Services watched.
    pub slices: Option<Vec<Arc<EndpointSlice>>>,
    /// EndpointSlices of the control plane, where they are watched on their own.
    pub control_plane: Option<Vec<Arc<EndpointSlice>>>,
}

impl Inputs {
    /// Is everything known that forwards are made of?
    pub fn complete(&self) -> bool {
        self.services.is_some() && self.slices.is_some() && self.control_plane.is_some()
    }

    /// Is nothing different that forwards are made of? Every Service's status is written by somebody, for the most part
    /// by us; that must not cost a translation of all.
    pub fn forwards_as(&self, other: &Self) -> bool {
        let services = |one: &Arc<Service>, other: &Arc<Service>| Arc::ptr_eq(one, other) || one.forwards_as(other);
        alike(&self.services, &other.services, services)
            && alike(&self.slices, &other.slices, Arc::eq)
            && alike(&self.control_plane, &other.control_plane, Arc::eq)
    }

    /// The Services known.
    pub fn services(&self) -> &[Arc<Service>] {
        self.services.as_deref().unwrap_or_default()
    }

    /// The Service of that name.
    pub fn service(&self, name: &ObjectName) -> Option<&Service> {
        let services = self.services();
        let at = services.binary_search_by(|service| service.name.cmp(name)).ok()?;
        Some(&services[at])
    }

    /// All slices known, the control plane's among them.
    pub fn all_slices(&self) -> Vec<Arc<EndpointSlice>> {
        self.slices.iter().chain(&self.control_plane).flatten().cloned().collect()
    }
}

fn alike<T>(one: &Option<Vec<T>>, other: &Option<Vec<T>>, alike: impl Fn(&T, &T) -> bool) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one.len() == other.len() && std::iter::zip(one, other).all(|(a, b)| alike(a, b)),
        (one, other) => one.is_none() && other.is_none(),
    }
}

/// Starts the watches of one namespace's Services, or of all, and of the control plane's endpoints. They run until
/// the receiver and all its clones are gone.
pub fn spawn(client: &Client, namespace: Option<&str>) -> (watch::Receiver<Arc<Inputs>>, JoinSet<()>) {
    let (sender, receiver) = watch::channel(Arc::new(Inputs::default()));
    let mut tasks = JoinSet::new();
    let all = watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE);
    let services = scoped(client, namespace);
    tasks.spawn(follow(services, all.clone(), sender.clone(), |inputs, services| inputs.services = Some(services)));
    let slices = scoped(client, namespace);
    match namespace {
        None | Some("default") => tasks.spawn(follow(slices, all, sender, |inputs, slices| {
            inputs.slices = Some(slices);
            // They are among the slices; nothing more is to come.
            inputs.control_plane = Some(Vec::new());
        })),
        Some(_) => {
            let own = all.clone().labels(CONTROL_PLANE_LABEL);
            let control_plane = Api::namespaced(client.clone(), "default");
            tasks.spawn(follow(slices, all, sender.clone(), |inputs, slices| inputs.slices = Some(slices)));
            tasks.spawn(follow(control_plane, own, sender, |inputs, slices| inputs.control_plane = Some(slices)))
        }
    };
    (receiver, tasks)
}

fn scoped<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// Mirrors one kind into its part of the inputs, for as long as anybody listens.
async fn follow<T, K>(
    api: Api<K>,
    config: watcher::Config,
    sender: watch::Sender<Arc<Inputs>>,
    store: impl Fn(&mut Inputs, Vec<Arc<T>>),
) where
    T: Slim<Wire = K> + PartialEq,
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut events = pin!(watcher::watcher(api, config));
    let mut mirror = Mirror::default();
    let mut backoff = Backoff::default();
    let mut due = None;
    let mut refused_since = None;
    loop {
        let settled = async {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // A stream that is always ready must not keep the change of 10 ms ago back.
            biased;
            () = sender.closed() => return,
            () = settled => {
                due = None;
                let objects = mirror.objects();
                sender.send_modify(|inputs| store(Arc::make_mut(inputs), objects));
            }
            event = events.next() => match event {
                Some(Ok(event)) => {
                    // `Init` only says that a list is being tried.
                    if !matches!(event, Event::Init) {
                        backoff.reset();
                        refused_since = None;
                    }
                    if mirror.apply(event) && due.is_none() {
                        due = Some(after(SETTLE));
                    }
                }
                Some(Err(error)) => {
                    tracing::debug!(kind = %K::kind(&()), %error, "watch interrupted");
                    let refused = forbidden(&error);
                    refused_since = refused.then(|| refused_since.unwrap_or_else(now));
                    let lasts = refused_since.is_some_and(|since: tokio::time::Instant| since.elapsed() >= REFUSED_FOR);
                    if !mirror.listed && lasts {
                        // What may not be read must not keep the rest, the control plane first of all, from being
                        // forwarded. The layer below tells which rule is missing.
                        sender.send_if_modified(|inputs| {
                            let before = inputs.clone();
                            store(Arc::make_mut(inputs), Vec::new());
                            *inputs != before
                        });
                    }
                    let wait = backoff.wait();
                    // What is known already goes out before the wait.
                    if due.take().is_some() {
                        let objects = mirror.objects();
                        sender.send_modify(|inputs| store(Arc::make_mut(inputs), objects));
                    }
                    tokio::time::sleep(wait).await;
                }
                None => return,
            }
        }
    }
}

fn forbidden(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::InitialListFailed(kube::Error::Api(status)) if status.code == 403)
}

fn after(span: Duration) -> tokio::time::Instant {
    now() + span
}

#[expect(clippy::disallowed_methods, reason = "for a timer's deadline and a patience, on tokio's own clock")]
fn now() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

/// One kind's objects, slimmed.
struct Mirror<T> {
    known: BTreeMap<ObjectName, Arc<T>>,
    /// A list under way; it replaces `known` when it is whole.
    listing: Option<BTreeMap<ObjectName, Arc<T>>>,
    listed: bool,
}

impl<T> Default for Mirror<T> {
    fn default() -> Self {
        Self { known: BTreeMap::new(), listing: None, listed: false }
    }
}

impl<T: Slim + PartialEq> Mirror<T>
where
    T::Wire: Resource,
{
    /// Takes an event in; `true` if what is kept differs now.
    fn apply(&mut self, event: Event<T::Wire>) -> bool {
        match event {
            Event::Init => {
                self.listing = Some(BTreeMap::new());
                false
            }
            Event::InitApply(wire) => {
                if let (Some(name), Some(object)) = (name_of(wire.meta()), T::slim(&wire)) {
                    self.listing.get_or_insert_default().insert(name, Arc::new(object));
                }
                false
            }
            Event::InitDone => {
                let listing = self.listing.take().unwrap_or_default();
                let changed = !self.listed || self.known != listing;
                self.known = listing;
                self.listed = true;
                changed
            }
            Event::Apply(wire) => match (name_of(wire.meta()), T::slim(&wire)) {
                (Some(name), Some(object)) => {
                    let same = self.known.get(&name).is_some_and(|known| **known == object);
                    if !same {
                        self.known.insert(name, Arc::new(object));
                    }
                    !same
                }
                (Some(name), None) => self.known.remove(&name).is_some(),
                (None, _) => false,
            },
            Event::Delete(wire) => name_of(wire.meta()).is_some_and(|name| self.known.remove(&name).is_some()),
        }
    }

    fn objects(&self) -> Vec<Arc<T>> {
        self.known.values().cloned().collect()
    }
}

#[cfg(test)]
mod tests;
