//! The elector: one candidate's knowledge of the Lease and what follows from it. Pure: time comes in as an argument,
//! requests go out as values.
//!
//! An attempt is a short conversation: [`Elector::next`] gives a request, each answer goes to [`Elector::answer`] until
//! that is done. What a watch shows goes to [`Elector::sight`] at any time, also in the middle of an attempt. Whether an
//! attempt may be made at all (quiet, eligible) is the campaign's to know.

use std::mem;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;

use super::round_trip;
use super::stamped::Stamped;
use super::view::View;
use super::{Before, HeadStart, Params, ParamsError, Record, StoreError, Tenure};
use crate::clock::Moment;

/// So far behind the holder's, a wall clock counts as wrong.
const BEHIND: SignedDuration = SignedDuration::from_millis(500);

/// A call to make on the Lease.
#[derive(Clone, PartialEq, Debug)]
pub enum Request {
    /// Read it.
    Get,
    /// Make it.
    Create(Record),
    /// Write the record into this Lease, guarded by its resourceVersion.
    Replace(Box<Lease>, Record),
}

/// What an answer leads to.
#[derive(Clone, PartialEq, Debug)]
pub enum Verdict {
    /// The attempt goes on with this request.
    Continue(Request),
    /// The attempt is over.
    Done(Outcome),
}

/// How an attempt ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The Lease is ours: see [`Elector::tenure`].
    Won,
    /// Another holds it. If we led, that is over.
    Held,
    /// It is free, and others have a head start: see [`Elector::turn`].
    OthersFirst,
    /// Another wrote at the same time.
    Collided,
    /// The API did not do it, or did not say so.
    Failed,
    /// Given back.
    Released,
    /// Nothing to give back: it names another, or is gone.
    NotOurs,
}

