//! Lives one plan through: an API server, a hub and two to five pods, on one paused clock that is true time.

use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use wirevip::clock::{Clock, TokioClock};
use wirevip::election::testing::{LeaseServer, Way, Weather};
use wirevip::election::{Params, Record};
use wirevip::secret::{Tunnel, TunnelName};
use wirevip::services::{Forward, Forwards, Owner, Protocol, VipPort};
use wirevip::tunnel::{Step, testing};

use crate::checker;
use crate::clock::Machine;
use crate::kernel::{PodKernel, Trouble};
use crate::mutants::Mutant;
use crate::pod::{Pod, Told};
use crate::record::{History, Phase, Scribe, What};
use crate::weather::{Act, Plan, ms};
use crate::wire::{Road, Wire};

/// The tunnel's first UDP port.
pub const PORT: u16 = 51820;

/// Lives `plan` with this program.
pub fn live(plan: &Plan, mutant: Mutant) -> History {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut world = World::new(plan, mutant);
        world.befall(plan).await;
        world.end(plan.seed).await;
        let rates = plan.pods.iter().map(|(rates, ..)| *rates).collect();
        let Plan { seed, hold, road: Road { round_trip, .. }, .. } = *plan;
        History { seed, hold, round_trip, params: Params::default(), rates, events: world.scribe.events() }
    })
}

struct World {
    clock: TokioClock,
    scribe: Scribe,
    server: LeaseServer,
    wire: Wire,
    pods: Vec<Pod>,
    told: Told,
    /// What all that is to happen in time is given more, since the hub is far.
    far: Duration,
}

impl World {
    fn new(plan: &Plan, mutant: Mutant) -> Self {
        let (clock, params) = (TokioClock::new(), Params::default());
        let (scribe, server) = (Scribe::new(clock), LeaseServer::new());
        let told = Told { settings: settings(5, PORT), forwards: forwards(1) };
        let machines: Vec<Machine> = plan
            .pods
            .iter()
            .map(|&(rates, booted, wall_off)| Machine::new(clock, rates, booted, SignedDuration::from_secs(wall_off)))
            .collect();
        let seed = |number: usize| plan.seed.wrapping_mul(31) + number as u64;
        let kernel = |(number, machine): (usize, &Machine)| {
            PodKernel::new(number, name(), machine.clone(), scribe.clone(), seed(number))
        };
        let kernels: Vec<PodKernel> = machines.iter().enumerate().map(kernel).collect();
        let wire = Wire::new(plan.road.clone(), kernels.clone(), scribe.clone(), plan.seed);
        tokio::spawn(wire.clone().carry());
        let pod = |(number, (machine, kernel)): (usize, _)| {
            let client = server.client(&number.to_string(), seed(number));
            let parts = (machine, kernel, client, wire.clone());
            Pod::new(number, parts, (scribe.clone(), mutant, params, plan.seed, plan.hold))
        };
        let mut pods: Vec<Pod> = machines.into_iter().zip(kernels).enumerate().map(pod).collect();
        server.observe({
            let scribe = scribe.clone();
            let mut last = None;
            move |by, lease| {
                let record = lease.map(Record::from);
                // Labels are nobody's business.
                if std::mem::replace(&mut last, record.clone()) != record || by.is_some() {
                    scribe.write(What::Wrote { by: by.and_then(|by| by.parse().ok()), record });
                }
            }
        });
        for pod in &mut pods {
            pod.start(&told);
        }
        let far = checker::far(plan.road.round_trip);
        Self { clock, scribe, server, wire, pods, told, far }
    }

    async fn befall(&mut self, plan: &Plan) {
        for (pause, act) in &plan.acts {
            tokio::time::sleep(*pause).await;
            if let Act::TableLost { pod, forwards: false } = act
                && !self.pods[*pod].mends()
            {
                continue;
            }
            self.act(act.clone());
            if let Act::TableLost { forwards: false, .. } = act {
                tokio::time::sleep(ms(1500)).await;
            }
        }
        tokio::time::sleep(ms(500)).await;
    }

    fn act(&mut self, act: Act) {
        self.scribe.write(What::Befell(act.clone()));
        self.perform(&act);
    }

