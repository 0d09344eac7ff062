//! A hub drops handshakes that are not stamped later than the last it saw for the key. Candidates that stamp their own,
//! on clocks up to hours apart, are never refused: whoever follows whom, however.

use std::time::Duration;

use gotatun::noise::handshake::StampClock;
use jiff::{SignedDuration, Timestamp};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use wirevip::clock::TokioClock;
use wirevip::election::testing::{LeaseClient, LeaseServer, Weather};
use wirevip::election::{Outcome, Record, Request, STAMPED};
use wirevip::tunnel::stamps::Stamps;

use crate::tables::{NOW, Server, baz, lease, rec, wall};
use crate::world::{Candidate, SECOND, Skewed, Witness, ms, until};

/// A pod on a node, whose clock may be set while it is down.
struct Pod {
    client: LeaseClient,
    clock: Skewed,
    running: Option<(Candidate, Stamps<Skewed>)>,
}

struct World {
    rng: StdRng,
    server: LeaseServer,
    pods: Vec<Pod>,
    /// The last stamp that the hub saw.
    hub: Duration,
    refused: Vec<String>,
    handshakes: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let (server, base) = (LeaseServer::new(), TokioClock::new());
        let pod = |name: &str| {
            let client = server.client(name, seed);
            client.weather(Weather { latency: Duration::ZERO..ms(20), ..Weather::default() });
            Pod { client, clock: Skewed { base, rate: 1.0, wall_off: 0 }, running: None }
        };
        let pods = ["ann", "ben", "cem"].map(pod).into();
        let rng = StdRng::seed_from_u64(seed);
        Self { rng, server, pods, hub: Duration::ZERO, refused: Vec::new(), handshakes: 0 }
    }

    fn start(&mut self, i: usize) {
        let Pod { client, clock, running } = &mut self.pods[i];
        let name = ["ann", "ben", "cem"][i];
        let candidate = Candidate::start_stamping(client.clone(), &Witness::default(), name, clock.clone());
        *running = Some((candidate, Stamps::new(clock.clone())));
    }

    /// Whoever leads shakes hands with the hub.
    fn shake(&mut self) {
        for (candidate, stamps) in self.pods.iter().filter_map(|pod| pod.running.as_ref()).filter(|(c, _)| c.leads()) {
            if let Some(latest) = candidate.campaign.standing().borrow().stamped {
                stamps.begin_after(latest);
            }
            let stamp = stamps.stamp();
            if stamp <= self.hub {
                self.refused.push(format!("{} with {stamp:?} after {:?}", candidate.name, self.hub));
            }
            self.hub = self.hub.max(stamp);
            self.handshakes += 1;
        }
    }

    async fn live(&mut self, span: Duration) {
        for _ in 0..span.as_millis() / 50 {
            tokio::time::sleep(ms(50)).await;
            self.shake();
        }
    }

    /// A pod ends in one way or another, or comes back, perhaps on a machine whose clock was set.
    async fn change(&mut self) {
        let i = self.rng.random_range(0..self.pods.len());
        match (self.pods[i].running.take(), self.rng.random_range(0..4)) {
            (None, _) => {
                if self.rng.random() {
                    self.pods[i].clock.wall_off = self.rng.random_range(-7200..7200);
                }
                self.start(i);
            }
            (Some((candidate, _)), 0) => drop(candidate.kill()),
            (Some((candidate, _)), 1) => {
                candidate.kill();
                self.start(i);
            }
            (Some((candidate, _)), 2) => {
                candidate.resign(3 * SECOND).await;
            }
            (Some((candidate, stamps)), _) => {
                candidate.campaign.gate().step_down();
                self.pods[i].running = Some((candidate, stamps));
            }
        }
    }
}

#[test]
fn a_hub_is_never_asked_to_go_back_in_time() {
    for seed in 0..60 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut world = World::new(seed);
            for _ in 0..40 {
                world.change().await;
                let span = ms(world.rng.random_range(0..9_000));
                world.live(span).await;
            }
            assert!(world.handshakes > 100, "seed {seed}: {} handshakes", world.handshakes);
            assert!(world.refused.is_empty(), "seed {seed}: {:#?}", world.refused);
            assert!(world.server.changes() > 0);
        });
    }
}

/// Another's record, by a clock that is ahead of ours by so many seconds.
fn ahead(holder: &str, seconds: i64) -> Record {
    Record { renewed: Some(wall() + SignedDuration::from_secs(seconds)), ..rec(holder, 10) }
}

