//! Carries one tunnel's steps out, one at a time, and tells the controller what came of each.
//!
//! Leadership is read before every step and is first in every wait: a step up that was decided before a loss is never
//! begun after it. No step may take longer than [`STEP_TIMEOUT`]; what a stuck step cannot undo, the kernel's fence does.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::hub::Whereabouts;
use super::{Controller, Ending, Event, Next, Step};
use crate::clock::{self, Clock, Moment};
use crate::election::{Campaign, Gate, Leadership, Standing};
use crate::fence::Foreign;
use crate::inheritance;
use crate::metrics::{Metrics, Phase};
use crate::ruleset::Firewall;
use crate::secret::Tunnel;
use crate::services::Forwards;
use crate::status::Snapshot;
use crate::tunnel::{Found, HostError, HostNet, LinkBackend, LinkError, LinkStats, Nic};

mod perform;

/// Longer than any step takes on a machine that works.
const STEP_TIMEOUT: Duration = Duration::from_secs(1);
/// A waiting actor comes round this often, to show that it lives and to keep the figures fresh.
const ROUND: Duration = Duration::from_secs(1);
/// After this a Lease that cannot be given back is left to run out (contract: SIGTERM is over within 3 s).
const RESIGN_WITHIN: Duration = Duration::from_secs(2);

/// What should be, as watched values: the newest counts, and none is ever missed.
pub struct Inputs {
    /// Settings in force.
    pub settings: watch::Receiver<Arc<Tunnel>>,
    /// What is to be forwarded; `None` until Services were listed once.
    pub forwards: watch::Receiver<Option<Arc<Forwards>>>,
    /// Where the hub is.
    pub hub: watch::Receiver<Whereabouts>,
    /// The pod's NIC.
    pub nic: watch::Receiver<Nic>,
    /// Once it is some: give the Lease back, take all down, end.
    pub stop: watch::Receiver<Option<Ending>>,
}

/// What the actor tells.
pub struct Outputs {
    /// After every round.
    pub snapshot: watch::Sender<Snapshot>,
    /// The hub has not been heard for so long; the resolver looks its name up again.
    pub unheard: watch::Sender<Duration>,
    /// The process's figures.
    pub metrics: Metrics,
}

/// One tunnel's actor: see the module's text.
pub struct Actor<L, H, F> {
    controller: Controller,
    link: Arc<L>,
    net: Arc<H>,
    firewall: F,
    clock: Arc<dyn Clock>,
    campaign: Campaign,
    gate: Gate,
    leadership: watch::Receiver<Leadership>,
    standing: watch::Receiver<Standing>,
    inputs: Inputs,
    outputs: Outputs,
    takeover: Takeover,
    /// Bytes received and sent by links that are gone, and by the present one when it was last looked at.
    traffic: ((u64, u64), (u64, u64)),
    /// Packets held back by fences that are gone, and by the present one.
    fenced: (u64, u64),
    /// Packets of sessions that are not ours.
    foreign: Foreign,
    /// What an earlier life left of the tunnel.
    found: Option<Found>,
}

/// When the steps of the present takeover were taken.
#[derive(Default)]
struct Takeover {
    began: Option<Moment>,
    peer_set: Option<Moment>,
    /// The handshake was measured; a fresh peer later on is no takeover.
    told: bool,
}

impl<L: LinkBackend, H: HostNet, F: Firewall> Actor<L, H, F> {
    /// An actor for a controller that knows its settings and NIC.
    pub fn new(
        controller: Controller,
        (link, net, firewall): (Arc<L>, Arc<H>, F),
        clock: Arc<dyn Clock>,
        campaign: Campaign,
        inputs: Inputs,
        outputs: Outputs,
    ) -> Self {
        Self {
            controller,
            link,
            net,
            firewall,
            clock,
            gate: campaign.gate(),
            leadership: campaign.leadership(),
            standing: campaign.standing(),
            campaign,
            inputs,
            outputs,
            takeover: Takeover::default(),
            traffic: ((0, 0), (0, 0)),
            fenced: (0, 0),
            foreign: Foreign::default(),
            found: None,
        }
    }

    /// An earlier life left this of the tunnel, in the slot of the controller: it is taken over, or goes, before anything
    /// else is done.
    #[must_use]
    pub fn heir_of(mut self, found: Option<Found>) -> Self {
        self.found = found;
        self
    }

