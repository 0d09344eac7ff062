//! Services and EndpointSlices: any objects in any order, one JSON object in a line. Each line is merged over a sound
//! object of its kind, so that a few words make an interesting one; what is no JSON is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use serde_json::{Value, json};
use wirevip::secret::TunnelName;
use wirevip::services::objects::{EndpointSlice, Service, Slim};
use wirevip::services::{Forward, ObjectName, Owner, Protocol, Settings, Translation, TunnelView, VipPort, translate};

use crate::swift;

/// Panics where one of these does not hold: order and repetition of the objects do not matter; every backend is ready,
/// or leaves where none is ready, and none that is ready is left out; nothing is forwarded but what was asked for.
pub fn holds(input: &[u8]) {
    // As in a cluster, an object's name is its own.
    let (mut services, mut slices) = (BTreeMap::new(), BTreeMap::new());
    for line in String::from_utf8_lossy(input).lines().take(64) {
        let Ok(patch @ Value::Object(_)) = serde_json::from_str(line) else { continue };
        if patch["kind"] == "EndpointSlice" {
            if let Some(slice) = read::<EndpointSlice>(sound_slice(), patch) {
                slices.insert(slice.name.clone(), slice);
            }
        } else if let Some(service) = read::<Service>(sound_service(), patch) {
            services.insert(service.name.clone(), service);
        }
    }
    let (services, slices): (Vec<_>, Vec<_>) = (services.into_values().collect(), slices.into_values().collect());
    for tunnels in [1, 2, 0] {
        let tunnels = &[tunnel("wg0", [10, 9, 0, 2]), tunnel("wg1", [10, 9, 1, 2])][..tunnels];
        let settings = Settings { control_plane: true, control_plane_port: 6443, unsound_tunnels: 0 };
        let translation = swift("translate", || translate(&services, &slices, tunnels, settings));
        order_does_not_matter(&services, &slices, tunnels, settings, &translation);
        for (name, forwards) in &translation.forwards {
            for (port, forward) in forwards {
                is_right(port, forward, &services, &slices, tunnels);
                if let Owner::Service { namespace, name: service } = &forward.owner {
                    assert!(translation.published[&ObjectName::new(namespace, service)].contains(name));
                }
            }
        }
    }
}

fn tunnel(name: &str, vip: [u8; 4]) -> TunnelView {
    TunnelView { name: TunnelName::new(name).expect("a name"), vip: vip.into(), control_plane: true }
}

fn sound_service() -> Value {
    json!({
        "metadata": {"name": "web", "namespace": "default", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {
            "type": "LoadBalancer", "loadBalancerClass": "wirevip.io/tunnel",
            "ports": [{"name": "http", "protocol": "TCP", "port": 80}],
        },
    })
}

fn sound_slice() -> Value {
    json!({
        "metadata": {"name": "web-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": [{"addresses": ["10.1.0.1"], "conditions": {"ready": true}}],
    })
}

fn read<T: Slim>(mut object: Value, patch: Value) -> Option<T>
where
    T::Wire: serde::de::DeserializeOwned,
{
    merge(&mut object, patch);
    T::slim(&serde_json::from_value(object).ok()?)
}

fn merge(base: &mut Value, patch: Value) {
    match (base, patch) {
        (Value::Object(base), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, patch) => *base = patch,
    }
}

fn order_does_not_matter(
    services: &[Service],
    slices: &[EndpointSlice],
    tunnels: &[TunnelView],
    settings: Settings,
    expected: &Translation,
) {
    fn turned<T: Clone>(all: &[T]) -> Vec<T> {
        all.iter().rev().chain(all.first()).cloned().collect()
    }
    let tunnels: Vec<TunnelView> = tunnels.iter().rev().cloned().collect();
    assert_eq!(&translate(&turned(services), &turned(slices), &tunnels, settings), expected, "in another order");
}

/// One forward, by what the objects say: read once more, without indexes and all at once.
fn is_right(port: &VipPort, forward: &Forward, services: &[Service], slices: &[EndpointSlice], tunnels: &[TunnelView]) {
    let Forward { owner, backends, client_ip_affinity, source_ranges } = forward;
    let (namespace, name, target) = match owner {
        Owner::ControlPlane => ("default", "kubernetes", "https"),
        Owner::Service { namespace, name } => {
            let of = |service: &&Service| service.name.namespace == *namespace && service.name.name == *name;
            let service = services.iter().find(of).expect("a forward without a Service");
            assert!(service.load_balancer && !service.deleting && !service.ignore);
            assert_eq!(*client_ip_affinity, service.client_ip_affinity);
            assert_eq!(source_ranges.is_empty(), service.source_ranges.is_empty(), "open to everybody");
            let asked = service.ports.iter().find(|asked| asked.port == *port).expect("a port that nobody asked for");
            (namespace.as_str(), name.as_str(), asked.name.as_str())
        }
    };
    let within = |address: Ipv4Addr| {
        address.is_loopback()
            || address.is_unspecified()
            || address.is_multicast()
            || address.is_broadcast()
            || tunnels.iter().any(|tunnel| tunnel.vip == address)
    };
    let (mut ready, mut draining) = (BTreeSet::new(), BTreeSet::new());
    for slice in slices.iter().filter(|slice| slice.name.namespace == namespace && slice.service == name) {
        for target in slice.ports.iter().filter(|of| of.name == target && of.port.protocol == port.protocol) {
            for endpoint in slice.endpoints.iter().filter(|endpoint| !within(endpoint.address)) {
                let backend = SocketAddrV4::new(endpoint.address, target.port.port);
                if endpoint.ready {
                    ready.insert(backend);
                } else if endpoint.draining {
                    draining.insert(backend);
                }
            }
        }
    }
    let chosen = if ready.is_empty() { draining } else { ready };
    assert_eq!(*backends, chosen.into_iter().collect::<Vec<_>>(), "backends of {owner} on {port}");
    assert!(port.port > 0 && matches!(port.protocol, Protocol::Tcp | Protocol::Udp | Protocol::Sctp));
}
