//! The way up, and staying there: the first thing that should be there and is not. Pure.

use std::sync::Arc;

use super::actual::{Fence, Link};
use super::pulse::Due;
use super::{Controller, DAMPING, Next, RAISE_PATIENCE, Step, UPLINK_PATIENCE};
use crate::clock::Moment;
use crate::election::Tenure;
use crate::tunnel::{Change, LinkPlan};

impl Controller {
    pub(super) fn next_up(&mut self, tenure: Tenure, now: Moment) -> Next {
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
            if let Fence::Armed { .. } | Fence::Held { .. } = self.actual.fence {
                return self.unless_waiting(now, Step::CloseFence);
            }
            return self.unless_waiting(now, Step::RemoveLink(Arc::clone(link)));
        }
        if let Fence::Armed { port, until } = self.actual.fence
            && until <= now
            && self.hold_as.is_some()
        {
            // The kernel lets it fall too, by a clock of its own.
            (self.actual.fence, self.actual.doubts.open) = (Fence::Held { port, foreign: None }, true);
        }
        match self.actual.fence {
            Fence::Held { foreign: None, .. } => return Next::Do(Step::AskFence),
            Fence::Held { port, foreign: Some(_) } => return self.arm(port, tenure, now),
            _ => {}
        }
        if let Fence::Armed { port, until } = self.actual.fence
            && until != tenure.until
        {
            return self.arm(port, tenure, now);
        }
        if self.deaf(now) && now.since(tenure.since) >= DAMPING {
            self.gave_way = Some(tenure.since);
            return Next::Do(Step::StepDown);
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

    /// Has the hub not said a word for long, and nothing helped?
    fn deaf(&self, now: Moment) -> bool {
        let asked = self.actual.peer.is_some() && !self.pulse.answered();
        asked && self.pulse.unheard_for(now) >= UPLINK_PATIENCE
    }

    /// Other steps' patience is not the fence's: it closes by itself.
    fn arm(&self, port: u16, tenure: Tenure, now: Moment) -> Next {
        if now < self.rearm_at {
            return Next::WaitUntil(self.rearm_at);
        }
        Next::Do(Step::ArmFence { port, until: tenure.until })
    }

    /// The first thing that should be there and is not.
    fn missing(&self, plan: Option<&Arc<LinkPlan>>, tenure: Tenure) -> Option<Step> {
        let plan = plan?;
        if self.stale_forwards(plan) {
            return Some(Step::ApplyForwards(Arc::clone(plan)));
        }
        let port = plan.listen_port;
        match self.actual.fence {
            Fence::Absent => return Some(Step::RaiseFence { port }),
            Fence::Closed { port: fenced } | Fence::Armed { port: fenced, .. } if fenced != port => {
                return Some(Step::RemoveFence);
            }
            Fence::Closed { .. } | Fence::Held { .. } | Fence::Armed { .. } => {}
        }
        match &self.actual.link {
            Link::Lost(lost) => return Some(Step::RemoveLink(Arc::clone(lost))),
            Link::Absent => return Some(Step::CreateLink(Arc::clone(plan))),
            Link::Created(_) => return Some(Step::AttachLink(Arc::clone(plan))),
            Link::Attached(attached) if attached.mtu != plan.mtu => return Some(Step::AttachLink(Arc::clone(plan))),
            Link::Attached(_) => {}
        }
        if let Fence::Closed { .. } = self.actual.fence {
            return Some(Step::ArmFence { port, until: tenure.until });
        }
        let Some(there) = &self.actual.peer else {
            return Some(Step::SetPeer(Arc::clone(plan)));
        };
        let peer = &there.plan.peer;
        // A hub at another address is most likely another process, which knows nothing of our session; and if another
        // led in between, the hub has forgotten it.
        let other_hub = peer.public_key != plan.peer.public_key || peer.endpoint != plan.peer.endpoint;
        if other_hub || there.transitions != tenure.transitions || self.pulse.wants_fresh_peer() {
            return Some(Step::SetPeer(Arc::clone(plan)));
        }
        (*peer != plan.peer).then(|| Step::UpdatePeer(Arc::clone(plan)))
    }
}
