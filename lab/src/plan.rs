//! Who has which address in a world. Pure. Public addresses are those kept for documentation (RFC 5737).
//!
//! ```text
//!  client ─ 198.51.100.0/24 ─ internet ─ 192.0.2.0/25 ─ hubs
//!                                 │
//!                          203.0.113.0/24
//!                                 │
//!                            NAT gateway ─ 10.10.0.0/24 ─┬─ API server and DNS
//!                                                        ├─ worker (node 0) ─ 10.20.0.0/24 ─ backends
//!                                                        ├─ node 1 ─ 10.20.1.0/24 ─ sidecar, backends
//!                                                        └─ node 2 …
//! ```

use std::net::{Ipv4Addr, SocketAddrV4};

/// The client beyond the hub.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
/// The internet's end of the client's link.
pub const CLIENT_ROUTER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 254);
/// The internet's end of the hubs' link, a /25: a sidecar sends its probes to 192.0.2.255, which is nobody's on the
/// real internet and must not be a hub's own broadcast address here.
pub const HUB_ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 126);
/// The cluster's one public address, which lets nothing in.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// The internet's end of the gateway's link.
pub const GATEWAY_ROUTER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 254);
/// The gateway on the cluster's LAN.
pub const LAN_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 10, 0, 1);
/// The API server and the DNS server on the LAN.
pub const API: Ipv4Addr = Ipv4Addr::new(10, 10, 0, 5);
/// Where the API server listens.
pub const API_SOCKET: SocketAddrV4 = SocketAddrV4::new(API, 6443);
/// The hub's first WireGuard port; the tunnel at place `i` has `HUB_PORT + i`.
pub const HUB_PORT: u16 = 51820;
/// First and last public UDP port that the gateway gives to all who are no sidecars: nobody takes them for one.
pub const OTHER_PORTS: (u16, u16) = (50_000, 59_999);
/// The metrics and health port of a sidecar.
pub const HTTP_PORT: u16 = 9586;

/// Public address of hub `index` (from 0).
pub fn hub(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, 10 + index)
}

/// The hub's own address inside the tunnel at place `index`.
pub fn hub_in_tunnel(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, index, 1)
}

/// The VIP of the tunnel at place `index`.
pub fn vip(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, index, 2)
}

/// Node `number` on the LAN; 0 is the worker.
pub fn node(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 10, 0, 10 + number)
}

/// The network of a node's pods, a /24. In the cluster of `make cluster` too (`lab/setup/cluster/plan.sh`).
pub fn pod_network(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 20, node, 0)
}

/// The node's end of its pods' network.
pub fn pod_gateway(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 20, node, 1)
}

/// The sidecar pod on `node` (from 1).
pub fn sidecar(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 20, node, 2)
}

/// The pod address of backend `index` (from 0), which runs on `node`.
pub fn backend(node: u8, index: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 20, node, 11 + index)
}

/// First and last public UDP port that the gateway gives to the sidecar on `node`. One public address for all, as
/// behind a real NAT, yet the hub's side can tell the pods apart.
pub fn nat_ports(node: u8) -> (u16, u16) {
    let first = 20_000 + u16::from(node) * 100;
    (first, first + 99)
}

/// The node whose sidecar speaks from this address, as the hub sees it.
pub fn speaker(seen: SocketAddrV4) -> Option<u8> {
    let node = u8::try_from(seen.port().checked_sub(20_000)? / 100).ok()?;
    (*seen.ip() == GATEWAY && node > 0 && seen.port() < OTHER_PORTS.0).then_some(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hub_can_tell_the_pods_apart_behind_one_address() {
        for number in 1..=200 {
            let (first, last) = nat_ports(number);
            assert_eq!(speaker(SocketAddrV4::new(GATEWAY, first)), Some(number));
            assert_eq!(speaker(SocketAddrV4::new(GATEWAY, last)), Some(number));
        }
        assert_eq!(speaker(SocketAddrV4::new(CLIENT, 20_100)), None);
        assert_eq!(speaker(SocketAddrV4::new(GATEWAY, 1024)), None);
        assert!(nat_ports(200).1 < OTHER_PORTS.0);
        assert_eq!(speaker(SocketAddrV4::new(GATEWAY, OTHER_PORTS.0)), None);
    }
}
