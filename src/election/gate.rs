//! The gate between a campaign and the controller of its tunnel: who may speak, and who has fallen silent.
//!
//! [`Gate::speak`] and the end of a tenure exclude each other: either the controller was granted to speak first, and the
//! campaign then waits for [`Gate::quiet`]; or the tenure ended first, and `speak` is refused.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

/// What the campaign is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wish {
    Campaign,
    StepDown,
    Resign,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) leading: bool,
    pub(super) quiet: bool,
    pub(super) eligible: bool,
    pub(super) wish: Wish,
    pub(super) round_trip: Option<Duration>,
}

/// Where controller and campaign agree on who may speak. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Gate {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

impl Gate {
    pub(super) fn new() -> Self {
        let state = State { leading: false, quiet: false, eligible: false, wish: Wish::Campaign, round_trip: None };
        Self { state: Arc::new(Mutex::new(state)), changed: Arc::new(Notify::new()) }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // A State is whole between any two statements: a panic elsewhere leaves nothing half done in it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_one();
    }

    /// Until something was said. For one listener.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// To be called before anything that lets this pod speak (fence, link). `false`: not leading (any more), leave it.
    /// After `true` the Lease is neither given back nor taken again until [`Gate::quiet`].
    #[must_use = "when refused, the tunnel must stay down"]
    pub fn speak(&self) -> bool {
        let mut state = self.lock();
        if state.leading {
            state.quiet = false;
        }
        state.leading
    }

    /// The kernel has confirmed that this pod does not speak. To be called after the clean-up at start, else the
    /// campaign never begins, and after each end of a tenure in which [`Gate::speak`] was granted.
    pub fn quiet(&self) {
        self.set(|state| state.quiet = true);
    }

    /// Whether this pod has what it takes to lead; at first it has not. Taken away while it leads, it steps down.
    pub fn eligible(&self, eligible: bool) {
        self.set(|state| state.eligible = eligible);
    }

    /// How long the hub takes to answer: the next renewal leaves it in the Lease, for whoever follows.
    pub fn round_trip(&self, round_trip: Option<Duration>) {
        self.lock().round_trip = round_trip;
    }

    /// Gives the Lease back once quiet, and campaigns again two retry periods later: all others have looked by then, so
    /// that another goes first if there is one. Does nothing unless leading.
    pub fn step_down(&self) {
        self.set(|state| {
            if state.leading && state.wish == Wish::Campaign {
                state.wish = Wish::StepDown;
            }
        });
    }
}
