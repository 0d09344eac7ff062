//! An attempt: the conversation by which a candidate takes, renews or gives back the Lease.

use std::mem;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;

use super::{Elector, round_trip};
use crate::clock::Moment;
use crate::election::{Before, Record, StoreError, Tenure};

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
pub(super) enum Step {
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

impl Elector {
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
        self.view.asks();
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
                self.view.answered(now, &lease);
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
                let fresh = Record { transitions: self.view.next_transitions(), ..self.record_now(wall) };
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
                self.view.answered(now, &lease);
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

    /// The request that is under way will not be answered.
    pub fn abandon(&mut self) {
        if matches!(mem::replace(&mut self.step, Step::Idle), Step::Writing { .. } | Step::ReleaseWriting) {
            self.uncertain = true;
        }
    }

    fn get(&mut self, started: Moment) -> Request {
        self.step = Step::Getting { started };
        self.view.asks();
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
            Record { transitions: self.view.next_transitions(), ..fresh }
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
