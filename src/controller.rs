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
//! - hold, if it is allowed and a session is there: fence in hold → *quiet* told to the campaign (only now may it
//!   release); answers go on until a successor has the hub, and nothing is begun;
//! - down: fence closed → *quiet* → link, forwards table, fence removed;
//! - no step up is taken without a tenure that has not ended at `now`;
//! - a renewed tenure re-arms the fence before anything else is done;
//! - a session outlives its tenure only if nobody can have led in between.

use std::mem::Discriminant;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Moment;
use crate::election::{Before, Leadership, Tenure};
use crate::secret::Tunnel;
use crate::services::Forwards;
use crate::tunnel::{LinkPlan, LinkStats, Nic, PeerPlan, Slot, derived_mtu};

pub mod actor;
mod actual;
mod fall;
pub mod hub;
mod pulse;
mod results;
mod rise;
mod step;
mod view;

use actual::{Actual, Table, TableKey};
use pulse::Pulse;
pub use step::{Drift, Next, Outcome, Step};

/// First and longest wait after a step that failed. The contract promises a try every 5 s.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How long a leader tries in vain to raise its tunnel before it lets another pod try.
const RAISE_PATIENCE: Duration = Duration::from_secs(5);
/// How long a hub may leave a leader without any answer before another pod may try: its own way to the hub may be what
/// is broken.
const UPLINK_PATIENCE: Duration = Duration::from_secs(10);
/// Not before a tenure is so old: of a hub that is dead nobody gets an answer, and the pods must not take turns for it.
const DAMPING: Duration = Duration::from_secs(30);
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
    /// The tunnel goes for good.
    Stop(Ending),
}