    /// Runs until stopped; then the Lease is given back, and nothing of the tunnel is left in the kernel.
    pub async fn run(mut self, round: impl Fn()) {
        if let Some(found) = self.found.take()
            && !self.adopt(&found).await
            && !self.discard(&found, &round).await
        {
            return;
        }
        // Nothing of the tunnel is there, the clean-up at start saw to it. What was taken over may be heard until its
        // fence was told to hold, which is a step of the controller's, as is the word to the campaign.
        if !self.controller.linked() {
            self.gate.quiet();
        }
        self.take_inputs();
        let mut resigning = None;
        loop {
            round();
            if resigning.is_none()
                && let Some(ending) = *self.inputs.stop.borrow_and_update()
            {
                let now = self.clock.now();
                self.controller.handle(Event::Stop(ending), now);
                // Begun at once, so that the Lease is read while the tunnel falls silent; the gate makes it wait for that.
                self.campaign.resign();
                resigning = Some(now);
            }
            self.take_leadership();
            let now = self.clock.now();
            match self.controller.next(now) {
                Next::Do(Step::Speak) if !self.gate.speak() => {
                    // The tenure ended between the campaign's word and ours; the next word is on its way.
                    self.wait(Duration::from_millis(100)).await;
                }
                Next::Do(step) => self.carry_out(step).await,
                Next::WaitUntil(then) => {
                    self.publish();
                    self.wait(then.since(self.clock.now()).min(ROUND)).await;
                }
                Next::Finished => break,
            }
        }
        self.publish();
        let left = resigning.map(|began| (began + RESIGN_WITHIN).since(self.clock.now())).unwrap_or_default();
        if !self.campaign.resigned(left).await {
            tracing::warn!(tunnel = %self.name(), "the Lease could not be given back in time; it runs out by itself");
        }
    }

    /// `false`: it cannot be used.
    async fn adopt(&mut self, found: &Found) -> bool {
        let plan = |hub| self.controller.plan_at(hub);
        match inheritance::adopt(&*self.link, &mut self.firewall, found, plan).await {
            Ok(Some((plan, stats))) => {
                tracing::info!(tunnel = %found.name, "took over the tunnel that an earlier life left in hold");
                let transitions = found.alias.transitions().unwrap_or(i32::MIN);
                self.controller.inherit(plan, transitions, stats, self.clock.now());
                return true;
            }
            Ok(None) => {
                tracing::info!(tunnel = %found.name, "an earlier life had other settings; taking its tunnel down")
            }
            Err(error) => tracing::warn!(tunnel = %found.name, %error, "what an earlier life left cannot be used"),
        }
        false
    }

    /// Again and again until it is gone. `false`: the process ends before that. The campaign never heard that this pod is
    /// quiet; a Lease of the earlier life's runs out, and the next life removes what is left.
    async fn discard(&mut self, found: &Found, round: &impl Fn()) -> bool {
        while let Err(error) = inheritance::discard(&*self.net, &mut self.firewall, found).await {
            round();
            tracing::warn!(tunnel = %found.name, %error, "what an earlier life left cannot be removed; trying again");
            tokio::select! {
                biased;
                Ok(_) = self.inputs.stop.wait_for(|stop| *stop == Some(Ending::HandOver)) => return false,
                () = self.clock.sleep(ROUND) => {}
            }
        }
        true
    }

    fn take_leadership(&mut self) {
        let leadership = self.leadership.borrow_and_update().clone();
        let now = self.clock.now();
        if let (Leadership::Leading(_), Some(latest)) = (&leadership, self.standing.borrow().stamped) {
            self.link.stamp_after(&self.controller.settings().name, latest);
        }
        match &leadership {
            Leadership::Leading(_) if self.takeover.began.is_none() => {
                self.takeover.began = Some(now);
                if let Some(round_trip) = self.standing.borrow().round_trip {
                    self.controller.expect(round_trip);
                }
            }
            Leadership::Leading(_) => {}
            Leadership::Following { .. } => self.takeover = Takeover::default(),
        }
        self.controller.handle(Event::Leadership(leadership), now);
    }

    fn take_inputs(&mut self) {
        let now = self.clock.now();
        let Inputs { settings, forwards, hub, nic, stop: _ } = &mut self.inputs;
        let nic = nic.borrow_and_update().clone();
        let settings = Arc::clone(&settings.borrow_and_update());
        let (forwards, endpoint) =
            (forwards.borrow_and_update().clone(), hub.borrow_and_update().of(&settings.endpoint));
        self.controller.handle(Event::Nic(nic), now);
        self.controller.handle(Event::Settings(settings), now);
        if let Some(forwards) = &forwards {
            self.controller.handle(Event::Forwards(Arc::clone(forwards)), now);
        }
        if let Some(endpoint) = endpoint {
            self.controller.handle(Event::Endpoint(endpoint), now);
        }
        // Who knows neither the hub's address nor the Services would lead into a black hole. A new endpoint whose address
        // is not known yet is no reason to step down: the tunnel stays after its last plan.
        self.gate.eligible(self.controller.plan().is_some() && forwards.is_some());
    }