    fn perform(&mut self, act: &Act) {
        match act {
            Act::Kill(pod) => self.pods[*pod].kill(),
            Act::Start(pod) => self.pods[*pod].start(&self.told),
            Act::Terminate(pod) => self.pods[*pod].terminate(),
            Act::Replace(pod) => self.pods[*pod].replace(&self.told),
            Act::Freeze(pod) => self.pods[*pod].machine.run().freeze(true),
            Act::Thaw(pod) => self.pods[*pod].machine.run().freeze(false),
            Act::Way(pod, way) => self.pods[*pod].client.way(*way),
            Act::Api(way) => self.pods.iter().for_each(|pod| pod.client.way(*way)),
            Act::Weather(pod, weather) => self.pods[*pod].client.weather(weather.clone()),
            Act::Deafen(pod) => self.pods[*pod].client.deafen(),
            Act::Gone(pod) => {
                let client = self.pods[*pod].client.clone();
                client.way(Way::Refused);
                tokio::spawn(async move {
                    tokio::time::sleep(ms(1)).await;
                    client.way(Way::Open);
                });
            }
            Act::LeaseDeleted => self.server.edit(|_| None),
            Act::LeaseEmptied => self.server.write(Record::default()),
            Act::LeaseGiven(holder) => {
                let duration_seconds = i32::try_from(Params::default().lease.as_secs()).unwrap();
                let (holder, renewed) = ((*holder).to_owned(), Some(self.clock.wall()));
                self.server.write(Record { holder, duration_seconds, renewed, ..Record::default() });
            }
            Act::LeaseLabelled => self.server.edit(|lease| {
                let mut lease = lease?;
                lease.metadata.labels = Some([("team".to_owned(), "network".to_owned())].into());
                Some(lease)
            }),
            Act::Hub(answers) => self.wire.hub_answers(*answers),
            Act::Kernel(pod, trouble) => self.pods[*pod].kernel.trouble(trouble.clone()),
            Act::LinkLost(pod) => self.outsider(*pod, |kernel| kernel.links.lose(&name())),
            Act::LinkDown(pod) => self.outsider(*pod, |kernel| kernel.links.undo(&name(), Step::Up)),
            Act::TableLost { pod, forwards } => self.outsider(*pod, |kernel| {
                let table = if *forwards { "wirevip_wg0" } else { "wirevip_wg0_fence" };
                kernel.firewall.delete_behind_our_back(table);
            }),
            Act::WallStep(pod, micros) => self.pods[*pod].machine.step_wall(SignedDuration::from_micros(*micros)),
            Act::Forwards(number) => {
                self.told.forwards = forwards(*number);
                self.tell();
            }
            Act::Settings { keepalive, port } => {
                self.told.settings = settings(*keepalive, *port);
                self.tell();
            }
        }
    }

    fn outsider(&self, pod: usize, does: impl FnOnce(&PodKernel)) {
        does(&self.pods[pod].kernel);
        self.pods[pod].kernel.look();
    }

    fn tell(&self) {
        self.pods.iter().for_each(|pod| pod.tell(&self.told));
    }

    /// All is well again: somebody serves and goes on, also through what is no fault; then takeovers, then the end.
    async fn end(&mut self, seed: u64) {
        for pod in &mut self.pods {
            pod.machine.run().freeze(false);
            pod.client.weather(Weather::default());
            pod.client.way(Way::Open);
            pod.kernel.trouble(Trouble::default());
        }
        self.wire.hub_answers(true);
        self.wire.mend();
        // Whoever was told to end has ended by then.
        tokio::time::sleep(ms(3000)).await;
        for pod in &mut self.pods {
            pod.start(&self.told);
        }
        self.scribe.write(What::Phase(Phase::Calm));
        tokio::time::sleep(checker::LEADS_WITHIN + self.far).await;
        for number in 0..4 {
            self.act(Act::Forwards(number));
            tokio::time::sleep(ms(700)).await;
        }
        if let Some(leader) = self.leader() {
            self.scribe.write(What::Phase(Phase::Robbed));
            self.act(robbery(leader, seed));
            tokio::time::sleep(checker::BACK_WITHIN + self.far + ms(500)).await;
        }
        if let Some(leader) = self.leader() {
            self.scribe.write(What::Phase(Phase::Killed));
            self.act(Act::Kill(leader));
            tokio::time::sleep(checker::TAKEN_OVER_WITHIN + self.far).await;
            self.pods[leader].start(&self.told);
        }
        if let Some(leader) = self.leader() {
            self.scribe.write(What::Phase(Phase::HandOver));
            self.act(Act::Terminate(leader));
            tokio::time::sleep(ms(2000) + self.far).await;
        }
        self.scribe.write(What::Phase(Phase::Stop));
        for pod in 0..self.pods.len() {
            self.act(Act::Terminate(pod));
        }
        tokio::time::sleep(ms(3000)).await;
        self.scribe.write(What::Phase(Phase::End));
    }

    /// Whom the Lease names.
    fn leader(&self) -> Option<usize> {
        let holder = self.server.record()?.holder;
        self.pods.iter().position(|pod| holder.starts_with(&format!("pod-{}_", pod.number)))
    }
}

fn robbery(pod: usize, seed: u64) -> Act {
    match seed % 4 {
        0 => Act::LinkLost(pod),
        1 => Act::LinkDown(pod),
        n => Act::TableLost { pod, forwards: n == 2 },
    }
}

fn name() -> TunnelName {
    TunnelName::new("wg0").unwrap()
}

fn settings(keepalive: u16, port: u16) -> Arc<Tunnel> {
    Arc::new(Tunnel { listen_port: port, persistent_keepalive: keepalive, ..testing::settings("wg0") })
}

fn forwards(number: u16) -> Arc<Forwards> {
    let forward = |port| {
        let backends = vec![std::net::SocketAddrV4::new([10, 244, 0, 9].into(), 8080)];
        let forward =
            Forward { owner: Owner::ControlPlane, backends, client_ip_affinity: false, source_ranges: vec![] };
        (VipPort { protocol: Protocol::Tcp, port }, forward)
    };
    Arc::new((0..number).map(|port| forward(6443 + port)).collect())
}

/// The least that a plan needs for `objects` to hold: acts are left out one by one as long as it does.
pub fn shrink(plan: &Plan, objects: impl Fn(&Plan) -> bool) -> Plan {
    let mut plan = plan.clone();
    let mut at = plan.acts.len();
    while at > 0 {
        at -= 1;
        let mut less = plan.clone();
        let (pause, _) = less.acts.remove(at);
        if let Some((next, _)) = less.acts.get_mut(at) {
            *next += pause;
        }
        if objects(&less) {
            plan = less;
        }
    }
    plan
}

/// How long a history is, by true time.
pub fn length(history: &History) -> Duration {
    history.events.last().map_or(Duration::ZERO, |event| event.at)
}
