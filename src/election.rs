//! The elector: who may speak on a tunnel, decided from the tunnel's Lease. Pure; `election::campaign` drives it.

use std::time::Duration;

use crate::clock::Moment;

/// What the campaign publishes, and the controller handles before all else.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Leadership {
    /// Another holds the Lease, or nobody does. `None`: not known (yet, or since the API went away).
    Following {
        /// Identity of the holder, as last seen; empty string = released.
        holder: Option<String>,
    },
    /// We hold it.
    Leading(Tenure),
}

/// The time during which this pod may speak on a tunnel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tenure {
    /// When this unbroken tenure began.
    pub since: Moment,
    /// When it ends unless renewed: start of the last successful request + lease duration − margin.
    pub until: Moment,
    /// `leaseTransitions` that we wrote.
    pub transitions: i32,
}

/// The times of an election. Refused unless `retry + renew_deadline + margin < lease`, and by rules C1-C3, S7.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Params {
    /// `leaseDurationSeconds`, whole seconds.
    pub lease: Duration,
    /// How long one renewal may try.
    pub renew_deadline: Duration,
    /// Between attempts.
    pub retry: Duration,
}
