//! One pod: its machine, its kernel, its way to the API, and the process in it, which is the real campaign, controller
//! and actor.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use wirevip::clock::Clock;
use wirevip::controller::actor::{Actor, Inputs, Outputs};
use wirevip::controller::hub::Whereabouts;
use wirevip::controller::{Controller, Ending};
use wirevip::election::testing::LeaseClient;
use wirevip::election::{Campaign, Elector, Params};
use wirevip::metrics::Metrics;
use wirevip::ruleset::{Firewall, Transaction};
use wirevip::secret::Tunnel;
use wirevip::services::Forwards;
use wirevip::status::Snapshot;
use wirevip::tunnel::{HostNet, Slot};

use crate::clock::Machine;
use crate::kernel::PodKernel;
use crate::mutants::Mutant;
use crate::process::{Life, Store};
use crate::record::{Scribe, What};
use crate::wire::Wire;

/// The daemon gives up then (`daemon::STOP_WITHIN`).
const STOP_WITHIN: Duration = Duration::from_millis(2700);

/// What every pod is told, and may change at any time.
#[derive(Clone)]
pub struct Told {
    pub settings: Arc<Tunnel>,
    pub forwards: Arc<Forwards>,
}

pub struct Pod {
    pub number: usize,
    pub machine: Machine,
    pub kernel: PodKernel,
    pub client: LeaseClient,
    wire: Wire,
    scribe: Scribe,
    mutant: Mutant,
    params: Params,
    seed: u64,
    hold: bool,
    lives: u64,
    /// How many pods of this number there were.
    generation: u64,
    process: Option<Process>,
}

struct Process {
    life: Life,
    /// `None`: left to who waits for its end.
    actor: Option<JoinHandle<()>>,
    stop: watch::Sender<bool>,
    told: watch::Sender<Told>,
}

impl Pod {
    pub fn new(
        number: usize,
        (machine, kernel, client, wire): (Machine, PodKernel, LeaseClient, Wire),
        (scribe, mutant, params, seed, hold): (Scribe, Mutant, Params, u64, bool),
    ) -> Self {
        let (lives, generation, process) = (0, 0, None);
        Self { number, machine, kernel, client, wire, scribe, mutant, params, seed, hold, lives, generation, process }
    }

    /// Has it a process that was not told to end?
    pub fn runs(&self) -> bool {
        self.process.as_ref().is_some_and(|process| !process.life.is_over() && !*process.stop.borrow())
    }

    /// Would it notice in time if its fence were taken? Who takes the fence of a pod that holds, is dead, stands still or
    /// is kept from mending it takes I1 with it: nothing is promised then (`docs/simulation.md`).
    pub fn mends(&self) -> bool {
        self.runs() && !self.machine.run().frozen() && !self.kernel.is_troubled() && !self.kernel.holds()
    }

    /// A process that was told to end is still about it.
    pub fn ends(&self) -> bool {
        self.process.as_ref().is_some_and(|process| !process.life.is_over() && *process.stop.borrow())
    }

    /// Starts the process as the daemon does: clean-up first, then all the rest.
    pub fn start(&mut self, told: &Told) {
        if self.runs() || self.ends() {
            return;
        }
        self.machine.run().freeze(false);
        self.lives += 1;
        let identity = format!("pod-{}_{}", self.number, self.generation);
        let life = Life::new(self.machine.run().clone());
        let (stop, stop_rx) = watch::channel(false);
        let (told, told_rx) = watch::channel(told.clone());
        let rng = StdRng::seed_from_u64(self.seed ^ (self.lives << 32) ^ ((self.number as u64) << 16));
        let elector = Elector::new(self.params, identity.clone()).unwrap();
        self.scribe.write(What::Started { pod: self.number, identity: identity.clone() });
        let store = Store {
            client: self.client.clone(),
            life: life.clone(),
            pod: self.number,
            identity,
            machine: self.machine.clone(),
            scribe: self.scribe.clone(),
            mutant: self.mutant,
        };
        let daemon = Daemon {
            kernel: self.kernel.clone(),
            wire: self.wire.clone(),
            life: life.clone(),
            machine: self.machine.clone(),
            mutant: self.mutant,
            hold: self.hold,
            told: told_rx,
            stop: stop_rx,
        };
        let actor = tokio::spawn(daemon.run(store, elector, rng));
        self.process = Some(Process { life, actor: Some(actor), stop, told });
    }

