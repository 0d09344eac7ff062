//! Services and EndpointSlices in, forwards of each tunnel out.
//!
//! What must hold: the same objects give the same forwards, whatever order they came in; a port has one owner; no
//! forward exists for a Service that does not ask for the tunnel; a Service that cannot be understood is open to nobody.

mod endpoints;
pub mod objects;
pub mod watch;

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};

use ipnet::{IpNet, Ipv4Net};
use serde::Serialize;

use self::endpoints::Endpoints;
use self::objects::{CLASS, EndpointSlice, KUBE_VIP_CLASS, Service};
use crate::secret::TunnelName;

/// A transport protocol that is forwarded.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// IP protocol 6.
    Tcp,
    /// IP protocol 17.
    Udp,
    /// IP protocol 132.
    Sctp,
}

impl Protocol {
    /// The IANA protocol number, as in the IP header.
    pub const fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }
}

/// Whose port a forward is. Sorts and prints as `namespace/name`, or `control-plane`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Owner {
    /// The API server, on the control-plane port.
    ControlPlane,
    /// A Service.
    Service {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

/// A port on the VIP.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VipPort {
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// 1 to 65535.
    pub port: u16,
}

/// What happens to packets for one [`VipPort`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Forward {
    /// Who asked for it.
    pub owner: Owner,
    /// Chosen backends, sorted, each once. Empty: reject at once (I6).
    pub backends: Vec<SocketAddrV4>,
    /// `sessionAffinity: ClientIP`: hash the client's address alone.
    pub client_ip_affinity: bool,
    /// `loadBalancerSourceRanges`; empty = everybody.
    pub source_ranges: Vec<Ipv4Net>,
}

/// All forwards of one tunnel.
pub type Forwards = BTreeMap<VipPort, Forward>;

/// A backend that conntrack may still know: used to drop UDP flows towards backends no longer chosen.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Flow {
    /// The VIP that clients addressed.
    pub vip: Ipv4Addr,
    /// The port they addressed.
    pub port: VipPort,
    /// Where it was sent.
    pub backend: SocketAddrV4,
}

impl Protocol {
    /// The protocol as Kubernetes writes it; absent means TCP. `None`: one that is not forwarded.
    pub fn parse(text: Option<&str>) -> Option<Self> {
        match text {
            None | Some("" | "TCP") => Some(Protocol::Tcp),
            Some("UDP") => Some(Protocol::Udp),
            Some("SCTP") => Some(Protocol::Sctp),
            Some(_) => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        })
    }
}

impl fmt::Display for VipPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.port, self.protocol)
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Owner::ControlPlane => f.write_str("control-plane"),
            Owner::Service { namespace, name } => write!(f, "{namespace}/{name}"),
        }
    }
}

/// Name of a namespaced object. Sorts by namespace, then name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ObjectName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl ObjectName {
    /// Both parts together.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl From<&ObjectName> for Owner {
    fn from(name: &ObjectName) -> Self {
        Owner::Service { namespace: name.namespace.clone(), name: name.name.clone() }
    }
}

/// What translation has to know of a tunnel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TunnelView {
    /// Its name.
    pub name: TunnelName,
    /// Its VIP.
    pub vip: Ipv4Addr,
    /// Is the API server forwarded on it?
    pub control_plane: bool,
}

/// What translation has to know of the command line and the Secret as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// `--control-plane`.
    pub control_plane: bool,
    /// `--control-plane-port`.
    pub control_plane_port: u16,
    /// Tunnels that the Secret names but that have never been sound. With any, there is no "only tunnel".
    pub unsound_tunnels: usize,
}

/// What each tunnel forwards, and what had to be left out.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Translation {
    /// One entry for each tunnel, also where there is nothing to forward.
    pub forwards: BTreeMap<TunnelName, Forwards>,
    /// The Services that are ours, and on which tunnels they hold at least one port. Fit for status.
    pub published: BTreeMap<ObjectName, BTreeSet<TunnelName>>,
    /// Ports that a Service asked for and did not get.
    pub conflicts: Vec<PortConflict>,
    /// Forwards without a backend, which refuse at once.
    pub no_backends: Vec<NoBackends>,
    /// Services that ask for what cannot be given.
    pub faults: BTreeMap<ObjectName, ServiceFault>,
}

