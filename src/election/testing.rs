//! The seam over memory, for tests: one Lease on a [`LeaseServer`], any number of [`LeaseClient`]s with faults each.
//!
//! It keeps the promises that an elector builds on and no others: writes are guarded by resourceVersion, a request may
//! land though its answer is lost or nobody waits for it any more, a watch shows every change in order but late.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt};
use k8s_openapi::api::coordination::v1::Lease;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::{Notify, watch};

use super::{LeaseStore, Record, Sight, StoreError};

/// A value that others wait for, and that wakes them in the order in which they began to wait: tokio's `watch` wakes its
/// receivers in random order, and a history would never be the same again.
#[derive(Debug, Default)]
pub struct Awaited<T> {
    value: Mutex<T>,
    changed: Notify,
}

impl<T: Copy> Awaited<T> {
    /// Its value now.
    pub fn get(&self) -> T {
        *self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another value.
    pub fn set(&self, value: T) {
        *self.value.lock().unwrap_or_else(PoisonError::into_inner) = value;
        self.changed.notify_waiters();
    }

    /// Until it is such.
    pub async fn until(&self, such: impl Fn(T) -> bool) {
        loop {
            // Made before the look, so that no change is missed.
            let changed = self.changed.notified();
            if such(self.get()) {
                return;
            }
            changed.await;
        }
    }
}

/// Keeps one Lease. Clones are the same server.
#[derive(Clone, Debug, Default)]
pub struct LeaseServer(Arc<Server>);

#[derive(Debug, Default)]
struct Server {
    kept: Mutex<Kept>,
    /// Number of changes so far.
    changes: Awaited<usize>,
}

#[derive(Debug, Default)]
struct Kept {
    lease: Option<Lease>,
    history: Vec<Option<Lease>>,
    calls: Vec<Call>,
    observer: Option<Observer>,
}

struct Observer(Box<dyn FnMut(Option<&str>, Option<&Lease>) + Send>);

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observer")
    }
}

/// One request that reached a client's end of the wire, in order of sending.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Call {
    /// Name of the client.
    pub client: String,
    /// `get`, `create` or `update`.
    pub verb: &'static str,
}

/// What the way to the server does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Way {
    /// All gets through.
    #[default]
    Open,
    /// All is refused, and the watch breaks.
    Refused,
    /// Nothing gets through either way, and nobody says so.
    Silent,
    /// Requests get through, answers and what a watch shows do not, and nobody says so.
    Mute,
}

/// What happens to one request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// Carried out and answered.
    Answered,
    /// Refused without effect.
    Failed,
    /// Answered by a conflict, without effect.
    Conflict,
    /// Forbidden.
    Forbidden,
    /// Carried out, answered by an error.
    AnswerLost,
    /// Carried out, never answered.
    Stuck,
    /// Neither carried out nor answered.
    Swallowed,
}

/// How unreliable the way is.
#[derive(Clone, PartialEq, Debug)]
pub struct Weather {
    /// Of each half of a request's way, and of a watch event's.
    pub latency: Range<Duration>,
    /// Share of requests that fail without effect.
    pub failed: f64,
    /// Share of requests that are carried out and answered by an error.
    pub lost: f64,
    /// Share of requests that arrive ten seconds late.
    pub late: f64,
    /// Share of requests that are answered by a conflict, without effect.
    pub conflict: f64,
    /// Share of requests that are carried out and never answered.
    pub stuck: f64,
}

impl Default for Weather {
    fn default() -> Self {
        Self {
            latency: Duration::ZERO..Duration::from_nanos(1),
            failed: 0.0,
            lost: 0.0,
            late: 0.0,
            conflict: 0.0,
            stuck: 0.0,
        }
    }
}

impl LeaseServer {
    /// A server without the Lease.
    pub fn new() -> Self {
        Self::default()
    }

    /// A way to the server.
    pub fn client(&self, name: &str, seed: u64) -> LeaseClient {
        LeaseClient(Arc::new(Client {
            server: self.clone(),
            name: name.to_owned(),
            way: Awaited::default(),
            deaf: watch::channel(0).0,
            weather: Mutex::default(),
            rng: Mutex::new(StdRng::seed_from_u64(seed)),
            script: Mutex::new(None),
        }))
    }

    /// The Lease as it is.
    pub fn lease(&self) -> Option<Lease> {
        self.lock().lease.clone()
    }

    /// Its record as it is.
    pub fn record(&self) -> Option<Record> {
        self.lock().lease.as_ref().map(Record::from)
    }

