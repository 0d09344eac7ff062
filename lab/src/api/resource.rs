//! The kinds that the sidecar and the lab use, and where each lives in the API. Pure.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    Namespace,
    Node,
    Pod,
    Secret,
    Service,
    ServiceAccount,
    Lease,
    EndpointSlice,
    Event,
    Role,
    RoleBinding,
    ClusterRole,
    ClusterRoleBinding,
}

/// Where a kind lives.
#[derive(Debug)]
pub struct Place {
    /// Empty for the core group.
    pub group: &'static str,
    pub version: &'static str,
    pub plural: &'static str,
    pub kind: &'static str,
    pub namespaced: bool,
    /// Whether it has a `/status` of its own, which writes to the object itself leave alone.
    pub status: bool,
}

const fn place(group: &'static str, plural: &'static str, kind: &'static str, namespaced: bool, status: bool) -> Place {
    Place { group, version: "v1", plural, kind, namespaced, status }
}

impl Resource {
    pub const ALL: [Self; 13] = [
        Self::Namespace,
        Self::Node,
        Self::Pod,
        Self::Secret,
        Self::Service,
        Self::ServiceAccount,
        Self::Lease,
        Self::EndpointSlice,
        Self::Event,
        Self::Role,
        Self::RoleBinding,
        Self::ClusterRole,
        Self::ClusterRoleBinding,
    ];

    /// Where this kind lives.
    pub fn place(self) -> &'static Place {
        const RBAC: &str = "rbac.authorization.k8s.io";
        match self {
            Self::Namespace => const { &place("", "namespaces", "Namespace", false, true) },
            Self::Node => const { &place("", "nodes", "Node", false, true) },
            Self::Pod => const { &place("", "pods", "Pod", true, true) },
            Self::Secret => const { &place("", "secrets", "Secret", true, false) },
            Self::Service => const { &place("", "services", "Service", true, true) },
            Self::ServiceAccount => const { &place("", "serviceaccounts", "ServiceAccount", true, false) },
            Self::Lease => const { &place("coordination.k8s.io", "leases", "Lease", true, false) },
            Self::EndpointSlice => const { &place("discovery.k8s.io", "endpointslices", "EndpointSlice", true, false) },
            Self::Event => const { &place("events.k8s.io", "events", "Event", true, false) },
            Self::Role => const { &place(RBAC, "roles", "Role", true, false) },
            Self::RoleBinding => const { &place(RBAC, "rolebindings", "RoleBinding", true, false) },
            Self::ClusterRole => const { &place(RBAC, "clusterroles", "ClusterRole", false, false) },
            Self::ClusterRoleBinding => {
                const { &place(RBAC, "clusterrolebindings", "ClusterRoleBinding", false, false) }
            }
        }
    }

    /// The kind that lives at a group, version and plural.
    pub fn at(group: &str, version: &str, plural: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|resource| {
            let place = resource.place();
            place.group == group && place.version == version && place.plural == plural
        })
    }

    /// Whether there is any kind in this group and version.
    pub fn has_group(group: &str, version: &str) -> bool {
        Self::ALL.iter().any(|resource| resource.place().group == group && resource.place().version == version)
    }

    /// The kind that an object says it is.
    pub fn of(object: &Value) -> Option<Self> {
        Self::ALL.into_iter().find(|resource| {
            object["kind"] == resource.place().kind && object["apiVersion"] == resource.api_version().as_str()
        })
    }

    /// `v1` or `group/v1`.
    pub fn api_version(self) -> String {
        let Place { group, version, .. } = self.place();
        if group.is_empty() { (*version).into() } else { format!("{group}/{version}") }
    }

    /// `leases.coordination.k8s.io`; `secrets`.
    pub fn qualified(self) -> String {
        let Place { group, plural, .. } = self.place();
        if group.is_empty() { (*plural).into() } else { format!("{plural}.{group}") }
    }

    /// `Lease.coordination.k8s.io`; `Secret`.
    pub fn qualified_kind(self) -> String {
        let Place { group, kind, .. } = self.place();
        // Events are one kind in two groups, kept in the core one's shape: that shines through.
        if self == Self::Event {
            return (*kind).into();
        }
        if group.is_empty() { (*kind).into() } else { format!("{kind}.{group}") }
    }

    /// The URL path of the collection, or of one object in it. An empty namespace means all, or none.
    pub fn path(self, namespace: &str, name: Option<&str>) -> String {
        let Place { group, version, plural, namespaced, .. } = self.place();
        let mut path = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
        if *namespaced && !namespace.is_empty() {
            path += &format!("/namespaces/{namespace}");
        }
        path += &format!("/{plural}");
        if let Some(name) = name {
            path += &format!("/{name}");
        }
        path
    }

    /// The object as its Go type would keep it: unknown fields gone, wrong types refused, empty options dropped.
    pub fn typed(self, object: Value) -> Result<Value, serde_json::Error> {
        match self {
            Self::Namespace => through::<Namespace>(object),
            Self::Node => through::<Node>(object),
            Self::Pod => through::<Pod>(object),
            Self::Secret => through::<Secret>(object),
            Self::Service => through::<Service>(object),
            Self::ServiceAccount => through::<ServiceAccount>(object),
            Self::Lease => through::<Lease>(object),
            Self::EndpointSlice => through::<EndpointSlice>(object),
            Self::Event => through::<Event>(object),
            Self::Role => through::<Role>(object),
            Self::RoleBinding => through::<RoleBinding>(object),
            Self::ClusterRole => through::<ClusterRole>(object),
            Self::ClusterRoleBinding => through::<ClusterRoleBinding>(object),
        }
    }
}

fn through<T: DeserializeOwned + Serialize>(object: Value) -> Result<Value, serde_json::Error> {
    serde_json::to_value(serde_json::from_value::<T>(object)?)
}
