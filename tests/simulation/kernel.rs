//! One pod's kernel at the seams: the fakes, with steps that take their time, fail, hang or lose their answer, and a
//! scribe that sees each change. It outlives the process.
//!
//! As in Linux, what was handed over is carried out in order, though nobody waits for the answer any more; nftables
//! answers at once, and every other request waits its turn.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use wirevip::ruleset::model::Hook;
use wirevip::ruleset::testing::{FakeFirewall, FenceState, Packet};
use wirevip::ruleset::{Firewall, FirewallError, Forget, Step as TableStep, Table, Transaction, fence_table};
use wirevip::secret::TunnelName;
use wirevip::tunnel::testing::FakePod;
use wirevip::tunnel::{
    Backend, Found, HostError, HostNet, LinkBackend, LinkError, LinkPlan, LinkStats, Nic, Step, Swept,
};

use crate::clock::{JIFFY, Machine};
use crate::mutants::Mutant;
use crate::process::Life;
use crate::record::{Fence, Kernel, Link, Scribe, Voice, What};
use crate::wire::Wire;

/// How long a step takes that hangs.
pub const HANGS: Range<Duration> = Duration::from_secs(1)..Duration::from_secs(3);

/// How unreliable a kernel is.
#[derive(Clone, PartialEq, Debug)]
pub struct Trouble {
    /// How long a step takes.
    pub takes: Range<Duration>,
    /// Share of steps that are refused.
    pub failed: f64,
    /// Share of steps that hang.
    pub hung: f64,
    /// Share of nftables transactions that are refused (ENOBUFS and the like).
    pub refused: f64,
    /// Share of nftables transactions that are carried out and answered by an error.
    pub lost: f64,
}

impl Default for Trouble {
    fn default() -> Self {
        let takes = Duration::from_micros(200)..Duration::from_millis(4);
        Self { takes, failed: 0.0, hung: 0.0, refused: 0.0, lost: 0.0 }
    }
}

/// One pod's kernel. Clones are the same.
#[derive(Clone)]
pub struct PodKernel {
    pod: usize,
    pub links: FakePod,
    pub firewall: FakeFirewall,
    tunnel: TunnelName,
    machine: Machine,
    scribe: Scribe,
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    trouble: Trouble,
    rng: StdRng,
    seen: Kernel,
}

impl PodKernel {
    pub fn new(pod: usize, tunnel: TunnelName, machine: Machine, scribe: Scribe, seed: u64) -> Self {
        let inner = Inner { trouble: Trouble::default(), rng: StdRng::seed_from_u64(seed), seen: Kernel::default() };
        let links = FakePod::new();
        // Handshakes go by the wire.
        links.hub_answers(false);
        Self {
            pod,
            links,
            firewall: FakeFirewall::new(Arc::new(machine.kernel())),
            tunnel,
            machine,
            scribe,
            inner: Arc::new(Mutex::new(inner)),
        }
    }

    pub fn trouble(&self, trouble: Trouble) {
        self.inner.lock().unwrap().trouble = trouble;
    }

    /// Does the fence hold now?
    pub fn holds(&self) -> bool {
        self.firewall.fence(&self.tunnel) == FenceState::Hold
    }

    /// What the fence would let out now.
    pub fn voice(&self) -> Voice {
        self.seen().voice(self.scribe.now())
    }

    /// When the link's peer was put in afresh.
    pub fn session(&self) -> Option<Duration> {
        self.seen().link?.session
    }

    /// Would a request that comes by the tunnel reach a backend?
    pub fn serves(&self) -> bool {
        self.seen().serves()
    }

    /// Does the fence let this packet pass?
    pub fn lets(&self, hook: Hook, packet: &mut Packet) -> bool {
        self.firewall.passes(&fence_table(&self.tunnel), hook, packet)
    }

    /// The hub answered the peer's handshake.
    pub fn shook_hands(&self) {
        self.links.shake_hands(&self.tunnel);
        self.look();
    }

    /// So much came by the tunnel.
    pub fn received(&self, bytes: usize) {
        self.links.carry(&self.tunnel, bytes as u64, 0);
    }

    fn seen(&self) -> Kernel {
        self.inner.lock().unwrap().seen
    }

    pub fn is_troubled(&self) -> bool {
        self.inner.lock().unwrap().trouble != Trouble::default()
    }

    /// The network namespace goes, with all that is in it.
    pub fn destroy(&self) {
        self.links.lose(&self.tunnel);
        for table in self.firewall.clone().tables().unwrap_or_default() {
            self.firewall.delete_behind_our_back(&table);
        }
        self.look();
    }