fn noted(record: &Request) -> Option<Timestamp> {
    let Request::Replace(lease, _) = record else { return None };
    lease.metadata.annotations.as_ref()?.get(STAMPED)?.parse().ok()
}

#[test]
fn a_tenure_tells_how_late_the_holder_before_may_have_stamped_and_notes_it() {
    let mut elector = baz();
    elector.sight(NOW, wall(), lease(&ahead("bing", 60)));
    let then = NOW + 10 * SECOND;
    let latest = wall() + SignedDuration::from_secs(70);
    let mut server = Server { get: Some(lease(&ahead("bing", 60))), ..Server::default() };
    assert_eq!(server.attempt(&mut elector, then), Outcome::Won);
    assert_eq!(elector.stamped(), Some(latest));
    let renewal = elector.next(then + SECOND, wall() + SignedDuration::from_secs(11));
    assert!(noted(&renewal) >= Some(latest), "{renewal:?}");
    let renewal = elector.next(then + 62 * SECOND, wall() + SignedDuration::from_secs(72));
    assert_eq!(noted(&renewal), None, "the clock has caught up: {renewal:?}");
}

#[test]
fn a_holder_whose_lease_is_deleted_or_overwritten_may_stamp_on_until_its_term_is_over() {
    let mut elector = baz();
    elector.sight(NOW, wall(), lease(&ahead("bing", 60)));
    let mut server = Server::default();
    assert_eq!(server.attempt(&mut elector, NOW + 2 * SECOND), Outcome::Held, "deleted, and not released");
    assert_eq!(server.attempt(&mut elector, NOW + 12 * SECOND), Outcome::Won);
    assert_eq!(elector.stamped(), Some(wall() + SignedDuration::from_secs(70)));
    let renewal = elector.next(NOW + 13 * SECOND, wall());
    assert!(noted(&renewal) >= elector.stamped(), "what could not be noted on a new Lease: {renewal:?}");

    let mut elector = baz();
    elector.sight(NOW, wall(), lease(&ahead("bing", 60)));
    elector.sight(NOW + 2 * SECOND, wall(), lease(&ahead("hand", 0)));
    let mut server = Server { get: Some(lease(&ahead("hand", 0))), ..Server::default() };
    assert_eq!(server.attempt(&mut elector, NOW + 12 * SECOND), Outcome::Won);
    assert_eq!(elector.stamped(), Some(wall() + SignedDuration::from_secs(70)));
}

#[test]
fn who_gave_a_lease_back_stamps_nothing_later() {
    let mut elector = baz();
    elector.sight(NOW, wall(), lease(&ahead("bing", 0)));
    let released = Record { duration_seconds: 1, ..ahead("", 1) };
    elector.sight(NOW + SECOND, wall() + SECOND, lease(&released));
    let taking = elector.clone().next(NOW + SECOND, wall() + SECOND);
    assert!(matches!(taking, Request::Replace(..)), "{taking:?}");
    assert_eq!(noted(&taking), None, "a clock that is right needs no note");
    let taking = elector.next(NOW + SECOND, wall());
    assert_eq!(noted(&taking), Some(wall() + SECOND + ms(1)), "one that is a second behind");
}

#[test]
fn a_clock_that_is_set_back_under_a_leader_is_noted() {
    let mut elector = baz();
    let mut server = Server::default();
    assert_eq!(server.attempt(&mut elector, NOW), Outcome::Won);
    server.get = Some(lease(server.written.last().unwrap()));
    let renewal = elector.next(NOW + SECOND, wall() - SignedDuration::from_secs(60));
    assert!(noted(&renewal) >= Some(wall()), "{renewal:?}");
}

#[tokio::test(start_paused = true)]
async fn a_candidate_that_stamps_its_own_handshakes_does_not_wait_when_its_clock_is_behind() {
    let server = LeaseServer::new();
    let witness = Witness::default();
    let clock = Skewed::honest();
    let a = Candidate::start_stamping(server.client("a", 1), &witness, "a", clock.clone());
    until("the first leads", SECOND, || a.leads()).await;
    let behind = Skewed { wall_off: -60, ..clock };
    let behind = Candidate::start_stamping(server.client("behind", 1), &witness, "behind", behind);
    // It has seen renewals, and so how far it is behind.
    tokio::time::sleep(3 * SECOND).await;
    assert!(a.resign(SECOND).await);
    until("the one that is behind leads at once", ms(100), || behind.leads()).await;
}
