//! What a campaign's task does: one request at a time, each bounded; asleep until the next thing is due, so that a
//! standby whose holder renews makes no request at all. What must hold:
//!
//! - Leading is published as over when the tenure's time is, also while a request hangs; at once when another holder
//!   is seen, and when told to step down or resign.
//! - Between two tenures, and before a release, the controller has said [`Gate::quiet`].

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use k8s_openapi::api::coordination::v1::Lease;
use rand::Rng;
use tokio::sync::watch;

use super::campaign::Standing;
use super::gate::{Gate, Wish};
use super::{Elector, Leadership, LeaseStore, Outcome, Request, Share, Sight, StoreError, Verdict};
use crate::clock::{self, Clock, Moment};

/// On the way down: the Lease is given back when the tunnel is quiet.
#[derive(Debug)]
struct Fall {
    /// Read ahead of time; to be sent when quiet.
    write: Option<Request>,
    /// Head start that others get afterwards.
    head_start: Duration,
}

type Answer = Pin<Box<dyn Future<Output = Result<Lease, StoreError>> + Send>>;

/// Where a campaign and its holder meet: what a driver is told, and what it tells.
pub(super) struct Handle {
    pub(super) gate: Gate,
    pub(super) leadership: watch::Sender<Leadership>,
    pub(super) standing: watch::Sender<Standing>,
}

pub(super) struct Driver<S, C, R> {
    store: Arc<S>,
    clock: Arc<C>,
    elector: Elector,
    rng: R,
    share: Share,
    gate: Gate,
    leadership: watch::Sender<Leadership>,
    standing: watch::Sender<Standing>,
    sights: BoxStream<'static, Sight>,
    /// The watch shows what happens.
    watching: bool,
    /// A get brought news that the watch has not shown yet.
    unseen_by_watch: bool,
    under_way: Option<Answer>,
    attempt_began: Moment,
    /// No request before this: the pace of attempts.
    earliest: Moment,
    /// No attempt before this: the head start that others get when we stepped down.
    others_first: Moment,
    /// Attempt without waiting for what is due.
    prompted: bool,
    fall: Option<Fall>,
    /// Nothing of ours is in the Lease any more, nor will be: the campaign only looks on.
    resigned: bool,
    trouble: Option<String>,
    watch_trouble: Option<String>,
}