/// How a tenure came about, for those who measure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Takeover {
    /// The former holder's last sign of life.
    pub silent_since: Moment,
    /// When the Lease was found to be free. From `silent_since`: the phase `detect`.
    pub detected: Moment,
    /// When the API confirmed that it is ours. From `detected`: the phase `lease`.
    pub written: Moment,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Idle,
    Getting {
        started: Moment,
    },
    /// `fast`: without a get first, so a refusal is answered by one.
    Writing {
        started: Moment,
        sent: Moment,
        silent_since: Moment,
        fast: bool,
        before: Before,
    },
    ReleaseGetting,
    ReleaseWriting,
}

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

    /// The request that is under way will not be answered.
    pub fn abandon(&mut self) {
        if matches!(mem::replace(&mut self.step, Step::Idle), Step::Writing { .. } | Step::ReleaseWriting) {
            self.uncertain = true;
        }
    }

    /// When a candidate that is told nothing by a watch should attempt: when the holder's term is over, and before
    /// that when it has been silent for twice the retry period, since silence counts only as far as we can read.
    pub fn due(&self) -> Moment {
        self.view.due(self.params.retry)
    }

    /// Begins an attempt to take or renew.
    pub fn next(&mut self, now: Moment, wall: Timestamp) -> Request {
        let Some(o) = self.view.observed() else { return self.get(now) };
        let ours = self.view.ours().is_some() && o.seen + o.record.duration() > now;
        // A release seen by the watch saves the get: if anybody was faster, the resourceVersion says so.
        if self.view.held_until() <= now && (ours || o.record.is_release()) {
            self.write(now, now, wall, true)
        } else {
            self.get(now)
        }
    }

    /// Begins to give the Lease back; any tenure is over. The answer to the get gives the write, which may be sent
    /// **only when the tunnel is quiet**.
    pub fn release(&mut self) -> Request {
        self.stand_down();
        self.step = Step::ReleaseGetting;
        Request::Get
    }

    /// Takes the answer to the last request.
    pub fn answer(&mut self, now: Moment, wall: Timestamp, answer: Result<Lease, &StoreError>) -> Verdict {
        // An answer that comes after the tenure's end tells what the Lease is, and prolongs nothing.
        self.lapse(now);
        let led = self.tenure.is_some();
        let step = mem::replace(&mut self.step, Step::Idle);
        match (step, answer) {
            (Step::Idle, answer) => {
                if let Ok(lease) = answer {
                    self.absorb(now, lease);
                }
                Verdict::Done(Outcome::Failed)
            }
            (Step::Getting { started }, Ok(lease)) => {
                self.absorb(now, lease);
                if self.view.held_until() > started || (led && self.tenure.is_none()) {
                    return Verdict::Done(Outcome::Held);
                }
                if self.others_first(now) {
                    return Verdict::Done(Outcome::OthersFirst);
                }
                Verdict::Continue(self.write(started, now, wall, false))
            }
            (Step::Getting { started }, Err(StoreError::NotFound)) => {
                let carried = self.missing(now);
                if self.view.held_until() > started {
                    return Verdict::Done(Outcome::Held);
                }
                if carried.is_none() && self.others_first(now) {
                    return Verdict::Done(Outcome::OthersFirst);
                }
                let fresh = self.record_now(wall);
                let record = carried.map_or(fresh.clone(), |old| Record {
                    acquired: old.acquired,
                    transitions: old.transitions,
                    ..fresh
                });
                // Who may still speak was named in a Lease that we saw.
                let before = if self.view.guarded() { Before::Other } else { Before::Nobody };
                self.stamped.create(wall);
                self.step = Step::Writing { started, sent: now, silent_since: started, fast: false, before };
                Verdict::Continue(Request::Create(record))
            }
            (Step::Getting { .. }, Err(_)) => {
                self.view.blind();
                Verdict::Done(Outcome::Failed)
            }
            (Step::Writing { started, sent, silent_since, before, .. }, Ok(lease)) => {
                Verdict::Done(self.written(now, (started, sent, silent_since), before, lease))
            }
            (Step::Writing { fast: true, started, .. }, Err(error)) => {
                self.uncertain |= outcome_unknown(error);
                Verdict::Continue(self.get(started))
            }
            (Step::Writing { .. }, Err(error)) => {
                self.uncertain |= outcome_unknown(error);
                let collided = matches!(error, StoreError::Conflict | StoreError::AlreadyExists | StoreError::NotFound);
                Verdict::Done(if collided { Outcome::Collided } else { Outcome::Failed })
            }
            (Step::ReleaseGetting, Ok(lease)) => {
                self.absorb(now, lease);
                self.release_write(now, wall)
            }
            (Step::ReleaseGetting | Step::ReleaseWriting, Err(StoreError::NotFound)) => {
                self.missing(now);
                Verdict::Done(Outcome::NotOurs)
            }
            (Step::ReleaseGetting, Err(_)) => {
                self.view.blind();
                Verdict::Done(Outcome::Failed)
            }
            (Step::ReleaseWriting, Ok(lease)) => {
                self.absorb(now, lease);
                Verdict::Done(Outcome::Released)
            }
            (Step::ReleaseWriting, Err(StoreError::Conflict)) => Verdict::Continue(self.release()),
            (Step::ReleaseWriting, Err(error)) => {
                self.uncertain |= outcome_unknown(error);
                Verdict::Done(Outcome::Failed)
            }
        }
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

    fn get(&mut self, started: Moment) -> Request {
        self.step = Step::Getting { started };
        Request::Get
    }

    /// The record of a holder that begins now.
    fn record_now(&self, wall: Timestamp) -> Record {
        let wall = whole_micros(wall);
        Record {
            holder: self.view.identity().to_owned(),
            // `Params::check` has seen that it fits.
            duration_seconds: i32::try_from(self.params.lease.as_secs()).unwrap_or(i32::MAX),
            acquired: Some(wall),
            renewed: Some(wall),
            ..Record::default()
        }
    }

    fn write(&mut self, started: Moment, now: Moment, wall: Timestamp, fast: bool) -> Request {
        let Some(o) = self.view.observed() else { return self.get(started) };
        let fresh = self.record_now(wall);
        let record = if self.view.ours().is_some() {
            Record { acquired: o.record.acquired, transitions: o.record.transitions, ..fresh }
        } else {
            Record { transitions: o.record.transitions.saturating_add(1), ..fresh }
        };
        // Ours without our having led by it: a write whose answer was lost, and so a takeover like any other.
        let led = self.view.ours().is_some() && self.led == Some(o.record.transitions);
        let before = match (led, o.record.is_release()) {
            (true, _) => Before::Nobody,
            (false, true) => Before::GaveBack,
            (false, false) => Before::Other,
        };
        let silent_since = o.seen.min(started);
        let request = replacing(self.stamped.replace(o, now, wall), self.round_trip, record);
        self.step = Step::Writing { started, sent: now, silent_since, fast, before };
        request
    }

    /// Our record was written.
    fn written(
        &mut self,
        now: Moment,
        (started, sent, silent_since): (Moment, Moment, Moment),
        before: Before,
        lease: Lease,
    ) -> Outcome {
        let held = self.tenure;
        self.absorb(now, lease);
        self.uncertain = false;
        let Some(o) = self.view.ours() else {
            // The watch has shown a successor while the answer was on its way, or something rewrote what we sent.
            return Outcome::Held;
        };
        let until = sent + self.params.lease - self.params.margin();
        if until <= now || (held.is_some() && self.tenure.is_none()) {
            return Outcome::Failed;
        }
        let transitions = o.record.transitions;
        self.view.forget_guard();
        if held.is_none() {
            self.takeover = Some(Takeover { silent_since, detected: started, written: now });
            self.stamped.won();
        }
        let (since, before) = held.map_or((now, before), |held| (held.since, held.before));
        self.led = Some(transitions);
        self.tenure = Some(Tenure { since, until, transitions, before });
        Outcome::Won
    }

    fn release_write(&mut self, now: Moment, wall: Timestamp) -> Verdict {
        let Some(o) = self.view.ours() else {
            self.uncertain = false;
            return Verdict::Done(Outcome::NotOurs);
        };
        let record = Record {
            holder: String::new(),
            duration_seconds: 1,
            transitions: o.record.transitions,
            ..self.record_now(wall)
        };
        let request = replacing(self.stamped.replace(o, now, wall), self.round_trip, record);
        self.step = Step::ReleaseWriting;
        Verdict::Continue(request)
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
        changed
    }

    /// There is no Lease. Gives our own last record, if it was ours.
    fn missing(&mut self, now: Moment) -> Option<Record> {
        self.stamped.passed(self.view.observed().and_then(|o| o.last_stamp(None, now)));
        self.uncertain = false;
        self.view.missing(now)
    }
}

/// The write of this record into a Lease, with what a successor should know.
fn replacing(mut lease: Lease, round_trip: Option<Duration>, record: Record) -> Request {
    round_trip::write(&mut lease, round_trip);
    Request::Replace(Box::new(lease), record)
}

/// Whether a write that was answered so may have landed.
fn outcome_unknown(error: &StoreError) -> bool {
    matches!(error, StoreError::TimedOut(_) | StoreError::Other { .. })
}

/// The API server keeps microseconds: what we compare must be what comes back.
fn whole_micros(wall: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(wall.as_microsecond()).unwrap_or(wall)
}
