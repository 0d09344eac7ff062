//! The proving ground: a small internet out of network namespaces, the real binary in it, and a client beyond the hub.

pub mod api;
pub mod assets;
pub mod backend;
pub mod census;
pub mod client;
pub mod clock;
pub mod cluster;
pub mod detour;
pub mod dns;
pub mod download;
pub mod faults;
pub mod forge;
pub mod gaps;
pub mod handshake;
pub mod hub;
pub mod keys;
pub mod kubeconfig;
pub mod leaks;
pub mod netns;
pub mod node;
pub mod objects;
pub mod plan;
pub mod probe;
pub mod processes;
pub mod record;
pub mod recorder;
pub mod referee;
pub mod road;
pub mod sctp;
pub mod sidecar;
pub mod takeover;
pub mod topology;
pub mod tunnels;
pub mod wireguard;
pub mod world;

pub use world::{World, WorldSpec, play, play_unstarted};
