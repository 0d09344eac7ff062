//! Which endpoints of a Service get its new clients. Pure.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use super::objects::EndpointSlice;
use super::{ObjectName, Protocol, TunnelView};

/// All EndpointSlices, found by their Service.
pub(super) struct Endpoints<'a> {
    slices: BTreeMap<(&'a str, &'a str), Vec<&'a EndpointSlice>>,
    vips: BTreeSet<Ipv4Addr>,
}

impl<'a> Endpoints<'a> {
    pub(super) fn new<E: Borrow<EndpointSlice>>(all: &'a [E], tunnels: &[TunnelView]) -> Self {
        let mut slices: BTreeMap<(&str, &str), Vec<&EndpointSlice>> = BTreeMap::new();
        for slice in all.iter().map(Borrow::borrow) {
            slices.entry((&slice.name.namespace, &slice.service)).or_default().push(slice);
        }
        Self { slices, vips: tunnels.iter().map(|tunnel| tunnel.vip).collect() }
    }

    /// The backends of a Service's port, by its name: the ready ones of all slices, else the draining ones, else none
    /// (I6). Sorted, each once.
    pub(super) fn backends(&self, service: &ObjectName, port: &str, protocol: Protocol) -> Vec<SocketAddrV4> {
        let mut ready = Vec::new();
        let mut draining = Vec::new();
        let slices = self.slices.get(&(service.namespace.as_str(), service.name.as_str()));
        for slice in slices.into_iter().flatten() {
            for target in slice.ports.iter().filter(|p| p.name == port && p.port.protocol == protocol) {
                for endpoint in slice.endpoints.iter().filter(|e| self.reachable(e.address)) {
                    let backend = SocketAddrV4::new(endpoint.address, target.port.port);
                    if endpoint.ready {
                        ready.push(backend);
                    } else if endpoint.draining {
                        draining.push(backend);
                    }
                }
            }
        }
        let mut chosen = if ready.is_empty() { draining } else { ready };
        chosen.sort_unstable();
        chosen.dedup();
        chosen
    }

    /// Anybody who may write an EndpointSlice chooses the address: it must not lead into this pod by way of a VIP or
    /// loopback, where `/metrics` listens.
    fn reachable(&self, address: Ipv4Addr) -> bool {
        let into_the_pod = address.is_loopback() || address.is_unspecified() || self.vips.contains(&address);
        let to_many = address.is_multicast() || address.is_broadcast();
        !into_the_pod && !to_many
    }
}
