//! What is in the kernel, as far as the steps that took tell. Pure.

use std::net::Ipv4Addr;
use std::sync::Arc;

use super::Drift;
use crate::clock::Moment;
use crate::services::Forwards;
use crate::tunnel::LinkPlan;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fence {
    Absent,
    Closed {
        port: u16,
    },
    /// Answers, and begins nothing. `foreign`: whether another session than ours was seen, once that was asked.
    Held {
        port: u16,
        foreign: Option<bool>,
    },
    Armed {
        port: u16,
        until: Moment,
    },
}

#[derive(Clone, Debug)]
pub(super) enum Link {
    Absent,
    /// The device died under us; what was tied to it may still be there.
    Lost(Arc<LinkPlan>),
    /// Made, but not (or no longer wholly) attached.
    Created(Arc<LinkPlan>),
    Attached(Arc<LinkPlan>),
}

/// The table of the forwards.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Table {
    Absent,
    /// An earlier life wrote it; what it forwards is not known.
    Inherited,
    Applied(Arc<Forwards>, TableKey),
}

/// What we know to be in the kernel, from the steps that took.
#[derive(Debug)]
pub(super) struct Actual {
    /// Has the campaign been told that we may be heard?
    pub(super) speaking: bool,
    pub(super) fence: Fence,
    pub(super) forwards: Table,
    pub(super) link: Link,
    pub(super) peer: Option<Peer>,
    pub(super) doubts: Doubts,
}

/// What a step that failed may have made all the same: the kernel's answer came late, or was lost. It is removed on the
/// way down, and what may be open is closed before anybody is told that it is.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    pub(super) link: Option<Arc<LinkPlan>>,
    pub(super) forwards: bool,
    pub(super) fence: bool,
    /// The fence may be open, though it is taken for closed or in hold.
    pub(super) open: bool,
}

/// The link's peer.
#[derive(Debug)]
pub(super) struct Peer {
    /// The plan that it is of.
    pub(super) plan: Arc<LinkPlan>,
    /// `leaseTransitions` of the tenure in which its session began: in a later one another may have led in between.
    pub(super) transitions: i32,
}

/// Everything but the forwards that the table is rendered from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct TableKey {
    pub(super) vip: Ipv4Addr,
    pub(super) nic: String,
    pub(super) mtu: u16,
}

impl Actual {
    /// Nothing: the clean-up at start saw to it.
    pub(super) fn nothing() -> Self {
        let doubts = Doubts::default();
        Self { speaking: false, fence: Fence::Absent, forwards: Table::Absent, link: Link::Absent, peer: None, doubts }
    }

    /// A tunnel that may be held, after this plan, with a session of the tenure with these transitions.
    ///
    /// What an earlier life armed may last for seconds yet: until the fence was told to hold, the campaign must not take
    /// it for quiet.
    pub(super) fn inherited(plan: &Arc<LinkPlan>, transitions: i32) -> Self {
        Self {
            speaking: true,
            fence: Fence::Held { port: plan.listen_port, foreign: None },
            forwards: Table::Inherited,
            link: Link::Attached(Arc::clone(plan)),
            peer: Some(Peer { plan: Arc::clone(plan), transitions }),
            doubts: Doubts { open: true, ..Doubts::default() },
        }
    }

    /// The link that is there.
    pub(super) fn link(&self) -> Option<&Arc<LinkPlan>> {
        match &self.link {
            Link::Absent | Link::Lost(_) => None,
            Link::Created(plan) | Link::Attached(plan) => Some(plan),
        }
    }

    /// The link is gone, and its peer with it.
    pub(super) fn unlink(&mut self) {
        self.link = Link::Absent;
        self.peer = None;
        self.doubts.link = None;
    }

    /// The device is gone, and its peer with it.
    pub(super) fn lose_link(&mut self) {
        if let Some(plan) = self.link() {
            self.link = Link::Lost(Arc::clone(plan));
        }
        self.peer = None;
    }

    /// The link, or what is or may be left of it.
    pub(super) fn remains(&self) -> Option<&Arc<LinkPlan>> {
        match &self.link {
            Link::Lost(plan) => Some(plan),
            _ => self.link().or(self.doubts.link.as_ref()),
        }
    }

    /// Takes in what an audit found gone.
    pub(super) fn drifted(&mut self, drift: Drift) {
        let Drift { link, network, forwards, fence } = drift;
        if link {
            self.lose_link();
        } else if network && let Link::Attached(plan) = &self.link {
            self.link = Link::Created(Arc::clone(plan));
        }
        if forwards {
            self.forwards = Table::Absent;
        }
        if fence {
            // What is not there is not open.
            (self.fence, self.doubts.open) = (Fence::Absent, false);
        }
    }
}
