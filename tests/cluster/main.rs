//! The chart on a real cluster (`make cluster`): kubelets, containers, CNI and kube-proxy; a hub and a client outside,
//! behind the cluster's NAT. Run by `make cluster-test`, one test after the other, for there is one cluster.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "all functions here are parts of tests")]
#![allow(clippy::print_stderr, reason = "tests tell what they measured")]

mod admission;
mod control_plane;
mod disruptions;
mod measure;
mod reach;
mod rollout;
