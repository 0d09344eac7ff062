//! wirevip: a public address for a private Kubernetes cluster, over outbound WireGuard.

pub mod api;
pub mod cli;
pub mod clock;
pub mod controller;
pub mod election;
pub mod metrics;
pub mod secret;
pub mod services;
pub mod tunnel;