    /// Changes it by hand; `None` deletes it.
    pub fn edit(&self, change: impl FnOnce(Option<Lease>) -> Option<Lease>) {
        let mut kept = self.lock();
        let next = change(kept.lease.take());
        self.put(&mut kept, None, next);
    }

    /// Writes this record by hand.
    pub fn write(&self, record: Record) {
        self.edit(|lease| Some(Lease { spec: Some(record.spec()), ..lease.unwrap_or_default() }));
    }

    /// All requests so far.
    pub fn calls(&self) -> Vec<Call> {
        self.lock().calls.clone()
    }

    /// Number of times that the Lease changed.
    pub fn changes(&self) -> usize {
        self.0.changes.get()
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells `observer` of every change at the moment that it is made, and whose request made it; `None`: by hand.
    pub fn observe(&self, observer: impl FnMut(Option<&str>, Option<&Lease>) + Send + 'static) {
        self.lock().observer = Some(Observer(Box::new(observer)));
    }

    fn put(&self, kept: &mut Kept, by: Option<&str>, mut lease: Option<Lease>) {
        if let Some(lease) = &mut lease {
            lease.metadata.resource_version = Some((kept.history.len() + 1).to_string());
        }
        if let Some(observer) = &mut kept.observer {
            (observer.0)(by, lease.as_ref());
        }
        kept.lease.clone_from(&lease);
        kept.history.push(lease);
        self.0.changes.set(kept.history.len());
    }

    fn carry_out(&self, by: &str, request: Do) -> Result<Lease, StoreError> {
        let mut kept = self.lock();
        match (request, kept.lease.clone()) {
            (Do::Get, Some(lease)) => return Ok(lease),
            (Do::Get | Do::Replace(..), None) => return Err(StoreError::NotFound),
            (Do::Create(_), Some(_)) => return Err(StoreError::AlreadyExists),
            (Do::Create(record), None) => {
                self.put(&mut kept, Some(by), Some(Lease { spec: Some(record.spec()), ..Lease::default() }));
            }
            (Do::Replace(last, record), Some(lease)) => {
                if last.metadata.resource_version != lease.metadata.resource_version {
                    return Err(StoreError::Conflict);
                }
                self.put(&mut kept, Some(by), Some(Lease { spec: Some(record.spec()), ..*last }));
            }
        }
        kept.lease.clone().ok_or(StoreError::NotFound)
    }
}

enum Do {
    Get,
    Create(Record),
    Replace(Box<Lease>, Record),
}

type Script = Box<dyn FnMut(&'static str) -> Fate + Send>;

/// One way to a [`LeaseServer`]. Clones are the same way.
#[derive(Clone, Debug)]
pub struct LeaseClient(Arc<Client>);

struct Client {
    server: LeaseServer,
    name: String,
    way: Awaited<Way>,
    /// Number of times that the watches of the time went silent for good.
    deaf: watch::Sender<usize>,
    weather: Mutex<Weather>,
    rng: Mutex<StdRng>,
    script: Mutex<Option<Script>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("name", &self.name).finish_non_exhaustive()
    }
}

impl LeaseClient {
    /// Opens or closes the way.
    pub fn way(&self, way: Way) {
        self.0.way.set(way);
    }

    /// Sets the weather.
    pub fn weather(&self, weather: Weather) {
        *self.0.weather.lock().unwrap_or_else(PoisonError::into_inner) = weather;
    }

    /// The connections of the present watches die, and nobody says so.
    pub fn deafen(&self) {
        self.0.deaf.send_modify(|times| *times += 1);
    }

    /// Lets `script` decide on each request by its verb, in place of the weather.
    pub fn script(&self, script: impl FnMut(&'static str) -> Fate + Send + 'static) {
        *self.0.script.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(script));
    }

    fn roll(&self, verb: &'static str) -> (Fate, Duration) {
        if let Some(script) = &mut *self.0.script.lock().unwrap_or_else(PoisonError::into_inner) {
            return (script(verb), Duration::ZERO);
        }
        let weather = self.0.weather.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut rng = self.0.rng.lock().unwrap_or_else(PoisonError::into_inner);
        let roll: f64 = rng.random();
        let late = if rng.random_bool(weather.late) { Duration::from_secs(10) } else { Duration::ZERO };
        let fate = if roll < weather.failed {
            Fate::Failed
        } else if roll < weather.failed + weather.lost {
            Fate::AnswerLost
        } else if roll < weather.failed + weather.lost + weather.conflict {
            Fate::Conflict
        } else if roll < weather.failed + weather.lost + weather.conflict + weather.stuck {
            Fate::Stuck
        } else {
            Fate::Answered
        };
        (fate, late)
    }

