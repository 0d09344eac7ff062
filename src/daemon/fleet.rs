//! The tunnels that this pod may lead: one actor, one campaign and one resolver each, made and ended as the Secret says.
//!
//! They share the watches and the way to the kernel, nothing else (I5). An actor that leaves is waited for by those that
//! come after it, since they may want its port or its name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::herald::Herald;
use super::leaving::Leaving;
use crate::api::client::Connection;
use crate::cli::run::RunConfig;
use crate::clock::{BootClock, Clock};
use crate::controller::actor::{Actor, Inputs as ActorInputs, Outputs};
use crate::controller::{Controller, Ending, hub};
use crate::election::lease::KubeLease;
use crate::election::{Campaign, Elector, Load};
use crate::inheritance;
use crate::metrics::Metrics;
use crate::ruleset::NetlinkFirewall;
use crate::secret::watch::SecretState;
use crate::secret::{Document, Settings, Tunnel, TunnelName};
use crate::services::watch::Inputs;
use crate::services::{self, Forwards, TunnelView};
use crate::status::board::Board;
use crate::status::{FaultsByTunnel, Snapshot};
use crate::tunnel::network::KernelNet;
use crate::tunnel::system::SystemLinks;
use crate::tunnel::{Backend, Found, LinkBackend, Nic, Slot};

/// What the fleet is made from.
pub(super) struct Parts {
    pub(super) config: RunConfig,
    pub(super) clock: Arc<BootClock>,
    pub(super) links: Arc<SystemLinks>,
    pub(super) net: Arc<KernelNet>,
    pub(super) firewall: NetlinkFirewall,
    /// What an earlier life left and may serve on.
    pub(super) found: Vec<Found>,
    pub(super) metrics: Metrics,
    pub(super) board: Arc<Board>,
    pub(super) connection: Connection,
    pub(super) nic: watch::Receiver<Nic>,
    pub(super) stop: watch::Receiver<bool>,
}

/// See the module's text.
pub(super) struct Fleet {
    parts: Parts,
    secret: watch::Receiver<SecretState>,
    services: watch::Receiver<Arc<Inputs>>,
    /// From what the forwards of now were made.
    translated: Arc<Inputs>,
    /// The watches; they end with the fleet.
    _watches: JoinSet<()>,
    settings: Settings,
    members: BTreeMap<TunnelName, Member>,
    /// Actors on their way out.
    leaving: Leaving,
    /// What an elector is before it knows of any Lease.
    elector: Elector,
    /// What this pod leads of all.
    load: Load,
    herald: Herald,
}

struct Member {
    slot: Slot,
    settings: watch::Sender<Arc<Tunnel>>,
    forwards: watch::Sender<Option<Arc<Forwards>>>,
    stop: watch::Sender<Option<Ending>>,
    snapshot: watch::Receiver<Snapshot>,
    actor: JoinHandle<()>,
    /// Ends with the member.
    _resolver: JoinSet<()>,
}

impl Fleet {
    /// Starts the watches.
    pub(super) fn new(parts: Parts) -> anyhow::Result<Self> {
        // Times or an identity that no election can be held by are found here, before any tunnel is touched.
        let elector = Elector::new(parts.config.election, &parts.board.pod().identity)?;
        let elector = if parts.links.backend() == Backend::Userspace { elector.stamping() } else { elector };
        let client = &parts.connection.client;
        let secret = crate::secret::watch::spawn(client.clone(), &parts.config.namespace, &parts.config.secret_name);
        let (services, watches) = services::watch::spawn(client, parts.config.service_namespace.as_deref());
        let herald = Herald::new(&parts, services.clone());
        Ok(Self {
            parts,
            secret,
            services,
            translated: Arc::default(),
            _watches: watches,
            settings: Settings::default(),
            members: BTreeMap::new(),
            leaving: Leaving::default(),
            elector,
            load: Load::default(),
            herald,
        })
    }

