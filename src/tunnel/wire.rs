//! What the kernel's WireGuard is told, as messages (linux/wireguard.h), and what its answers mean. Pure.
//!
//! One message may not exceed what a netlink attribute can hold: allowed IPs beyond [`ALLOWED_IPS_A_MESSAGE`] follow in
//! messages of their own ([`rest`]).

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute, WireguardCmd,
    WireguardDeviceFlags, WireguardMessage, WireguardPeer, WireguardPeerAttribute, WireguardPeerFlags,
};
use zeroize::Zeroize;

use super::{LinkPlan, PeerPlan};

/// 1,000 of at most 44 bytes: below the 64 KiB of an attribute.
const ALLOWED_IPS_A_MESSAGE: usize = 1_000;

/// The most that an update says of a peer: key, flags, and each of its four settings.
const UPDATE_ATTRIBUTES: usize = 6;

/// What a link's peers have counted together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Counted {
    pub(super) received: u64,
    pub(super) sent: u64,
    /// Wall clock at the last handshake, since the epoch.
    pub(super) handshake: Option<Duration>,
    /// Of the last peer that has one.
    pub(super) endpoint: Option<SocketAddr>,
}

/// Asks for all of a link.
pub(super) fn question(name: &str) -> WireguardMessage {
    WireguardMessage { cmd: WireguardCmd::GetDevice, attributes: vec![WireguardAttribute::IfName(name.to_owned())] }
}

/// Keyed, with its port, and without a peer.
pub(super) fn keyed(plan: &LinkPlan) -> WireguardMessage {
    set(vec![
        name(plan),
        WireguardAttribute::PrivateKey(*plan.private_key.expose()),
        WireguardAttribute::ListenPort(plan.listen_port),
        WireguardAttribute::Flags(WireguardDeviceFlags::ReplacePeers),
        WireguardAttribute::Peers(Vec::new()),
    ])
}

/// The hub as the only peer, without a past: all peers are removed first, in the same message.
pub(super) fn fresh(plan: &LinkPlan, keepalive: u16) -> WireguardMessage {
    let PeerPlan { public_key, preshared_key, endpoint, allowed_ips, persistent_keepalive: _ } = &plan.peer;
    let mut peer = vec![
        WireguardPeerAttribute::PublicKey(public_key.0),
        WireguardPeerAttribute::Flags(WireguardPeerFlags::ReplaceAllowedIps),
        WireguardPeerAttribute::Endpoint(*endpoint),
        WireguardPeerAttribute::PersistentKeepalive(keepalive),
        first_allowed_ips(allowed_ips),
    ];
    peer.extend(preshared_key.as_ref().map(|key| WireguardPeerAttribute::PresharedKey(*key.expose())));
    let flags = WireguardAttribute::Flags(WireguardDeviceFlags::ReplacePeers);
    set(vec![name(plan), flags, WireguardAttribute::Peers(vec![WireguardPeer(peer)])])
}

/// The keepalive as planned, and nothing else.
pub(super) fn keepalive(plan: &LinkPlan) -> WireguardMessage {
    update(plan, false, [WireguardPeerAttribute::PersistentKeepalive(plan.peer.persistent_keepalive)])
}

/// What differs from `before`. The allowed IPs only if they do: between their removal and return packets are dropped.
pub(super) fn changed(plan: &LinkPlan, before: &PeerPlan) -> WireguardMessage {
    let PeerPlan { public_key: _, preshared_key, endpoint, allowed_ips, persistent_keepalive } = &plan.peer;
    let endpoint = (*endpoint != before.endpoint).then_some(WireguardPeerAttribute::Endpoint(*endpoint));
    let keepalive = (*persistent_keepalive != before.persistent_keepalive)
        .then_some(WireguardPeerAttribute::PersistentKeepalive(*persistent_keepalive));
    let replace = *allowed_ips != before.allowed_ips;
    let allowed_ips = replace.then(|| first_allowed_ips(allowed_ips));
    // 32 zeros mean none.
    let shared = || WireguardPeerAttribute::PresharedKey(preshared_key.as_ref().map_or([0; 32], |key| *key.expose()));
    let shared = (*preshared_key != before.preshared_key).then(shared);
    update(plan, replace, [endpoint, keepalive, allowed_ips, shared].into_iter().flatten())
}

