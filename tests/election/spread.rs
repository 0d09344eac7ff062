//! Several pods with many tunnels each: leadership spreads when Leases are taken, and nothing that is held moves.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use wirevip::clock::TokioClock;
use wirevip::election::testing::{LeaseServer, Weather};
use wirevip::election::{Campaign, Elector, HeadStart, Leadership, Load, Outcome, Params, Request};

use crate::tables::{NOW, Server, baz, lease, rec, wall};
use crate::world::{SECOND, ms, until};

/// One pod's campaigns, a tunnel each. Whoever leads speaks and is silent at once.
struct Pod {
    name: String,
    campaigns: Vec<Campaign>,
}

struct Cluster {
    rng: StdRng,
    /// One for all pods: walls that differ would be clocks that are wrong.
    clock: TokioClock,
    /// One Lease each.
    tunnels: Vec<LeaseServer>,
    pods: Vec<Pod>,
}

impl Cluster {
    fn with_tunnels(tunnels: usize, seed: u64) -> Self {
        let tunnels = (0..tunnels).map(|_| LeaseServer::new()).collect();
        Self { rng: StdRng::seed_from_u64(seed), clock: TokioClock::new(), tunnels, pods: vec![] }
    }

    /// A pod some way from the API server.
    fn start(&mut self, name: &str) {
        let (load, far) = (Load::default(), ms(self.rng.random_range(1..5)));
        let campaigns = self.tunnels.iter().enumerate().map(|(number, server)| {
            let client = server.client(name, self.rng.random());
            client.weather(Weather { latency: far / 2..far, ..Weather::default() });
            let elector = Elector::new(Params::default(), name).unwrap();
            let (share, rng) = (load.share(name, &number.to_string()), StdRng::seed_from_u64(self.rng.random()));
            let campaign = Campaign::spawn_beside_others(share, client, self.clock, elector, rng);
            campaign.gate().quiet();
            campaign.gate().eligible(true);
            campaign
        });
        let campaigns = campaigns.collect();
        self.pods.push(Pod { name: name.to_owned(), campaigns });
    }

    /// Five pods, one so long after the other at most.
    async fn start_five(&mut self, apart: Duration) {
        for number in 0..5 {
            self.start(&format!("pod-{number}"));
            tokio::time::sleep(apart.mul_f64(self.rng.random())).await;
        }
    }

    /// How many tunnels each pod leads.
    fn led(&self) -> BTreeMap<&str, usize> {
        let led = |pod: &Pod| {
            pod.campaigns.iter().filter(|c| matches!(*c.leadership().borrow(), Leadership::Leading(_))).count()
        };
        self.pods.iter().map(|pod| (pod.name.as_str(), led(pod))).collect()
    }

    async fn all_led(&self, within: Duration) -> Duration {
        until("all tunnels are led", within, || self.led().values().sum::<usize>() == self.tunnels.len()).await
    }

    /// Every pod leads about as many as the others.
    fn is_spread(&self, apart: usize) -> bool {
        let led = self.led();
        led.values().max().unwrap() - led.values().min().unwrap() <= apart
    }

    fn holders(&self) -> Vec<String> {
        self.tunnels.iter().map(|server| server.record().unwrap().holder).collect()
    }

    /// Who holds a Lease that this pod did not hold goes on to hold it.
    fn assert_moved_only_what(&self, gone: &str, before: &[String]) {
        for (before, now) in before.iter().zip(self.holders()) {
            assert!(*before == now || before == gone, "taken from {before} by {now}");
        }
    }
}

/// In worlds that differ in who is how far from the API server and starts when.
fn in_clusters(play: impl AsyncFn(u64)) {
    for seed in 0..8 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(play(seed));
    }
}

#[test]
fn the_tunnels_of_a_new_installation_spread_over_its_pods() {
    in_clusters(async |seed| {
        let mut cluster = Cluster::with_tunnels(20, seed);
        cluster.start_five(ms(200)).await;
        cluster.all_led(3 * SECOND).await;
        assert!(cluster.is_spread(5), "seed {seed}: {:?}", cluster.led());
        let before = cluster.holders();
        tokio::time::sleep(30 * SECOND).await;
        assert_eq!(cluster.holders(), before, "seed {seed}: what serves was moved");
    });
}

#[test]
fn what_a_pod_gives_back_spreads_over_the_others_at_once() {
    in_clusters(async |seed| {
        let mut cluster = Cluster::with_tunnels(20, seed);
        cluster.start_five(Duration::ZERO).await;
        cluster.all_led(3 * SECOND).await;
        let (before, gone) = (cluster.holders(), cluster.pods.remove(0));
        gone.campaigns.iter().for_each(Campaign::resign);
        let took = cluster.all_led(ms(250)).await;
        assert!(cluster.is_spread(2), "seed {seed}: {:?}", cluster.led());
        cluster.assert_moved_only_what(&gone.name, &before);
        assert!(took < ms(150), "seed {seed}: {took:?}");
    });
}

