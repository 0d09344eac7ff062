//! The world's API: its objects, and who leads by the Lease.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::World;
use crate::api::Resource;
use crate::client::Proto;
use crate::clock::until;
use crate::objects::{self, Condition};
use crate::plan;
use crate::sidecar::NAMESPACE;
use crate::tunnels::{TunnelSpec, document};

/// What a Lease says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeaseState {
    /// `holderIdentity`; empty: released.
    pub holder: String,
    /// `leaseTransitions`.
    pub transitions: i64,
    /// `renewTime`, as written.
    pub renewed: String,
}

impl World {
    /// Writes the Secret with these tunnels.
    pub fn put_secret(&self, tunnels: &[TunnelSpec]) -> Result<()> {
        self.put_document(&document(tunnels))
    }

    /// Writes the Secret with this document, whatever it is.
    pub fn put_document(&self, document: &str) -> Result<()> {
        self.kube.apply(Resource::Secret, objects::secret(NAMESPACE, document))?;
        Ok(())
    }

    /// Service and EndpointSlice `default/<name>` for the first tunnel: TCP and UDP `port` to all backends.
    pub fn serve(&self, name: &str, port: u16) -> Result<Value> {
        let target = self.spec.backend_port;
        let tunnel = &self.spec.tunnels.first().context("a world without tunnels")?.name;
        let ports = [objects::port(Proto::Tcp, port, target), objects::port(Proto::Udp, port, target)];
        let service = objects::service(name, tunnel, &ports);
        self.kube.apply(Resource::Service, service.clone())?;
        self.endpoints(&service, &self.all_ready())?;
        Ok(service)
    }

    /// Every backend, ready.
    pub fn all_ready(&self) -> Vec<(Ipv4Addr, Condition)> {
        self.backends.iter().map(|backend| (backend.address, Condition::Ready)).collect()
    }

    /// The one EndpointSlice of a Service, named like it. When the API had it.
    pub fn endpoints(&self, service: &Value, endpoints: &[(Ipv4Addr, Condition)]) -> Result<Instant> {
        let name = service["metadata"]["name"].as_str().context("a Service without a name")?;
        let slice = objects::slice(name, service, self.spec.backend_port, endpoints);
        self.kube.apply(Resource::EndpointSlice, slice)?;
        Ok(crate::clock::now())
    }

    /// The Lease of tunnel `index`; `None`: there is none.
    pub fn lease(&self, index: usize) -> Result<Option<LeaseState>> {
        let name = self.spec.tunnels.get(index).context("no such tunnel")?.lease();
        let lease = match self.kube.get(Resource::Lease, NAMESPACE, &name) {
            Err(refused) if refused.code == 404 => return Ok(None),
            other => other?,
        };
        let spec = &lease["spec"];
        let text = |key: &str| spec[key].as_str().unwrap_or_default().to_owned();
        Ok(Some(LeaseState {
            holder: text("holderIdentity"),
            transitions: spec["leaseTransitions"].as_i64().unwrap_or(0),
            renewed: text("renewTime"),
        }))
    }

    /// The node whose sidecar the Lease of tunnel `index` names.
    pub fn leader(&self, index: usize) -> Result<Option<u8>> {
        let holder = self.lease(index)?.map(|lease| lease.holder).unwrap_or_default();
        Ok(self.sidecars.iter().find(|sidecar| sidecar.identity() == holder).map(|sidecar| sidecar.node))
    }

    /// Waits for a leader of tunnel `index` other than `not`.
    pub fn wait_leader(&self, index: usize, not: Option<u8>, within: Duration) -> Result<u8> {
        until("a leader in the Lease", within, || Ok(self.leader(index)?.filter(|leader| Some(*leader) != not)))
    }

    /// Who wrote the Lease of tunnel `index` when, by the API server's log: pods, other candidates, `admin`.
    pub fn lease_writes(&self, index: usize) -> Result<Vec<(Instant, String)>> {
        let name = self.spec.tunnels.get(index).context("no such tunnel")?.lease();
        let requests = self.api.requests();
        let writes = requests.into_iter().filter(|request| {
            request.resource == "leases"
                && (request.name == name || request.verb == "create")
                && matches!(request.verb.as_str(), "create" | "update")
                && matches!(request.code, 200 | 201)
        });
        Ok(writes.map(|request| (crate::clock::moment_of(SystemTime::from(request.at)), request.user)).collect())
    }

    /// When a sidecar first wrote the Lease of tunnel `index` at or after `since`.
    pub fn lease_written(&self, index: usize, node: u8, since: Instant) -> Result<Option<Instant>> {
        let pod = &self.sidecar(node)?.pod;
        let mut writes = self.lease_writes(index)?.into_iter();
        Ok(writes.find(|(at, user)| *at >= since && user == pod).map(|(at, _)| at))
    }

    /// The Service's `status.loadBalancer.ingress`.
    pub fn ingress(&self, name: &str) -> Result<Vec<Value>> {
        let service = self.kube.get(Resource::Service, "default", name)?;
        Ok(service["status"]["loadBalancer"]["ingress"].as_array().cloned().unwrap_or_default())
    }

    /// Reasons of all Events in all namespaces, with what each regards: `TunnelUp Pod/wirevip-n1`.
    pub fn events(&self) -> Result<Vec<String>> {
        let events = self.kube.list(Resource::Event, "")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(events
            .iter()
            .map(|event| {
                let about = &event["regarding"];
                format!("{} {}/{}", text(&event["reason"]), text(&about["kind"]), text(&about["name"]))
            })
            .collect())
    }

    /// Nodes and pods as the cluster knows them; each sidecar's uid is its pod's.
    pub(super) fn furnish(&mut self) -> Result<()> {
        for node in &self.nodes {
            self.kube.apply(Resource::Node, objects::node(&format!("node{}", node.number)))?;
        }
        for sidecar in &mut self.sidecars {
            let object = objects::pod(NAMESPACE, &sidecar.pod, &format!("node{}", sidecar.node));
            let made = self.kube.apply(Resource::Pod, object)?;
            made["metadata"]["uid"].as_str().context("a pod without a uid")?.clone_into(&mut sidecar.uid);
            let address = plan::sidecar(sidecar.node).to_string();
            let status = json!({ "status": { "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }] } });
            self.kube.patch_status(Resource::Pod, NAMESPACE, &sidecar.pod, status)?;
        }
        Ok(())
    }
}
