//! The election: who may speak on a tunnel, decided from the tunnel's Lease.
//!
//! Here stand its words and its seam to the API. `elector` decides, `campaign` drives it, `load` lets the leadership of
//! several tunnels spread over the pods, `lease` is the seam over a cluster, `testing` the seam over memory. What must hold:
//!
//! - The clock of another machine decides nothing: a record that another holds is valid for its published duration
//!   from the moment *this* process first saw it so.
//! - A [`Tenure`] ends a margin before anybody else may think it over, also while a request is under way.
//! - The Lease is released only when the controller has said that the tunnel is quiet, and only if it names us.
//!
//! The rules follow client-go's `tools/leaderelection`, with these that are stricter: a tenure counts from before the
//! request was sent, another holder ends it at once, a release checks the holder that it fetched, and a holder that
//! vanishes without releasing counts as holding until its term is over.

mod campaign;
mod driver;
mod elector;
pub mod gate;
pub mod lease;
pub mod load;
mod round_trip;
mod stamped;
pub mod testing;
mod view;

use std::error::Error;
use std::future::Future;
use std::time::Duration;

use futures::stream::BoxStream;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use thiserror::Error;

use crate::clock::Moment;

pub use campaign::{Campaign, Standing};
pub use elector::{Elector, Outcome, Request, Takeover, Verdict};
pub use gate::Gate;
pub use load::{HeadStart, Load, Share};
pub use round_trip::ANNOTATION as ROUND_TRIP;
pub use stamped::ANNOTATION as STAMPED;

/// What the campaign publishes, and the controller handles before all else.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Leadership {
    /// Another holds the Lease, or nobody does. `None`: not known (yet, or since the API went away).
    Following {
        /// Identity of the holder, as last seen; empty string = released. Our own: it names us, but we may not speak.
        holder: Option<String>,
    },
    /// We hold it.
    Leading(Tenure),
}

/// Who held a Lease before a tenure: who may still be heard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Before {
    /// Nobody, or this process.
    Nobody,
    /// One that gave it back: it speaks no more unasked, and is silent within seconds.
    GaveBack,
    /// One that did not: it may hold on for long.
    Other,
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
    /// Who held the Lease before.
    pub before: Before,
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

impl Default for Params {
    fn default() -> Self {
        Self { lease: Duration::from_secs(5), renew_deadline: Duration::from_secs(3), retry: Duration::from_secs(1) }
    }
}

impl Params {
    /// How long before the Lease runs out a tenure ends: 250 ms, or 5 % of the lease if that is more. It pays for
    /// clocks that run at different rates, and for the way from the end of a tenure to the kernel.
    pub fn margin(&self) -> Duration {
        Duration::from_millis(250).max(self.lease / 20)
    }

    /// The longest that one request may take: half the renew deadline, at least a second, and never past the deadline.
    pub fn request_timeout(&self) -> Duration {
        (self.renew_deadline / 2).max(Duration::from_secs(1)).min(self.renew_deadline)
    }

    /// Between attempts while the API is away: the retry period, a second at most.
    pub fn impatience(&self) -> Duration {
        self.retry.min(Duration::from_secs(1))
    }

    /// Between attempts of candidates that collided (Q1): [1, 2.2) retry periods, by a `chance` in [0, 1).
    pub fn spread(&self, chance: f64) -> Duration {
        self.retry.mul_f64(1.0 + 1.2 * chance)
    }

    /// The same times, if an election can be held by them.
    pub fn check(self) -> Result<Self, ParamsError> {
        let Self { lease, renew_deadline, retry } = self;
        if lease.is_zero() || renew_deadline.is_zero() || retry.is_zero() {
            return Err(ParamsError::Zero);
        }
        if lease.subsec_nanos() != 0 || i32::try_from(lease.as_secs()).is_err() {
            return Err(ParamsError::Fraction { lease });
        }
        if lease <= renew_deadline {
            return Err(ParamsError::DeadlineTooLong { lease, renew_deadline });
        }
        if renew_deadline <= retry.saturating_mul(6) / 5 {
            return Err(ParamsError::RetryTooLong { renew_deadline, retry });
        }
        let needed = retry.saturating_add(renew_deadline).saturating_add(self.margin());
        if needed >= lease {
            return Err(ParamsError::NoTimeLeft { lease, needed });
        }
        Ok(self)
    }
}

/// Why no election can be held.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ParamsError {
    /// C3.
    #[error("lease duration, renew deadline and retry period must each be more than zero")]
    Zero,
    /// S7: the Lease holds whole seconds.
    #[error("a lease duration of {lease:?} cannot be written to a Lease; give whole seconds, such as 5s")]
    Fraction {
        /// As given.
        lease: Duration,
    },
    /// C1.
    #[error(
        "the renew deadline ({renew_deadline:?}) must be shorter than the lease duration ({lease:?}); shorten it or lengthen the lease"
    )]
    DeadlineTooLong {
        /// As given.
        lease: Duration,
        /// As given.
        renew_deadline: Duration,
    },
    /// C2.
    #[error("the renew deadline ({renew_deadline:?}) must be more than 1.2 times the retry period ({retry:?})")]
    RetryTooLong {
        /// As given.
        renew_deadline: Duration,
        /// As given.
        retry: Duration,
    },
    /// S1.
    #[error(
        "retry period, renew deadline and safety margin take {needed:?} together, so a lease of {lease:?} could end before its leader is silent; lengthen the lease or shorten the others"
    )]
    NoTimeLeft {
        /// As given.
        lease: Duration,
        /// Retry + renew deadline + margin.
        needed: Duration,
    },
    /// C4.
    #[error("the candidate has no identity; set POD_NAME and POD_UID")]
    NoIdentity,
}