    /// Writes down what changed.
    pub fn look(&self) {
        let link = self.links.seen(&self.tunnel).map(|seen| Link {
            session: seen.session.map(|since| since.since_boot()),
            answered: seen.answered,
            whole: seen.whole,
        });
        let fence = match self.firewall.fence(&self.tunnel) {
            FenceState::Absent => Fence::Absent,
            FenceState::Closed => Fence::Closed,
            FenceState::Hold => Fence::Hold,
            FenceState::Lead { until, then_hold } => {
                let until = until.map_or(Duration::MAX, |until| self.machine.true_time(until));
                Fence::Lead { until, then_hold }
            }
        };
        let tables = self.firewall.clone().tables().unwrap_or_default();
        let forwards = tables.iter().any(|table| *table != fence_table(&self.tunnel));
        let state = Kernel { link, fence, forwards };
        if std::mem::replace(&mut self.inner.lock().unwrap().seen, state) != state {
            self.scribe.write(What::Kernel { pod: self.pod, state });
        }
    }

    /// The seams for one process.
    pub fn process(&self, wire: Wire, life: Life, mutant: Mutant) -> (Seam, FirewallSeam) {
        let seam = Seam { kernel: self.clone(), wire, life, mutant, turn: Arc::default() };
        (seam.clone(), FirewallSeam { seam, firewall: self.firewall.clone(), lead: None })
    }
}

