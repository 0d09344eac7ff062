//! The steps of a tunnel's life as values: what the controller orders, and what the actor answers.

use std::sync::Arc;

use crate::clock::Moment;
use crate::tunnel::{LinkPlan, LinkStats};

/// One step. Each is carried out whole, and its result reported with [`super::Controller::done`] or [`super::Controller::failed`].
#[derive(Clone, PartialEq, Debug)]
pub enum Step {
    /// Tell the campaign that this pod may be heard from now on.
    Speak,
    /// Make the forwards table what it should be, and forget the UDP flows towards backends that are gone.
    ApplyForwards(Arc<LinkPlan>),
    /// Write the fence, closed, for this port.
    RaiseFence {
        /// Our UDP port.
        port: u16,
    },
    /// Open the fence until then.
    ArmFence {
        /// The port that the fence was written for.
        port: u16,
        /// End of the tenure.
        until: Moment,
    },
    /// Make the link: keyed, its port bound, without a peer, down.
    CreateLink(Arc<LinkPlan>),
    /// Give it addresses, routes, rules; set it up.
    AttachLink(Arc<LinkPlan>),
    /// Give it the hub as a fresh peer; the handshake leaves at once.
    SetPeer(Arc<LinkPlan>),
    /// Change the peer in place; session and flows stay.
    UpdatePeer(Arc<LinkPlan>),
    /// Send another handshake.
    Kick(Arc<LinkPlan>),
    /// Send the packet that a living hub answers.
    Probe(Arc<LinkPlan>),
    /// Read WireGuard's counters.
    Inspect,
    /// Look whether link, addresses, rules and tables are still as written.
    Audit(Arc<LinkPlan>),
    /// Let the fence fall to hold now, as the kernel does by itself when the tenure ends.
    HoldFence {
        /// The port that the fence was written for.
        port: u16,
    },
    /// Ask the fence whether it has seen another session than ours of late.
    AskFence,
    /// Shut the fence now.
    CloseFence,
    /// Remove the link with its addresses, routes and rules.
    RemoveLink(Arc<LinkPlan>),
    /// Tell the campaign that the kernel has confirmed that we speak no more unasked.
    Quiet,
    /// Delete the forwards table, and the conntrack entries with our mark.
    RemoveForwards,
    /// Delete the fence.
    RemoveFence,
    /// Ask the campaign to let another pod lead for a while.
    StepDown,
}

/// What an audit found gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Drift {
    /// The link itself.
    pub link: bool,
    /// Address, route, rule or the link's being up.
    pub network: bool,
    /// The forwards table, or part of it.
    pub forwards: bool,
    /// The fence, or part of it.
    pub fence: bool,
}

/// A step's result.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Outcome {
    /// It took.
    Done,
    /// To [`Step::Inspect`].
    Stats(LinkStats),
    /// To [`Step::Audit`].
    Drift(Drift),
    /// To [`Step::AskFence`].
    Foreign(bool),
}

/// The answer to "what next?".
#[derive(Clone, PartialEq, Debug)]
pub enum Next {
    /// Do this, report, ask again.
    Do(Step),
    /// Nothing until then, or until an event.
    WaitUntil(Moment),
    /// Nothing ever again: stopped, and nothing of ours is left.
    Finished,
}

impl Step {
    /// Does the fence stand, after it, as it says and no other way?
    pub(super) fn writes_fence(&self) -> bool {
        use Step::{ArmFence, CloseFence, HoldFence, RaiseFence, RemoveFence};
        matches!(self, RaiseFence { .. } | ArmFence { .. } | HoldFence { .. } | CloseFence | RemoveFence)
    }

    /// Its name, and the stage of the code that it is carried out by.
    pub fn names(&self) -> (&'static str, &'static str) {
        match self {
            Step::Speak => ("speak", "election"),
            Step::Quiet => ("quiet", "election"),
            Step::StepDown => ("step-down", "election"),
            Step::ApplyForwards(_) => ("apply-forwards", "ruleset"),
            Step::RemoveForwards => ("remove-forwards", "ruleset"),
            Step::RaiseFence { .. } => ("raise-fence", "fence"),
            Step::ArmFence { .. } => ("arm-fence", "fence"),
            Step::HoldFence { .. } => ("hold-fence", "fence"),
            Step::AskFence => ("ask-fence", "fence"),
            Step::CloseFence => ("close-fence", "fence"),
            Step::RemoveFence => ("remove-fence", "fence"),
            Step::CreateLink(_) => ("create-link", "tunnel"),
            Step::AttachLink(_) => ("attach-link", "tunnel"),
            Step::SetPeer(_) => ("set-peer", "tunnel"),
            Step::UpdatePeer(_) => ("update-peer", "tunnel"),
            Step::Kick(_) => ("kick", "tunnel"),
            Step::Probe(_) => ("probe", "tunnel"),
            Step::Inspect => ("inspect", "tunnel"),
            Step::Audit(_) => ("audit", "tunnel"),
            Step::RemoveLink(_) => ("remove-link", "tunnel"),
        }
    }
}
