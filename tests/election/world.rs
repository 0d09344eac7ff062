//! Candidates with a controller each that does the least: speaks while it leads, falls silent when told.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use wirevip::clock::{Clock, Moment, TokioClock};
use wirevip::election::testing::{LeaseClient, LeaseServer};
use wirevip::election::{Campaign, Elector, Gate, Leadership, Params};

pub const SECOND: Duration = Duration::from_secs(1);

pub fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// What a candidate's tunnel does, as the outside sees it.
#[derive(Default)]
pub struct Tunnel {
    /// The fence: speaks no more at this moment of its own clock.
    until: Mutex<Option<Moment>>,
    pub tenures: AtomicU64,
}

pub struct Candidate<C: Clock + Clone> {
    pub clock: C,
    pub client: LeaseClient,
    pub campaign: Campaign,
    pub tunnel: Arc<Tunnel>,
    controller: tokio::task::JoinHandle<()>,
}

impl<C: Clock + Clone> Drop for Candidate<C> {
    fn drop(&mut self) {
        self.controller.abort();
    }
}

impl<C: Clock + Clone> Candidate<C> {
    /// `falls_in`: how long its tunnel takes to go down.
    pub fn start(server: &LeaseServer, name: &str, clock: C, params: Params, falls_in: Duration, seed: u64) -> Self {
        let client = server.client(name, seed);
        let elector = Elector::new(params, name).unwrap();
        let campaign = Campaign::spawn(client.clone(), clock.clone(), elector, StdRng::seed_from_u64(seed ^ 0x5eed));
        let tunnel = Arc::new(Tunnel::default());
        campaign.gate().quiet();
        campaign.gate().eligible(true);
        let controller = tokio::spawn(control(campaign.leadership(), campaign.gate(), tunnel.clone(), falls_in));
        Self { clock, client, campaign, tunnel, controller }
    }

    pub fn leads(&self) -> bool {
        matches!(*self.campaign.leadership().borrow(), Leadership::Leading(_))
    }

    /// Whether its tunnel speaks right now.
    pub fn up(&self) -> bool {
        self.tunnel.until.lock().unwrap().is_some_and(|until| self.clock.now() < until)
    }

    /// The process dies: fence and link stay as they are.
    pub fn kill(self) -> Arc<Tunnel> {
        self.tunnel.clone()
    }
}

async fn control(
    mut leadership: tokio::sync::watch::Receiver<Leadership>,
    gate: Gate,
    tunnel: Arc<Tunnel>,
    falls_in: Duration,
) {
    loop {
        let now = leadership.borrow_and_update().clone();
        match now {
            Leadership::Leading(tenure) if gate.speak() => {
                let first = tunnel.until.lock().unwrap().replace(tenure.until).is_none();
                tunnel.tenures.fetch_add(u64::from(first), Ordering::Relaxed);
            }
            Leadership::Leading(_) => {}
            Leadership::Following { .. } => {
                if tunnel.until.lock().unwrap().is_some() {
                    tokio::time::sleep(falls_in).await;
                }
                *tunnel.until.lock().unwrap() = None;
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