/// [`LinkBackend`] and [`HostNet`] for one process.
#[derive(Clone)]
pub struct Seam {
    kernel: PodKernel,
    wire: Wire,
    life: Life,
    mutant: Mutant,
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Seam {
    /// Takes its turn and its time. `work` is carried out though the caller may have gone, unless the process has.
    async fn step<T, E>(
        &self,
        fail: fn() -> E,
        work: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: Send + 'static,
    {
        let (takes, failed) = {
            let mut inner = self.kernel.inner.lock().unwrap();
            let Trouble { takes, failed, hung, .. } = inner.trouble.clone();
            let takes = if inner.rng.random_bool(hung) { HANGS } else { takes };
            (inner.rng.random_range(takes), inner.rng.random_bool(failed))
        };
        let this = self.clone();
        let carried = tokio::spawn(async move {
            let _turn = this.turn.lock().await;
            tokio::time::sleep(takes).await;
            this.life.lives().await;
            if failed {
                return Err(fail());
            }
            let done = work.await;
            this.kernel.look();
            done
        });
        let done = carried.await.unwrap();
        self.life.goes_on().await;
        done
    }
}

fn link_error() -> LinkError {
    LinkError::Failed { doing: "what the simulation lets fail", source: io::Error::other("on demand") }
}

fn host_error() -> HostError {
    HostError::Failed { doing: "what the simulation lets fail".to_owned(), source: io::Error::other("on demand") }
}

impl LinkBackend for Seam {
    fn backend(&self) -> Backend {
        Backend::Kernel
    }

    async fn create(&self, plan: &LinkPlan) -> Result<(), LinkError> {
        if self.mutant == Mutant::LeadsOn && self.kernel.links.seen(&plan.name).is_some() {
            return Ok(());
        }
        let (links, plan) = (self.kernel.links.clone(), plan.clone());
        self.step(link_error, async move { links.create(&plan).await }).await
    }

    async fn fresh_peer(&self, plan: &LinkPlan) -> Result<(), LinkError> {
        let seen = self.kernel.links.seen(&plan.name);
        if self.mutant == Mutant::LeadsOn && seen.is_some_and(|seen| seen.session.is_some()) {
            return self.update_peer(plan).await;
        }
        if self.mutant == Mutant::NeverInsists && seen.is_some_and(|seen| seen.answered) {
            return Ok(());
        }
        let (kernel, wire, plan) = (self.kernel.clone(), self.wire.clone(), plan.clone());
        let work = async move {
            kernel.links.fresh_peer(&plan).await?;
            kernel.look();
            wire.fresh_peer(kernel.pod, &plan);
            Ok(())
        };
        self.step(link_error, work).await
    }

    async fn update_peer(&self, plan: &LinkPlan) -> Result<(), LinkError> {
        let (links, plan) = (self.kernel.links.clone(), plan.clone());
        self.step(link_error, async move { links.update_peer(&plan).await }).await
    }

    async fn inscribe(&self, plan: &LinkPlan, transitions: i32) -> Result<(), LinkError> {
        self.kernel.links.inscribe(plan, transitions).await
    }

    async fn hub(&self, tunnel: &TunnelName) -> Result<Option<SocketAddr>, LinkError> {
        self.kernel.links.hub(tunnel).await
    }

    fn adopt(&self, plan: &LinkPlan) {
        self.kernel.links.adopt(plan);
    }

    async fn stats(&self, tunnel: &TunnelName) -> Result<LinkStats, LinkError> {
        self.kernel.links.stats(tunnel).await
    }

    async fn remove(&self, tunnel: &TunnelName) -> Result<(), LinkError> {
        if !self.mutant.removes().await {
            return Ok(());
        }
        let (links, tunnel) = (self.kernel.links.clone(), tunnel.clone());
        self.step(link_error, async move { links.remove(&tunnel).await }).await
    }
}

impl HostNet for Seam {
    async fn nic(&self) -> Result<Nic, HostError> {
        self.kernel.links.nic().await
    }

    async fn found(&self) -> Result<Vec<Found>, HostError> {
        self.kernel.links.found().await
    }

    async fn sweep(&self, but: &[Found]) -> Result<Swept, HostError> {
        let (links, but) = (self.kernel.links.clone(), but.to_vec());
        self.step(host_error, async move { links.sweep(&but).await }).await
    }

    async fn discard(&self, found: &Found) -> Result<(), HostError> {
        let (links, found) = (self.kernel.links.clone(), found.clone());
        self.step(host_error, async move { links.discard(&found).await }).await
    }

    async fn attach(&self, plan: &LinkPlan) -> Result<Vec<Step>, HostError> {
        let (links, plan) = (self.kernel.links.clone(), plan.clone());
        self.step(host_error, async move { links.attach(&plan).await }).await
    }

    async fn drift(&self, plan: &LinkPlan) -> Result<Vec<Step>, HostError> {
        if self.mutant == Mutant::NeverLooks { Ok(vec![]) } else { self.kernel.links.drift(plan).await }
    }

    async fn probe(&self, _: &LinkPlan) -> Result<(), HostError> {
        if self.mutant != Mutant::NeverInsists {
            self.wire.probe(self.kernel.pod);
        }
        Ok(())
    }

    async fn detach(&self, plan: &LinkPlan) -> Result<(), HostError> {
        let (links, plan) = (self.kernel.links.clone(), plan.clone());
        self.step(host_error, async move { links.detach(&plan).await }).await
    }
}

/// [`Firewall`] for one process.
pub struct FirewallSeam {
    seam: Seam,
    firewall: FakeFirewall,
    /// When the element that opens the fence goes, if it was not taken out.
    lead: Option<Duration>,
}

impl Firewall for FirewallSeam {
    fn commit(&mut self, transaction: &Transaction) -> Result<(), FirewallError> {
        let kernel = &self.seam.kernel;
        let (refused, lost) = {
            let mut inner = kernel.inner.lock().unwrap();
            let Trouble { refused, lost, .. } = inner.trouble;
            (inner.rng.random_bool(refused), inner.rng.random_bool(lost))
        };
        if refused || self.seam.life.is_over() {
            return Err(no_buffers());
        }
        let now = kernel.scribe.now();
        let transaction = self.seam.mutant.transaction(&kernel.tunnel, transaction, self.lead.map(|end| end <= now))?;
        let transaction = ticks(transaction);
        self.firewall.commit(&transaction)?;
        kernel.look();
        if touches(&transaction, &fence_table(&kernel.tunnel)) {
            self.lead = match kernel.firewall.fence(&kernel.tunnel) {
                FenceState::Lead { until, .. } => until.map(|until| kernel.machine.true_time(until)),
                FenceState::Absent | FenceState::Closed | FenceState::Hold => None,
            };
        }
        if lost { Err(no_buffers()) } else { Ok(()) }
    }

    fn tables(&mut self) -> Result<Vec<String>, FirewallError> {
        self.firewall.tables()
    }

    fn intact(&mut self, table: &str) -> Result<bool, FirewallError> {
        Ok(self.seam.mutant.blind_to(&self.seam.kernel.tunnel, table) || self.firewall.intact(table)?)
    }

    fn written(&mut self, table: &str) -> Option<Arc<Table>> {
        self.firewall.written(table)
    }

    fn adopt(&mut self, table: &Table) -> Result<bool, FirewallError> {
        self.firewall.adopt(table)
    }

    fn members(&mut self, table: &str, set: &str) -> Result<Vec<Vec<u8>>, FirewallError> {
        self.firewall.members(table, set)
    }

    fn counted(&mut self, table: &str, counter: &str) -> Result<u64, FirewallError> {
        self.firewall.counted(table, counter)
    }

    fn forget(&mut self, what: &Forget) -> Result<usize, FirewallError> {
        self.firewall.forget(what)
    }
}

fn no_buffers() -> FirewallError {
    let source = io::Error::other("no buffer space available");
    FirewallError::Refused { step: "what the simulation lets fail".to_owned(), detail: String::new(), source }
}

fn touches(transaction: &Transaction, table: &str) -> bool {
    transaction.0.iter().any(|step| match step {
        TableStep::Replace(replaced) => replaced.name == table,
        TableStep::Delete(name) => name == table,
        TableStep::Refill { table: name, .. } | TableStep::Edit { table: name, .. } => name == table,
    })
}

/// Timeouts as the kernel keeps them: in whole ticks, taken to be rounded up.
fn ticks(mut transaction: Transaction) -> Transaction {
    for step in &mut transaction.0 {
        if let TableStep::Refill { elements, .. } = step {
            for timeout in elements.iter_mut().filter_map(|element| element.timeout.as_mut()) {
                let ticks = timeout.as_nanos().div_ceil(JIFFY.as_nanos());
                *timeout = JIFFY * u32::try_from(ticks).unwrap();
            }
        }
    }
    transaction
}
