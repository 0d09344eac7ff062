//! What is kept of Services and EndpointSlices, and how it is read out of what the API sends.
//!
//! The API's objects are read straight into the fields that are used: a cluster with a thousand Services must not
//! cost this pod more than a few megabytes, not even while it lists them.

use std::borrow::Cow;
use std::net::Ipv4Addr;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

use super::{ObjectName, Protocol, VipPort};
use crate::api::meta::described;

/// Names the tunnel, on a Service of class [`CLASS`].
pub const TUNNEL_ANNOTATION: &str = "wirevip.io/tunnel";
/// Our `loadBalancerClass`.
pub const CLASS: &str = "wirevip.io/tunnel";
/// kube-vip's `loadBalancerClass`.
pub const KUBE_VIP_CLASS: &str = "kube-vip.io/kube-vip-class";
/// kube-vip's annotation for addresses, separated by commas.
pub const KUBE_VIP_ADDRESSES: &str = "kube-vip.io/loadbalancerIPs";
/// kube-vip's annotation that says hands off.
pub const KUBE_VIP_IGNORE: &str = "kube-vip.io/ignore";

/// Label of an EndpointSlice with its Service's name.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// What is kept of a Service: no more than is used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// Namespace and name.
    pub name: ObjectName,
    /// `metadata.uid`, for Events.
    pub uid: String,
    /// `metadata.resourceVersion`, for patches of the status.
    pub resource_version: String,
    /// `metadata.creationTimestamp`, seconds since 1970. The older Service keeps a contested port.
    pub created: i64,
    /// A `deletionTimestamp` is set: it is nobody's any more.
    pub deleting: bool,
    /// `spec.type: LoadBalancer`.
    pub load_balancer: bool,
    /// `spec.loadBalancerClass`.
    pub class: Option<String>,
    /// Annotation [`TUNNEL_ANNOTATION`].
    pub tunnel: Option<String>,
    /// Addresses asked for: annotation [`KUBE_VIP_ADDRESSES`], else `spec.loadBalancerIP`. Unparsed.
    pub addresses: Option<String>,
    /// Annotation [`KUBE_VIP_IGNORE`] is `true`.
    pub ignore: bool,
    /// `spec.ports`.
    pub ports: Vec<ServicePort>,
    /// `spec.sessionAffinity: ClientIP`.
    pub client_ip_affinity: bool,
    /// `spec.loadBalancerSourceRanges`, unparsed.
    pub source_ranges: Vec<String>,
    /// `status.loadBalancer.ingress` as it stands.
    pub ingress: Vec<Ingress>,
}

impl Service {
    /// The same but for its status, as far as forwarding goes.
    pub fn forwards_as(&self, other: &Self) -> bool {
        let without_status =
            Self { resource_version: other.resource_version.clone(), ingress: other.ingress.clone(), ..self.clone() };
        without_status == *other
    }
}

/// One of `spec.ports`. `targetPort` is not kept: EndpointSlices carry it resolved, under the port's name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServicePort {
    /// Its name; empty where the Service has but one.
    pub name: String,
    /// Protocol and port on the VIP.
    pub port: VipPort,
}

/// One entry of `status.loadBalancer.ingress`. Serialises to what the API takes.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ingress {
    /// An address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
    /// A DNS name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// `VIP` or `Proxy`; only beside `ip`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_mode: Option<String>,
    /// Others' port reports, kept as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<serde_json::Value>,
}

/// What is kept of an IPv4 EndpointSlice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointSlice {
    /// Namespace and name of the slice.
    pub name: ObjectName,
    /// The Service whose endpoints these are, from its label `kubernetes.io/service-name`; in the same namespace.
    pub service: String,
    /// Its ports.
    pub ports: Vec<SlicePort>,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// A port of an EndpointSlice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlicePort {
    /// Name of the Service's port that this one resolves.
    pub name: String,
    /// Protocol and port on the backend.
    pub port: VipPort,
}

/// An endpoint of an EndpointSlice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Endpoint {
    /// First of its addresses; the API says that all are alike.
    pub address: Ipv4Addr,
    /// Takes new clients; absent condition: yes.
    pub ready: bool,
    /// Serves, but is going away: good enough where nothing is ready.
    pub draining: bool,
}

