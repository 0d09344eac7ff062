//! Tells what happens: each notice as one log line and one Event on the object it concerns, and `status.loadBalancer`.
//!
//! What concerns a Service is told by the pod that leads the tunnel, else every pod would say the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::fleet::Parts;
use crate::clock::Clock;
use crate::secret::TunnelName;
use crate::secret::watch::SecretState;
use crate::services::watch::Inputs;
use crate::services::{Forwards, ObjectName, Owner, Translation};
use crate::status::events::{ApiEventStore, Events, Reason, Regarding, Reporter};
use crate::status::ingress::{Publication, Role};
use crate::status::publish::{ApiStatusStore, Publisher};
use crate::status::{FaultsByTunnel, Narrator, Notice, Snapshot, no_handshake_causes, told};

/// How long a tunnel that leaves the Secret waits for its entries to be gone from the Services.
const RETIRE_WITHIN: Duration = Duration::from_secs(2);

/// See the module's text.
pub(super) struct Herald {
    clock: Arc<dyn Clock>,
    events: Events,
    publisher: Publisher,
    services: watch::Receiver<Arc<Inputs>>,
    news: watch::Sender<Arc<News>>,
    secret_uid: Option<String>,
    faults: FaultsByTunnel,
}

/// What the last translation says of the Services.
#[derive(PartialEq, Eq, Default)]
struct News {
    translation: Translation,
    /// The Services of each tunnel that has any.
    published: BTreeMap<TunnelName, Arc<BTreeSet<ObjectName>>>,
    first_tunnel: Option<TunnelName>,
}

impl News {
    fn new(translation: Translation, first_tunnel: Option<TunnelName>) -> Self {
        let mut published: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for (service, tunnels) in &translation.published {
            for tunnel in tunnels {
                published.entry(tunnel.clone()).or_default().insert(service.clone());
            }
        }
        let published = published.into_iter().map(|(tunnel, services)| (tunnel, Arc::new(services))).collect();
        Self { translation, published, first_tunnel }
    }
}

impl Herald {
    pub(super) fn new(parts: &Parts, services: watch::Receiver<Arc<Inputs>>) -> Self {
        let reporter = Reporter {
            namespace: parts.config.namespace.clone(),
            pod_name: parts.config.pod_name.clone(),
            pod_uid: parts.config.pod_uid.clone(),
            secret_name: parts.config.secret_name.clone(),
        };
        let client = &parts.connection.client;
        let clock: Arc<dyn Clock> = parts.clock.clone();
        Self {
            events: Events::spawn(ApiEventStore(client.clone()), reporter, Arc::clone(&clock), parts.metrics.clone()),
            publisher: Publisher::spawn(ApiStatusStore(client.clone()), services.clone()),
            services,
            clock,
            news: watch::channel(Arc::default()).0,
            secret_uid: None,
            faults: FaultsByTunnel::new(),
        }
    }

    /// The Secret changed; its uid makes `kubectl describe` show the Events.
    pub(super) fn secret(&mut self, state: &SecretState) {
        match state {
            SecretState::Data { uid, .. } | SecretState::NoKey { uid, .. } => self.secret_uid = Some(uid.clone()),
            SecretState::Missing if self.secret_uid.is_some() => {
                tracing::warn!("the Secret is gone; every tunnel keeps its last good settings");
                self.tell_secret("the Secret was deleted; every tunnel keeps its last good settings".to_owned());
            }
            SecretState::Missing => tracing::warn!("the Secret does not exist yet; waiting for it"),
            SecretState::NotYet => {}
        }
    }

    /// The faults of the newest document. Each is told when it is new.
    pub(super) fn faults(&mut self, faults: FaultsByTunnel) {
        for (tunnel, found) in &faults {
            let known = self.faults.get(tunnel);
            for fault in found.iter().filter(|fault| !known.is_some_and(|known| known.contains(fault))) {
                let told = told(fault);
                tracing::warn!(tunnel, fault = told, "the Secret has a fault");
                self.tell_secret(if tunnel.is_empty() { told } else { format!("tunnel {tunnel}: {told}") });
            }
        }
        self.faults = faults;
    }

    fn tell_secret(&self, note: String) {
        let regarding = Regarding::Secret { uid: self.secret_uid.clone() };
        self.events.tell(regarding, Reason::InvalidConfiguration, note);
    }

