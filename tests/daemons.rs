//! Whole daemons, two to five, on a Lease, links and firewalls in memory, with paused time: never two of them can be
//! heard, and somebody leads within the bound.
//!
//! Each is the real campaign, controller and actor; a kill leaves its link and its fence as the kernel would have them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "all functions here are parts of tests")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use wirevip::clock::{Clock, TokioClock};
use wirevip::controller::actor::{Actor, Inputs, Outputs};
use wirevip::controller::hub::Whereabouts;
use wirevip::controller::{Controller, Ending};
use wirevip::election::Campaign;
use wirevip::election::testing::{LeaseServer, Way};
use wirevip::election::{Elector, Params};
use wirevip::inheritance;
use wirevip::metrics::Metrics;
use wirevip::ruleset::testing::FakeFirewall;
use wirevip::ruleset::{Entry, Firewall, Side};
use wirevip::secret::{Endpoint, Host, SecretKey, Tunnel, TunnelName};
use wirevip::services::Forwards;
use wirevip::status::Snapshot;
use wirevip::tunnel::testing::{Call, FakePod, settings};
use wirevip::tunnel::{HostNet, Slot};

const LEASE: Duration = Duration::from_secs(5);
/// How finely the world is looked at.
const TICK: Duration = Duration::from_millis(10);

/// One pod: what is in its kernel outlives its process.
struct Pod {
    name: String,
    /// One for all pods: walls that differ would be clocks that are wrong.
    clock: TokioClock,
    kernel: FakePod,
    firewall: FakeFirewall,
    way: wirevip::election::testing::LeaseClient,
    process: Option<Process>,
    lives: u64,
    /// Its tunnel may be held, and be taken over by its next life.
    holds: bool,
    /// What its next life is told of the Services at first.
    forwards: Option<Arc<Forwards>>,
}

struct Process {
    actor: JoinHandle<()>,
    stop: watch::Sender<Option<Ending>>,
    snapshot: watch::Receiver<Snapshot>,
    settings: watch::Sender<Arc<Tunnel>>,
    hub: watch::Sender<Whereabouts>,
    /// Kept so that the input stays.
    _forwards: watch::Sender<Option<Arc<Forwards>>>,
}

impl Pod {
    fn new(number: usize, server: &LeaseServer, clock: TokioClock) -> Self {
        let name = format!("pod-{number}");
        Self {
            clock,
            way: server.client(&name, number as u64),
            kernel: FakePod::new(),
            firewall: FakeFirewall::new(Arc::new(clock)),
            process: None,
            lives: 0,
            holds: false,
            forwards: Some(Arc::default()),
            name,
        }
    }

    /// Starts the process as the daemon does: clean-up first, then all the rest.
    async fn start(&mut self) {
        let mut found = vec![];
        if self.holds {
            found = inheritance::find(&self.kernel, &mut self.firewall).await.unwrap();
        }
        inheritance::sweep(&self.kernel, &mut self.firewall, &found).await.unwrap();
        self.lives += 1;
        let clock = self.clock;
        let elector = Elector::new(Params::default(), self.name.clone()).unwrap();
        let campaign = Campaign::spawn(self.way.clone(), clock, elector, StdRng::seed_from_u64(self.lives));
        let nic = self.kernel.nic().await.unwrap();
        let (settings_tx, settings_rx) = watch::channel(Arc::new(settings("wg0")));
        let (forwards_tx, forwards_rx) = watch::channel(self.forwards.clone());
        let (hub_tx, hub_rx) = watch::channel(Whereabouts::from(SocketAddr::from(([192, 0, 2, 1], 51820))));
        let (stop, stop_rx) = watch::channel(None);
        let (snapshot_tx, snapshot) = watch::channel(Snapshot::standby(Arc::new(settings("wg0"))));
        let inputs = Inputs {
            settings: settings_rx,
            forwards: forwards_rx,
            hub: hub_rx,
            nic: watch::channel(nic.clone()).1,
            stop: stop_rx,
        };
        let outputs =
            Outputs { snapshot: snapshot_tx, unheard: watch::channel(Duration::ZERO).0, metrics: Metrics::new() };
        let mut controller = Controller::new(Slot::new(1).unwrap(), nic, Arc::new(settings("wg0")));
        if self.holds {
            controller = controller.holding(&self.name);
        }
        let kernel = (Arc::new(self.kernel.clone()), Arc::new(self.kernel.clone()), self.firewall.clone());
        let actor = Actor::new(controller, kernel, Arc::new(clock), campaign, inputs, outputs).heir_of(found.pop());
        let actor = tokio::spawn(actor.run(|| {}));
        let (settings, hub, _forwards) = (settings_tx, hub_tx, forwards_tx);
        self.process = Some(Process { actor, stop, snapshot, settings, hub, _forwards });
    }

