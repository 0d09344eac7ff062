//! The Services of tunnels: which tunnel, which address, what stands in the way. Pure.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::picture::Tunnel;
use crate::secret::TunnelName;
use crate::services::objects::{CLASS, EndpointSlice, Service, Slim, WireService};
use crate::services::{Owner, Settings, TunnelView, translate};

/// A Service that asks for a tunnel, or carries the address of one.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    /// `namespace/name`.
    pub(super) service: String,
    /// Tunnels that it is on, or asks for.
    pub(super) tunnels: Vec<String>,
    /// `status.loadBalancer.ingress`.
    pub(super) addresses: Vec<String>,
    /// What is to be known besides.
    pub(super) notes: Vec<String>,
}

/// Reads the Services as the sidecar does, with the tunnels as the pods tell of them.
pub(super) fn rows(found: &[Value], tunnels: &[Tunnel]) -> Vec<Row> {
    let read = |value: &Value| Service::slim(&WireService::deserialize(value).ok()?);
    let services: Vec<Service> = found.iter().filter_map(read).collect();
    let (views, settings) = views(tunnels);
    let translation = translate::<_, EndpointSlice>(&services, &[], &views, settings);
    let mut notes: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, fault) in &translation.faults {
        notes.entry(name.to_string()).or_default().push(fault.to_string());
    }
    for conflict in &translation.conflicts {
        let note = format!("{} on {} is {}'s", conflict.port, conflict.tunnel, conflict.winner);
        notes.entry(conflict.loser.to_string()).or_default().push(note);
    }
    let mut rows = Vec::new();
    for service in &services {
        let name = service.name.to_string();
        let addresses: Vec<String> =
            service.ingress.iter().filter_map(|entry| entry.ip.clone().or(entry.hostname.clone())).collect();
        let mut notes = notes.remove(&name).unwrap_or_default();
        let published = translation.published.get(&service.name);
        let mut on: Vec<String> = published.into_iter().flatten().map(ToString::to_string).collect();
        if on.is_empty() && notes.is_empty() {
            let ours = service.load_balancer && !service.ignore && service.class.as_deref() == Some(CLASS);
            let carried = |tunnel: &&Tunnel| tunnel.vip.as_ref().is_some_and(|vip| addresses.contains(vip));
            if ours && views.is_empty() {
                on.extend(service.tunnel.clone());
            } else if let Some(tunnel) = tunnels.iter().find(carried) {
                notes.push(format!("carries the address of {}, but does not ask for it", tunnel.name));
            } else {
                continue;
            }
        } else if !on.is_empty() {
            if addresses.is_empty() {
                notes.push("no address yet".to_owned());
            }
            notes.extend(on.iter().filter_map(|tunnel| unforwarded(tunnels, tunnel, &name)));
        }
        rows.push(Row { service: name, tunnels: on, addresses, notes });
    }
    rows.sort_by(|a, b| a.service.cmp(&b.service));
    rows
}

/// A tunnel that serves, but not this Service.
fn unforwarded(tunnels: &[Tunnel], tunnel: &str, service: &str) -> Option<String> {
    let leading = tunnels.iter().find(|known| known.name == tunnel)?.leaders.first()?;
    let forwards = leading.forwards.iter().any(|forward| forward.service == service);
    (leading.state == "leading" && !forwards)
        .then(|| format!("the leader of {tunnel} does not forward it; is it outside --service-namespace?"))
}

/// The tunnels as translation sees them. That the API server is forwarded shows in what a leader forwards.
fn views(tunnels: &[Tunnel]) -> (Vec<TunnelView>, Settings) {
    let control_plane = Owner::ControlPlane.to_string();
    let mut settings = Settings { control_plane: false, control_plane_port: 0, unsound_tunnels: 0 };
    let mut views = Vec::new();
    for tunnel in tunnels {
        let vip = tunnel.vip.as_deref().unwrap_or_default();
        let vip = vip.split([',', ' ']).find_map(|one| one.parse::<Ipv4Addr>().ok());
        let (Some(name), Some(vip)) = (TunnelName::new(&tunnel.name), vip) else {
            // Not one that only a left-over Lease knows.
            settings.unsound_tunnels += usize::from(tunnel.state == "invalid");
            continue;
        };
        let mut forwards = tunnel.leaders.first().into_iter().flat_map(|leading| &leading.forwards);
        let api = forwards.find(|forward| forward.service == control_plane || forward.service == "default/kubernetes");
        if let Some(port) = api.and_then(|forward| u16::try_from(forward.port).ok()) {
            settings.control_plane = true;
            settings.control_plane_port = port;
        }
        views.push(TunnelView { name, vip, control_plane: api.is_some() });
    }
    (views, settings)
}
