//! Where the hub is, to us and to clients: a node of the tree in, an endpoint or a host out, or what is wrong with it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::value::{Checked, Wrong, decimal, shown, string, unusable_v4};
use super::yaml::Node;
use super::{Endpoint, Host};

/// `host:port`, `v4:port` or `[v6]:port`.
pub(super) fn endpoint(node: &Node) -> Checked<Endpoint> {
    const EXAMPLE: &str = "host:port, such as vpn.example.com:51820";
    let fix = format!("write {EXAMPLE}");
    let text = string(node, EXAMPLE)?;
    if let Ok(address) = text.parse::<Ipv6Addr>() {
        let message = format!("{} has no brackets", shown(text));
        return Err(Wrong::new(message, format!("write [{address}]:51820, with the hub's port")));
    }
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => rest.split_once("]:"),
        None => text.rsplit_once(':'),
    }
    .ok_or_else(|| Wrong::new(format!("{} has no port", shown(text)), fix.clone()))?;
    let host = if text.starts_with('[') {
        let address = host.parse::<Ipv6Addr>().map(|address| Host::Address(IpAddr::V6(address)));
        address.map_err(|_| Wrong::new(format!("{} has no IPv6 address in its brackets", shown(text)), fix.clone()))?
    } else {
        let neither = "this is neither an IPv4 address nor a DNS name (an IPv6 address goes in brackets)";
        self::host(host, neither).map_err(|why| Wrong::new(format!("{}: {why}", shown(text)), fix.clone()))?
    };
    if let Host::Address(address) = host
        && let Some(why) = unusable(address)
    {
        return Err(Wrong::new(format!("{} is no hub's address: it is {why}", shown(text)), fix));
    }
    let port = decimal::<u16>(port).filter(|port| *port > 0);
    let port =
        port.ok_or_else(|| Wrong::new(format!("{} has a bad port", shown(text)), "write a port from 1 to 65535"))?;
    Ok(Endpoint { host, port })
}

/// An address or a DNS name under which clients reach the hub. It goes into a Service's status, so a name becomes what
/// Kubernetes takes there.
pub(super) fn public_address(node: &Node) -> Checked<Host> {
    const EXAMPLE: &str = "an IP address or a DNS name, such as vpn.example.com";
    let fix = format!("write {EXAMPLE}");
    let text = string(node, EXAMPLE)?;
    let neither = "this is neither an IP address (without brackets and port) nor a DNS name";
    let host = match text.parse::<Ipv6Addr>() {
        Ok(address) => Host::Address(IpAddr::V6(address)),
        Err(_) => {
            self::host(text, neither).map_err(|why| Wrong::new(format!("{}: {why}", shown(text)), fix.clone()))?
        }
    };
    match host {
        Host::Address(address) => match unusable(address) {
            Some(why) => Err(Wrong::new(format!("{} is no client's way in: it is {why}", shown(text)), fix)),
            None => Ok(host),
        },
        Host::Name(name) => {
            let name = name.strip_suffix('.').unwrap_or(&name).to_ascii_lowercase();
            if !is_subdomain(&name) {
                let message = format!("{}: a Service's status takes no DNS name with `_`", shown(text));
                return Err(Wrong::new(message, fix));
            }
            Ok(Host::Name(name))
        }
    }
}

/// An IPv4 address or a DNS name (RFC 1123, with `_` since some resolvers' names have it); `neither` is what to say of
/// what is none of both.
fn host(text: &str, neither: &'static str) -> Result<Host, &'static str> {
    if let Ok(address) = text.parse::<Ipv4Addr>() {
        return Ok(Host::Address(IpAddr::V4(address)));
    }
    let name = text.strip_suffix('.').unwrap_or(text);
    let sound = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.is_empty() {
        return Err("there is no host");
    }
    if name.len() > 253 || !name.split('.').all(sound) {
        return Err(neither);
    }
    // No top-level domain is a number: resolvers take such a name for an address (WHATWG URL, "ends in a number").
    if name.rsplit('.').next().is_some_and(|label| label.bytes().all(|b| b.is_ascii_digit())) {
        return Err("this looks like an IPv4 address but is none");
    }
    Ok(Host::Name(text.to_owned()))
}

fn unusable(address: IpAddr) -> Option<&'static str> {
    match address {
        // A hub on loopback is of no use in a pod, but it is some host's, and handy in a test.
        IpAddr::V4(address) if address.is_loopback() => None,
        IpAddr::V4(address) => unusable_v4(address),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Some("the unspecified address"),
        IpAddr::V6(address) if address.is_multicast() => Some("a multicast address"),
        IpAddr::V6(_) => None,
    }
}

/// A lower-case DNS subdomain (RFC 1123), as Kubernetes wants names of objects, and of hosts in a Service's status
/// (apimachinery, `IsDNS1123Subdomain`).
pub(crate) fn is_subdomain(name: &str) -> bool {
    let outer = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let sound =
        |label: &str| label.starts_with(outer) && label.ends_with(outer) && label.chars().all(|c| outer(c) || c == '-');
    name.len() <= 253 && name.split('.').all(sound)
}
