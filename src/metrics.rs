//! Every metric, once. Values are set by those who measure; text comes out for `/metrics`.
//!
//! What must hold: each per-tunnel metric is there from the first valid configuration on, a gauge as `NaN` where
//! nothing is measured yet; nothing of a removed tunnel stays; counters never go back, and are never `NaN`, which
//! OpenMetrics forbids them.

mod exposition;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::registry::Registry;

use crate::secret::TunnelName;

/// The phases of a takeover.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Phase {
    /// The old leader's silence or release until we went for the Lease.
    Detect,
    /// Until the Lease was ours.
    Lease,
    /// Until the link was up.
    Link,
    /// Until the hub answered.
    Handshake,
}

impl Phase {
    const ALL: [Phase; 4] = [Phase::Detect, Phase::Lease, Phase::Link, Phase::Handshake];

    fn label(self) -> &'static str {
        match self {
            Phase::Detect => "detect",
            Phase::Lease => "lease",
            Phase::Link => "link",
            Phase::Handshake => "handshake",
        }
    }
}

/// All metrics of this process. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    state: Arc<Mutex<State>>,
    registry: Arc<Registry>,
}

#[derive(Debug, Default)]
struct State {
    tunnels: BTreeMap<TunnelName, TunnelMetrics>,
    config_valid: BTreeMap<String, bool>,
    config_changed: Option<Timestamp>,
    ruleset_apply: Histogram<RULESET_BUCKETS>,
    api_requests: BTreeMap<(&'static str, String, String), u64>,
    errors: BTreeMap<&'static str, u64>,
}

const TAKEOVER_BUCKETS: usize = 14;
const RULESET_BUCKETS: usize = 10;

/// Upper bounds, in seconds.
const TAKEOVER_BOUNDS: [f64; TAKEOVER_BUCKETS] =
    [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
const RULESET_BOUNDS: [f64; RULESET_BUCKETS] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0];

/// Counts under bounds; the last bucket takes what is above them all.
#[derive(Clone, Debug)]
struct Histogram<const N: usize> {
    bounds: [f64; N],
    counts: [u64; N],
    above: u64,
    sum: f64,
}

impl<const N: usize> Histogram<N> {
    fn new(bounds: [f64; N]) -> Self {
        Self { bounds, counts: [0; N], above: 0, sum: 0.0 }
    }

    fn observe(&mut self, span: Duration) {
        let seconds = span.as_secs_f64();
        self.sum += seconds;
        let bucket = self.bounds.iter().zip(&mut self.counts).find(|(bound, _)| seconds <= **bound);
        match bucket {
            Some((_, count)) => *count += 1,
            None => self.above += 1,
        }
    }
}

impl Default for Histogram<RULESET_BUCKETS> {
    fn default() -> Self {
        Self::new(RULESET_BOUNDS)
    }
}

impl Default for Histogram<TAKEOVER_BUCKETS> {
    fn default() -> Self {
        Self::new(TAKEOVER_BOUNDS)
    }
}

/// What is measured of one tunnel. `None` comes out as `NaN`.
#[derive(Clone, Debug, Default)]
pub struct TunnelMetrics {
    /// Does this pod lead?
    pub leader: bool,
    /// `leaseTransitions` as last seen in the Lease.
    pub lease_transitions: u64,
    /// Does this pod answer on without a tenure?
    pub holding: bool,
    /// Time left of the tenure; `None` while another leads.
    pub tenure_remaining: Option<Duration>,
    /// Since the last handshake; `None` before the first, and while there is no link.
    pub handshake_age: Option<Duration>,
    /// Bytes from the hub, over all links of this process's life.
    pub received_bytes: u64,
    /// Bytes to the hub, likewise.
    pub transmitted_bytes: u64,
    /// Packets that the fence held back.
    pub fence_dropped_packets: u64,
    /// Our clock minus the hub's latest leader's, in seconds.
    pub clock_skew: Option<f64>,
    /// Forwards applied.
    pub forwards: Option<usize>,
    /// Backends applied, over all forwards.
    pub backends: Option<usize>,
    takeover: BTreeMap<Phase, Histogram<TAKEOVER_BUCKETS>>,
}

impl TunnelMetrics {
    /// A phase of a takeover took this long.
    pub fn took(&mut self, phase: Phase, span: Duration) {
        self.takeover.entry(phase).or_default().observe(span);
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Nothing measured yet.
    pub fn new() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let mut registry = Registry::default();
        registry.register_collector(Box::new(exposition::Exposition(state.clone())));
        Self { state, registry: Arc::new(registry) }
    }

    /// The tunnels there are. Forgets all others; those that stay keep their counts.
    pub fn set_tunnels<'n>(&self, names: impl IntoIterator<Item = &'n TunnelName>) {
        let mut state = self.lock();
        let mut before = std::mem::take(&mut state.tunnels);
        let after = names.into_iter().map(|name| (name.clone(), before.remove(name).unwrap_or_default()));
        state.tunnels = after.collect();
    }

    /// Sets what was measured of a tunnel. A tunnel that is not there any more stays away.
    pub fn tunnel(&self, name: &TunnelName, set: impl FnOnce(&mut TunnelMetrics)) {
        if let Some(tunnel) = self.lock().tunnels.get_mut(name) {
            set(tunnel);
        }
    }

    /// Which tunnels, by name as written, the last document described soundly.
    pub fn set_config_valid(&self, valid: BTreeMap<String, bool>) {
        self.lock().config_valid = valid;
    }

    /// A new configuration came into force.
    pub fn config_changed(&self, at: Timestamp) {
        self.lock().config_changed = Some(at);
    }

    /// A forwards table was applied.
    pub fn ruleset_applied(&self, took: Duration) {
        self.lock().ruleset_apply.observe(took);
    }

    /// A request to the API ended; `code` is the HTTP status, or `error` if there was none.
    pub fn api_request(&self, verb: &'static str, resource: &str, code: &str) {
        let key = (verb, resource.to_owned(), code.to_owned());
        *self.lock().api_requests.entry(key).or_default() += 1;
    }

    /// Something failed in a stage.
    pub fn error(&self, stage: &'static str) {
        *self.lock().errors.entry(stage).or_default() += 1;
    }

    /// All of it as OpenMetrics text, `application/openmetrics-text; version=1.0.0; charset=utf-8`.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// A panic elsewhere leaves numbers behind, no broken invariants.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