    /// SIGKILL: what is in the kernel stays.
    pub fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.life.end();
            if let Some(actor) = process.actor {
                actor.abort();
            }
        }
        self.machine.run().freeze(false);
    }

    /// The pod is deleted by force, and another comes in its place.
    pub fn replace(&mut self, told: &Told) {
        self.kill();
        self.kernel.destroy();
        self.generation += 1;
        self.start(told);
    }

    /// SIGTERM. The daemon cuts itself short when it takes too long.
    pub fn terminate(&mut self) {
        if !self.runs() {
            return;
        }
        let Some(process) = &mut self.process else { return };
        let Some(mut actor) = process.actor.take() else { return };
        process.stop.send_replace(true);
        let life = process.life.clone();
        let (scribe, pod, cut) = (self.scribe.clone(), self.number, self.machine.sleep(STOP_WITHIN));
        tokio::spawn(async move {
            let in_time = tokio::select! {
                biased;
                ended = &mut actor => Some(ended.is_ok()),
                () = cut => Some(false),
                () = life.ended() => None,
            };
            actor.abort();
            if let Some(in_time) = in_time {
                life.end();
                scribe.write(What::Ended { pod, in_time });
            }
        });
    }

    pub fn tell(&self, told: &Told) {
        if let Some(process) = &self.process {
            process.told.send_replace(told.clone());
        }
    }
}

struct Daemon {
    kernel: PodKernel,
    wire: Wire,
    life: Life,
    machine: Machine,
    mutant: Mutant,
    hold: bool,
    told: watch::Receiver<Told>,
    stop: watch::Receiver<bool>,
}

impl Daemon {
    async fn run(mut self, store: Store, elector: Elector, rng: StdRng) {
        let (seam, mut firewall) = self.kernel.process(self.wire.clone(), self.life.clone(), self.mutant);
        // A daemon that cannot clean up ends and is started again.
        while seam.sweep(&[]).await.is_err() {
            self.machine.sleep(Duration::from_millis(100)).await;
        }
        for table in firewall.tables().unwrap() {
            while firewall.commit(&Transaction::delete(&table)).is_err() {
                self.machine.sleep(Duration::from_millis(100)).await;
            }
        }
        let identity = store.identity.clone();
        let campaign = Campaign::spawn(store, self.machine.clone(), elector, rng);
        self.mutant.at_the_gate(campaign.gate(), campaign.leadership());
        let nic = seam.nic().await.unwrap();
        let Told { settings, forwards } = self.told.borrow_and_update().clone();
        let snapshot = watch::channel(Snapshot::standby(Arc::clone(&settings))).0;
        let mut controller = Controller::new(Slot::new(1).unwrap(), nic.clone(), Arc::clone(&settings));
        if self.hold {
            controller = controller.holding(&identity);
        }
        let (settings_tx, settings) = watch::channel(settings);
        let (forwards_tx, forwards) = watch::channel(Some(forwards));
        let (_hub_tx, hub) = watch::channel(Whereabouts::from(SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 51820))));
        let (stop_tx, stop) = watch::channel(None);
        let (_nic_tx, nic) = watch::channel(nic);
        let inputs = Inputs { settings, forwards, hub, nic, stop };
        let outputs = Outputs { snapshot, unheard: watch::channel(Duration::ZERO).0, metrics: Metrics::new() };
        let seam = Arc::new(seam);
        let kernel = (Arc::clone(&seam), seam, firewall);
        let actor = Actor::new(controller, kernel, Arc::new(self.machine.clone()), campaign, inputs, outputs);
        let (life, mut told, mut asked) = (self.life, self.told, self.stop);
        let ear = async move {
            loop {
                tokio::select! {
                    biased;
                    () = async { _ = asked.wait_for(|stop| *stop).await.is_ok() } => {
                        life.goes_on().await;
                        stop_tx.send_replace(Some(Ending::HandOver));
                        std::future::pending::<()>().await;
                    }
                    changed = told.changed() => {
                        if changed.is_err() {
                            std::future::pending::<()>().await;
                        }
                        life.goes_on().await;
                        let Told { settings, forwards } = told.borrow_and_update().clone();
                        settings_tx.send_replace(settings);
                        forwards_tx.send_replace(Some(forwards));
                    }
                }
            }
        };
        tokio::select! {
            biased;
            () = actor.run(|| {}) => {}
            () = ear => {}
        }
    }
}