/// The allowed IPs that did not fit into the first message.
pub(super) fn rest(plan: &LinkPlan) -> impl Iterator<Item = WireguardMessage> {
    let chunks = plan.peer.allowed_ips.chunks(ALLOWED_IPS_A_MESSAGE).skip(1);
    chunks
        .map(|chunk| update(plan, false, [WireguardPeerAttribute::AllowedIps(chunk.iter().map(allowed_ip).collect())]))
}

/// Sums up the answers to [`question`].
pub(super) fn count(answers: &[WireguardMessage]) -> Counted {
    let mut counted = Counted::default();
    for attribute in answers.iter().flat_map(|answer| &answer.attributes) {
        let WireguardAttribute::Peers(peers) = attribute else { continue };
        for attribute in peers.iter().flat_map(|peer| &peer.0) {
            match attribute {
                // A peer with many allowed IPs comes in several messages; its counters in the first alone.
                WireguardPeerAttribute::RxBytes(bytes) => counted.received += bytes,
                WireguardPeerAttribute::TxBytes(bytes) => counted.sent += bytes,
                WireguardPeerAttribute::LastHandshake(time) if time.seconds > 0 => {
                    let nanoseconds = u32::try_from(time.nano_seconds).unwrap_or(0);
                    counted.handshake = Some(Duration::new(time.seconds.unsigned_abs(), nanoseconds));
                }
                WireguardPeerAttribute::Endpoint(endpoint) => counted.endpoint = Some(*endpoint),
                _ => {}
            }
        }
    }
    counted
}

/// Overwrites the keys in a message that was sent or read.
pub(super) fn forget_keys(message: &mut WireguardMessage) {
    for attribute in &mut message.attributes {
        match attribute {
            WireguardAttribute::PrivateKey(key) => key.zeroize(),
            WireguardAttribute::Peers(peers) => {
                for attribute in peers.iter_mut().flat_map(|peer| &mut peer.0) {
                    if let WireguardPeerAttribute::PresharedKey(key) = attribute {
                        key.zeroize();
                    }
                }
            }
            _ => {}
        }
    }
}

/// No vector that a key is in may grow afterwards: the key would stay behind where it was.
fn set(attributes: Vec<WireguardAttribute>) -> WireguardMessage {
    WireguardMessage { cmd: WireguardCmd::SetDevice, attributes }
}

fn name(plan: &LinkPlan) -> WireguardAttribute {
    WireguardAttribute::IfName(plan.name.as_str().to_owned())
}

fn update(
    plan: &LinkPlan,
    replace_allowed_ips: bool,
    changes: impl IntoIterator<Item = WireguardPeerAttribute>,
) -> WireguardMessage {
    let mut flags = WireguardPeerFlags::UpdateOnly;
    flags.set(WireguardPeerFlags::ReplaceAllowedIps, replace_allowed_ips);
    let mut peer = Vec::with_capacity(UPDATE_ATTRIBUTES);
    peer.push(WireguardPeerAttribute::PublicKey(plan.peer.public_key.0));
    peer.push(WireguardPeerAttribute::Flags(flags));
    peer.extend(changes);
    set(vec![name(plan), WireguardAttribute::Peers(vec![WireguardPeer(peer)])])
}

fn first_allowed_ips(networks: &[IpNet]) -> WireguardPeerAttribute {
    WireguardPeerAttribute::AllowedIps(networks.iter().take(ALLOWED_IPS_A_MESSAGE).map(allowed_ip).collect())
}