    /// SIGKILL: nothing is taken down but the process itself.
    fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.actor.abort();
        }
    }

    /// SIGTERM.
    fn stop(&self) {
        self.process.as_ref().unwrap().stop.send_replace(Some(Ending::HandOver));
    }

    async fn terminate(&mut self) {
        self.stop();
        let process = self.process.take().unwrap();
        process.actor.await.unwrap();
        assert!(self.clean(), "{} left something behind", self.name);
    }

    fn clean(&mut self) -> bool {
        self.kernel.is_clean() && self.firewall.tables().unwrap().is_empty()
    }

    /// Can it be heard at the hub?
    fn speaks(&self) -> bool {
        let name = TunnelName::new("wg0").unwrap();
        !self.kernel.with_peer().is_empty() && self.firewall.open(&name)
    }

    fn serves(&self) -> bool {
        self.speaks() && self.process.as_ref().is_some_and(|process| process.snapshot.borrow().serves)
    }
}

struct World {
    server: LeaseServer,
    pods: Vec<Pod>,
}

impl World {
    async fn of(pods: usize) -> Self {
        Self::holding(pods, false).await
    }

    async fn holding(pods: usize, holds: bool) -> Self {
        let (server, clock) = (LeaseServer::new(), TokioClock::new());
        let mut world = Self { pods: (0..pods).map(|number| Pod::new(number, &server, clock)).collect(), server };
        for pod in &mut world.pods {
            pod.holds = holds;
        }
        for pod in &mut world.pods {
            pod.start().await;
        }
        world
    }

    fn speakers(&self) -> Vec<&str> {
        self.pods.iter().filter(|pod| pod.speaks()).map(|pod| pod.name.as_str()).collect()
    }

    /// Lets time pass; I1 is checked all the way.
    async fn pass(&self, time: Duration) {
        let mut left = time;
        while !left.is_zero() {
            tokio::time::sleep(TICK.min(left)).await;
            left = left.saturating_sub(TICK);
            let speakers = self.speakers();
            assert!(speakers.len() <= 1, "I1: heard at once: {speakers:?}");
        }
    }

    /// Until somebody serves; how long that took. Not within `bound`: a failure.
    async fn serving(&self, bound: Duration) -> Duration {
        let clock = TokioClock::new();
        while !self.pods.iter().any(Pod::serves) {
            self.pass(TICK).await;
            let waited = clock.now().since_boot();
            assert!(waited <= bound, "nobody serves after {waited:?}; the Lease: {:?}", self.server.record());
        }
        clock.now().since_boot()
    }

    fn leader(&self) -> usize {
        self.pods.iter().position(Pod::serves).expect("nobody serves")
    }
}

#[tokio::test(start_paused = true)]
async fn one_of_three_leads_at_once_and_hands_over_at_once() {
    let mut world = World::of(3).await;
    assert!(world.serving(Duration::from_secs(1)).await < Duration::from_millis(100));
    for _ in 0..5 {
        let old = world.leader();
        world.pods[old].terminate().await;
        let took = world.serving(Duration::from_secs(1)).await;
        assert!(took <= Duration::from_millis(100), "a hand-over took {took:?}");
        assert_ne!(world.leader(), old);
        world.pods[old].start().await;
    }
}

