//! What others may know of a controller: for status, metrics and the actor that carries its steps out.

use std::sync::Arc;
use std::time::Duration;

use super::actual::{Fence, Link, Table};
use super::{Controller, State};
use crate::clock::Moment;
use crate::election::Tenure;
use crate::secret::Tunnel;
use crate::services::Forwards;
use crate::tunnel::{LinkPlan, LinkStats, Nic, Slot};

impl Controller {
    /// What the tunnel does at `now`.
    pub fn state(&self, now: Moment) -> State {
        let up = self.tenure_at(now).is_some() && self.ending.is_none();
        let clear = self.actual.remains().is_none()
            && self.actual.forwards == Table::Absent
            && self.actual.fence == Fence::Absent
            && !self.actual.speaking;
        match (up, clear) {
            (true, _) if self.serves(now) => State::Leading,
            (true, _) => State::Rising,
            (false, true) => State::Standby,
            (false, false) if self.hold_until(now).is_some() => State::Holding,
            (false, false) => State::Falling,
        }
    }

    /// May the tunnel be held?
    pub fn may_hold(&self) -> bool {
        self.hold_as.is_some()
    }

    /// Has the hub answered the present peer, with the table in place?
    pub fn serves(&self, now: Moment) -> bool {
        self.actual.forwards != Table::Absent && matches!(self.actual.link, Link::Attached(_)) && self.pulse.serves(now)
    }

    /// The tenure that has not ended at `now`, if we lead.
    pub fn tenure_at(&self, now: Moment) -> Option<Tenure> {
        self.tenure.filter(|tenure| tenure.until > now)
    }

    /// The last failure, while it lasts.
    pub fn failure(&self) -> Option<&str> {
        self.failing.as_ref().map(|failing| failing.message.as_str())
    }

    /// The last reading of WireGuard's counters for the present link.
    pub fn stats(&self) -> LinkStats {
        self.pulse.stats()
    }

    /// How long the hub takes to answer a handshake, if that is known.
    pub fn round_trip(&self) -> Option<Duration> {
        self.pulse.round_trip()
    }

    /// When the present peer last completed a handshake.
    pub fn handshake(&self) -> Option<Moment> {
        self.pulse.handshake()
    }

    /// When the present peer was given to the link.
    pub fn peer_since(&self) -> Option<Moment> {
        self.actual.peer.as_ref().map(|_| self.pulse.peer_since())
    }

    /// The pod's NIC, as last seen.
    pub fn nic(&self) -> &Nic {
        &self.nic
    }

    /// The tunnel's slot.
    pub fn slot(&self) -> Slot {
        self.slot
    }

    /// How long the hub has not been heard, while there is a peer to hear and we may ask it. In hold its silence tells
    /// nothing: an idle one would be looked for elsewhere, and its session lost.
    pub fn unheard_for(&self, now: Moment) -> Option<Duration> {
        let asks = self.actual.speaking && self.actual.peer.is_some();
        asks.then(|| self.pulse.unheard_for(now))
    }

    /// Is there a link?
    pub fn linked(&self) -> bool {
        self.actual.link().is_some()
    }

    /// What is forwarded now, in the kernel; `None` also while that is what an earlier life wrote.
    pub fn applied(&self) -> Option<&Arc<Forwards>> {
        match &self.actual.forwards {
            Table::Applied(forwards, _) => Some(forwards),
            Table::Absent | Table::Inherited => None,
        }
    }

    /// What should be forwarded.
    pub fn wanted(&self) -> &Arc<Forwards> {
        &self.forwards
    }

    /// The settings in force.
    pub fn settings(&self) -> &Arc<Tunnel> {
        &self.settings
    }

    /// The link as it should be; `None` until the hub's address is known.
    pub fn plan(&self) -> Option<&Arc<LinkPlan>> {
        self.plan.as_ref()
    }
}