/// A port that is another's.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PortConflict {
    /// Who did not get it.
    pub loser: ObjectName,
    /// Who has it.
    pub winner: Owner,
    /// On which tunnel.
    pub tunnel: TunnelName,
    /// The port.
    pub port: VipPort,
}

/// A forward that has nobody to send to.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct NoBackends {
    /// Whose.
    pub owner: Owner,
    /// On which tunnel.
    pub tunnel: TunnelName,
    /// The port.
    pub port: VipPort,
}

/// Why a Service that names us is not forwarded. The text goes into its Event.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ServiceFault {
    /// The annotation names none of the tunnels.
    #[error("no tunnel is called {asked:?}; set annotation wirevip.io/tunnel to one of: {known}")]
    UnknownTunnel {
        /// As written.
        asked: String,
        /// All there are.
        known: String,
    },
    /// No annotation, and several tunnels to choose from.
    #[error("there are several tunnels; set annotation wirevip.io/tunnel to one of: {known}")]
    WhichTunnel {
        /// All there are.
        known: String,
    },
    /// A source range cannot be read: forwarded to nobody, lest it be open to everybody.
    #[error("loadBalancerSourceRanges: {range:?} is no CIDR, so nobody is let in; write it like 192.0.2.0/24")]
    SourceRange {
        /// As written.
        range: String,
    },
    /// Ranges were given, none of IPv4.
    #[error("loadBalancerSourceRanges has no IPv4 range, so nobody is let in through an IPv4 VIP; add one")]
    NoIpv4Range,
}

/// What each tunnel forwards: all Services and slices in, all tunnels out, whole each time (I4).
///
/// The order of `services`, `slices` and `tunnels` does not matter, nor does it that one comes twice.
pub fn translate<S: Borrow<Service>, E: Borrow<EndpointSlice>>(
    services: &[S],
    slices: &[E],
    tunnels: &[TunnelView],
    settings: Settings,
) -> Translation {
    let slices = Endpoints::new(slices, tunnels);
    let mut out = Translation::default();
    for tunnel in tunnels {
        let forwards = out.forwards.entry(tunnel.name.clone()).or_default();
        if settings.control_plane && tunnel.control_plane {
            let port = VipPort { protocol: Protocol::Tcp, port: settings.control_plane_port };
            forwards.insert(port, control_plane(&slices));
        }
    }
    let mut ours: Vec<(&Service, BTreeSet<&TunnelName>)> = Vec::new();
    for service in services.iter().map(Borrow::borrow) {
        match claim(service, tunnels, settings) {
            Ok(claimed) if claimed.is_empty() => {}
            Ok(claimed) => ours.push((service, claimed)),
            Err(fault) => {
                out.faults.insert(service.name.clone(), fault);
            }
        }
    }
    ours.sort_by(|(a, _), (b, _)| (a.created, &a.name).cmp(&(b.created, &b.name)));
    ours.dedup_by(|(a, _), (b, _)| a.name == b.name);
    // A Service with bad source ranges still holds its ports: mended, it must not have lost them to a younger one.
    let mut held: BTreeMap<(&TunnelName, VipPort), &ObjectName> = BTreeMap::new();
    for (service, claimed) in ours {
        let ranges = source_ranges(&service.source_ranges);
        for port in &service.ports {
            let mut template: Option<Forward> = None;
            for tunnel in &claimed {
                let Some(forwards) = out.forwards.get_mut(*tunnel) else { continue };
                let winner = match (forwards.get(&port.port), held.get(&(*tunnel, port.port))) {
                    (Some(forward), _) => Some(forward.owner.clone()),
                    (None, Some(holder)) => Some(Owner::from(*holder)),
                    (None, None) => None,
                };
                if let Some(winner) = winner {
                    let conflict = PortConflict {
                        loser: service.name.clone(),
                        winner,
                        tunnel: (*tunnel).clone(),
                        port: port.port,
                    };
                    if conflict.winner != Owner::from(&service.name) {
                        out.conflicts.push(conflict);
                    }
                    continue;
                }
                held.insert((*tunnel, port.port), &service.name);
                let Ok(ranges) = &ranges else { continue };
                let template = template.get_or_insert_with(|| Forward {
                    owner: Owner::from(&service.name),
                    backends: slices.backends(&service.name, &port.name, port.port.protocol),
                    client_ip_affinity: service.client_ip_affinity,
                    source_ranges: ranges.clone(),
                });
                forwards.insert(port.port, template.clone());
                out.published.entry(service.name.clone()).or_default().insert((*tunnel).clone());
            }
        }
        if let Err(fault) = ranges {
            out.faults.insert(service.name.clone(), fault);
        }
    }
    for (tunnel, forwards) in &out.forwards {
        for (port, forward) in forwards.iter().filter(|(_, forward)| forward.backends.is_empty()) {
            let (owner, tunnel) = (forward.owner.clone(), tunnel.clone());
            out.no_backends.push(NoBackends { owner, tunnel, port: *port });
        }
    }
    out.conflicts.sort();
    out
}

