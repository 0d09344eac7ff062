//! The elector: one candidate's knowledge of the Lease and what follows from it. Pure: time comes in as an argument,
//! requests go out as values.
//!
//! An attempt is a short conversation: [`Elector::next`] gives a request, each answer goes to [`Elector::answer`] until
//! that is done (`attempt`). What a watch shows goes to [`Elector::sight`] at any time, also in the middle of an attempt.
//! Whether an attempt may be made at all (quiet, eligible) is the campaign's to know.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;

use super::round_trip;
use super::stamped::Stamped;
use super::view::View;
use super::{HeadStart, Params, ParamsError, Record, Tenure};
use crate::clock::Moment;

mod attempt;

use attempt::Step;
pub use attempt::{Outcome, Request, Takeover, Verdict};

/// So far behind the holder's, a wall clock counts as wrong.
const BEHIND: SignedDuration = SignedDuration::from_millis(500);

/// One candidate.
#[derive(Clone, Debug)]
pub struct Elector {
    params: Params,
    view: View,
    /// A write of ours may have landed without our knowing.
    uncertain: bool,
    tenure: Option<Tenure>,
    /// `leaseTransitions` of the present or last tenure.
    led: Option<i32>,
    takeover: Option<Takeover>,
    skew: Option<SignedDuration>,
    round_trip: Option<Duration>,
    /// What others get because of all else that this pod leads.
    head_start: HeadStart,
    /// Our handshakes are stamped as we like.
    stamping: bool,
    stamped: Stamped,
    step: Step,
}

impl Elector {
    /// A candidate that has seen nothing yet. `identity` must be unique among live processes, and the same again after
    /// a restart of the same pod's container.
    pub fn new(params: Params, identity: impl Into<String>) -> Result<Self, ParamsError> {
        let identity = identity.into();
        if identity.is_empty() {
            return Err(ParamsError::NoIdentity);
        }
        Ok(Self {
            params: params.check()?,
            view: View::new(identity),
            uncertain: false,
            tenure: None,
            led: None,
            takeover: None,
            skew: None,
            round_trip: None,
            head_start: HeadStart::default(),
            stamping: false,
            stamped: Stamped::default(),
            step: Step::Idle,
        })
    }

    /// The tunnel's handshakes are stamped by this process, after [`Elector::stamped`], and not by the kernel: a wall
    /// clock that is behind is no reason to wait.
    #[must_use]
    pub fn stamping(mut self) -> Self {
        self.stamping = true;
        self
    }

    /// The times of this election.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Who we are.
    pub fn identity(&self) -> &str {
        self.view.identity()
    }

    /// Our tenure, if we lead.
    pub fn tenure(&self) -> Option<Tenure> {
        self.tenure
    }

    /// How the present or last tenure came about.
    pub fn takeover(&self) -> Option<Takeover> {
        self.takeover
    }

    /// The holder as last seen: empty if nobody, `None` if there is no Lease or the API is away.
    pub fn holder(&self) -> Option<&str> {
        self.view.holder()
    }

    /// The record as last seen.
    pub fn record(&self) -> Option<&Record> {
        self.view.record()
    }

    /// Our wall clock minus the `renewTime` of another's renewal at the moment it was seen: how far ours is ahead **at
    /// most**, since it contains the time the renewal took to get here. Below zero: ours is behind by at least that.
    pub fn clock_skew(&self) -> Option<SignedDuration> {
        self.skew
    }

    /// The latest stamp that a handshake of the tunnel's key may have had before the present or last tenure, if anything
    /// is known of it. Ours must be later.
    pub fn stamped(&self) -> Option<Timestamp> {
        self.stamped.before_tenure
    }

    /// How long the hub takes to answer, as whoever led last left it in the Lease.
    pub fn told_round_trip(&self) -> Option<Duration> {
        round_trip::read(&self.view.observed()?.lease)
    }

    /// What is to be left in the Lease of that with the next write.
    pub fn tell_round_trip(&mut self, round_trip: Option<Duration>) {
        self.round_trip = round_trip;
    }

    /// Leaves others this head start from now on, whenever the Lease is free.
    pub fn let_others_first(&mut self, head_start: HeadStart) {
        self.head_start = head_start;
    }