    /// The Services were translated anew. `translation` without the forwards, of which nothing is told.
    pub(super) fn translated(&self, translation: Translation, first_tunnel: Option<TunnelName>) {
        let news = News::new(translation, first_tunnel);
        self.news.send_if_modified(|known| {
            let changed = **known != news;
            if changed {
                *known = Arc::new(news);
            }
            changed
        });
    }

    /// Follows one tunnel until its actor has ended.
    pub(super) fn listen(
        &self,
        name: &TunnelName,
        mut snapshot: watch::Receiver<Snapshot>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let mut ear = Ear {
            name: name.clone(),
            events: self.events.clone(),
            publisher: self.publisher.clone(),
            services: self.services.clone(),
            narrator: Narrator::default(),
            told: BTreeSet::new(),
            forwarded: Forwarded::default(),
        };
        let (clock, mut news) = (Arc::clone(&self.clock), self.news.subscribe());
        async move {
            loop {
                let ended = tokio::select! {
                    changed = snapshot.changed() => changed.is_err(),
                    changed = news.changed() => changed.is_err(),
                };
                if ended {
                    return ear.publisher.remove(&ear.name);
                }
                let (seen, known) = (snapshot.borrow_and_update().clone(), Arc::clone(&news.borrow_and_update()));
                for notice in ear.narrator.tell(&seen, clock.now()) {
                    ear.tell(&notice, &seen);
                }
                ear.publish(&seen, &known, seen.leads(clock.now()));
            }
        }
    }

    /// A tunnel leaves the Secret: the entries that it led go before its Lease does.
    pub(super) fn retire(&self, name: &TunnelName, last: &Snapshot) -> impl Future<Output = ()> + Send + use<> {
        let (publisher, name) = (self.publisher.clone(), name.clone());
        let leads = last.leads(self.clock.now());
        let publication = Publication {
            role: if leads { Role::Serving } else { Role::Standby },
            vip: last.settings.vip,
            public_address: last.settings.public_address.clone(),
            services: Arc::default(),
            forwarded: Arc::default(),
        };
        async move {
            publisher.set(&name, publication);
            if leads && tokio::time::timeout(RETIRE_WITHIN, publisher.settled(&name)).await.is_err() {
                tracing::warn!(tunnel = %name, "its entries in Services' status could not be removed in time");
            }
        }
    }
}

/// What one tunnel's listener remembers.
struct Ear {
    name: TunnelName,
    events: Events,
    publisher: Publisher,
    services: watch::Receiver<Arc<Inputs>>,
    narrator: Narrator,
    /// What was told of Services, while it lasts.
    told: BTreeSet<(ObjectName, Reason, String)>,
    forwarded: Forwarded,
}

/// The Services that the kernel forwards to: kept for as long as it does, since snapshots come often.
#[derive(Default)]
struct Forwarded {
    by: Arc<Forwards>,
    services: Arc<BTreeSet<ObjectName>>,
}

impl Forwarded {
    fn by(&mut self, forwards: Option<&Arc<Forwards>>) -> Arc<BTreeSet<ObjectName>> {
        let Some(forwards) = forwards else { return Arc::default() };
        if !Arc::ptr_eq(&self.by, forwards) {
            let owners = forwards.values().filter_map(|forward| match &forward.owner {
                Owner::Service { namespace, name } => Some(ObjectName::new(namespace, name)),
                Owner::ControlPlane => None,
            });
            *self = Self { by: Arc::clone(forwards), services: Arc::new(owners.collect()) };
        }
        Arc::clone(&self.services)
    }
}