/// The election's part of a Lease. A missing field is its zero value (F2).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Record {
    /// Identity; empty = nobody.
    pub holder: String,
    /// For how long the record is valid after it was seen.
    pub duration_seconds: i32,
    /// When the holder became it, by its own wall clock.
    pub acquired: Option<Timestamp>,
    /// When the holder last renewed, by its own wall clock.
    pub renewed: Option<Timestamp>,
    /// Changes of holder so far.
    pub transitions: i32,
    /// Of coordinated election, which we take no part in: read to notice change, cleared by writing.
    pub preferred_holder: String,
    /// As `preferred_holder`.
    pub strategy: String,
}

impl Record {
    /// For how long the record is valid after it was seen.
    pub fn duration(&self) -> Duration {
        Duration::from_secs(u64::try_from(self.duration_seconds).unwrap_or(0))
    }

    /// Whether this is what a holder writes that gives the Lease back (X4), and not a Lease that lost its holder.
    pub fn is_release(&self) -> bool {
        self.holder.is_empty() && self.duration_seconds == 1
    }

    /// Whether nobody holds it though nobody gave it back: somebody's hand took the holder away.
    pub fn is_emptied(&self) -> bool {
        self.holder.is_empty() && !self.is_release()
    }

    /// The spec of a Lease with this record. Zero values are written too, so that a release clears the holder (F3).
    pub fn spec(&self) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.holder.clone()),
            lease_duration_seconds: Some(self.duration_seconds),
            acquire_time: self.acquired.map(MicroTime),
            renew_time: self.renewed.map(MicroTime),
            lease_transitions: Some(self.transitions),
            preferred_holder: Some(self.preferred_holder.clone()).filter(|s| !s.is_empty()),
            strategy: Some(self.strategy.clone()).filter(|s| !s.is_empty()),
        }
    }
}

impl From<&LeaseSpec> for Record {
    fn from(spec: &LeaseSpec) -> Self {
        Self {
            holder: spec.holder_identity.clone().unwrap_or_default(),
            duration_seconds: spec.lease_duration_seconds.unwrap_or_default(),
            acquired: spec.acquire_time.as_ref().map(|t| t.0),
            renewed: spec.renew_time.as_ref().map(|t| t.0),
            transitions: spec.lease_transitions.unwrap_or_default(),
            preferred_holder: spec.preferred_holder.clone().unwrap_or_default(),
            strategy: spec.strategy.clone().unwrap_or_default(),
        }
    }
}

impl From<&Lease> for Record {
    fn from(lease: &Lease) -> Self {
        lease.spec.as_ref().map(Self::from).unwrap_or_default()
    }
}

/// One Lease, wherever it is kept. Each call may take for ever: the campaign bounds it.
pub trait LeaseStore: Send + Sync + 'static {
    /// The Lease as it is now, never from a cache.
    fn get(&self) -> impl Future<Output = Result<Lease, StoreError>> + Send;

    /// Makes the Lease, with this record.
    fn create(&self, record: Record) -> impl Future<Output = Result<Lease, StoreError>> + Send;

    /// Puts this record in the place of `last`'s and leaves the rest of `last` as it is; [`StoreError::Conflict`] if
    /// `last` is not the newest any more.
    fn replace(&self, last: Lease, record: Record) -> impl Future<Output = Result<Lease, StoreError>> + Send;

    /// The Lease from now on: its present state first, then each change, in order. Never ends; mends itself after
    /// [`Sight::Broken`].
    fn watch(&self) -> BoxStream<'static, Sight>;
}

/// What a watch shows.
#[derive(Debug)]
pub enum Sight {
    /// The Lease as it is now.
    Lease(Box<Lease>),
    /// There is none (any more).
    Gone,
    /// The watch broke: what happens is not shown until the next sight.
    Broken(StoreError),
}

/// What the API answers in place of a Lease.
#[derive(Debug, Error)]
pub enum StoreError {
    /// No such Lease.
    #[error("the Lease does not exist")]
    NotFound,
    /// Another has written it since.
    #[error("the Lease was changed by another")]
    Conflict,
    /// Another has made it since.
    #[error("the Lease was made by another")]
    AlreadyExists,
    /// RBAC.
    #[error(
        "not allowed to {verb} the Lease; allow get, list, watch, create and update on leases.coordination.k8s.io in this namespace to the pod's ServiceAccount"
    )]
    Forbidden {
        /// What was tried.
        verb: &'static str,
        /// The API server's own words.
        #[source]
        cause: Box<dyn Error + Send + Sync>,
    },
    /// No answer in time: the request may have been carried out or not.
    #[error("no answer from the API server within {0:?}; check that the pod reaches it")]
    TimedOut(Duration),
    /// Anything else: as for [`StoreError::TimedOut`], nothing is known of the outcome.
    #[error("could not {verb} the Lease; check that the pod reaches the API server")]
    Other {
        /// What was tried.
        verb: &'static str,
        /// Why it failed.
        #[source]
        cause: Box<dyn Error + Send + Sync>,
    },
}
