//! wirevip: a public address for a private Kubernetes cluster, over outbound WireGuard.

pub mod clock;
pub mod election;
pub mod fence;
pub mod ruleset;
pub mod secret;
pub mod services;
pub mod tunnel;