    async fn wait(&mut self, at_most: Duration) {
        let Inputs { settings, forwards, hub, nic, stop } = &mut self.inputs;
        tokio::select! {
            biased;
            () = news(&mut self.leadership) => {}
            () = news(&mut self.standing) => {}
            () = news(stop) => {}
            () = news(settings) => self.take_inputs(),
            () = news(hub) => self.take_inputs(),
            () = news(nic) => self.take_inputs(),
            () = news(forwards) => self.take_inputs(),
            () = self.clock.sleep(at_most) => {}
        }
    }

    async fn carry_out(&mut self, step: Step) {
        let began = self.clock.now();
        let clock = Arc::clone(&self.clock);
        let result = match clock::within(&*clock, STEP_TIMEOUT, self.perform(&step)).await {
            Some(result) => result,
            None => Err(anyhow::anyhow!("no answer from the kernel within {STEP_TIMEOUT:?}")),
        };
        let now = self.clock.now();
        match result {
            Ok(outcome) => {
                tracing::debug!(tunnel = %self.name(), step = step.names().0, took = ?now.since(began), "done");
                self.measure(&step, began, now);
                self.controller.done(&step, outcome, now);
                self.first_handshake();
            }
            Err(error) => {
                let message = format!("{error:#}");
                // Told to the operator by whoever tells what changes; here is which step it was.
                tracing::debug!(tunnel = %self.name(), step = step.names().0, error = message, "failed");
                self.outputs.metrics.error(step.names().1);
                if lost(&error) {
                    self.controller.link_lost();
                }
                self.controller.failed(&step, message, now);
            }
        }
    }

    fn measure(&mut self, step: &Step, began: Moment, now: Moment) {
        match step {
            Step::ApplyForwards(_) => self.outputs.metrics.ruleset_applied(now.since(began)),
            Step::Speak => {
                if let Some(takeover) = self.standing.borrow().takeover {
                    self.took(Phase::Detect, takeover.detected.since(takeover.silent_since));
                    self.took(Phase::Lease, takeover.written.since(takeover.detected));
                }
            }
            Step::SetPeer(_) if self.takeover.peer_set.is_none() => {
                if let Some(began) = self.takeover.began {
                    self.took(Phase::Link, now.since(began));
                }
                self.takeover.peer_set = Some(now);
            }
            _ => {}
        }
    }

    fn first_handshake(&mut self) {
        let Takeover { began: Some(_), peer_set: Some(set), told: false } = self.takeover else { return };
        if let Some(handshake) = self.controller.handshake() {
            self.took(Phase::Handshake, handshake.since(set));
            self.takeover.told = true;
        }
    }

    fn took(&self, phase: Phase, span: Duration) {
        self.outputs.metrics.tunnel(self.name(), |tunnel| tunnel.took(phase, span));
    }

    /// What all links of this life carried, by a reading of the present one's counters. They begin anew with a new link, and of
    /// one that was lost there is no last reading: what it was known to have carried stays.
    fn count_traffic(&mut self, received: u64, sent: u64) -> (u64, u64) {
        let (past, last) = &mut self.traffic;
        if received < last.0 || sent < last.1 {
            *past = (past.0 + last.0, past.1 + last.1);
        }
        *last = (received, sent);
        (past.0 + received, past.1 + sent)
    }

    fn publish(&mut self) {
        let now = self.clock.now();
        let LinkStats { handshake_age: _, received, sent } = self.controller.stats();
        let traffic = self.count_traffic(received, sent);
        let (hub, endpoint) = (self.inputs.hub.borrow(), &self.controller.settings().endpoint);
        let snapshot = Snapshot {
            settings: Arc::clone(self.controller.settings()),
            leadership: self.leadership.borrow().clone(),
            state: self.controller.state(now),
            serves: self.controller.serves(now),
            handshake: self.controller.handshake(),
            peer_since: self.controller.peer_since(),
            traffic,
            forwards: self.controller.applied().cloned(),
            failure: self.controller.failure().or(hub.obstacle(endpoint)).map(str::to_owned),
            standing: self.standing.borrow().clone(),
            fenced_packets: self.fenced.0 + self.fenced.1,
            foreign_packets: self.foreign.total(),
        };
        drop(hub);
        self.gate.round_trip(self.controller.round_trip());
        self.outputs.snapshot.send_replace(snapshot);
        let unheard = self.controller.unheard_for(now).unwrap_or_default();
        self.outputs.unheard.send_if_modified(|known| {
            let crossed = unheard.as_secs() != known.as_secs();
            *known = unheard;
            crossed
        });
    }

    fn name(&self) -> &crate::secret::TunnelName {
        &self.controller.settings().name
    }
}

/// A newer value. A sender that is gone has none, ever: it must not keep the actor awake.
async fn news<T>(receiver: &mut watch::Receiver<T>) {
    if receiver.changed().await.is_err() {
        std::future::pending().await
    }
}

fn lost(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(LinkError::Lost { .. }))
        || matches!(error.downcast_ref(), Some(HostError::LinkLost { .. }))
}
