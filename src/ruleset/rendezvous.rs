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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::services::Protocol;

    const PORT: VipPort = VipPort { protocol: Protocol::Tcp, port: 443 };

    fn backends(hosts: &[u8]) -> Vec<SocketAddrV4> {
        hosts.iter().map(|host| SocketAddrV4::new([10, 0, 0, *host].into(), 8443)).collect()
    }

    #[test]
    fn slots_are_the_same_in_every_version() {
        let hosts: Vec<u8> =
            slots(PORT, &backends(&[1, 2, 3])).iter().take(16).map(|slot| slot.ip().octets()[3]).collect();
        assert_eq!(
            hosts,
            [3, 2, 1, 2, 1, 1, 3, 1, 3, 1, 2, 3, 1, 1, 2, 2],
            "a successor of another version would send clients elsewhere"
        );
    }

    #[test]
    fn no_backends_give_no_slots() {
        assert!(slots(PORT, &[]).is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn a_backend_that_goes_moves_its_own_slots_alone(
            hosts in proptest::collection::btree_set(any::<u8>(), 2..20),
            gone in any::<proptest::sample::Index>(),
        ) {
            let hosts: Vec<u8> = hosts.into_iter().collect();
            let all = backends(&hosts);
            let gone = all[gone.index(all.len())];
            let left: Vec<SocketAddrV4> = all.iter().copied().filter(|backend| *backend != gone).collect();
            for (before, after) in slots(PORT, &all).into_iter().zip(slots(PORT, &left)) {
                prop_assert!(before == gone || before == after);
                prop_assert!(after != gone);
            }
        }

        #[test]
        fn shares_are_roughly_even_and_order_does_not_matter(port in 1u16.., count in 1u8..9) {
            let port = VipPort { protocol: Protocol::Udp, port };
            let mut all = backends(&(1..=count).collect::<Vec<u8>>());
            let chosen = slots(port, &all);
            prop_assert_eq!(chosen.len(), SLOTS as usize);
            for backend in &all {
                let share = chosen.iter().filter(|slot| *slot == backend).count();
                let even = SLOTS as usize / usize::from(count);
                prop_assert!((even / 3..=even * 2).contains(&share), "{} of {}", share, even);
            }
            all.reverse();
            prop_assert_eq!(chosen, slots(port, &all));
        }
    }
}
