//! Where the hub is: its name resolved again and again, for as long as each answer holds.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::LookupIpStrategy;

use crate::secret::Host;
use crate::tunnel::Nic;

/// Longest wait for an answer; the caller asks again, and not later than every 2 s (contract.md, "Times").
const PATIENCE: Duration = Duration::from_secs(2);

/// An answer holds at least this long, lest a TTL of 0 has us asking without pause…
const SHORTEST: Duration = Duration::from_secs(1);

/// …and at most this long: a hub whose name moves is followed.
const LONGEST: Duration = Duration::from_secs(60);

/// Why there is no address.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The pod's resolver configuration cannot be read.
    #[error("/etc/resolv.conf cannot be used ({0}): mend the pod's dnsPolicy or dnsConfig, or give the hub by address")]
    Unusable(String),
    /// The name server said no, or nothing.
    #[error(
        "the hub's name {name} does not resolve ({reason}): check peerEndpoint and the cluster's DNS; it is tried again"
    )]
    Failed {
        /// The name.
        name: String,
        /// What DNS said.
        reason: String,
    },
}

/// Where the hub is, for how long.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resolved {
    /// At least one; the best first.
    pub addresses: Vec<SocketAddr>,
    /// Ask again after this; `None`: never, it was an address.
    pub valid_for: Option<Duration>,
}

/// Resolves names as the pod's `/etc/resolv.conf` and `/etc/hosts` say.
pub struct Resolver {
    dns: TokioResolver,
}

impl Resolver {
    /// Reads the configuration. Inside a tokio runtime.
    pub fn new() -> Result<Self, ResolveError> {
        let unusable = |error: hickory_resolver::net::NetError| ResolveError::Unusable(error.to_string());
        let mut builder = TokioResolver::builder_tokio().map_err(unusable)?;
        let options = builder.options_mut();
        options.timeout = PATIENCE / 2;
        options.attempts = 1;
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        // We ask when an answer has run out, and then want a new one.
        options.cache_size = 0;
        Ok(Self { dns: builder.build().map_err(unusable)? })
    }

    /// The addresses of `host`, those first that `nic` can reach.
    pub async fn resolve(&self, host: &Host, port: u16, nic: &Nic) -> Result<Resolved, ResolveError> {
        let name = match host {
            Host::Address(address) => {
                return Ok(Resolved { addresses: vec![SocketAddr::new(*address, port)], valid_for: None });
            }
            Host::Name(name) => name,
        };
        let failed = |reason: String| ResolveError::Failed { name: name.clone(), reason };
        let answer = tokio::time::timeout(PATIENCE, self.dns.lookup_ip(name.as_str())).await;
        let answer = answer
            .map_err(|_| failed(format!("no answer within {} s", PATIENCE.as_secs())))?
            .map_err(|error| failed(error.to_string()))?;
        let addresses = preferred(answer.iter().collect(), nic);
        if addresses.is_empty() {
            return Err(failed("it has no address".to_owned()));
        }
        let left = answer.valid_until().saturating_duration_since(now());
        Ok(Resolved {
            addresses: addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect(),
            valid_for: Some(left.clamp(SHORTEST, LONGEST)),
        })
    }
}

#[expect(clippy::disallowed_methods, reason = "the resolver's answers are dated by this clock and no other")]
fn now() -> std::time::Instant {
    std::time::Instant::now()
}

/// Families that the pod's NIC has first, IPv4 first among equals; and no order of the answer's own, which name servers
/// turn round with each question: the hub must not seem to move.
fn preferred(mut addresses: Vec<IpAddr>, nic: &Nic) -> Vec<IpAddr> {
    addresses.sort_by_key(|address| {
        let reachable = if address.is_ipv4() { nic.ipv4.is_some() } else { nic.ipv6 };
        (!reachable, address.is_ipv6(), *address)
    });
    addresses.dedup();
    addresses
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn nic(ipv4: bool, ipv6: bool) -> Nic {
        Nic { name: "eth0".into(), index: 2, mtu: 1450, ipv4: ipv4.then_some(Ipv4Addr::LOCALHOST), ipv6 }
    }

    #[test]
    fn the_family_that_the_nic_has_comes_first_and_the_order_of_the_answer_counts_for_nothing() {
        let all: Vec<IpAddr> = ["2001:db8::1", "192.0.2.2", "192.0.2.1"].map(|text| text.parse().unwrap()).into();
        let texts = |addresses: Vec<IpAddr>| addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
        let v4_first = ["192.0.2.1", "192.0.2.2", "2001:db8::1"];
        let v6_first = ["2001:db8::1", "192.0.2.1", "192.0.2.2"];
        assert_eq!(texts(preferred(all.clone(), &nic(true, true))), v4_first);
        assert_eq!(texts(preferred(all.clone(), &nic(true, false))), v4_first);
        assert_eq!(texts(preferred(all, &nic(false, true))), v6_first);
    }

    #[tokio::test]
    async fn an_address_is_its_own_answer_for_ever() {
        let resolver = Resolver::new().unwrap();
        let resolved =
            resolver.resolve(&Host::Address("192.0.2.9".parse().unwrap()), 7, &nic(true, false)).await.unwrap();
        assert_eq!(resolved, Resolved { addresses: vec!["192.0.2.9:7".parse().unwrap()], valid_for: None });
    }
}