    /// When this candidate may go for the Lease, and from when it is free.
    pub fn turn(&self) -> (Moment, Moment) {
        let free = self.view.free_since();
        (free + self.waits(), free)
    }

    /// What others get of the time in which the Lease is free. Who led before, and may be the holder still, waits for
    /// nobody. A candidate whose wall clock is behind its holder's waits a retry period more, unless it stamps its
    /// handshakes itself: a hub refuses a handshake that is older than the last it saw for a key, without a word, and all
    /// pods have one key.
    fn waits(&self) -> Duration {
        if self.tenure.is_some() || self.may_be_ours() {
            return Duration::ZERO;
        }
        let behind = !self.stamping && self.skew.is_some_and(|skew| skew <= -BEHIND);
        let HeadStart { freed, unmade } = self.head_start;
        (if self.view.unmade() { unmade } else { freed }) + if behind { self.params.retry } else { Duration::ZERO }
    }

    /// Is the time that others get not over yet?
    fn others_first(&self, now: Moment) -> bool {
        let waits = self.waits();
        !waits.is_zero() && now < self.view.free_since() + waits
    }

    /// Whether this pod leads, or is about to: it tries to take a Lease that is free.
    pub fn takes(&self) -> bool {
        self.tenure.is_some()
            || match self.step {
                Step::Writing { .. } => true,
                // Not so a look at a Lease of which nothing is known, or that another holds.
                Step::Getting { started } => self.view.known() && self.view.free_since() <= started,
                Step::Idle | Step::ReleaseGetting | Step::ReleaseWriting => false,
            }
    }

    /// Whether the Lease names us, or may do so by a write whose answer was lost.
    pub fn may_be_ours(&self) -> bool {
        self.uncertain || self.view.ours().is_some()
    }

    /// Ends a tenure whose time is over, and the attempt with it. True if that happened.
    pub fn lapse(&mut self, now: Moment) -> bool {
        let over = self.tenure.is_some_and(|t| t.until <= now);
        if over {
            self.stand_down();
        }
        over
    }

    /// Ends the tenure, whatever is left of it, and the attempt with it.
    pub fn stand_down(&mut self) {
        self.tenure = None;
        self.abandon();
    }

    /// When a candidate that is told nothing by a watch should attempt: when the holder's term is over, and before
    /// that when it has been silent for twice the retry period, since silence counts only as far as we can read.
    pub fn due(&self) -> Moment {
        self.view.due(self.params.retry)
    }

    /// Takes what a watch shows. True if the record changed. May end the tenure, never begins one.
    pub fn sight(&mut self, now: Moment, wall: Timestamp, lease: Lease) -> bool {
        let before = self.view.observed().map(|o| o.record.holder.clone());
        let changed = self.absorb(now, lease);
        if let Some(o) = self.view.observed().filter(|_| changed)
            && let Some(renewed) = o.record.renewed
            && self.view.ours().is_none()
            // Only a renewal by a known holder is as fresh as it looks; the first sight may be of an old one.
            && before.as_deref() == Some(o.record.holder.as_str())
        {
            self.skew = Some(wall.duration_since(renewed));
        }
        changed
    }

    /// As [`View::absorb`], with what it means for the tenure.
    fn absorb(&mut self, now: Moment, lease: Lease) -> bool {
        let last_stamp = self.view.observed().and_then(|o| o.last_stamp(Some(&Record::from(&lease)), now));
        let changed = self.view.absorb(now, lease);
        if changed {
            self.stamped.passed(last_stamp);
            self.uncertain = false;
            if self.view.record().is_some_and(|r| r.is_release() || self.view.held_by_another()) {
                self.tenure = None;
            }
        }
        self.guard_against_others(now);
        changed
    }

    /// There is no Lease. Gives our own last record, if it was ours.
    fn missing(&mut self, now: Moment) -> Option<Record> {
        self.stamped.passed(self.view.observed().and_then(|o| o.last_stamp(None, now)));
        self.uncertain = false;
        let ours = self.view.missing(now);
        self.guard_against_others(now);
        ours
    }

    /// A Lease that is emptied or deleted under us was taken from nobody else.
    fn guard_against_others(&mut self, now: Moment) {
        if self.tenure.is_some_and(|tenure| tenure.until > now) {
            self.view.forget_guard();
        }
    }
}