#[tokio::test(start_paused = true)]
async fn i1_a_killed_leader_is_silent_before_another_speaks_and_that_is_within_a_lease() {
    let mut world = World::of(3).await;
    world.serving(LEASE).await;
    for _ in 0..5 {
        world.pass(Duration::from_secs(7)).await;
        let old = world.leader();
        world.pods[old].kill();
        assert!(world.pods[old].speaks(), "the kernel goes on speaking until the tenure's end");
        let took = world.serving_other(old, LEASE + Duration::from_millis(300)).await;
        assert!(took >= Duration::from_secs(3), "another spoke {took:?} after a renewal: too soon");
        world.pods[old].start().await;
        assert!(world.pods[old].clean() || !world.pods[old].speaks());
    }
}

impl World {
    async fn serving_other(&self, old: usize, bound: Duration) -> Duration {
        let clock = TokioClock::new();
        while !self.pods.iter().enumerate().any(|(number, pod)| number != old && pod.serves()) {
            self.pass(TICK).await;
            assert!(clock.now().since_boot() <= bound, "nobody else serves within {bound:?}");
        }
        clock.now().since_boot()
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_killed_and_restarted_in_place_leads_again_at_once() {
    let mut world = World::of(2).await;
    world.serving(LEASE).await;
    let leader = world.leader();
    world.pods[leader].kill();
    world.pass(Duration::from_millis(200)).await;
    world.pods[leader].start().await;
    assert!(world.serving(Duration::from_millis(500)).await <= Duration::from_millis(500));
    assert_eq!(world.leader(), leader);
}

impl Pod {
    /// How often its tunnel was touched so that clients could notice.
    fn touched(&self) -> usize {
        let touches = [Call::Create, Call::FreshPeer, Call::Remove, Call::Detach];
        self.kernel.calls().iter().filter(|(call, _)| touches.contains(call)).count()
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_restarted_in_place_takes_over_what_its_former_life_held() {
    let mut world = World::holding(2, true).await;
    world.serving(LEASE).await;
    world.pass(LEASE).await;
    let leader = world.leader();
    let touched = world.pods[leader].touched();
    world.pods[leader].kill();
    world.pass(Duration::from_millis(200)).await;
    world.pods[leader].start().await;
    world.pass(Duration::from_secs(10)).await;
    assert_eq!(world.leader(), leader);
    assert_eq!(world.pods[leader].touched(), touched, "{:?}", world.pods[leader].kernel.calls());
}

/// The kernel lets it speak to the end of the tenure that its former life had armed.
#[tokio::test(start_paused = true)]
async fn i2_a_leader_restarted_in_place_is_silent_before_it_gives_its_lease_back() {
    let mut world = World::holding(2, true).await;
    world.serving(LEASE).await;
    world.pass(LEASE).await;
    let leader = world.leader();
    world.pods[leader].kill();
    assert!(world.pods[leader].speaks(), "the kernel goes on speaking");
    // It knows no Services, and so does not lead again.
    world.pods[leader].forwards = None;
    world.pods[leader].start().await;
    world.pods[leader].stop();
    world.serving_other(leader, Duration::from_millis(500)).await;
    world.pass(Duration::from_secs(3)).await;
    assert!(world.pods[leader].clean());
}

#[tokio::test(start_paused = true)]
async fn a_leader_restarted_without_the_api_holds_on_and_leads_on_when_it_is_back() {
    let mut world = World::holding(2, true).await;
    world.serving(LEASE).await;
    world.pass(LEASE).await;
    let leader = world.leader();
    let touched = world.pods[leader].touched();
    for pod in &world.pods {
        pod.way.way(Way::Silent);
    }
    world.pods[leader].kill();
    world.pods[leader].start().await;
    world.pass(Duration::from_secs(120)).await;
    assert!(!world.pods[leader].clean() && !world.pods[leader].speaks(), "in hold");
    world.pods[leader].way.way(Way::Open);
    world.serving(Duration::from_secs(3)).await;
    assert_eq!((world.leader(), world.pods[leader].touched()), (leader, touched));
}

#[tokio::test(start_paused = true)]
async fn a_leader_restarted_when_another_leads_takes_its_tunnel_down() {
    let mut world = World::holding(2, true).await;
    world.serving(LEASE).await;
    world.pass(LEASE).await;
    let leader = world.leader();
    world.pods[leader].kill();
    world.serving_other(leader, LEASE + Duration::from_millis(300)).await;
    world.pods[leader].start().await;
    world.pass(Duration::from_secs(2)).await;
    assert!(world.pods[leader].clean(), "down within a second of the Lease's naming another");
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_that_lost_its_fence_while_it_was_to_be_taken_over_is_made_anew() {
    let mut world = World::holding(1, true).await;
    world.serving(LEASE).await;
    let touched = world.pods[0].touched();
    world.pods[0].kill();
    world.pods[0].start().await;
    world.pods[0].firewall.delete_behind_our_back("wirevip_wg0_fence");
    world.serving(LEASE).await;
    assert!(world.pods[0].touched() > touched, "taken over without a fence");
}

#[tokio::test(start_paused = true)]
async fn who_cannot_remove_what_an_earlier_life_left_ends_when_told_and_keeps_the_lease() {
    let mut world = World::holding(2, true).await;
    world.serving(LEASE).await;
    let leader = world.leader();
    let pod = &mut world.pods[leader];
    pod.kill();
    pod.start().await;
    pod.firewall.delete_behind_our_back("wirevip_wg0_fence");
    pod.kernel.fail(Call::Discard, u32::MAX);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(pod.speaks(), "nothing keeps it from speaking");
    let holder = world.server.record().unwrap().holder;
    let pod = &mut world.pods[leader];
    pod.stop();
    tokio::time::timeout(Duration::from_secs(3), pod.process.take().unwrap().actor).await.unwrap().unwrap();
    assert_eq!(world.server.record().unwrap().holder, holder, "given back while it may be heard");
    assert_eq!(holder, world.pods[leader].name);
}

#[tokio::test(start_paused = true)]
async fn a_leader_restarted_without_leave_to_hold_clears_everything_away() {
    let mut world = World::holding(1, true).await;
    world.serving(LEASE).await;
    world.pods[0].kill();
    world.pods[0].holds = false;
    world.pods[0].way.way(Way::Silent);
    world.pods[0].start().await;
    assert!(world.pods[0].clean());
}

#[tokio::test(start_paused = true)]
async fn a_leader_without_the_api_falls_silent_in_time_and_leads_again_when_nobody_else_did() {
    let world = World::of(1).await;
    world.serving(LEASE).await;
    world.pods[0].way.way(Way::Silent);
    world.pass(LEASE).await;
    assert_eq!(world.speakers(), Vec::<&str>::new(), "silent at the end of its tenure");
    world.pass(Duration::from_secs(120)).await;
    world.pods[0].way.way(Way::Open);
    // Contract, "Times": within 3 s of the API's return.
    world.serving(Duration::from_secs(3)).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_cannot_make_its_link_lets_another_lead() {
    let world = World::of(2).await;
    world.serving(LEASE).await;
    let leader = world.leader();
    world.pods[leader].kernel.fail(Call::Create, u32::MAX);
    world.pods[leader].kernel.lose(&TunnelName::new("wg0").unwrap());
    world.serving_other(leader, Duration::from_secs(20)).await;
}

#[tokio::test(start_paused = true)]
async fn a_leader_is_silent_at_once_when_its_lease_names_another() {
    let world = World::of(2).await;
    world.serving(LEASE).await;
    let leader = world.leader();
    let mut record = world.server.record().unwrap();
    record.holder = "somebody-else".into();
    world.server.write(record);
    world.pass(Duration::from_millis(100)).await;
    assert!(!world.pods[leader].speaks(), "silent at once when the Lease names another");
}

#[tokio::test(start_paused = true)]
async fn a_flow_that_came_while_the_table_was_away_is_forgotten_once_it_is_back() {
    let world = World::of(1).await;
    world.serving(LEASE).await;
    let firewall = &world.pods[0].firewall;
    let (client, vip) = ("198.51.100.7:4000".parse().unwrap(), "10.77.0.2:53".parse().unwrap());
    firewall.delete_behind_our_back("wirevip_wg0");
    let (original, reply) = (Side { from: client, to: vip }, Side { from: vip, to: client });
    firewall.track(Entry { protocol: 17, original, reply, status: 0, mark: 0 });
    world.pass(Duration::from_secs(2)).await;
    assert!(firewall.table("wirevip_wg0").is_some(), "the table is back");
    assert_eq!(firewall.entries(), []);
}

/// Which backends the table had that it found, a restarted process does not know.
#[tokio::test(start_paused = true)]
async fn a_flow_to_a_backend_that_went_while_nobody_ran_is_forgotten() {
    const IPS_DST_NAT: u32 = 1 << 5;
    let mut world = World::holding(1, true).await;
    world.serving(LEASE).await;
    world.pods[0].kill();
    let (client, vip) = ("198.51.100.7:4000".parse().unwrap(), "10.77.0.2:53".parse().unwrap());
    let (backend, pod) = ("10.0.1.5:53".parse().unwrap(), "10.0.0.9:4000".parse().unwrap());
    let (original, reply) = (Side { from: client, to: vip }, Side { from: backend, to: pod });
    let mark = Slot::new(1).unwrap().mark();
    world.pods[0].firewall.track(Entry { protocol: 17, original, reply, status: IPS_DST_NAT, mark });
    world.pods[0].start().await;
    world.pass(Duration::from_secs(2)).await;
    assert_eq!(world.pods[0].firewall.entries(), []);
}

/// Settings for a hub whose name is not resolved yet, and its address.
fn elsewhere() -> (Tunnel, Whereabouts) {
    let endpoint = Endpoint { host: Host::Name("hub.example".to_owned()), port: 51820 };
    let found = Whereabouts { address: Some((endpoint.clone(), "192.0.2.9:51820".parse().unwrap())), fault: None };
    (Tunnel { endpoint, ..settings("wg0") }, found)
}

impl Pod {
    /// The link's private key, and where its hub is.
    fn linked(&self) -> (SecretKey, String) {
        let (plan, peer) = self.kernel.link(&TunnelName::new("wg0").unwrap()).unwrap();
        (plan.private_key, peer.unwrap().endpoint.to_string())
    }
}

#[tokio::test(start_paused = true)]
async fn keys_for_another_hub_wait_for_its_address_and_until_then_the_tunnel_serves_as_it_did() {
    let world = World::of(2).await;
    world.serving(LEASE).await;
    let leader = world.leader();
    let (pod, key) = (&world.pods[leader], SecretKey::new([9; 32]));
    let process = pod.process.as_ref().unwrap();
    let (told, found) = elsewhere();
    let touched = pod.touched();
    process.settings.send_replace(Arc::new(Tunnel { private_key: key.clone(), ..told }));
    let fault = Some("it does not resolve".to_owned());
    process.hub.send_modify(|hub| hub.fault.clone_from(&fault));
    world.pass(3 * LEASE).await;
    assert_eq!((world.leader(), pod.touched()), (leader, touched), "{:?}", pod.kernel.calls());
    assert_eq!(process.snapshot.borrow().failure, fault, "it is told why the new settings wait");
    process.hub.send_replace(found);
    world.pass(Duration::from_millis(100)).await;
    assert_eq!(pod.linked(), (key, "192.0.2.9:51820".to_owned()));
    assert_eq!((world.leader(), process.snapshot.borrow().failure.clone()), (leader, None));
}

#[tokio::test(start_paused = true)]
async fn a_hub_elsewhere_is_followed_at_once_and_the_link_stays() {
    let world = World::of(1).await;
    world.serving(LEASE).await;
    let (pod, (told, found)) = (&world.pods[0], elsewhere());
    let process = pod.process.as_ref().unwrap();
    process.settings.send_replace(Arc::new(told));
    world.pass(TICK).await;
    process.hub.send_replace(found);
    world.pass(TICK).await;
    assert_eq!(pod.linked().1, "192.0.2.9:51820");
    assert!(!pod.kernel.calls().iter().any(|(call, _)| *call == Call::Remove), "{:?}", pod.kernel.calls());
}
