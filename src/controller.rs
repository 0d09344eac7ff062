//! One tunnel's controller: the one place where the order of things is decided. Pure; `controller::actor` carries out.
//!
//! It is level-triggered (I4). It holds what should be (settings, forwards, endpoint, tenure) and what it knows to be
//! there (fence, forwards table, link, peer), and answers one question, over and over: what is the next single step?
//! Events only change what should be; results of steps only change what is there. So a missed, doubled or late event
//! changes nothing but the time, and a leadership lost between two steps is seen before the second.
//!
//! What must hold, in the order of the steps below:
//! - up: *speak* told to the campaign → forwards table → fence (closed) → link, silent → addresses and routes →
//!   fence armed for the tenure → peer, whose handshake leaves at once;
//! - down: fence closed → link removed → *quiet* told to the campaign (only now may it release) → the rest;
//! - no step up is taken without a tenure that has not ended at `now`;
//! - a renewed tenure re-arms the fence before anything else is done.

use std::mem::{Discriminant, discriminant};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Moment;
use crate::election::{Leadership, Tenure};
use crate::secret::Tunnel;
use crate::services::Forwards;
use crate::tunnel::{Change, LinkPlan, Nic, PeerPlan, Slot, derived_mtu};

pub mod actor;
mod actual;
pub mod hub;
mod pulse;
mod step;
mod view;

use actual::{Actual, Fence, Link, TableKey};
use pulse::{Due, Pulse};
pub use step::{Drift, Next, Outcome, Step};

/// First and longest wait after a step that failed. The contract promises a try every 5 s.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How long a link may refuse to go before a closed fence alone counts as silence.
const REMOVAL_PATIENCE: Duration = Duration::from_millis(500);
/// How long a leader tries in vain to raise its tunnel before it lets another pod try.
const RAISE_PATIENCE: Duration = Duration::from_secs(5);
/// How often the kernel is asked whether everything is still there (contract: back within 2 s).
const AUDIT_EVERY: Duration = Duration::from_millis(500);

/// What happened outside.
#[derive(Clone, Debug)]
pub enum Event {
    /// The campaign published something.
    Leadership(Leadership),
    /// The tunnel's settings are these from now on.
    Settings(Arc<Tunnel>),
    /// What is to be forwarded.
    Forwards(Arc<Forwards>),
    /// The hub's address, best first choice.
    Endpoint(SocketAddr),
    /// The pod's NIC changed.
    Nic(Nic),
    /// The tunnel goes for good: it left the Secret, or the process ends.
    Stop,
}

/// What the tunnel does, as `/status` names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Another leads, or nobody; nothing of the tunnel is in the kernel.
    Standby,
    /// Leads; not yet every step up is done, or no handshake yet.
    Rising,
    /// Leads, tunnel up, hub answered.
    Leading,
    /// No longer leads; something is still to be taken down.
    Falling,
}

/// See the module's text.
#[derive(Debug)]
pub struct Controller {
    slot: Slot,
    nic: Nic,
    settings: Arc<Tunnel>,
    forwards: Arc<Forwards>,
    endpoint: Option<SocketAddr>,
    /// Made anew from the four above whenever the hub's address is known; else the last one stays in force.
    plan: Option<Arc<LinkPlan>>,
    tenure: Option<Tenure>,
    stopping: bool,
    actual: Actual,
    pulse: Pulse,
    next_audit: Moment,
    falling_since: Option<Moment>,
    failing: Option<Failing>,
    /// When the tenure began that we asked to be relieved of: until the next one nothing is raised.
    gave_way: Option<Moment>,
    retry_at: Moment,
    /// The last step was a closing of the fence, and failed.
    close_failed: bool,
    /// The fence could not be opened or closed: most likely somebody deleted it, and trying again will not do.
    fence_in_doubt: bool,
}

/// A run of failures without a success of the same kind in between.
#[derive(Clone, PartialEq, Debug)]
struct Failing {
    kind: Discriminant<Step>,
    since: Moment,
    wait: Duration,
    message: String,
}

