//! The packet that a living hub answers: UDP from the VIP through the tunnel with a TTL of 1.
//!
//! A hub that forwards must answer it with ICMP "time exceeded"; one that owns the address, with "port unreachable";
//! any other WireGuard with a keepalive within 10 s. The answer itself is not read: the peer's receive counter tells.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};

use ipnet::IpNet;

use super::LinkPlan;

/// RFC 863: whoever does receive it throws it away.
const DISCARD: u16 = 9;
/// An address nobody has (RFC 5737), for tunnels that take all addresses.
const NOBODY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 255);

/// Sends one; needs no capability.
pub(super) fn send(plan: &LinkPlan) -> io::Result<()> {
    let Some(target) = target(&plan.peer.allowed_ips, plan.vip) else { return Ok(()) };
    let socket = UdpSocket::bind(SocketAddrV4::new(plan.vip, 0))?;
    socket.set_nonblocking(true)?;
    socket.set_ttl(1)?;
    socket.send_to(b"wirevip", SocketAddrV4::new(target, DISCARD)).map(|_| ())
}

/// An address that WireGuard takes for the hub and that is not ours: the last one of the first IPv4 range, since hubs
/// like to have the first.
fn target(allowed: &[IpNet], vip: Ipv4Addr) -> Option<Ipv4Addr> {
    allowed.iter().find_map(|range| match range {
        IpNet::V4(range) if range.prefix_len() < 8 => Some(NOBODY),
        IpNet::V4(range) => [u32::from(range.broadcast()).saturating_sub(1), u32::from(range.network())]
            .map(Ipv4Addr::from)
            .into_iter()
            .find(|address| range.contains(address) && *address != vip),
        IpNet::V6(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_is_within_the_allowed_ranges_and_is_not_the_vip() {
        let vip = Ipv4Addr::new(10, 77, 0, 2);
        for (allowed, expected) in [
            ("0.0.0.0/0", Some("192.0.2.255")),
            ("10.77.0.0/24", Some("10.77.0.254")),
            ("10.77.0.1/32", Some("10.77.0.1")),
            ("10.77.0.0/30", Some("10.77.0.0")),
            ("10.77.0.2/32", None),
            ("fd00::/8", None),
        ] {
            let target = target(&[allowed.parse().unwrap()], vip);
            assert_eq!(target.map(|address| address.to_string()).as_deref(), expected, "{allowed}");
        }
    }
}
