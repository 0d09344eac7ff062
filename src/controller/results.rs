//! What the results of steps tell of what is there. Pure.

use std::mem::discriminant;
use std::sync::Arc;

use super::actual::{Fence, Link, Peer, Table};
use super::{AUDIT_EVERY, Controller, Drift, Failing, Outcome, RETRY, Step};
use crate::clock::Moment;

impl Controller {
    /// A step took.
    pub fn done(&mut self, step: &Step, outcome: Outcome, now: Moment) {
        if !matches!(step, Step::Inspect | Step::Audit(_) | Step::Probe(_) | Step::CloseFence) {
            self.retry_at = now;
        }
        self.close_failed = false;
        if self.failed_last(step) {
            self.failing = None;
        }
        self.actual.doubts.open &= !step.writes_fence();
        match step {
            Step::Speak => self.actual.speaking = true,
            Step::Quiet => self.actual.speaking = false,
            Step::ApplyForwards(plan) => {
                self.actual.forwards = Table::Applied(Arc::clone(&self.forwards), self.table_key(plan));
            }
            Step::RemoveForwards => (self.actual.forwards, self.actual.doubts.forwards) = (Table::Absent, false),
            Step::RaiseFence { port } => self.actual.fence = Fence::Closed { port: *port },
            Step::ArmFence { port, until } => {
                if let Fence::Held { foreign, .. } = self.actual.fence {
                    self.pulse.resume(now);
                    if foreign == Some(true) {
                        self.pulse.give_up();
                    }
                }
                self.actual.fence = Fence::Armed { port: *port, until: *until };
            }
            Step::HoldFence { port } => self.actual.fence = Fence::Held { port: *port, foreign: None },
            Step::AskFence => self.asked_fence(outcome == Outcome::Foreign(true)),
            Step::CloseFence => {
                if let Fence::Closed { port } | Fence::Held { port, .. } | Fence::Armed { port, .. } = self.actual.fence
                {
                    self.actual.fence = Fence::Closed { port };
                }
            }
            Step::RemoveFence => (self.actual.fence, self.actual.doubts.fence) = (Fence::Absent, false),
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
                self.pulse.unlinked();
            }
            Step::SetPeer(plan) => {
                // Never set without a tenure; of none it would be nobody's.
                let transitions = self.tenure.map_or(i32::MIN, |tenure| tenure.transitions);
                self.actual.peer = Some(Peer { plan: Arc::clone(plan), transitions });
                self.failing = None;
                self.pulse.peer_set(now);
            }
            Step::UpdatePeer(plan) => {
                if let Some(there) = &mut self.actual.peer {
                    there.plan = Arc::clone(plan);
                }
            }
            Step::Kick(_) => self.pulse.kicked(now),
            Step::Probe(_) => self.probed(now),
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

    fn failed_last(&self, step: &Step) -> bool {
        self.failing.as_ref().is_some_and(|failing| failing.kind == discriminant(step))
    }

    fn asked_fence(&mut self, seen: bool) {
        if let Fence::Held { foreign, .. } = &mut self.actual.fence {
            *foreign = Some(seen);
        }
    }

    fn drifted(&mut self, drift: Drift) {
        self.actual.drifted(drift);
        if drift.link {
            self.pulse.unlinked();
        }
    }

    fn probed(&mut self, now: Moment) {
        if self.actual.speaking { self.pulse.probed(now) } else { self.pulse.knocked(now) }
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
            Step::Probe(_) => self.probed(now),
            Step::Kick(_) => self.pulse.kicked(now),
            Step::Audit(_) => {
                self.next_audit = now + AUDIT_EVERY;
                self.fence_in_doubt = false;
            }
            Step::ArmFence { .. } => {
                (self.fence_in_doubt, self.actual.doubts.open) = (true, true);
                self.rearm_at = now + first;
            }
            Step::CloseFence => self.fence_in_doubt = true,
            Step::HoldFence { .. } => (self.hold_refused, self.retry_at) = (true, now),
            Step::CreateLink(plan) => self.actual.doubts.link = Some(Arc::clone(plan)),
            Step::ApplyForwards(_) => self.actual.doubts.forwards = true,
            Step::RaiseFence { .. } => self.actual.doubts.fence = true,
            // What cannot be known is taken for the worse.
            Step::AskFence => self.asked_fence(true),
            Step::Inspect => self.pulse.unread(now),
            _ => {}
        }
    }

    /// The link's process or device died under us: it is made again.
    pub fn link_lost(&mut self) {
        self.drifted(Drift { link: true, ..Drift::default() });
    }
}