    async fn travel(&self) {
        let latency = self.0.weather.lock().unwrap_or_else(PoisonError::into_inner).latency.clone();
        let time = self.0.rng.lock().unwrap_or_else(PoisonError::into_inner).random_range(latency);
        tokio::time::sleep(time).await;
    }

    async fn silence_to_end(&self) {
        self.0.way.until(|way| !matches!(way, Way::Silent | Way::Mute)).await;
    }

    async fn call(&self, verb: &'static str, request: Do) -> Result<Lease, StoreError> {
        self.0.server.lock().calls.push(Call { client: self.0.name.clone(), verb });
        let (fate, late) = self.roll(verb);
        let this = self.clone();
        // A task of its own: what is on its way lands, though the caller may have stopped waiting.
        let carried = tokio::spawn(async move {
            this.travel().await;
            tokio::time::sleep(late).await;
            let gone = match this.0.way.get() {
                Way::Open | Way::Mute => None,
                Way::Refused => Some(Err(unreachable(verb))),
                Way::Silent => Some(Ok(())),
            };
            match gone {
                Some(Err(error)) => return Err(error),
                Some(Ok(())) => std::future::pending().await,
                None => {}
            }
            let answer = match fate {
                Fate::Failed => Err(unreachable(verb)),
                Fate::Conflict => Err(StoreError::Conflict),
                Fate::Forbidden => {
                    Err(StoreError::Forbidden { verb, cause: io::Error::other("refused by a script").into() })
                }
                Fate::Answered => this.0.server.carry_out(&this.0.name, request),
                Fate::AnswerLost => this.0.server.carry_out(&this.0.name, request).and(Err(unreachable(verb))),
                Fate::Swallowed => std::future::pending().await,
                Fate::Stuck => {
                    let _ = this.0.server.carry_out(&this.0.name, request);
                    std::future::pending().await
                }
            };
            this.travel().await;
            this.silence_to_end().await;
            answer
        });
        carried.await.unwrap_or_else(|e| Err(StoreError::Other { verb, cause: e.into() }))
    }

    /// The next that a watch shows. `shown`: changes it has shown; `None`: it is yet to show how things stand.
    async fn next_sight(&self, shown: &mut Option<usize>, broken: &mut bool) -> Sight {
        loop {
            let state = self.0.way.get();
            let so_far = self.0.server.changes();
            match state {
                Way::Refused if !*broken => {
                    (*broken, *shown) = (true, None);
                    return Sight::Broken(unreachable("watch"));
                }
                Way::Open if shown.is_none_or(|shown| shown < so_far) => {
                    *broken = false;
                    let next = shown.map_or(so_far, |shown| shown + 1);
                    self.travel().await;
                    if self.0.way.get() != Way::Open {
                        continue;
                    }
                    *shown = Some(next);
                    let lease =
                        next.checked_sub(1).and_then(|i| self.0.server.lock().history.get(i).cloned().flatten());
                    return lease.map_or(Sight::Gone, |lease| Sight::Lease(Box::new(lease)));
                }
                _ => {
                    tokio::select! {
                        biased;
                        () = self.0.way.until(|way| way != state) => {}
                        () = self.0.server.0.changes.until(|changes| changes != so_far) => {}
                    }
                }
            }
        }
    }
}

impl LeaseStore for LeaseClient {
    async fn get(&self) -> Result<Lease, StoreError> {
        self.call("get", Do::Get).await
    }

    async fn create(&self, record: Record) -> Result<Lease, StoreError> {
        self.call("create", Do::Create(record)).await
    }

    async fn replace(&self, last: Lease, record: Record) -> Result<Lease, StoreError> {
        self.call("update", Do::Replace(Box::new(last), record)).await
    }

    fn watch(&self) -> BoxStream<'static, Sight> {
        let mut deaf = self.0.deaf.subscribe();
        deaf.mark_unchanged();
        let sights = stream::unfold((self.clone(), None, false), |(client, mut shown, mut broken)| async move {
            let sight = client.next_sight(&mut shown, &mut broken).await;
            Some((sight, (client, shown, broken)))
        });
        let dead = async move {
            let _ = deaf.changed().await;
        };
        sights.take_until(dead).chain(stream::pending()).boxed()
    }
}

fn unreachable(verb: &'static str) -> StoreError {
    StoreError::Other { verb, cause: io::Error::other("the way to the server is closed").into() }
}
