//! The proving ground: a small internet out of network namespaces, the real binary in it, and a client beyond the hub.

pub mod api;
pub mod netns;
