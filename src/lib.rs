//! wirevip: a public address for a private Kubernetes cluster, over outbound WireGuard.

pub mod admin;
pub mod api;
pub mod cli;
pub mod clock;
pub mod controller;
pub mod daemon;
pub mod election;
pub mod fence;
pub mod inheritance;
pub mod metrics;
pub mod ruleset;
pub mod secret;
pub mod services;
pub mod status;
pub mod tunnel;