/// A Service as the API sends it, in as far as it is read.
#[derive(Clone, Debug, Deserialize)]
pub struct WireService {
    #[serde(default, deserialize_with = "described")]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Option<WireServiceSpec>,
    #[serde(default)]
    status: Option<WireServiceStatus>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WireServiceSpec {
    r#type: Option<String>,
    load_balancer_class: Option<String>,
    #[serde(rename = "loadBalancerIP")]
    load_balancer_ip: Option<String>,
    load_balancer_source_ranges: Option<Vec<String>>,
    session_affinity: Option<String>,
    ports: Option<Vec<WirePort>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WireServiceStatus {
    load_balancer: Option<WireLoadBalancer>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct WireLoadBalancer {
    ingress: Option<Vec<Ingress>>,
}

/// A port of a Service or of an EndpointSlice.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct WirePort {
    name: Option<String>,
    protocol: Option<String>,
    /// In an EndpointSlice the API takes any number, and one that could not be read would cost the whole list.
    port: Option<i64>,
}

impl WirePort {
    fn vip_port(&self) -> Option<VipPort> {
        let port = self.port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0)?;
        Some(VipPort { protocol: Protocol::parse(self.protocol.as_deref())?, port })
    }
}

/// An EndpointSlice as the API sends it, in as far as it is read.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WireSlice {
    #[serde(default, deserialize_with = "described")]
    metadata: ObjectMeta,
    #[serde(default)]
    address_type: String,
    // Both are null, not absent, where a Service has no endpoints.
    #[serde(default)]
    ports: Option<Vec<WirePort>>,
    #[serde(default)]
    endpoints: Option<Vec<WireEndpoint>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct WireEndpoint {
    addresses: Option<Vec<String>>,
    conditions: Option<WireConditions>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
struct WireConditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

/// An API object of which a part is kept.
pub trait Slim: Sized {
    /// What the API sends.
    type Wire;

    /// The part that is kept; `None` if nothing of the object is of use.
    fn slim(wire: &Self::Wire) -> Option<Self>;
}

/// Namespace and name of an object; `None` for one without a name, which the API never sends.
pub fn name_of(metadata: &ObjectMeta) -> Option<ObjectName> {
    Some(ObjectName { namespace: metadata.namespace.clone().unwrap_or_default(), name: metadata.name.clone()? })
}

impl Slim for Service {
    type Wire = WireService;

    fn slim(wire: &WireService) -> Option<Self> {
        let WireService { metadata, spec, status } = wire;
        let spec = spec.clone().unwrap_or_default();
        let ingress = status.clone().and_then(|s| s.load_balancer).and_then(|l| l.ingress).unwrap_or_default();
        let load_balancer = spec.r#type.as_deref() == Some("LoadBalancer");
        // One that was ours may still carry our address, though it is no LoadBalancer any more.
        if !load_balancer && ingress.is_empty() {
            return None;
        }
        let annotation = |key: &str| metadata.annotations.as_ref().and_then(|all| all.get(key)).cloned();
        let filled = |text: &String| !text.trim().is_empty();
        let port = |p: &WirePort| Some(ServicePort { name: p.name.clone().unwrap_or_default(), port: p.vip_port()? });
        Some(Service {
            name: name_of(metadata)?,
            uid: metadata.uid.clone().unwrap_or_default(),
            resource_version: metadata.resource_version.clone().unwrap_or_default(),
            created: metadata.creation_timestamp.as_ref().map_or(i64::MAX, |time| time.0.as_second()),
            deleting: metadata.deletion_timestamp.is_some(),
            load_balancer,
            class: spec.load_balancer_class.filter(filled),
            tunnel: annotation(TUNNEL_ANNOTATION).filter(filled),
            addresses: annotation(KUBE_VIP_ADDRESSES).filter(filled).or(spec.load_balancer_ip.filter(filled)),
            ignore: annotation(KUBE_VIP_IGNORE).is_some_and(|text| text.trim() == "true"),
            ports: spec.ports.iter().flatten().filter_map(port).collect(),
            client_ip_affinity: spec.session_affinity.as_deref() == Some("ClientIP"),
            source_ranges: spec.load_balancer_source_ranges.unwrap_or_default(),
            ingress,
        })
    }
}

impl Slim for EndpointSlice {
    type Wire = WireSlice;

    fn slim(wire: &WireSlice) -> Option<Self> {
        let WireSlice { metadata, address_type, ports, endpoints } = wire;
        if address_type != "IPv4" {
            return None;
        }
        let port = |p: &WirePort| Some(SlicePort { name: p.name.clone().unwrap_or_default(), port: p.vip_port()? });
        Some(EndpointSlice {
            name: name_of(metadata)?,
            service: metadata.labels.as_ref()?.get(SERVICE_NAME_LABEL)?.clone(),
            ports: ports.iter().flatten().filter_map(port).collect(),
            endpoints: endpoints.iter().flatten().filter_map(endpoint).collect(),
        })
    }
}

/// Absent conditions read as kube-proxy reads them (pkg/proxy/endpointslicecache.go): ready, serving, not terminating.
fn endpoint(wire: &WireEndpoint) -> Option<Endpoint> {
    let conditions = wire.conditions.unwrap_or_default();
    Some(Endpoint {
        address: wire.addresses.iter().flatten().next()?.parse().ok()?,
        ready: conditions.ready.unwrap_or(true),
        draining: conditions.serving.unwrap_or(true) && conditions.terminating.unwrap_or(false),
    })
}

macro_rules! resource {
    ($type:ty, $kind:literal, $group:literal, $version:literal, $plural:literal) => {
        impl kube::Resource for $type {
            type DynamicType = ();
            type Scope = NamespaceResourceScope;

            fn kind((): &()) -> Cow<'_, str> {
                $kind.into()
            }

            fn group((): &()) -> Cow<'_, str> {
                $group.into()
            }

            fn version((): &()) -> Cow<'_, str> {
                $version.into()
            }

            fn plural((): &()) -> Cow<'_, str> {
                $plural.into()
            }

            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

resource!(WireService, "Service", "", "v1", "services");
resource!(WireSlice, "EndpointSlice", "discovery.k8s.io", "v1", "endpointslices");
