//! Candidates with a controller each that does the least: speaks while it leads, falls silent when told. And a witness
//! who sees all tunnels.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::watch;
use wirevip::clock::{Clock, Moment, TokioClock};
use wirevip::election::testing::{LeaseClient, LeaseServer};
use wirevip::election::{Campaign, Elector, Gate, Leadership, Params};

pub const SECOND: Duration = Duration::from_secs(1);

pub fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A clock that runs at a rate of its own, with a wall clock that is off.
#[derive(Clone, Debug)]
pub struct Skewed {
    pub base: TokioClock,
    pub rate: f64,
    pub wall_off: i64,
}

impl Skewed {
    pub fn honest() -> Self {
        Self { base: TokioClock::new(), rate: 1.0, wall_off: 0 }
    }
}

impl Clock for Skewed {
    fn now(&self) -> Moment {
        Moment::new(self.base.now().since_boot().mul_f64(self.rate))
    }

    fn wall(&self) -> Timestamp {
        self.base.wall() + SignedDuration::from_secs(self.wall_off)
    }

    fn sleep(&self, span: Duration) -> BoxFuture<'static, ()> {
        self.base.sleep(span.div_f64(self.rate))
    }
}

/// What a candidate's kernel does. Outlives its process.
#[derive(Clone)]
pub struct Tunnel {
    pub name: String,
    clock: Skewed,
    /// The fence: when, by its own clock, it speaks no more.
    until: Arc<Mutex<Option<Moment>>>,
    witness: Witness,
}

impl Tunnel {
    pub fn up(&self) -> bool {
        self.until.lock().unwrap().is_some_and(|until| self.clock.now() < until)
    }

    pub fn down(&self) {
        *self.until.lock().unwrap() = None;
    }

    fn arm(&self, until: Moment) {
        *self.until.lock().unwrap() = Some(until);
        self.witness.look(&format!("{} armed to {until:?} at {:?}", self.name, self.clock.now()));
    }
}

/// Sees all tunnels, whenever one of them begins or goes on to speak.
#[derive(Clone, Default)]
pub struct Witness {
    tunnels: Arc<Mutex<Vec<Tunnel>>>,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Witness {
    fn look(&self, what: &str) {
        let up: Vec<String> = self.tunnels.lock().unwrap().iter().filter(|t| t.up()).map(|t| t.name.clone()).collect();
        if up.len() > 1 {
            self.seen.lock().unwrap().push(format!("{what}: up are {up:?}"));
        }
    }

    pub fn has_seen_two(&self) -> Option<String> {
        self.seen.lock().unwrap().first().cloned()
    }
}

pub struct Candidate {
    pub name: String,
    pub client: LeaseClient,
    pub campaign: Campaign,
    pub tunnel: Tunnel,
    controller: Controller,
}

/// Dies with its process.
struct Controller(tokio::task::JoinHandle<()>);

impl Drop for Controller {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Candidate {
    /// `falls_in`: how long its tunnel takes to go down.
    pub fn start(
        client: LeaseClient,
        witness: &Witness,
        name: &str,
        clock: Skewed,
        params: Params,
        falls_in: Duration,
    ) -> Self {
        Self::with(Elector::new(params, name).unwrap(), client, witness, clock, falls_in)
    }

    /// One that stamps its handshakes itself.
    pub fn start_stamping(client: LeaseClient, witness: &Witness, name: &str, clock: Skewed) -> Self {
        let elector = Elector::new(Params::default(), name).unwrap().stamping();
        Self::with(elector, client, witness, clock, Duration::ZERO)
    }

    fn with(elector: Elector, client: LeaseClient, witness: &Witness, clock: Skewed, falls_in: Duration) -> Self {
        let name = elector.identity().to_owned();
        let rng = StdRng::seed_from_u64(name.bytes().map(u64::from).sum());
        let campaign = Campaign::spawn(client.clone(), clock.clone(), elector, rng);
        let tunnel = Tunnel { name: name.clone(), clock, until: Arc::default(), witness: witness.clone() };
        witness.tunnels.lock().unwrap().push(tunnel.clone());
        campaign.gate().quiet();
        campaign.gate().eligible(true);
        let controller = tokio::spawn(control(campaign.leadership(), campaign.gate(), tunnel.clone(), falls_in));
        Self { name, client, campaign, tunnel, controller: Controller(controller) }
    }

    pub fn simple(server: &LeaseServer, witness: &Witness, name: &str) -> Self {
        let client = server.client(name, 1);
        Self::start(client, witness, name, Skewed::honest(), Params::default(), Duration::ZERO)
    }

    /// Ends the process as SIGTERM does; true if the tunnel was down in time.
    pub async fn resign(self, within: Duration) -> bool {
        let Self { campaign, controller, tunnel, .. } = self;
        campaign.resign();
        campaign.resigned(within).await;
        drop(controller);
        !tunnel.up()
    }

    /// Ends the process as SIGKILL does: its tunnel stays as it is.
    pub fn kill(self) -> (LeaseClient, Tunnel) {
        (self.client.clone(), self.tunnel.clone())
    }

    pub fn leads(&self) -> bool {
        matches!(*self.campaign.leadership().borrow(), Leadership::Leading(_))
    }
}

async fn control(mut leadership: watch::Receiver<Leadership>, gate: Gate, tunnel: Tunnel, falls_in: Duration) {
    loop {
        let now = leadership.borrow_and_update().clone();
        match now {
            Leadership::Leading(tenure) => {
                if gate.speak() {
                    tunnel.arm(tenure.until);
                }
            }
            Leadership::Following { .. } => {
                if tunnel.until.lock().unwrap().is_some() {
                    tokio::time::sleep(falls_in).await;
                }
                tunnel.down();
                gate.quiet();
            }
        }
        if leadership.changed().await.is_err() {
            return;
        }
    }
}

/// Waits until `condition` holds, looking every millisecond; panics after `within`. Gives the time it took.
pub async fn until(what: &str, within: Duration, mut condition: impl FnMut() -> bool) -> Duration {
    let clock = TokioClock::new();
    while !condition() {
        assert!(clock.now().since_boot() <= within, "not within {within:?}: {what}");
        tokio::time::sleep(ms(1)).await;
    }
    clock.now().since_boot()
}
