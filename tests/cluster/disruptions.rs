//! What befalls pods and nodes, and what it costs a client outside.

use std::time::Duration;

use anyhow::Result;
use lab::clock::{pause, until};
use lab::cluster::{Installed, Pod};

use crate::measure::{Disruption, HANDED_OVER, TAKEN_OVER, Trial, WITHIN, nothing};

/// How long a daemon of a node is away, or its cable: long enough for the node to be missed (16 s).
const AWAY: Duration = Duration::from_secs(30);

/// What the machine itself costs, to compare with.
#[test]
#[ignore = "needs a cluster, see make cluster-test"]
fn an_undisturbed_client_is_served() -> Result<()> {
    let disrupt: Disruption = |_, _| pause(Duration::from_secs(5));
    Trial::of("nothing, for 5 s", HANDED_OVER).run(disrupt, nothing)
}

#[test]
#[ignore = "needs a cluster, see make cluster-test"]
fn a_rolling_update_hands_over() -> Result<()> {
    let disrupt: Disruption = |installed, _| {
        installed.cluster.kubectl(&["-n", "wirevip", "rollout", "restart", "daemonset/wirevip"], "")?;
        installed.wait_serving()
    };
    Trial::of("rolling update of the DaemonSet", HANDED_OVER).run(disrupt, nothing)
}

#[test]
#[ignore = "needs a cluster, see make cluster-test"]
fn a_drained_node_costs_little() -> Result<()> {
    let disrupt: Disruption = |installed, leader| {
        let drain = ["drain", &leader.node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=60s"];
        installed.cluster.kubectl(&drain, "").map(drop)
    };
    let mend: Disruption = |installed, leader| installed.cluster.kubectl(&["uncordon", &leader.node], "").map(drop);
    Trial::of("drain of the leader's node", HANDED_OVER).run(disrupt, mend)
}

#[test]
#[ignore = "needs a cluster, see make cluster-test"]
fn a_deleted_leader_hands_over() -> Result<()> {
    let disrupt: Disruption = |installed, leader| {
        installed.cluster.kubectl(&["-n", "wirevip", "delete", "pod", &leader.name], "")?;
        installed.wait_leader(Some(leader)).map(drop)
    };
    Trial::of("leader deleted", HANDED_OVER).run(disrupt, nothing)
}

#[test]
#[ignore = "needs a cluster, see make cluster-test"]
fn a_leader_deleted_by_force_is_replaced() -> Result<()> {
    let disrupt: Disruption = |installed, leader| {
        let delete = ["-n", "wirevip", "delete", "pod", &leader.name, "--force", "--grace-period=0"];
        installed.cluster.kubectl(&delete, "")?;
        installed.wait_leader(Some(leader)).map(drop)
    };
    Trial::of("leader deleted by force", TAKEN_OVER).run(disrupt, nothing)
}

#[test]
#[ignore = "needs a cluster, see make cluster-test"]
fn a_killed_container_is_replaced() -> Result<()> {
    let disrupt: Disruption = |installed, leader| {
        let process = installed.process(leader)?;
        installed.cluster.sh(&["in", &leader.node, "kill", "-KILL", &process])?;
        started_again(installed, leader, &process)
    };
    Trial::of("leader's container killed", TAKEN_OVER).run(disrupt, a_new_pod)
}

#[test]
#[ignore = "needs a cluster, see make cluster-test"]
fn a_leader_out_of_memory_is_replaced() -> Result<()> {
    let disrupt: Disruption =
        |installed, leader| {
            let process = installed.process(leader)?;
            installed.cluster.sh(&["starve", &leader.node, &process])?;
            started_again(installed, leader, &process)?;
            until("OOMKilled in the pod's status", WITHIN, || {
                Ok((installed.last_end(leader)? == "OOMKilled").then_some(()))
            })
        };
    Trial::of("leader's container out of memory", TAKEN_OVER).run(disrupt, a_new_pod)
}

/// Waits until another process runs in the pod's container.
fn started_again(installed: &Installed, pod: &Pod, process: &str) -> Result<()> {
    until("the container that is started again", WITHIN, || Ok((installed.process(pod)? != process).then_some(())))
}

/// The kubelet would wait longer each time before it starts the same pod's container again.
fn a_new_pod(installed: &Installed, leader: &Pod) -> Result<()> {
    installed.cluster.kubectl(&["-n", "wirevip", "delete", "pod", &leader.name], "").map(drop)
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
    Trial::of("leader's node powered off", TAKEN_OVER).with_fresh_flows().run(disrupt, mend)
}

#[test]
#[ignore = "needs a cluster, see make cluster-test"]
fn a_node_without_a_cable_is_replaced() -> Result<()> {
    let disrupt: Disruption = |installed, leader| {
        installed.cluster.sh(&["cable", &leader.node, "down"])?;
        installed.wait_leader(Some(leader))?;
        pause(AWAY)?;
        installed.cluster.sh(&["cable", &leader.node, "up"]).map(drop)
    };
    // Its backend counts as ready until the node is missed, as above.
    Trial::of("cable of the leader's node pulled for 30 s", TAKEN_OVER).with_fresh_flows().run(disrupt, nothing)
}

#[test]
#[ignore = "needs a cluster, see make cluster-test"]
fn half_a_minute_without_a_kubelet_costs_nothing() -> Result<()> {
    let disrupt: Disruption = |installed, leader| {
        installed.cluster.sh(&["daemon", &leader.node, "kubelet", "kill"])?;
        pause(AWAY)?;
        installed.cluster.sh(&["daemon", &leader.node, "kubelet", "start"]).map(drop)
    };
    Trial::of("kubelet of the leader's node killed for 30 s", HANDED_OVER).run(disrupt, nothing)
}

#[test]
#[ignore = "needs a cluster, see make cluster-test"]
fn a_containerd_that_is_restarted_costs_nothing() -> Result<()> {
    let disrupt: Disruption = |installed, leader| {
        installed.cluster.sh(&["daemon", &leader.node, "containerd", "kill"])?;
        installed.cluster.sh(&["daemon", &leader.node, "containerd", "start"])?;
        // The kubelet speaks to it again.
        until("the process in the container", WITHIN, || installed.process(leader).map(Some)).map(drop)
    };
    Trial::of("containerd of the leader's node restarted", HANDED_OVER).run(disrupt, nothing)
}

#[test]
#[ignore = "needs a cluster, see make cluster-test"]
fn flushed_rules_of_kube_proxy_cost_no_more_than_a_lease() -> Result<()> {
    let disrupt: Disruption = |installed, leader| {
        // The leader reaches the API server by a ClusterIP, and so no longer.
        installed.cluster.sh(&["in", &leader.node, "nft", "flush", "ruleset"])?;
        installed.wait_leader(Some(leader)).map(drop)
    };
    // kube-proxy in nftables mode finds them gone when a Service changes, or after an hour.
    let mend: Disruption = |installed, leader| {
        installed.cluster.sh(&["daemon", &leader.node, "kube-proxy", "kill"])?;
        installed.cluster.sh(&["daemon", &leader.node, "kube-proxy", "start"])?;
        let rules = ["in", &leader.node, "nft", "list", "table", "ip", "kube-proxy"];
        until("kube-proxy's rules", WITHIN, || installed.cluster.sh(&rules).map(Some)).map(drop)
    };
    Trial::of("kube-proxy's rules flushed on the leader's node", TAKEN_OVER).run(disrupt, mend)
}