impl<S: LeaseStore, C: Clock, R: Rng + Send + 'static> Driver<S, C, R> {
    pub(super) fn new(store: S, clock: C, elector: Elector, rng: R, share: Share, handle: Handle) -> Self {
        let Handle { gate, leadership, standing } = handle;
        let sights = store.watch();
        Self {
            store: Arc::new(store),
            clock: Arc::new(clock),
            elector,
            rng,
            share,
            gate,
            leadership,
            standing,
            sights,
            watching: false,
            unseen_by_watch: false,
            under_way: None,
            attempt_began: Moment::default(),
            earliest: Moment::default(),
            others_first: Moment::default(),
            prompted: true,
            fall: None,
            resigned: false,
            trouble: None,
            watch_trouble: None,
        }
    }

    pub(super) async fn run(mut self) {
        let (gate, load) = (self.gate.clone(), self.share.load().clone());
        loop {
            let load_changed = load.changed();
            self.elector.let_others_first(self.share.head_start());
            let now = self.clock.now();
            if self.elector.lapse(now) {
                tracing::warn!("the tenure is over without a renewal: silent until the Lease can be renewed");
                self.under_way = None;
                self.prompted = true;
            }
            self.obey(now);
            self.publish();
            if self.under_way.is_none()
                && let Some(request) = self.plan(now)
            {
                self.send(now, request);
            }
            self.share.count(self.elector.takes());
            let sleep = self.wake(now).map(|wake| self.clock.sleep(wake.since(now)));
            tokio::select! {
                biased;
                () = slept(sleep) => {}
                () = gate.changed() => {}
                () = load_changed => {}
                answer = answer(&mut self.under_way) => self.take(answer),
                sight = self.sights.next() => self.see(sight),
            }
        }
    }

    /// Does as the gate's other side wishes.
    fn obey(&mut self, now: Moment) {
        let gate = self.gate.clone();
        let state = gate.lock();
        self.elector.tell_round_trip(state.round_trip);
        let leading = self.elector.tenure().is_some();
        match state.wish {
            Wish::Resign if self.fall.is_none() && !self.resigned => {
                // An attempt that is cut short may have made the Lease ours.
                self.elector.abandon();
                self.under_way = None;
                if self.elector.may_be_ours() {
                    self.begin_fall(now, Duration::ZERO);
                } else {
                    self.resigned = true;
                }
            }
            Wish::Resign => {}
            Wish::StepDown if leading => self.begin_fall(now, 2 * self.elector.params().retry),
            _ if leading && !state.eligible => self.begin_fall(now, Duration::ZERO),
            _ => {}
        }
    }

    fn begin_fall(&mut self, now: Moment, head_start: Duration) {
        self.elector.stand_down();
        self.under_way = None;
        self.earliest = now;
        self.fall = Some(Fall { write: None, head_start });
    }

    fn publish(&mut self) {
        let holder = self.elector.holder().map(str::to_owned);
        let standing = Standing {
            holder: holder.clone(),
            transitions: self.elector.record().map(|r| r.transitions),
            clock_skew: self.elector.clock_skew(),
            round_trip: self.elector.told_round_trip(),
            stamped: self.elector.stamped(),
            takeover: self.elector.takeover(),
            trouble: self.trouble.clone().or_else(|| self.watch_trouble.clone()),
            resigned: self.resigned,
        };
        self.standing.send_if_modified(|old| replace(old, standing));
        let leadership = match self.elector.tenure() {
            Some(tenure) => Leadership::Leading(tenure),
            None => Leadership::Following { holder },
        };
        let mut state = self.gate.lock();
        let led = state.leading;
        state.leading = self.elector.tenure().is_some();
        if led && !state.leading && state.wish == Wish::StepDown {
            state.wish = Wish::Campaign;
        }
        if self.leadership.send_if_modified(|old| replace(old, leadership.clone())) {
            match &leadership {
                Leadership::Leading(tenure) if !led => tracing::info!(transitions = tenure.transitions, "leading"),
                Leadership::Leading(_) => {}
                Leadership::Following { holder } if led => tracing::info!(?holder, "not leading any more"),
                Leadership::Following { holder } => tracing::info!(?holder, "following"),
            }
        }
    }

    /// When the next request is to be sent. `None`: not before something else happens.
    fn due(&self) -> Option<Moment> {
        if self.resigned {
            return None;
        }
        let (quiet, eligible) = {
            let state = self.gate.lock();
            (state.quiet, state.eligible)
        };
        if let Some(fall) = &self.fall {
            // What is read ahead waits for quiet; what could not be read yet does not.
            return (quiet || fall.write.is_none()).then_some(self.earliest);
        }
        if self.elector.tenure().is_some() {
            return Some(if self.prompted { Moment::default() } else { self.earliest });
        }
        if !(quiet && eligible) {
            return None;
        }
        // Without a watch the attempts themselves must look, at the interval that the last one set.
        let told = self.prompted || !self.watching;
        let due = if told { Moment::default() } else { self.elector.due() };
        let due = due.max(self.earliest).max(self.others_first);
        // What is only a look at a Lease that is held waits for nobody.
        let (turn, free) = self.elector.turn();
        Some(if due.max(self.clock.now()) >= free { due.max(turn) } else { due })
    }

    fn plan(&mut self, now: Moment) -> Option<Request> {
        if self.due()? > now {
            return None;
        }
        self.attempt_began = now;
        if let Some(fall) = &mut self.fall {
            return Some(fall.write.take().unwrap_or_else(|| self.elector.release()));
        }
        self.prompted = false;
        Some(self.elector.next(now, self.clock.wall()))
    }

    fn wake(&self, now: Moment) -> Option<Moment> {
        let due = if self.under_way.is_none() { self.due() } else { None };
        // A due moment in the past is one that plan() has just turned down; it cannot be, but must not spin.
        let due = due.map(|due| due.max(now + Duration::from_millis(1)));
        let until = self.elector.tenure().map(|t| t.until);
        due.into_iter().chain(until).min()
    }

    fn send(&mut self, now: Moment, request: Request) {
        let params = *self.elector.params();
        let left = (self.attempt_began + params.renew_deadline).since(now);
        let within = params.request_timeout().min(left);
        let (store, clock) = (Arc::clone(&self.store), Arc::clone(&self.clock));
        self.under_way = Some(Box::pin(async move {
            let call = async {
                match request {
                    Request::Get => store.get().await,
                    Request::Create(record) => store.create(record).await,
                    Request::Replace(last, record) => store.replace(*last, record).await,
                }
            };
            clock::within(&*clock, within, call).await.unwrap_or(Err(StoreError::TimedOut(within)))
        }));
    }

    fn take(&mut self, answer: Result<Lease, StoreError>) {
        self.under_way = None;
        let now = self.clock.now();
        if self.elector.lapse(now) {
            self.prompted = true;
        }
        let before = self.elector.record().cloned();
        self.elector.let_others_first(self.share.head_start());
        let verdict = self.elector.answer(now, self.clock.wall(), answer.as_ref().map(Lease::clone));
        self.note(answer.as_ref().err(), &verdict);
        match verdict {
            Verdict::Continue(write @ Request::Replace(..)) if self.fall.is_some() => {
                if let Some(fall) = &mut self.fall {
                    fall.write = Some(write);
                }
            }
            Verdict::Continue(request) => self.send(now, request),
            Verdict::Done(outcome) => self.done(now, outcome),
        }
        if self.elector.record() != before.as_ref() && self.elector.holder() != Some(self.elector.identity()) {
            self.check_watch();
        }
    }

    fn done(&mut self, now: Moment, outcome: Outcome) {
        let params = *self.elector.params();
        if let Some(fall) = &self.fall {
            if outcome == Outcome::Failed {
                self.earliest = now + params.impatience() / 4;
            } else {
                self.earliest = now;
                self.others_first = now + fall.head_start;
                self.fall = None;
            }
            return;
        }
        self.earliest = match outcome {
            Outcome::Won => {
                self.prompted = false;
                now + params.retry
            }
            Outcome::Collided if self.elector.tenure().is_some() => now + params.impatience(),
            Outcome::Failed => (self.attempt_began + params.impatience()).max(now + Duration::from_millis(50)),
            // Told by whoever won; and when the watch is broken, at the usual interval.
            Outcome::Held if self.watching && self.elector.tenure().is_none() => now,
            Outcome::OthersFirst => now,
            Outcome::Held | Outcome::Collided | Outcome::Released | Outcome::NotOurs => {
                now + params.spread(self.rng.random())
            }
        };
    }

    fn see(&mut self, sight: Option<Sight>) {
        let now = self.clock.now();
        match sight {
            Some(Sight::Lease(lease)) => {
                self.watching = true;
                self.unseen_by_watch = false;
                let led = self.elector.tenure().is_some();
                if self.elector.sight(now, self.clock.wall(), *lease) {
                    let ended = led && self.elector.tenure().is_none();
                    if ended {
                        self.elector.stand_down();
                        self.under_way = None;
                    }
                    // A leader looks at once at what was done to its Lease; a candidate takes at once what was released.
                    let ours = self.elector.holder() == Some(self.elector.identity());
                    let free = self.elector.record().is_some_and(|r| r.is_release());
                    self.prompted |= if led { !ours } else { free };
                    if free {
                        self.earliest = self.earliest.min(now);
                    }
                    if self.elector.holder().is_some_and(|holder| !holder.is_empty()) && !ours {
                        // While it renews, nothing is asked that could tell.
                        self.reached();
                    }
                }
            }
            Some(Sight::Gone) => {
                self.watching = true;
                // News only to one who knew of a Lease.
                self.prompted |= self.elector.record().is_some();
            }
            Some(Sight::Broken(error)) => {
                self.watching = false;
                if self.watch_trouble.is_none() {
                    tracing::warn!(error = chain(&error), "cannot watch the Lease; reading it at intervals");
                }
                self.watch_trouble = Some(chain(&error));
            }
            None => {
                self.watching = false;
                self.sights = futures::stream::pending().boxed();
            }
        }
        if self.watching {
            self.watch_trouble = None;
        }
    }

    /// A watch whose connection died silently shows nothing: twice in a row a get knew better, so watch anew.
    fn check_watch(&mut self) {
        if self.unseen_by_watch {
            tracing::info!("the watch on the Lease shows nothing of its changes; watching anew");
            self.watching = false;
            self.sights = self.store.watch();
        }
        self.unseen_by_watch = !self.unseen_by_watch;
    }

    /// Tells of trouble once, until an attempt has come to an end without any, or another is seen to hold the Lease: that
    /// it can be read is no news where it cannot be written.
    fn note(&mut self, error: Option<&StoreError>, verdict: &Verdict) {
        let trouble = error
            .filter(|e| matches!(e, StoreError::Forbidden { .. } | StoreError::TimedOut(_) | StoreError::Other { .. }));
        if let Some(error) = trouble {
            let error = chain(error);
            if self.trouble.is_none() {
                tracing::warn!(error, "the Lease cannot be reached");
            }
            self.trouble = Some(error);
        } else if matches!(verdict, Verdict::Done(outcome) if *outcome != Outcome::Failed) {
            self.reached();
        }
    }

    fn reached(&mut self) {
        if self.trouble.take().is_some() {
            tracing::info!("the Lease is reached again");
        }
    }
}

impl<S, C, R> Drop for Driver<S, C, R> {
    fn drop(&mut self) {
        // Also when aborted: whoever looks at the last value must not find us leading.
        self.gate.lock().leading = false;
        self.leadership.send_if_modified(|old| {
            let led = matches!(old, Leadership::Leading(_));
            led && replace(old, Leadership::Following { holder: None })
        });
    }
}

fn replace<T: PartialEq>(old: &mut T, new: T) -> bool {
    let changed = *old != new;
    *old = new;
    changed
}

/// The error with its causes; kube's errors repeat theirs in their own text.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        next = cause.source();
    }
    text
}

async fn slept(sleep: Option<BoxFuture<'static, ()>>) {
    match sleep {
        Some(sleep) => sleep.await,
        None => std::future::pending().await,
    }
}

async fn answer(under_way: &mut Option<Answer>) -> Result<Lease, StoreError> {
    match under_way {
        Some(request) => request.await,
        None => std::future::pending().await,
    }
}