/// The tunnels on which a Service asks to be; empty: it is not ours.
fn claim<'t>(
    service: &Service,
    tunnels: &'t [TunnelView],
    settings: Settings,
) -> Result<BTreeSet<&'t TunnelName>, ServiceFault> {
    if !service.load_balancer || service.deleting || service.ignore {
        return Ok(BTreeSet::new());
    }
    match service.class.as_deref() {
        Some(CLASS) => {
            // In order of name, whatever order they came in: a text that changes is a new Event.
            let known = || {
                let names: BTreeSet<&str> = tunnels.iter().map(|t| t.name.as_str()).collect();
                names.into_iter().collect::<Vec<_>>().join(", ")
            };
            match &service.tunnel {
                Some(asked) => {
                    let named = tunnels.iter().find(|t| t.name.as_str() == asked.trim());
                    // Before the first tunnel is known nobody can tell a wrong name from an early one.
                    match named {
                        Some(tunnel) => Ok(BTreeSet::from([&tunnel.name])),
                        None if tunnels.is_empty() => Ok(BTreeSet::new()),
                        None => Err(ServiceFault::UnknownTunnel { asked: asked.clone(), known: known() }),
                    }
                }
                None => match tunnels {
                    [] => Ok(BTreeSet::new()),
                    [only] if settings.unsound_tunnels == 0 => Ok(BTreeSet::from([&only.name])),
                    _ => Err(ServiceFault::WhichTunnel { known: known() }),
                },
            }
        }
        None | Some(KUBE_VIP_CLASS) => {
            let asked = service.addresses.as_deref().unwrap_or_default();
            let asked: BTreeSet<Ipv4Addr> = asked.split(',').filter_map(|a| a.trim().parse().ok()).collect();
            Ok(tunnels.iter().filter(|t| asked.contains(&t.vip)).map(|t| &t.name).collect())
        }
        Some(_) => Ok(BTreeSet::new()),
    }
}

/// All ranges of IPv4, or why nobody may be let in.
fn source_ranges(texts: &[String]) -> Result<Vec<Ipv4Net>, ServiceFault> {
    let mut ranges = BTreeSet::new();
    for text in texts {
        match text.trim().parse::<IpNet>() {
            Ok(IpNet::V4(range)) => {
                ranges.insert(range.trunc());
            }
            Ok(IpNet::V6(_)) => {}
            Err(_) => return Err(ServiceFault::SourceRange { range: text.clone() }),
        }
    }
    if ranges.is_empty() && !texts.is_empty() {
        return Err(ServiceFault::NoIpv4Range);
    }
    // Ranges inside others would overlap in the kernel's interval set, which refuses them.
    Ok(Ipv4Net::aggregate(&ranges.into_iter().collect()))
}

fn control_plane(slices: &Endpoints<'_>) -> Forward {
    // The API servers themselves keep the slices of this Service, under this port name.
    let kubernetes = ObjectName::new("default", "kubernetes");
    Forward {
        owner: Owner::ControlPlane,
        backends: slices.backends(&kubernetes, "https", Protocol::Tcp),
        client_ip_affinity: false,
        source_ranges: Vec::new(),
    }
}

#[cfg(test)]
mod tests;