impl Ear {
    fn tell(&self, notice: &Notice, seen: &Snapshot) {
        let (name, vip, endpoint) = (&self.name, seen.settings.vip, &seen.settings.endpoint);
        let (reason, note) = match notice {
            Notice::Up => {
                tracing::info!(tunnel = %name, %vip, %endpoint, "tunnel up");
                (Reason::TunnelUp, format!("tunnel {name} is up: {vip} by the hub at {endpoint}"))
            }
            Notice::Down => {
                tracing::info!(tunnel = %name, %vip, "tunnel down");
                (Reason::TunnelDown, format!("tunnel {name} is down in this pod"))
            }
            Notice::NoHandshake => {
                let causes = no_handshake_causes(&seen.settings);
                tracing::warn!(tunnel = %name, "{causes}");
                (Reason::NoHandshake, format!("tunnel {name}: {causes}"))
            }
            Notice::Holding => {
                let note = "the tenure ended without a renewal; answers go on until another pod takes the tunnel over or \
                            the Lease can be renewed; is the API server slow or away?";
                tracing::warn!(tunnel = %name, "{note}");
                (Reason::Holding, format!("tunnel {name}: {note}"))
            }
            Notice::FenceClosed => {
                let note =
                    "the tenure ended without a renewal, so the kernel closed the fence; is the API server slow?";
                tracing::warn!(tunnel = %name, "{note}");
                (Reason::FenceClosed, format!("tunnel {name}: {note}"))
            }
            Notice::ClockSkew(seconds) => {
                let note = format!(
                    "this node's clock is {seconds:.1} s off the Lease holder's; a hub refuses handshakes that are older \
                     than the last it saw, so check time synchronisation on the nodes"
                );
                tracing::warn!(tunnel = %name, "{note}");
                (Reason::ClockSkew, format!("tunnel {name}: {note}"))
            }
            Notice::SecondSpeaker(packets) => {
                let note = format!(
                    "the hub sent {packets} packets of sessions that are not ours: another program uses this tunnel's \
                     key (is kube-vip still running?); stop it, or give each its own key"
                );
                tracing::warn!(tunnel = %name, "{note}");
                (Reason::SecondSpeaker, format!("tunnel {name}: {note}"))
            }
            Notice::Failing(why) => {
                tracing::warn!(tunnel = %name, why, "trying again");
                (Reason::TunnelDown, format!("tunnel {name}: {why}"))
            }
        };
        self.events.tell(Regarding::Pod, reason, note);
    }

    fn publish(&mut self, seen: &Snapshot, news: &News, leads: bool) {
        let services = news.published.get(&self.name).cloned().unwrap_or_default();
        let forwarded = self.forwarded.by(seen.forwards.as_ref());
        let role = match (leads, seen.serves) {
            (false, _) => Role::Standby,
            (true, false) => Role::Rising,
            (true, true) => Role::Serving,
        };
        if leads {
            let forwarded = if role == Role::Serving { services.intersection(&forwarded).collect() } else { vec![] };
            self.tell_services(news, &forwarded);
        } else if !seen.holds() {
            self.told.clear();
        }
        let (vip, public_address) = (seen.settings.vip, seen.settings.public_address.clone());
        self.publisher.set(&self.name, Publication { role, vip, public_address, services, forwarded });
    }

    fn tell_services(&mut self, news: &News, forwarded: &[&ObjectName]) {
        let (name, translation) = (&self.name, &news.translation);
        let mut now = BTreeSet::new();
        for conflict in translation.conflicts.iter().filter(|conflict| conflict.tunnel == *name) {
            let note = format!(
                "port {} of tunnel {name} belongs to {}, which is older; choose another port or tunnel",
                conflict.port, conflict.winner
            );
            now.insert((conflict.loser.clone(), Reason::PortConflict, note));
        }
        for empty in translation.no_backends.iter().filter(|empty| empty.tunnel == *name) {
            if let Owner::Service { namespace, name: service } = &empty.owner {
                let note = format!("no endpoint is ready for port {}; clients are refused until one is", empty.port);
                now.insert((ObjectName::new(namespace, service), Reason::NoBackends, note));
            }
        }
        // A fault belongs to no tunnel; the leader of the first one tells it.
        if news.first_tunnel.as_ref() == Some(name) {
            for (service, fault) in &translation.faults {
                now.insert((service.clone(), Reason::InvalidConfiguration, fault.to_string()));
            }
        }
        let note = format!("forwarded from tunnel {name}");
        now.extend(forwarded.iter().map(|service| ((*service).clone(), Reason::Forwarded, note.clone())));
        for (service, reason, note) in now.difference(&self.told) {
            self.events.tell(self.regarding(service), *reason, note.clone());
        }
        self.told = now;
    }

    fn regarding(&self, name: &ObjectName) -> Regarding {
        let uid = self.services.borrow().service(name).map(|found| found.uid.clone());
        Regarding::Service { name: name.clone(), uid: uid.unwrap_or_default() }
    }
}