fn allowed_ip(network: &IpNet) -> WireguardAllowedIp {
    let family = if network.addr().is_ipv4() { WireguardAddressFamily::Ipv4 } else { WireguardAddressFamily::Ipv6 };
    WireguardAllowedIp(vec![
        WireguardAllowedIpAttr::Family(family),
        WireguardAllowedIpAttr::IpAddr(network.network()),
        WireguardAllowedIpAttr::Cidr(network.prefix_len()),
    ])
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{Emitable, ParseableParametrized};
    use netlink_packet_generic::GenlHeader;
    use netlink_packet_wireguard::WireguardTimeSpec;

    use super::*;
    use crate::tunnel::testing::plan;

    /// What the other end would read of it.
    fn sent(message: &WireguardMessage) -> WireguardMessage {
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        WireguardMessage::parse_with_param(&bytes, GenlHeader { cmd: message.cmd.into(), version: 1 }).unwrap()
    }

    fn peers(message: &WireguardMessage) -> Vec<WireguardPeer> {
        let found = message.attributes.iter().find_map(|attribute| match attribute {
            WireguardAttribute::Peers(peers) => Some(peers.clone()),
            _ => None,
        });
        found.unwrap_or_default()
    }

    #[test]
    fn every_message_survives_the_way_over_the_wire() {
        let plan = plan("wg0");
        for message in [question("wg0"), keyed(&plan), fresh(&plan, 5), keepalive(&plan)] {
            assert_eq!(sent(&message), message);
        }
    }

    #[test]
    fn a_change_names_only_what_changed_and_never_adds_a_peer() {
        let before = plan("wg0");
        let mut after = before.clone();
        after.peer.persistent_keepalive += 1;
        after.peer.preshared_key = None;
        let message = changed(&after, &before.peer);
        let expected = [
            WireguardPeerAttribute::PublicKey(before.peer.public_key.0),
            WireguardPeerAttribute::Flags(WireguardPeerFlags::UpdateOnly),
            WireguardPeerAttribute::PersistentKeepalive(after.peer.persistent_keepalive),
            WireguardPeerAttribute::PresharedKey([0; 32]),
        ];
        assert_eq!(peers(&message)[0].0, expected);
    }

    /// A vector that had grown would have room to spare, and have left the key in the memory that it had before.
    #[test]
    fn nothing_that_a_key_is_in_ever_moved() {
        let before = plan("wg0");
        let mut after = before.clone();
        after.peer.endpoint.set_port(1);
        after.peer.persistent_keepalive += 1;
        after.peer.preshared_key = Some(crate::secret::SecretKey::new([0x74; 32]));
        after.peer.allowed_ips.clear();
        let (keyed, changed) = (keyed(&before), changed(&after, &before.peer));
        assert_eq!(keyed.attributes.capacity(), keyed.attributes.len());
        let WireguardAttribute::Peers(peers) = &changed.attributes[1] else { panic!("{changed:?}") };
        assert_eq!((peers[0].0.len(), peers[0].0.capacity()), (UPDATE_ATTRIBUTES, UPDATE_ATTRIBUTES));
    }

    #[test]
    fn thousands_of_allowed_ips_are_all_sent_in_messages_that_netlink_can_hold() {
        let mut plan = plan("wg0");
        plan.peer.allowed_ips = (0..2_500u16).map(|n| format!("fd00:{n:x}::/32").parse().unwrap()).collect();
        let messages: Vec<_> = std::iter::once(fresh(&plan, 5)).chain(rest(&plan)).collect();
        let mut told = 0;
        for message in &messages {
            assert!(message.buffer_len() < 60_000, "{} bytes", message.buffer_len());
            for attribute in &peers(&sent(message))[0].0 {
                told += if let WireguardPeerAttribute::AllowedIps(all) = attribute { all.len() } else { 0 };
            }
        }
        assert_eq!((messages.len(), told), (3, 2_500));
    }

    #[test]
    fn counters_are_summed_and_no_handshake_is_not_one_at_the_epoch() {
        let peer = |seconds| {
            WireguardPeer(vec![
                WireguardPeerAttribute::RxBytes(7),
                WireguardPeerAttribute::TxBytes(9),
                WireguardPeerAttribute::Endpoint(SocketAddr::from(([192, 0, 2, 1], 51820))),
                WireguardPeerAttribute::LastHandshake(WireguardTimeSpec { seconds, nano_seconds: 5 }),
            ])
        };
        let answer = |seconds| WireguardMessage {
            cmd: WireguardCmd::GetDevice,
            attributes: vec![WireguardAttribute::Peers(vec![peer(seconds)])],
        };
        let endpoint = Some(SocketAddr::from(([192, 0, 2, 1], 51820)));
        assert_eq!(count(&[answer(0)]), Counted { received: 7, sent: 9, handshake: None, endpoint });
        let two = count(&[answer(0), answer(100)]);
        assert_eq!(two, Counted { received: 14, sent: 18, handshake: Some(Duration::new(100, 5)), endpoint });
    }

    #[test]
    fn no_key_is_left_in_a_message_that_was_sent() {
        let plan = plan("wg0");
        for mut message in [keyed(&plan), fresh(&plan, 5)] {
            forget_keys(&mut message);
            let mut bytes = vec![0; message.buffer_len()];
            message.emit(&mut bytes);
            let keys = [Some(&plan.private_key), plan.peer.preshared_key.as_ref()];
            for key in keys.into_iter().flatten() {
                assert!(!bytes.windows(32).any(|window| window == key.expose()));
            }
        }
    }
}