impl Controller {
    /// A standby controller: nothing is there (the start-up sweep saw to that), nothing is known but the settings.
    pub fn new(slot: Slot, nic: Nic, settings: Arc<Tunnel>) -> Self {
        let zero = Moment::default();
        Self {
            slot,
            nic,
            settings,
            forwards: Arc::default(),
            endpoint: None,
            plan: None,
            tenure: None,
            stopping: false,
            actual: Actual::nothing(),
            pulse: Pulse::default(),
            next_audit: zero,
            falling_since: None,
            failing: None,
            gave_way: None,
            retry_at: zero,
            close_failed: false,
            fence_in_doubt: false,
        }
    }

    /// Takes in what happened.
    pub fn handle(&mut self, event: Event, now: Moment) {
        match event {
            Event::Leadership(Leadership::Following { .. }) => self.tenure = None,
            Event::Leadership(Leadership::Leading(tenure)) => {
                if self.tenure.is_none_or(|before| before.since != tenure.since) {
                    self.begin_tenure(now);
                }
                self.tenure = Some(tenure);
            }
            Event::Settings(settings) => {
                if settings != self.settings {
                    // New settings deserve a try at once.
                    self.retry_at = now;
                }
                if settings.endpoint != self.settings.endpoint {
                    self.endpoint = None;
                }
                self.settings = settings;
            }
            Event::Forwards(forwards) => self.forwards = forwards,
            Event::Endpoint(address) => self.endpoint = Some(address),
            Event::Nic(nic) => self.nic = nic,
            Event::Stop => self.stopping = true,
        }
        self.replan();
    }

    /// The next step, if it is time for one. Asking changes nothing but the memory of when falling began, and why.
    pub fn next(&mut self, now: Moment) -> Next {
        match self.tenure_at(now) {
            Some(tenure) if !self.stopping && self.gave_way != Some(tenure.since) => {
                self.falling_since = None;
                self.next_up(tenure, now)
            }
            _ => self.next_down(now),
        }
    }

    /// What failed in an earlier tenure is tried afresh; until it works it stays told.
    fn begin_tenure(&mut self, now: Moment) {
        self.retry_at = now;
        self.gave_way = None;
        if let Some(failing) = &mut self.failing {
            (failing.since, failing.wait) = (now, RETRY.0);
        }
    }

    fn next_up(&mut self, tenure: Tenure, now: Moment) -> Next {
        if !self.actual.speaking {
            return Next::Do(Step::Speak);
        }
        let plan = self.plan.clone();
        if self.fence_in_doubt
            && let Some(plan) = self.actual.link().or(plan.as_ref())
        {
            return Next::Do(Step::Audit(Arc::clone(plan)));
        }
        // What is there of a link whose settings no longer hold goes, and comes back new.
        if let (Some(plan), Some(link)) = (&plan, self.actual.link())
            && link.change_to(plan) == Change::NewLink
        {
            if let Fence::Armed { .. } = self.actual.fence {
                return self.unless_waiting(now, Step::CloseFence);
            }
            return self.unless_waiting(now, Step::RemoveLink(Arc::clone(link)));
        }
        if let Fence::Armed { port, until } = self.actual.fence
            && until != tenure.until
        {
            // Other steps' patience is not the fence's: it closes by itself.
            let step = Step::ArmFence { port, until: tenure.until };
            return if self.failed_last(&step) { self.unless_waiting(now, step) } else { Next::Do(step) };
        }
        if let Some(step) = self.missing(plan.as_ref(), tenure) {
            if let Some(failing) = &self.failing
                && now.since(failing.since) >= RAISE_PATIENCE
                && self.actual.peer.is_none()
            {
                self.gave_way = Some(tenure.since);
                return Next::Do(Step::StepDown);
            }
            return self.unless_waiting(now, step);
        }
        let (Some(plan), Some(_)) = (plan, &self.actual.peer) else {
            // The hub's name is not resolved yet; its address comes as an event.
            return Next::WaitUntil(tenure.until);
        };
        if now >= self.next_audit {
            return Next::Do(Step::Audit(plan));
        }
        let Some(due) = self.pulse.due(now) else {
            return Next::WaitUntil(self.pulse.next(now).min(self.next_audit).min(tenure.until));
        };
        let step = match due {
            Due::Reading => Step::Inspect,
            Due::Probe => Step::Probe(plan),
            Due::Kick => Step::Kick(plan),
        };
        self.unless_waiting(now, step)
    }

