//! What clusters do to pods and nodes, and what each costs a client outside: the longest silence of one UDP flow, and of
//! new TCP connections. `WIREVIP_CLUSTER_RUNS` (2) times each; docs/compatibility.md has the figures.

use std::time::{Duration, Instant};

use anyhow::Result;
use lab::clock::{now, pause, until};
use lab::cluster::{Installed, Pod};
use lab::gaps::Distribution;
use lab::probe::{Probe, ProbeKind};
use lab::takeover::milliseconds;

/// For what a cluster does by itself: images are there, but the machine is shared.
const WITHIN: Duration = Duration::from_secs(60);
/// What a client may lose where the leader hands over: less than any Lease takes to run out.
const HANDED_OVER: Duration = Duration::from_secs(2);
/// What it may lose where the leader dies: its Lease of 5 s, the successor's next look, and a busy machine.
const TAKEN_OVER: Duration = Duration::from_secs(12);

/// Does something to the leader, and ends when all of it is done.
type Disruption = fn(&Installed, &Pod) -> Result<()>;

fn runs() -> u32 {
    std::env::var("WIREVIP_CLUSTER_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(2)
}

/// Measures a disruption with datagrams of one flow; afterwards `mend` puts right what the cluster does not by itself. Each
/// time the client is served again in the end, and never lost more than `bound`.
fn measure(name: &str, bound: Duration, disrupt: Disruption, mend: Disruption) -> Result<()> {
    measure_by(ProbeKind::UdpFlow, name, bound, disrupt, mend)
}

fn measure_by(datagrams: ProbeKind, name: &str, bound: Duration, disrupt: Disruption, mend: Disruption) -> Result<()> {
    Installed::play(&[], |installed| {
        let client = &installed.cluster.client.netns;
        let (mut udp_gaps, mut tcp_gaps) = (Vec::new(), Vec::new());
        for _ in 0..runs() {
            let udp = Probe::start(client, installed.web(), datagrams)?;
            let tcp = Probe::start(client, installed.web(), ProbeKind::TcpAsk)?;
            let steady = |since: Instant| {
                udp.steady_since(since, 100, WITHIN).and_then(|()| tcp.steady_since(since, 100, WITHIN))
            };
            steady(now())?;
            let leader = installed.wait_leader(None)?;
            let event = now();
            disrupt(installed, &leader)?;
            steady(now())?;
            udp_gaps.push(udp.gap_since(event).length());
            tcp_gaps.push(tcp.gap_since(event).length());
            mend(installed, &leader)?;
            installed.wait_serving()?;
        }
        for (what, gaps) in [("UDP", &udp_gaps), ("new TCP", &tcp_gaps)] {
            let d = Distribution::of(gaps).expect("at least one run");
            let [p50, max] = [d.p50, d.max].map(milliseconds);
            eprintln!("{name}, {what}: p50 {p50:.1}, max {max:.1} ms (n={})", d.count);
            assert!(d.max < bound, "{name}, {what}: {gaps:?}");
        }
        Ok(())
    })
}

#[expect(clippy::unnecessary_wraps, reason = "a disruption like the others")]
fn nothing(_: &Installed, _: &Pod) -> Result<()> {
    Ok(())
}

/// What the machine itself costs, to compare with.
#[test]
#[ignore = "needs a cluster, see make cluster-test"]
fn an_undisturbed_client_is_served() -> Result<()> {
    let disrupt: Disruption = |_, _| pause(Duration::from_secs(5));
    measure("nothing, for 5 s", HANDED_OVER, disrupt, nothing)
}

#[test]
#[ignore = "needs a cluster, see make cluster-test"]
fn a_rolling_update_hands_over() -> Result<()> {
    let disrupt: Disruption = |installed, _| {
        installed.cluster.kubectl(&["-n", "wirevip", "rollout", "restart", "daemonset/wirevip"], "")?;
        installed.wait_serving()
    };
    measure("rolling update of the DaemonSet", HANDED_OVER, disrupt, nothing)
}

#[test]
#[ignore = "needs a cluster, see make cluster-test"]
fn a_drained_node_costs_little() -> Result<()> {
    let disrupt: Disruption = |installed, leader| {
        let drain = ["drain", &leader.node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=60s"];
        installed.cluster.kubectl(&drain, "").map(drop)
    };
    let mend: Disruption = |installed, leader| installed.cluster.kubectl(&["uncordon", &leader.node], "").map(drop);
    measure("drain of the leader's node", HANDED_OVER, disrupt, mend)
}

#[test]
#[ignore = "needs a cluster, see make cluster-test"]
fn a_deleted_leader_hands_over() -> Result<()> {
    let disrupt: Disruption = |installed, leader| {
        installed.cluster.kubectl(&["-n", "wirevip", "delete", "pod", &leader.name], "")?;
        installed.wait_leader(Some(leader)).map(drop)
    };
    measure("leader deleted", HANDED_OVER, disrupt, nothing)
}

#[test]
#[ignore = "needs a cluster, see make cluster-test"]
fn a_leader_deleted_by_force_is_replaced() -> Result<()> {
    let disrupt: Disruption = |installed, leader| {
        let delete = ["-n", "wirevip", "delete", "pod", &leader.name, "--force", "--grace-period=0"];
        installed.cluster.kubectl(&delete, "")?;
        installed.wait_leader(Some(leader)).map(drop)
    };
    measure("leader deleted by force", TAKEN_OVER, disrupt, nothing)
}

#[test]
#[ignore = "needs a cluster, see make cluster-test"]
fn a_killed_container_is_replaced() -> Result<()> {
    let disrupt: Disruption = |installed, leader| {
        let process = installed.process(leader)?;
        installed.cluster.sh(&["in", &leader.node, "kill", "-KILL", &process])?;
        until("the container that is started again", WITHIN, || {
            Ok((installed.process(leader)? != process).then_some(()))
        })
    };
    // A new pod: the kubelet would wait longer each time before it starts the same one's container again.
    let mend: Disruption =
        |installed, leader| installed.cluster.kubectl(&["-n", "wirevip", "delete", "pod", &leader.name], "").map(drop);
    measure("leader's container killed", TAKEN_OVER, disrupt, mend)
}

#[test]
#[ignore = "needs a cluster, see make cluster-test"]
fn a_node_without_power_is_replaced() -> Result<()> {
    let disrupt: Disruption = |installed, leader| {
        installed.cluster.sh(&["power", &leader.node, "off"])?;
        installed.wait_leader(Some(leader)).map(drop)
    };
    let mend: Disruption = |installed, leader| installed.cluster.sh(&["power", &leader.node, "on"]).map(drop);
    // The backend there counts as ready until the node is missed, so every third flow is lost for so long: a flow of
    // its own for each datagram tells apart what the tunnel costs.
    measure_by(ProbeKind::UdpFresh, "leader's node powered off", TAKEN_OVER, disrupt, mend)
}

#[test]
#[ignore = "needs a cluster, see make cluster-test"]
fn a_minute_without_a_control_plane_costs_nothing() -> Result<()> {
    let disrupt: Disruption = |installed, _| {
        installed.cluster.sh(&["power", "control", "off"])?;
        pause(Duration::from_secs(60))?;
        installed.cluster.sh(&["power", "control", "on"])?;
        installed.wait_serving()
    };
    measure("control plane off for 60 s", HANDED_OVER, disrupt, nothing)
}