    /// Until told to stop and every tunnel is down.
    pub(super) async fn run(mut self) {
        while !*self.parts.stop.borrow_and_update() {
            tokio::select! {
                biased;
                _ = self.parts.stop.changed() => {}
                _ = self.secret.changed() => self.configure().await,
                _ = self.services.changed() => {
                    if !self.services.borrow_and_update().forwards_as(&self.translated) {
                        self.translate();
                    }
                }
            }
        }
        for (_, member) in std::mem::take(&mut self.members) {
            // Its entries stay: the successor's are the same.
            self.dismiss(member, Ending::HandOver, std::future::ready(()));
        }
        // Of what was never taken over nothing may be left either.
        self.settings = Settings::default();
        self.disown().await;
        self.leaving.gone().await;
    }

    /// Takes the Secret in.
    async fn configure(&mut self) {
        let state = self.secret.borrow_and_update().clone();
        self.herald.secret(&state);
        let name = &self.parts.config.secret_name;
        let document = match &state {
            SecretState::Data { document, .. } => crate::secret::parse(document),
            SecretState::NoKey { .. } => Document::absent(),
            SecretState::Missing | SecretState::NotYet => {
                // A deleted Secret removes nothing.
                let why =
                    format!("the Secret {name} does not exist in namespace {}; create it", self.parts.config.namespace);
                self.parts.board.not_ready_because(why);
                return;
            }
        };
        let change = self.settings.apply(document);
        self.disown().await;
        self.publish_faults();
        for name in &change.removed {
            if let Some(member) = self.members.remove(name) {
                self.parts.board.remove(name);
                tracing::info!(tunnel = %name, "left the Secret; taking it down");
                let retired = self.herald.retire(name, &member.snapshot.borrow());
                self.dismiss(member, Ending::Removal, retired);
            }
        }
        let names: Vec<_> = self.settings.tunnels().map(|tunnel| tunnel.name.clone()).collect();
        self.parts.metrics.set_tunnels(&names);
        for name in change.changed.iter().chain(&change.added) {
            let Some(tunnel) = self.settings.get(name).cloned() else { continue };
            match self.members.get(name) {
                Some(member) => {
                    member.settings.send_replace(Arc::new(tunnel));
                }
                None => self.enlist(tunnel),
            }
        }
        if self.settings.is_configured() {
            self.parts.board.ready();
        } else {
            self.parts.board.not_ready_because("the Secret names no sound tunnel; `wirevip check` tells why".into());
        }
        if !change.is_empty() {
            self.parts.metrics.config_changed(self.parts.clock.wall());
        }
        self.translate();
    }

    /// What an earlier life left of tunnels that are no longer wanted goes, before another may want its port or its slot.
    async fn disown(&mut self) {
        let wanted = |found: &Found| self.settings.get(&found.name).is_some();
        let (kept, gone): (Vec<_>, Vec<_>) = std::mem::take(&mut self.parts.found).into_iter().partition(wanted);
        self.parts.found = kept;
        for found in gone {
            tracing::info!(tunnel = %found.name, "an earlier life left a tunnel that is not wanted; taking it down");
            if let Err(error) = inheritance::discard(&*self.parts.net, &mut self.parts.firewall, &found).await {
                tracing::error!(tunnel = %found.name, %error, "it cannot be taken down; the next start tries again");
            }
        }
    }

    fn publish_faults(&mut self) {
        let mut faults = FaultsByTunnel::new();
        for fault in self.settings.faults() {
            faults.entry(fault.tunnel.clone().unwrap_or_default()).or_default().push(fault.clone());
        }
        self.parts.board.set_faults(faults.clone());
        self.herald.faults(faults);
        self.parts.metrics.set_config_valid(self.settings.valid());
    }

    /// What each tunnel forwards, from all that is known (I4).
    fn translate(&mut self) {
        let inputs = Arc::clone(&self.services.borrow_and_update());
        if !inputs.complete() {
            return;
        }
        let views: Vec<_> = self
            .settings
            .tunnels()
            .map(|tunnel| TunnelView {
                name: tunnel.name.clone(),
                vip: tunnel.vip,
                control_plane: tunnel.control_plane,
            })
            .collect();
        let sound: BTreeSet<&str> = views.iter().map(|view| view.name.as_str()).collect();
        // Whatever of its faults is told.
        let unsound = self.settings.valid().into_keys().filter(|name| !sound.contains(name.as_str()));
        let settings = services::Settings {
            control_plane: self.parts.config.control_plane,
            control_plane_port: self.parts.config.control_plane_port,
            unsound_tunnels: unsound.count(),
        };
        let mut translation = services::translate(inputs.services(), &inputs.all_slices(), &views, settings);
        for (name, forwards) in std::mem::take(&mut translation.forwards) {
            if let Some(member) = self.members.get(&name) {
                member.forwards.send_if_modified(|known| {
                    let changed = known.as_deref() != Some(&forwards);
                    if changed {
                        *known = Some(Arc::new(forwards));
                    }
                    changed
                });
            }
        }
        self.herald.translated(translation, views.first().map(|view| view.name.clone()));
        self.translated = inputs;
    }

