//! The campaign: one candidate at work on one Lease, and the handle on it.
//!
//! The controller of a tunnel takes [`Campaign::leadership`] and [`Campaign::gate`]:
//!
//! 1. after its clean-up at start it says [`Gate::quiet`], and when it has all it needs to lead, [`Gate::eligible`];
//! 2. told [`Leadership::Leading`], it asks [`Gate::speak`], then arms the fence until the tenure's end and raises the
//!    tunnel; told so again with a later end, it arms the fence again;
//! 3. told [`Leadership::Following`], it lets the fence fall to hold or takes the tunnel down, and says [`Gate::quiet`].

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rand::Rng;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::Instrument;

use super::driver::{Driver, Handle};
use super::gate::{Gate, Wish};
use super::{Elector, Leadership, LeaseStore, Share, Takeover};
use crate::clock::Clock;

/// What the campaign has seen, for metrics and status. Written before the [`Leadership`] it belongs to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Standing {
    /// As in [`Leadership::Following`], also while we lead.
    pub holder: Option<String>,
    /// `leaseTransitions` of the Lease as last seen.
    pub transitions: Option<i32>,
    /// See [`Elector::clock_skew`].
    pub clock_skew: Option<SignedDuration>,
    /// See [`Elector::told_round_trip`].
    pub round_trip: Option<Duration>,
    /// See [`Elector::stamped`]. Published before the tenure that it is for.
    pub stamped: Option<Timestamp>,
    /// How the present or last tenure of this pod came about.
    pub takeover: Option<Takeover>,
    /// Why the last request or watch failed, with its causes; `None`: it did not.
    pub trouble: Option<String>,
    /// After [`Campaign::resign`]: the Lease was given back, or was not ours.
    pub resigned: bool,
}

/// A running campaign. Dropped, it ends at once and leaves the Lease to run out.
#[derive(Debug)]
pub struct Campaign {
    gate: Gate,
    leadership: watch::Receiver<Leadership>,
    standing: watch::Receiver<Standing>,
    task: JoinHandle<()>,
}

impl Campaign {
    /// Starts the campaign of a pod's only tunnel on the present tokio runtime. It makes no attempt until the gate says
    /// quiet and eligible. `rng` spreads the attempts of candidates that collided.
    pub fn spawn<S, C, R>(store: S, clock: C, elector: Elector, rng: R) -> Self
    where
        S: LeaseStore,
        C: Clock,
        R: Rng + Send + 'static,
    {
        Self::spawn_beside_others(Share::alone(), store, clock, elector, rng)
    }

    /// As [`Campaign::spawn`], for one of several tunnels. Its log lines are in the span that it is called in.
    pub fn spawn_beside_others<S, C, R>(share: Share, store: S, clock: C, elector: Elector, rng: R) -> Self
    where
        S: LeaseStore,
        C: Clock,
        R: Rng + Send + 'static,
    {
        let gate = Gate::new();
        let (leadership_tx, leadership) = watch::channel(Leadership::Following { holder: None });
        let (standing_tx, standing) = watch::channel(Standing::default());
        let handle = Handle { gate: gate.clone(), leadership: leadership_tx, standing: standing_tx };
        let driver = Driver::new(store, clock, elector, rng, share, handle);
        Self { gate, leadership, standing, task: tokio::spawn(driver.run().in_current_span()) }
    }

    /// Who leads. A tenure is published again at each renewal.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    /// What was seen.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// Where the controller says what the tunnel does.
    pub fn gate(&self) -> Gate {
        self.gate.clone()
    }

    /// Stops leading at once and gives the Lease back when quiet. From then on the campaign only looks on, so that a
    /// successor is seen.
    pub fn resign(&self) {
        self.gate.set(|state| state.wish = Wish::Resign);
    }

    /// Waits until the Lease is given back, or was not ours; false: not `within` that time, it is left to run out.
    pub async fn resigned(&self, within: Duration) -> bool {
        let mut standing = self.standing.clone();
        let given_back = standing.wait_for(|standing| standing.resigned);
        matches!(tokio::time::timeout(within, given_back).await, Ok(Ok(_)))
    }
}

impl Drop for Campaign {
    fn drop(&mut self) {
        self.task.abort();
    }
}