    /// The first thing that should be there and is not.
    fn missing(&self, plan: Option<&Arc<LinkPlan>>, tenure: Tenure) -> Option<Step> {
        let plan = plan?;
        if self.actual.forwards.as_ref().is_none_or(|(applied, key)| {
            *key != self.table_key(plan) || !(Arc::ptr_eq(applied, &self.forwards) || *applied == self.forwards)
        }) {
            return Some(Step::ApplyForwards(Arc::clone(plan)));
        }
        let port = plan.listen_port;
        match self.actual.fence {
            Fence::Absent => return Some(Step::RaiseFence { port }),
            Fence::Closed { port: fenced } | Fence::Armed { port: fenced, .. } if fenced != port => {
                return Some(Step::RemoveFence);
            }
            Fence::Closed { .. } | Fence::Armed { .. } => {}
        }
        match &self.actual.link {
            Link::Absent => return Some(Step::CreateLink(Arc::clone(plan))),
            Link::Created(_) => return Some(Step::AttachLink(Arc::clone(plan))),
            Link::Attached(attached) if attached.mtu != plan.mtu => return Some(Step::AttachLink(Arc::clone(plan))),
            Link::Attached(_) => {}
        }
        if let Fence::Closed { .. } = self.actual.fence {
            return Some(Step::ArmFence { port, until: tenure.until });
        }
        let Some(peer) = self.actual.peer.as_ref().map(|there| &there.peer) else {
            return Some(Step::SetPeer(Arc::clone(plan)));
        };
        // A hub at another address is most likely another process, which knows nothing of our session.
        let other_hub = peer.public_key != plan.peer.public_key || peer.endpoint != plan.peer.endpoint;
        if other_hub || self.pulse.wants_fresh_peer() {
            return Some(Step::SetPeer(Arc::clone(plan)));
        }
        (*peer != plan.peer).then(|| Step::UpdatePeer(Arc::clone(plan)))
    }

    fn next_down(&mut self, now: Moment) -> Next {
        if self.falling_since.is_none() {
            // Silence does not wait for the patience that a step up was owed.
            self.retry_at = now;
        }
        let since = *self.falling_since.get_or_insert(now);
        // A tenure that has ended closed the fence in the kernel; shutting it as well costs one transaction and does
        // not trust two clocks to agree. If that fails, the link's going is as good; the two take turns.
        let open = matches!(self.actual.fence, Fence::Armed { .. });
        let link = self.actual.link().cloned();
        let linked = link.is_some();
        if open && linked && !self.close_failed {
            return self.unless_waiting(now, Step::CloseFence);
        }
        let closed = matches!(self.actual.fence, Fence::Closed { .. });
        let silent = !linked || (closed && now.since(since) >= REMOVAL_PATIENCE);
        if self.actual.speaking && silent {
            return Next::Do(Step::Quiet);
        }
        if let Some(link) = link {
            return self.unless_waiting(now, Step::RemoveLink(link));
        }
        if self.actual.forwards.is_some() {
            return self.unless_waiting(now, Step::RemoveForwards);
        }
        if self.actual.fence != Fence::Absent {
            return self.unless_waiting(now, Step::RemoveFence);
        }
        match self.stopping {
            true => Next::Finished,
            false => {
                // What made us give way stands in the way still, for all we know; all else is over.
                if self.gave_way.is_none() {
                    self.failing = None;
                }
                Next::WaitUntil(now + Duration::from_secs(1))
            }
        }
    }

    fn unless_waiting(&self, now: Moment, step: Step) -> Next {
        if now < self.retry_at { Next::WaitUntil(self.retry_at) } else { Next::Do(step) }
    }

    fn failed_last(&self, step: &Step) -> bool {
        self.failing.as_ref().is_some_and(|failing| failing.kind == discriminant(step))
    }