    fn enlist(&mut self, tunnel: Tunnel) {
        let name = tunnel.name.clone();
        let at = self.parts.found.iter().position(|found| found.name == name);
        let found = at.map(|at| self.parts.found.swap_remove(at));
        let slot = found.as_ref().map(|found| found.alias.slot());
        let Some(slot) = slot.or_else(|| self.free_slot()) else {
            tracing::error!(tunnel = %name, "a pod carries 255 tunnels at most; move some to another Secret and DaemonSet");
            return;
        };
        tracing::info!(tunnel = %name, vip = %tunnel.vip, endpoint = %tunnel.endpoint, "new in the Secret");
        let tunnel = Arc::new(tunnel);
        let (settings, settings_rx) = watch::channel(Arc::clone(&tunnel));
        let (forwards, forwards_rx) = watch::channel(None);
        let (whereabouts, hub) = watch::channel(Default::default());
        let (unheard, unheard_rx) = watch::channel(Default::default());
        let (stop, stop_rx) = watch::channel(None);
        let (snapshot, snapshot_rx) = watch::channel(Snapshot::standby(Arc::clone(&tunnel)));
        self.parts.board.add(name.clone(), snapshot_rx.clone());
        let mut resolver = JoinSet::new();
        resolver.spawn(hub::follow(self.parts.nic.clone(), settings_rx.clone(), unheard_rx, whereabouts));
        let inputs = ActorInputs {
            settings: settings_rx,
            forwards: forwards_rx,
            hub,
            nic: self.parts.nic.clone(),
            stop: stop_rx,
        };
        let outputs = Outputs { snapshot, unheard, metrics: self.parts.metrics.clone() };
        let parts = &self.parts;
        let store = KubeLease::new(parts.connection.client.clone(), &parts.config.namespace, name.lease());
        let share = self.load.share(&parts.board.pod().identity, name.as_str());
        let (elector, rng) = (self.elector.clone(), StdRng::from_os_rng());
        let campaign = tracing::error_span!("election", tunnel = %name)
            .in_scope(|| Campaign::spawn_beside_others(share, store, BootClock, elector, rng));
        let ear = self.herald.listen(&name, snapshot_rx.clone());
        let mut controller = Controller::new(slot, parts.nic.borrow().clone(), tunnel);
        if parts.config.hold {
            controller = controller.holding(&parts.board.pod().identity);
        }
        let kernel = (Arc::clone(&parts.links), Arc::clone(&parts.net), parts.firewall.clone());
        let actor = Actor::new(controller, kernel, parts.clock.clone(), campaign, inputs, outputs).heir_of(found);
        let (predecessors, board) = (self.leaving.gone(), Arc::clone(&parts.board));
        let actor = tokio::spawn({
            let name = name.clone();
            async move {
                predecessors.await;
                tokio::join!(actor.run(|| board.beat(&name)), ear);
            }
        });
        self.members
            .insert(name, Member { slot, settings, forwards, stop, snapshot: snapshot_rx, actor, _resolver: resolver });
    }

    /// Ends a member once `ready`; whoever is enlisted after it waits for it.
    fn dismiss(&mut self, member: Member, ending: Ending, ready: impl Future<Output = ()> + Send + 'static) {
        self.leaving.add(async move {
            ready.await;
            member.stop.send_replace(Some(ending));
            if let Err(panicked) = member.actor.await {
                tracing::error!(%panicked, "an actor did not end by itself");
            }
        });
    }

    fn free_slot(&self) -> Option<Slot> {
        let found = self.parts.found.iter().map(|found| found.alias.slot());
        let taken: BTreeSet<Slot> = self.members.values().map(|member| member.slot).chain(found).collect();
        (1..=u8::MAX).filter_map(Slot::new).find(|slot| !taken.contains(slot))
    }
}
