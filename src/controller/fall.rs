//! The way down, and the way between: hold. Pure.

use std::time::Duration;

use super::actual::{Fence, Link, Table};
use super::pulse::Due;
use super::{Controller, Ending, Next, RETRY, Step};
use crate::clock::Moment;
use crate::tunnel::Change;

/// A successor is given so long from when the Lease names it until the hub is its own.
const SUCCESSION: Duration = Duration::from_secs(1);
/// A pod that ends waits so long for a successor to be named, and to have the hub (contract: SIGTERM is over within 3 s).
const HAND_OVER: Duration = Duration::from_millis(1800);

impl Controller {
    /// May the tunnel go on answering without a tenure? Then the moment at which this is to be asked again.
    ///
    /// As long as nobody else is named in the Lease, or for as long as a successor takes to have the hub. Not without a
    /// session, and not with settings that need another.
    pub(super) fn hold_until(&self, now: Moment) -> Option<Moment> {
        let open = matches!(self.actual.fence, Fence::Armed { .. } | Fence::Held { .. });
        let link = self.actual.link()?;
        let fits = self.plan.as_ref().is_none_or(|plan| link.change_to(plan) < Change::NewPeer);
        let session = self.actual.peer.is_some() && self.pulse.serves(now);
        if self.hold_as.is_none() || self.hold_refused || !open || !fits || !session {
            return None;
        }
        let ending = match self.ending {
            None => None,
            Some((Ending::HandOver, since)) => Some(since + HAND_OVER),
            Some((Ending::Removal, _)) => return None,
        };
        let succession = self.succeeded.map(|since| since + SUCCESSION);
        let end = [ending, succession].into_iter().flatten().min();
        Some(end.unwrap_or(now + RETRY.1)).filter(|end| *end > now)
    }

    /// Answers go on; what is forwarded stays true, and nothing is begun.
    pub(super) fn next_hold(&mut self, then: Moment, now: Moment) -> Next {
        match self.actual.fence {
            // The kernel lets it fall by itself; this does not trust two clocks to agree, or is earlier.
            Fence::Armed { port, .. } => return Next::Do(Step::HoldFence { port }),
            Fence::Held { port, .. } if self.actual.doubts.open => return Next::Do(Step::HoldFence { port }),
            _ => {}
        }
        if self.actual.speaking {
            return Next::Do(Step::Quiet);
        }
        let Some(link) = self.actual.link().cloned() else { return Next::WaitUntil(now) };
        if self.stale_forwards(&link) {
            return self.unless_waiting(now, Step::ApplyForwards(link));
        }
        if let Link::Created(_) = self.actual.link {
            return self.unless_waiting(now, Step::AttachLink(link));
        }
        if now >= self.next_audit {
            return Next::Do(Step::Audit(link));
        }
        if self.pulse.due(now) == Some(Due::Reading) {
            return self.unless_waiting(now, Step::Inspect);
        }
        let knock = self.pulse.next_knock();
        if knock.is_some_and(|due| due <= now) {
            return self.unless_waiting(now, Step::Probe(link));
        }
        let due = [Some(then), Some(self.next_audit), Some(self.pulse.next_reading(now)), knock];
        Next::WaitUntil(due.into_iter().flatten().min().unwrap_or(then))
    }

    /// Silent first, then all the rest.
    pub(super) fn next_down(&mut self, now: Moment) -> Next {
        // A tenure that has ended closed the fence in the kernel; shutting it as well costs one transaction and does
        // not trust two clocks to agree. If that fails, the link's going is as good; the two take turns. A link that is
        // not found may have got another name, and speak on.
        let open = matches!(self.actual.fence, Fence::Armed { .. } | Fence::Held { .. }) || self.actual.doubts.open;
        if open && !self.close_failed {
            return self.unless_waiting(now, Step::CloseFence);
        }
        // Without a fence everything may pass, so that only the link's going is silence.
        let closed = matches!(self.actual.fence, Fence::Closed { .. }) && !open;
        if self.actual.speaking && (closed || self.actual.remains().is_none()) {
            return Next::Do(Step::Quiet);
        }
        if let Some(link) = self.actual.remains().cloned() {
            return self.unless_waiting(now, Step::RemoveLink(link));
        }
        if self.actual.forwards != Table::Absent || self.actual.doubts.forwards {
            return self.unless_waiting(now, Step::RemoveForwards);
        }
        if self.actual.fence != Fence::Absent || self.actual.doubts.fence {
            return self.unless_waiting(now, Step::RemoveFence);
        }
        match self.ending {
            Some(_) => Next::Finished,
            None => {
                // What made us give way stands in the way still, for all we know; all else is over.
                if self.gave_way.is_none() {
                    self.failing = None;
                }
                Next::WaitUntil(now + Duration::from_secs(1))
            }
        }
    }
}