    /// A step took.
    pub fn done(&mut self, step: &Step, outcome: Outcome, now: Moment) {
        if !matches!(step, Step::Inspect | Step::Audit(_) | Step::Probe(_) | Step::CloseFence) {
            self.retry_at = now;
        }
        self.close_failed = false;
        if self.failed_last(step) {
            self.failing = None;
        }
        match step {
            Step::Speak => self.actual.speaking = true,
            Step::Quiet => self.actual.speaking = false,
            Step::ApplyForwards(plan) => {
                self.actual.forwards = Some((Arc::clone(&self.forwards), self.table_key(plan)));
            }
            Step::RemoveForwards => self.actual.forwards = None,
            Step::RaiseFence { port } => self.actual.fence = Fence::Closed { port: *port },
            Step::ArmFence { port, until } => self.actual.fence = Fence::Armed { port: *port, until: *until },
            Step::CloseFence => {
                if let Fence::Closed { port } | Fence::Armed { port, .. } = self.actual.fence {
                    self.actual.fence = Fence::Closed { port };
                }
            }
            Step::RemoveFence => self.actual.fence = Fence::Absent,
            Step::CreateLink(plan) => {
                self.actual.link = Link::Created(plan.clone());
                self.actual.peer = None;
            }
            Step::AttachLink(plan) => {
                self.actual.link = Link::Attached(plan.clone());
                self.next_audit = now + AUDIT_EVERY;
            }
            Step::RemoveLink(_) => {
                self.actual.unlink();
                self.pulse = Pulse::default();
            }
            Step::SetPeer(plan) => {
                self.actual.peer = Some(Arc::clone(plan));
                self.failing = None;
                self.pulse.peer_set(now);
            }
            Step::UpdatePeer(plan) => self.actual.peer = Some(Arc::clone(plan)),
            Step::Kick(_) => self.pulse.kicked(now),
            Step::Probe(_) => self.pulse.probed(now),
            Step::Inspect => {
                if let Outcome::Stats(stats) = outcome {
                    self.pulse.measured(stats, now);
                }
            }
            Step::Audit(_) => {
                self.next_audit = now + AUDIT_EVERY;
                self.fence_in_doubt = false;
                if let Outcome::Drift(drift) = outcome {
                    self.drifted(drift);
                }
            }
            Step::StepDown => {}
        }
    }

    fn drifted(&mut self, drift: Drift) {
        self.actual.drifted(drift);
        if drift.link {
            self.pulse = Pulse::default();
        }
    }

    /// A step failed; it is tried again soon. `message` names the step's object and the way out.
    pub fn failed(&mut self, step: &Step, message: String, now: Moment) {
        let (first, longest) = RETRY;
        let (since, wait) = match &self.failing {
            Some(failing) => (failing.since, (failing.wait * 2).min(longest)),
            None => (now, first),
        };
        self.failing = Some(Failing { kind: discriminant(step), since, wait, message });
        self.retry_at = now + wait;
        self.close_failed = *step == Step::CloseFence;
        // What cannot be read is not there; what cannot be probed is asked again at its next time.
        match step {
            Step::Probe(_) => self.pulse.probed(now),
            Step::Kick(_) => self.pulse.kicked(now),
            Step::Audit(_) => {
                self.next_audit = now + AUDIT_EVERY;
                self.fence_in_doubt = false;
            }
            Step::ArmFence { .. } | Step::CloseFence => self.fence_in_doubt = true,
            Step::Inspect => self.pulse.unread(now),
            _ => {}
        }
    }

    /// The link's process or device died under us: it is made again.
    pub fn link_lost(&mut self) {
        self.drifted(Drift { link: true, ..Drift::default() });
    }

    fn replan(&mut self) {
        let Some(endpoint) = self.endpoint else { return };
        let settings = &self.settings;
        let plan = LinkPlan {
            name: settings.name.clone(),
            slot: self.slot,
            vip: settings.vip,
            private_key: settings.private_key.clone(),
            listen_port: settings.listen_port,
            mtu: settings.mtu.unwrap_or_else(|| derived_mtu(self.nic.mtu, endpoint)),
            peer: PeerPlan {
                public_key: settings.peer_public_key,
                preshared_key: settings.preshared_key.clone(),
                endpoint,
                allowed_ips: settings.allowed_ips.clone(),
                persistent_keepalive: settings.persistent_keepalive,
            },
        };
        if self.plan.as_deref() != Some(&plan) {
            self.plan = Some(Arc::new(plan));
        }
    }

    fn table_key(&self, plan: &LinkPlan) -> TableKey {
        TableKey { vip: plan.vip, nic: self.nic.name.clone(), mtu: plan.mtu }
    }
}

#[cfg(test)]
mod tests;
