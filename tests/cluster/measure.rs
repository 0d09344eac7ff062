//! What a disruption costs a client outside: the longest silence of its datagrams, and of its new TCP connections.
//! `WIREVIP_CLUSTER_RUNS` (2) times each; docs/compatibility.md has the figures.

use std::time::{Duration, Instant};

use anyhow::Result;
use lab::clock::now;
use lab::cluster::{Installed, Pod};
use lab::gaps::Distribution;
use lab::probe::{Probe, ProbeKind};
use lab::takeover::milliseconds;

/// For what a cluster does by itself: images are there, but the machine is shared.
pub const WITHIN: Duration = Duration::from_secs(60);
/// What a client may lose where the leader hands over or stays: less than any Lease takes to run out.
pub const HANDED_OVER: Duration = Duration::from_secs(2);
/// What it may lose where the leader dies: its Lease of 5 s, the successor's next look, and a busy machine.
pub const TAKEN_OVER: Duration = Duration::from_secs(12);

/// Does something to the leader, and ends when all of it is done.
pub type Disruption = fn(&Installed, &Pod) -> Result<()>;

/// How often each disruption is measured.
pub fn runs() -> u32 {
    std::env::var("WIREVIP_CLUSTER_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(2)
}

/// A disruption that puts itself right.
#[expect(clippy::unnecessary_wraps, reason = "a disruption like the others")]
pub fn nothing(_: &Installed, _: &Pod) -> Result<()> {
    Ok(())
}

/// What a probe saw, run after run.
#[derive(Default)]
struct Gaps {
    gaps: Vec<Duration>,
    /// The same without what the machine did not let the client ask: the machine is shared, and the bound is the tunnel's.
    silences: Vec<Duration>,
}

impl Gaps {
    fn add(&mut self, probe: &Probe, event: Instant) {
        self.gaps.push(probe.gap_since(event).length());
        self.silences.push(probe.silence_since(event));
    }
}

/// What befalls the cluster, and how it is measured.
pub struct Trial {
    name: String,
    bound: Duration,
    datagrams: ProbeKind,
}

impl Trial {
    /// Measured with datagrams of one flow. The client may never lose more than `bound`.
    pub fn of(name: &str, bound: Duration) -> Self {
        Self { name: name.to_owned(), bound, datagrams: ProbeKind::UdpFlow }
    }

    /// Measured with datagrams of a flow each: where a backend is lost with the leader, a flow that it serves tells more of
    /// the backend than of the tunnel.
    pub fn with_fresh_flows(mut self) -> Self {
        self.datagrams = ProbeKind::UdpFresh;
        self
    }

    /// Lets it happen to one installation, run after run. Afterwards `mend` puts right what the cluster does not by itself;
    /// each time the client is served again in the end.
    pub fn run(&self, disrupt: Disruption, mend: Disruption) -> Result<()> {
        Installed::play(&[], |installed| {
            let client = &installed.cluster.client.netns;
            let (mut udp_gaps, mut tcp_gaps) = (Gaps::default(), Gaps::default());
            for _ in 0..runs() {
                let udp = Probe::start(client, installed.web(), self.datagrams)?;
                let tcp = Probe::start(client, installed.web(), ProbeKind::TcpAsk)?;
                let steady = |since: Instant| {
                    udp.steady_since(since, 100, WITHIN).and_then(|()| tcp.steady_since(since, 100, WITHIN))
                };
                steady(now())?;
                let leader = installed.wait_leader(None)?;
                let event = now();
                disrupt(installed, &leader)?;
                steady(now())?;
                self.tell_run(installed, &leader, event, &[("UDP", &udp), ("new TCP", &tcp)])?;
                udp_gaps.add(&udp, event);
                tcp_gaps.add(&tcp, event);
                mend(installed, &leader)?;
                installed.wait_serving()?;
            }
            self.tell("UDP", &udp_gaps);
            self.tell("new TCP", &tcp_gaps);
            Ok(())
        })
    }

    /// When each silence began, and who led before and after: what a long one is looked into with.
    fn tell_run(&self, installed: &Installed, before: &Pod, event: Instant, probes: &[(&str, &Probe)]) -> Result<()> {
        for (what, probe) in probes {
            let gap = probe.gap_since(event);
            let [length, begun] = [gap.length(), gap.from.saturating_duration_since(event)].map(milliseconds);
            eprintln!("{}: {what} silent for {length:.1} ms, {begun:.0} ms after it began", self.name);
        }
        let after = installed.leader()?.map_or_else(|| "nobody".to_owned(), |pod| pod.name);
        eprintln!("{}: led by {} before, {after} after", self.name, before.name);
        Ok(())
    }

    fn tell(&self, what: &str, Gaps { gaps, silences }: &Gaps) {
        let (name, d) = (&self.name, Distribution::of(gaps).expect("at least one run"));
        let [p50, max] = [d.p50, d.max].map(milliseconds);
        eprintln!("{name}, {what}: p50 {p50:.1}, max {max:.1} ms (n={})", d.count);
        assert!(silences.iter().all(|silent| *silent < self.bound), "{name}, {what}: {silences:?} of {gaps:?}");
    }
}