/// Why a tunnel goes for good.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// The process ends; another pod is to take over.
    HandOver,
    /// It left the Secret.
    Removal,
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
    /// No longer leads, and answers on until a successor has the hub, or until it leads again.
    Holding,
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
    /// Are these the forwards that we were told, and not those of the beginning?
    told_forwards: bool,
    endpoint: Option<SocketAddr>,
    /// Made anew from the four above whenever the hub's address is known; else the last one stays in force.
    plan: Option<Arc<LinkPlan>>,
    tenure: Option<Tenure>,
    /// Our identity in the Lease, if the tunnel may be held.
    hold_as: Option<String>,
    /// Since when another is named in the Lease.
    succeeded: Option<Moment>,
    ending: Option<(Ending, Moment)>,
    actual: Actual,
    pulse: Pulse,
    next_audit: Moment,
    falling: bool,
    failing: Option<Failing>,
    /// When the tenure began that we asked to be relieved of: until the next one nothing is raised.
    gave_way: Option<Moment>,
    retry_at: Moment,
    /// An arming of the fence failed; before this it is not tried again.
    rearm_at: Moment,
    /// The last step was a closing of the fence, and failed.
    close_failed: bool,
    /// The fence would not fall to hold: down it is, in this tenure.
    hold_refused: bool,
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
            told_forwards: false,
            endpoint: None,
            plan: None,
            tenure: None,
            hold_as: None,
            succeeded: None,
            ending: None,
            actual: Actual::nothing(),
            pulse: Pulse::default(),
            next_audit: zero,
            falling: false,
            failing: None,
            gave_way: None,
            retry_at: zero,
            rearm_at: zero,
            close_failed: false,
            hold_refused: false,
            fence_in_doubt: false,
        }
    }

    /// Lets the tunnel be held: `identity` is ours in the Lease.
    #[must_use]
    pub fn holding(mut self, identity: &str) -> Self {
        self.hold_as = Some(identity.to_owned());
        self
    }

    /// Takes over what an earlier life left: the tunnel in hold, after this plan of ours ([`Controller::plan_at`]), with a
    /// session of the tenure with these `leaseTransitions`.
    pub fn inherit(&mut self, plan: LinkPlan, transitions: i32, stats: LinkStats, now: Moment) {
        self.endpoint = self.endpoint.or(Some(plan.peer.endpoint));
        self.actual = Actual::inherited(&Arc::new(plan), transitions);
        self.pulse.inherited(stats, now);
        self.next_audit = now;
        self.replan();
    }

    /// The pod that led before left word how long the hub took to answer it.
    pub fn expect(&mut self, round_trip: Duration) {
        self.pulse.expect(round_trip);
    }

    /// Takes in what happened.
    pub fn handle(&mut self, event: Event, now: Moment) {
        match event {
            Event::Leadership(Leadership::Following { holder }) => {
                self.tenure = None;
                self.succeeded = match holder {
                    Some(other) if !other.is_empty() && Some(&other) != self.hold_as.as_ref() => {
                        self.succeeded.or(Some(now))
                    }
                    // One that was named goes on counting while the API is away.
                    None => self.succeeded,
                    Some(_) => None,
                };
            }
            Event::Leadership(Leadership::Leading(tenure)) => {
                if self.tenure.is_none_or(|before| before.since != tenure.since) {
                    self.begin_tenure(tenure, now);
                } else if let Some(there) = &mut self.actual.peer
                    && self.tenure.is_some_and(|before| before.transitions == there.transitions)
                {
                    // Unbroken, though somebody's hand made us count it as another.
                    there.transitions = tenure.transitions;
                }
                self.tenure = Some(tenure);
                self.succeeded = None;
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
            Event::Forwards(forwards) => (self.forwards, self.told_forwards) = (forwards, true),
            Event::Endpoint(address) => self.endpoint = Some(address),
            Event::Nic(nic) => self.nic = nic,
            Event::Stop(ending) => self.ending = self.ending.or(Some((ending, now))),
        }
        self.replan();
    }

    /// The next step, if it is time for one. Asking changes nothing but the memory of when falling began.
    pub fn next(&mut self, now: Moment) -> Next {
        match self.tenure_at(now) {
            Some(tenure) if self.ending.is_none() && self.gave_way != Some(tenure.since) => {
                self.falling = false;
                self.next_up(tenure, now)
            }
            _ => {
                if !self.falling {
                    // Silence does not wait for the patience that a step up was owed.
                    self.falling = true;
                    self.retry_at = now;
                }
                match self.hold_until(now) {
                    Some(then) => self.next_hold(then, now),
                    None => self.next_down(now),
                }
            }
        }
    }

    /// What failed in an earlier tenure is tried afresh; until it works it stays told.
    fn begin_tenure(&mut self, tenure: Tenure, now: Moment) {
        self.retry_at = now;
        self.gave_way = None;
        self.hold_refused = false;
        // With a session of this very tenure there is nobody to win the hub from.
        let resumed = self.actual.peer.as_ref().is_some_and(|there| there.transitions == tenure.transitions);
        match tenure.before {
            Before::GaveBack if !resumed => self.pulse.insist(true),
            Before::Other if !resumed => self.pulse.insist(false),
            _ => {}
        }
        if let Some(failing) = &mut self.failing {
            (failing.since, failing.wait) = (now, RETRY.0);
        }
    }

    fn unless_waiting(&self, now: Moment, step: Step) -> Next {
        if now < self.retry_at { Next::WaitUntil(self.retry_at) } else { Next::Do(step) }
    }

    fn stale_forwards(&self, plan: &LinkPlan) -> bool {
        match &self.actual.forwards {
            Table::Absent => true,
            // Better what was true of late than nothing.
            Table::Inherited => self.told_forwards,
            Table::Applied(applied, key) => {
                *key != self.table_key(plan) || !(Arc::ptr_eq(applied, &self.forwards) || *applied == self.forwards)
            }
        }
    }

    fn replan(&mut self) {
        let Some(endpoint) = self.endpoint else { return };
        let plan = self.plan_at(endpoint);
        if self.plan.as_deref() != Some(&plan) {
            self.plan = Some(Arc::new(plan));
        }
    }

    /// The link as it should be with the hub at this address.
    pub fn plan_at(&self, endpoint: SocketAddr) -> LinkPlan {
        let settings = &self.settings;
        LinkPlan {
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
        }
    }

    fn table_key(&self, plan: &LinkPlan) -> TableKey {
        TableKey { vip: plan.vip, nic: self.nic.name.clone(), mtu: plan.mtu }
    }
}

#[cfg(test)]
mod tests;
