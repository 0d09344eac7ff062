//! Where the hub is: its name resolved again and again, for as long as each answer holds.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::config::LookupIpStrategy;
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::{ResolverBuilder, TokioResolver};

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
        let unusable = |error: NetError| ResolveError::Unusable(error.to_string());
        Self::build(TokioResolver::builder_tokio().map_err(unusable)?).map_err(unusable)
    }

    fn build(mut builder: ResolverBuilder<TokioRuntimeProvider>) -> Result<Self, NetError> {
        let options = builder.options_mut();
        options.timeout = PATIENCE / 2;
        options.attempts = 1;
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        // We ask when an answer has run out, and then want a new one.
        options.cache_size = 0;
        Ok(Self { dns: builder.build()? })
    }

    /// The addresses of `host` that `nic` can reach; if it can reach none, all.
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

/// Families that the pod's NIC has, IPv4 first; and no order of the answer's own, which name servers turn round with each
/// question: the hub must not seem to move. A family that the NIC lacks comes only where there is no other: it would have
/// its turn each time that the hub is silent, and a hub that restarts would be waited for there.
fn preferred(mut addresses: Vec<IpAddr>, nic: &Nic) -> Vec<IpAddr> {
    let reachable = |address: &IpAddr| if address.is_ipv4() { nic.ipv4.is_some() } else { nic.ipv6 };
    if addresses.iter().any(reachable) {
        addresses.retain(reachable);
    }
    addresses.sort_by_key(|address| (address.is_ipv6(), *address));
    addresses.dedup();
    addresses
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};

    use super::*;

    fn nic(ipv4: bool, ipv6: bool) -> Nic {
        Nic { name: "eth0".into(), index: 2, mtu: 1450, ipv4: ipv4.then_some(Ipv4Addr::LOCALHOST), ipv6 }
    }

    #[test]
    fn a_family_that_the_nic_lacks_counts_only_where_there_is_no_other_and_the_order_of_the_answer_for_nothing() {
        let all: Vec<IpAddr> = ["2001:db8::1", "192.0.2.2", "192.0.2.1"].map(|text| text.parse().unwrap()).into();
        let texts = |addresses: Vec<IpAddr>| addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
        let every = ["192.0.2.1", "192.0.2.2", "2001:db8::1"];
        let (v4, v6) = every.split_at(2);
        assert_eq!(texts(preferred(all.clone(), &nic(true, true))), every);
        assert_eq!(texts(preferred(all.clone(), &nic(true, false))), v4);
        assert_eq!(texts(preferred(all.clone(), &nic(false, true))), v6);
        assert_eq!(texts(preferred(all.clone(), &nic(false, false))), every);
        assert_eq!(texts(preferred(all[..1].to_vec(), &nic(true, false))), v6, "better than nothing");
    }

    /// A name server of three lines: answers every question for an A record with these, the rest with nothing.
    async fn name_server(address: Ipv4Addr, ttl: u32) -> std::net::SocketAddr {
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let at = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut bytes = [0; 512];
            while let Ok((length, asker)) = socket.recv_from(&mut bytes).await {
                let end = 12 + bytes[12..length].iter().position(|byte| *byte == 0).unwrap() + 5;
                let is_a = bytes[end - 4..end] == [0, 1, 0, 1];
                // The question back, as an answer (RFC 1035, 4.1.1), without the asker's additional records.
                let mut answer = bytes[..end].to_vec();
                answer[2..4].copy_from_slice(&[0x81, 0x80]);
                answer[6..12].copy_from_slice(&[0, u8::from(is_a), 0, 0, 0, 0]);
                if is_a {
                    answer.extend([0xc0, 12, 0, 1, 0, 1]);
                    answer.extend(ttl.to_be_bytes());
                    answer.extend([0, 4]);
                    answer.extend(address.octets());
                }
                socket.send_to(&answer, asker).await.unwrap();
            }
        });
        at
    }

    fn asking(server: std::net::SocketAddr) -> Resolver {
        let mut connection = ConnectionConfig::udp();
        connection.port = server.port();
        let server = NameServerConfig::new(server.ip(), true, vec![connection]);
        let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
        Resolver::build(TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())).unwrap()
    }

    #[tokio::test]
    async fn an_answer_holds_for_its_ttl_within_bounds() {
        for (ttl, least, most) in [(0, 1, 1), (30, 20, 30), (86_400, 60, 60)] {
            let resolver = asking(name_server(Ipv4Addr::new(192, 0, 2, 7), ttl).await);
            let host = Host::Name("hub.example.".to_owned());
            let resolved = resolver.resolve(&host, 51820, &nic(true, false)).await.unwrap();
            assert_eq!(resolved.addresses, ["192.0.2.7:51820".parse().unwrap()]);
            let seconds = resolved.valid_for.unwrap().as_secs_f64();
            assert!((f64::from(least) - 0.5..=f64::from(most)).contains(&seconds), "TTL {ttl}: {seconds} s");
        }
    }

    #[tokio::test]
    async fn a_name_server_that_says_nothing_is_given_up_on_with_the_name_and_what_to_check() {
        let silent = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let resolver = asking(silent.local_addr().unwrap());
        let error = resolver.resolve(&Host::Name("hub.example.".to_owned()), 1, &nic(true, false)).await.unwrap_err();
        assert!(error.to_string().contains("hub.example.") && error.to_string().contains("peerEndpoint"), "{error}");
    }

    #[tokio::test]
    async fn an_address_is_its_own_answer_for_ever() {
        let resolver = Resolver::new().unwrap();
        let resolved =
            resolver.resolve(&Host::Address("192.0.2.9".parse().unwrap()), 7, &nic(true, false)).await.unwrap();
        assert_eq!(resolved, Resolved { addresses: vec!["192.0.2.9:7".parse().unwrap()], valid_for: None });
    }
}