#[test]
fn what_a_dead_pod_held_spreads_over_the_others_a_lease_later() {
    in_clusters(async |seed| {
        let mut cluster = Cluster::with_tunnels(20, seed);
        cluster.start_five(Duration::ZERO).await;
        cluster.all_led(3 * SECOND).await;
        tokio::time::sleep(3 * SECOND).await;
        let (before, dead) = (cluster.holders(), cluster.pods.remove(0));
        drop(dead.campaigns);
        cluster.all_led(ms(5_200)).await;
        assert!(cluster.is_spread(2), "seed {seed}: {:?}", cluster.led());
        cluster.assert_moved_only_what(&dead.name, &before);
    });
}

#[test]
fn a_pod_that_comes_later_gets_what_the_next_gives_back() {
    in_clusters(async |seed| {
        let mut cluster = Cluster::with_tunnels(20, seed);
        cluster.start_five(Duration::ZERO).await;
        cluster.all_led(3 * SECOND).await;
        cluster.start("late");
        tokio::time::sleep(3 * SECOND).await;
        let gone = cluster.pods.remove(0);
        let given = cluster.led().values().sum::<usize>();
        gone.campaigns.iter().for_each(Campaign::resign);
        cluster.all_led(ms(250)).await;
        let got = cluster.led()["late"];
        assert!(2 * got >= 20 - given, "seed {seed}: {got} of {}", 20 - given);
    });
}

#[tokio::test(start_paused = true)]
async fn a_pod_alone_takes_all_within_three_seconds_the_first_at_once() {
    for tunnels in [2, 20, 100] {
        let mut cluster = Cluster::with_tunnels(tunnels, 1);
        cluster.start("alone");
        until("the first is led", ms(50), || cluster.led()["alone"] > 0).await;
        cluster.all_led(ms(3_100)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_pod_held_before_it_takes_back_without_a_wait() {
    let mut cluster = Cluster::with_tunnels(20, 1);
    cluster.start("alone");
    cluster.all_led(ms(3_100)).await;
    cluster.pods.clear();
    cluster.start("alone");
    cluster.start("other");
    cluster.all_led(ms(50)).await;
    assert_eq!(cluster.led()["alone"], 20);
}

/// A candidate whose pod leads other tunnels.
fn burdened() -> Elector {
    let mut elector = baz();
    elector.let_others_first(HeadStart { freed: ms(40), unmade: ms(600) });
    elector
}

#[test]
fn who_leads_others_leaves_a_lease_that_was_never_made_for_longer_than_one_that_is_free_again() {
    let lapsed = rec("bing", 10);
    for (there, seen, free, waits) in [
        (None, NOW, NOW, ms(600)),
        (Some(rec("", 1)), NOW, NOW, ms(40)),
        (Some(lapsed), NOW - 10 * SECOND, NOW, ms(40)),
    ] {
        let mut elector = burdened();
        let mut server = Server { get: there.as_ref().map(lease), ..Server::default() };
        if let Some(there) = &there {
            elector.sight(seen, wall(), lease(there));
        } else {
            assert_eq!(server.attempt(&mut elector, seen), Outcome::OthersFirst);
        }
        assert_eq!(elector.turn(), (free + waits, free), "{there:?}");
        assert_eq!(server.attempt(&mut elector, free + waits), Outcome::Won, "{there:?}");
    }
}

#[test]
fn a_get_that_finds_a_lease_free_leaves_it_to_others_first() {
    let mut elector = burdened();
    let mut server = Server { get: Some(lease(&rec("", 1))), ..Server::default() };
    assert_eq!(server.attempt(&mut elector, NOW), Outcome::OthersFirst);
    elector.let_others_first(HeadStart::default());
    assert_eq!(server.attempt(&mut elector, NOW), Outcome::Won, "the pod leads nothing else any more");
}

#[test]
fn who_held_the_lease_leaves_it_to_nobody() {
    // Ours, of an earlier life.
    let mut elector = burdened();
    let mut server = Server { get: Some(lease(&rec("baz", 10))), ..Server::default() };
    assert_eq!(server.attempt(&mut elector, NOW), Outcome::Won);
    // Deleted or emptied under a leader.
    for there in [None, Some(rec("", 0))] {
        let mut elector = elector.clone();
        let mut server = Server { get: there.as_ref().map(lease), conflicts: 1, ..Server::default() };
        assert_eq!(server.attempt(&mut elector, NOW + SECOND), Outcome::Won, "{there:?}");
        assert_eq!(elector.tenure().unwrap().since, NOW, "{there:?}");
    }
}

#[test]
fn only_an_attempt_to_take_what_is_free_counts_as_leading() {
    let mut elector = baz();
    elector.next(NOW, wall());
    assert!(!elector.takes(), "nothing is known yet");
    elector.sight(NOW, wall(), lease(&rec("bing", 10)));
    elector.next(NOW + SECOND, wall());
    assert!(!elector.takes(), "another holds it");
    elector.next(NOW + 10 * SECOND, wall());
    assert!(elector.takes());
    elector.abandon();
    assert!(!elector.takes());
    let mut server = Server { get: Some(lease(&rec("bing", 10))), ..Server::default() };
    assert_eq!(server.attempt(&mut elector, NOW + 10 * SECOND), Outcome::Won);
    assert!(elector.takes());
    elector.release();
    assert!(!elector.takes());
    elector.sight(NOW + 11 * SECOND, wall(), lease(&rec("", 1)));
    let Request::Replace(..) = elector.next(NOW + 11 * SECOND, wall()) else { panic!("no update") };
    assert!(elector.takes(), "what was given back needs no get");
}
