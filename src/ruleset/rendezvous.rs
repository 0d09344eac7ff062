//! Rendezvous hashing: which backend a slot of clients goes to. Pure.
//!
//! What must hold: the same backends give the same slots in every pod and every version, since a successor must send
//! clients where its predecessor did; a backend that goes moves only the slots it had, one that comes takes its share
//! and no more.

use std::net::SocketAddrV4;

use crate::services::VipPort;

/// Slots of a forward with ClientIP affinity. A backend's share is exact to about one slot in sixteen of its own.
pub(crate) const SLOTS: u32 = 256;

/// For each slot its backend: the one with the highest score. Empty if there are no backends.
pub(crate) fn slots(port: VipPort, backends: &[SocketAddrV4]) -> Vec<SocketAddrV4> {
    (0..SLOTS).filter_map(|slot| backends.iter().max_by_key(|b| (score(port, slot, **b), **b)).copied()).collect()
}

fn score(port: VipPort, slot: u32, backend: SocketAddrV4) -> u64 {
    let client = u64::from(slot) << 32 | u64::from(port.protocol.number()) << 16 | u64::from(port.port);
    let server = u64::from(u32::from(*backend.ip())) << 16 | u64::from(backend.port());
    mix(mix(client) ^ server)
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): each bit of the input moves each of the output.
fn mix(value: u64) -> u64 {
    let mut x = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
