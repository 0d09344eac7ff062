//! What `status.loadBalancer.ingress` of a Service should say. Pure.
//!
//! What must hold: an entry that is not a tunnel's of ours stays as it is; an entry of a tunnel that another pod leads
//! stays as it is; merging twice changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use crate::secret::{Host, TunnelName};
use crate::services::ObjectName;
use crate::services::objects::{CLASS, Ingress, KUBE_VIP_CLASS, Service};

/// What this pod is to a tunnel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Another leads, or nobody: entries are not ours to touch.
    Standby,
    /// We lead, but nothing is proven yet: only entries that should not be there are removed.
    Rising,
    /// We lead, the hub answered and the forwards are in the kernel.
    Serving,
}

/// What a tunnel says of the Services.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Publication {
    /// What we are to it.
    pub role: Role,
    /// Its VIP.
    pub vip: Ipv4Addr,
    /// What clients are told in place of the VIP.
    pub public_address: Option<Host>,
    /// The Services that are published on it (`Translation::published`).
    pub services: Arc<BTreeSet<ObjectName>>,
    /// Those of them whose ports are in the kernel: the others get no entry yet, and keep what they have.
    pub forwarded: Arc<BTreeSet<ObjectName>>,
}

impl Publication {
    /// Is the Service reached by this tunnel now?
    fn serves(&self, service: &ObjectName) -> bool {
        self.role == Role::Serving && self.forwarded.contains(service)
    }

    /// The entry that this tunnel's Services get. Only an address may carry an `ipMode`.
    pub fn entry(&self) -> Ingress {
        let (ip, hostname, mode) = match &self.public_address {
            None => (Some(IpAddr::V4(self.vip).to_string()), None, Some("VIP")),
            Some(Host::Address(address)) => (Some(address.to_string()), None, Some("Proxy")),
            Some(Host::Name(name)) => (None, Some(name.clone()), None),
        };
        Ingress { ip, hostname, ip_mode: mode.map(str::to_owned), ports: None }
    }

    /// Under these an entry may be known to be this tunnel's.
    fn addresses(&self) -> impl Iterator<Item = String> {
        [Some(self.vip.to_string()), self.public_address.as_ref().map(ToString::to_string)].into_iter().flatten()
    }
}

/// All tunnels' publications, and the addresses that they had before. Looked up by Service and by address: with a
/// hundred tunnels and a thousand Services each Service must not ask every tunnel.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Publications {
    tunnels: BTreeMap<TunnelName, Publication>,
    /// Who claims a Service.
    claimants: BTreeMap<ObjectName, BTreeSet<TunnelName>>,
    /// Who has, or ever had, an address: entries under an earlier one are a tunnel's own to remove.
    owners: BTreeMap<String, BTreeSet<TunnelName>>,
}

impl Publications {
    /// What a tunnel says.
    pub fn of(&self, name: &TunnelName) -> Option<&Publication> {
        self.tunnels.get(name)
    }

    /// Sets what a tunnel says. Standbys say it as well, so that they know their earlier addresses when they lead.
    pub fn set(&mut self, name: &TunnelName, publication: Publication) {
        let before = self.of(name).map(|before| Arc::clone(&before.services)).unwrap_or_default();
        drop_from(&mut self.claimants, before.difference(&publication.services), name);
        for service in publication.services.difference(&before) {
            self.claimants.entry(service.clone()).or_default().insert(name.clone());
        }
        for address in publication.addresses() {
            self.owners.entry(address).or_default().insert(name.clone());
        }
        self.tunnels.insert(name.clone(), publication);
    }

    /// Forgets a tunnel. Its entries stay where they are.
    pub fn remove(&mut self, name: &TunnelName) {
        let Some(publication) = self.tunnels.remove(name) else { return };
        drop_from(&mut self.claimants, publication.services.iter(), name);
        self.owners.retain(|_, owners| {
            owners.remove(name);
            !owners.is_empty()
        });
    }

    /// What the Service's entries should become, and which tunnels ask for that; `None`: they are right.
    pub fn merge(&self, service: &Service) -> Option<(Vec<Ingress>, BTreeSet<TunnelName>)> {
        // On a class of somebody else's we have never written: an address like ours there is a coincidence.
        if !matches!(service.class.as_deref(), None | Some(CLASS | KUBE_VIP_CLASS)) {
            return None;
        }
        let mut wanted: Vec<Ingress> = Vec::new();
        let mut others: BTreeSet<String> = BTreeSet::new();
        let mut asking: BTreeSet<TunnelName> = BTreeSet::new();
        for name in self.claimants.get(&service.name).into_iter().flatten() {
            let publication = &self.tunnels[name];
            if !publication.serves(&service.name) {
                others.extend(publication.addresses());
                continue;
            }
            let entry = publication.entry();
            if !wanted.iter().any(|known| address(known) == address(&entry)) {
                if !service.ingress.iter().any(|have| same(have, &entry)) {
                    asking.insert(name.clone());
                }
                wanted.push(entry);
            }
        }
        let mut merged: Vec<Ingress> = Vec::new();
        for have in &service.ingress {
            let at = address(have).unwrap_or_default();
            if let Some(index) = wanted.iter().position(|want| address(want) == Some(at)) {
                let want = wanted.swap_remove(index);
                merged.push(Ingress { ports: have.ports.clone(), ..want });
            } else if let Some(owner) = self.remover(at, &service.name).filter(|_| !others.contains(at)) {
                asking.insert(owner.clone());
            } else {
                merged.push(have.clone());
            }
        }
        wanted.sort_by(|a, b| address(a).cmp(&address(b)));
        merged.extend(wanted);
        (merged != service.ingress).then_some((merged, asking))
    }

    /// The tunnel whose entry this is and that may remove it: it leads here, and has nothing to wait for.
    fn remover(&self, address: &str, service: &ObjectName) -> Option<&TunnelName> {
        self.owners.get(address)?.iter().rev().find(|name| {
            let publication = &self.tunnels[*name];
            match publication.role {
                Role::Standby => false,
                Role::Rising => !publication.services.contains(service),
                Role::Serving => true,
            }
        })
    }
}

/// Takes `name` off each of the Services' claimants.
fn drop_from<'s>(
    claimants: &mut BTreeMap<ObjectName, BTreeSet<TunnelName>>,
    services: impl Iterator<Item = &'s ObjectName>,
    name: &TunnelName,
) {
    for service in services {
        if let Some(of_it) = claimants.get_mut(service) {
            of_it.remove(name);
            if of_it.is_empty() {
                claimants.remove(service);
            }
        }
    }
}

fn address(entry: &Ingress) -> Option<&str> {
    entry.ip.as_deref().or(entry.hostname.as_deref())
}

fn same(have: &Ingress, want: &Ingress) -> bool {
    address(have) == address(want) && have.ip_mode == want.ip_mode
}

#[cfg(test)]
mod tests;
