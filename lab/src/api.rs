//! The cluster's API server: a small stand-in of our own, or a real kube-apiserver and etcd. `tests/api.rs` holds the
//! first to the second.
//!
//! What must hold: both are used in the same way, with the same users, the same rules (RBAC objects that lie in the
//! API itself) and the same addresses; a fault on demand is only the stand-in's.

mod admit;
mod discovery;
mod embedded;
mod failure;
pub mod faults;
mod identity;
pub mod kube;
mod listing;
mod rbac;
mod real;
mod resource;
mod route;
mod selector;
mod serve;
mod store;
mod watching;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use serde_json::{Value, json};

use self::embedded::Embedded;
pub use self::faults::Faults;
pub use self::identity::User;
use self::identity::{Certificates, Tokens};
pub use self::kube::{Kube, Refused};
use self::real::Real;
pub use self::resource::Resource;
use self::serve::Server;
use crate::clock::{now, paced, until};
use crate::netns::Netns;

/// Which API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The stand-in, in this process.
    Embedded,
    /// kube-apiserver and etcd, as processes.
    Real,
}

/// What may be said beyond the address.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The sidecars' namespace; it is made, with the ServiceAccount `wirevip` and its rules.
    pub namespace: String,
    /// More names and addresses for the certificate, e.g. the hub's and the VIPs.
    pub names: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { namespace: "wirevip".into(), names: Vec::new() }
    }
}

/// A request that was answered, or cut.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// When it came, by the wall clock.
    pub at: Timestamp,
    /// The pod's name for a sidecar, `admin` for the lab itself, else the user name; empty if it has none.
    pub user: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`; empty for what is not an object.
    pub verb: String,
    /// `leases`, `services/status`.
    pub resource: String,
    pub namespace: String,
    /// Also the one name that a list or watch is about.
    pub name: String,
    /// The HTTP status code; 0 if the reply was lost on demand.
    pub code: u16,
}

/// A running API server. Dropping it ends it.
pub struct ApiServer {
    netns: Netns,
    address: SocketAddr,
    settings: Settings,
    authority_pem: String,
    tokens: Arc<Tokens>,
    kube: Kube,
    backend: Backend,
}

enum Backend {
    Embedded(Embedded),
    Real(Real),
}

impl ApiServer {
    /// Starts one that serves https on `address`, which the namespace must have, and waits until it answers.
    pub fn start(kind: Kind, netns: &Netns, address: SocketAddr) -> Result<Self> {
        Self::start_with(kind, netns, address, Settings::default())
    }

    /// The same, with settings.
    pub fn start_with(kind: Kind, netns: &Netns, address: SocketAddr, settings: Settings) -> Result<Self> {
        let certificates = Certificates::issue(&Certificates::names(address.ip(), &settings.names))?;
        let tokens = Arc::new(Tokens::new(&settings.namespace));
        let backend = match kind {
            Kind::Embedded => {
                let server = Arc::new(Server::new(tokens.clone()));
                Backend::Embedded(Embedded::start(netns, address, &certificates, server)?)
            }
            Kind::Real => Backend::Real(Real::start(netns, address, &certificates, &tokens)?),
        };
        let authority_pem = certificates.authority_pem;
        let admin = tokens.of(&User::Admin);
        let kubeconfig = identity::kubeconfig(&https(&address), &authority_pem, &settings.namespace, admin);
        let kube = Kube::new(netns, &kubeconfig)?;
        let api = Self { netns: netns.clone(), address, settings, authority_pem, tokens, kube, backend };
        api.await_ready()?;
        api.furnish()?;
        Ok(api)
    }

    /// A kubeconfig for this user.
    pub fn kubeconfig(&self, user: User) -> String {
        self.kubeconfig_at(user, &self.address.to_string())
    }

    /// The same through another `host:port`, e.g. a VIP; its host must be one of [`Settings::names`].
    pub fn kubeconfig_at(&self, user: User, address: &str) -> String {
        identity::kubeconfig(&https(&address), &self.authority_pem, &self.settings.namespace, self.tokens.of(&user))
    }

    /// The lab's own client, which may do everything.
    pub fn kube(&self) -> Kube {
        self.kube.clone()
    }

    /// A client of this user.
    pub fn kube_as(&self, user: User) -> Result<Kube> {
        Kube::new(&self.netns, &self.kubeconfig(user))
    }

    /// The API goes away: connections are cut, new ones refused. Its data stay.
    pub fn stop(&mut self) -> Result<()> {
        match &mut self.backend {
            Backend::Embedded(embedded) => embedded.stop(),
            Backend::Real(real) => real.stop(),
        }
    }

    /// The API is back on the same address with the same data; returns when it answers.
    pub fn resume(&mut self) -> Result<()> {
        match &mut self.backend {
            Backend::Embedded(embedded) => embedded.resume()?,
            Backend::Real(real) => real.resume()?,
        }
        self.await_ready()
    }

    /// From now on connections are accepted by the kernel, and nobody answers.
    pub fn freeze(&mut self) -> Result<()> {
        match &mut self.backend {
            Backend::Embedded(embedded) => embedded.freeze(),
            Backend::Real(real) => real.freeze(),
        }
    }

    /// Everything that waited is answered now.
    pub fn thaw(&mut self) -> Result<()> {
        match &mut self.backend {
            Backend::Embedded(embedded) => {
                embedded.thaw();
                Ok(())
            }
            Backend::Real(real) => real.thaw(),
        }
    }

    /// Every request for objects so far, in the order of their answers.
    pub fn requests(&self) -> Vec<Request> {
        match &self.backend {
            Backend::Embedded(embedded) => embedded.server.requests(),
            Backend::Real(real) => real.requests(&self.tokens),
        }
    }

    /// Faults on demand; an error for the real one, which has none.
    pub fn faults(&self) -> Result<&Faults> {
        Ok(&self.embedded()?.server.faults)
    }

    /// Forgets the history, so that a watch from an earlier version gets 410. The real one is restarted for it: its
    /// watch cache remembers nothing from before its start.
    pub fn compact(&mut self) -> Result<()> {
        if let Backend::Embedded(embedded) = &self.backend {
            embedded.server.compact();
            return Ok(());
        }
        self.stop()?;
        self.resume()
    }

    /// An error with the end of its log if a process of it has ended by itself.
    pub fn expect_running(&self) -> Result<()> {
        match &self.backend {
            Backend::Embedded(_) => Ok(()),
            Backend::Real(real) => real.expect_running(),
        }
    }

    fn embedded(&self) -> Result<&Embedded> {
        match &self.backend {
            Backend::Embedded(embedded) => Ok(embedded),
            Backend::Real(_) => {
                bail!("only the embedded API server has faults on demand; start it with Kind::Embedded")
            }
        }
    }

    fn await_ready(&self) -> Result<()> {
        let deadline = now() + paced(real::PATIENCE);
        loop {
            self.expect_running()?;
            match self.ready() {
                Ok(()) => return Ok(()),
                Err(refused) if now() >= deadline => {
                    bail!("the API server on {} did not get ready within {:?}: {refused}", self.address, real::PATIENCE)
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// The real one answers before it has made its first namespaces, and before it knows which addresses it may give:
    /// then each is taken ("range is full"). What is asked for in a dry run stays nobody's.
    fn ready(&self) -> Result<(), Refused> {
        let kube = self.kube();
        if let Backend::Embedded(_) = self.backend {
            return kube.list(Resource::Namespace, "").map(drop);
        }
        let service = json!({ "metadata": { "generateName": "ready-" }, "spec": { "ports": [{ "port": 1 }] } });
        let path = format!("{}?dryRun=All", Resource::Service.path("default", None));
        kube.request("POST", &path, Some(("application/json", service)))?;
        kube.request("GET", "/readyz", None).map(drop)
    }

    /// What a cluster has before anybody installs anything, and the sidecar's rights.
    fn furnish(&self) -> Result<()> {
        let kube = self.kube();
        let namespace = &self.settings.namespace;
        if let Backend::Embedded(_) = self.backend {
            for name in ["default", "kube-system"] {
                kube.apply(Resource::Namespace, json!({ "metadata": { "name": name } }))?;
            }
            self.furnish_control_plane(&kube)?;
        }
        kube.apply(Resource::Namespace, json!({ "metadata": { "name": namespace } }))?;
        for mut object in rights()? {
            let resource =
                Resource::of(&object).context("manifests/10-rbac.yaml has a kind that the lab does not know")?;
            if resource.place().namespaced {
                object["metadata"]["namespace"] = namespace.as_str().into();
            }
            for subject in object["subjects"].as_array_mut().into_iter().flatten() {
                subject["namespace"] = namespace.as_str().into();
            }
            kube.apply(resource, object)?;
        }
        for role in rights()?.iter().filter(|object| !object["rules"].is_null()) {
            self.wait_heeded(role, &[])?;
        }
        Ok(())
    }

    /// Waits until the sidecars may do what this Role or ClusterRole says, and nothing of what these rules say. The real one
    /// learns its own objects by watching them, so for a moment it answers by those of before; the stand-in looks them up.
    pub fn wait_heeded(&self, role: &Value, taken: &[Value]) -> Result<()> {
        if let Backend::Embedded(_) = self.backend {
            return Ok(());
        }
        let namespace = if role["kind"] == "Role" { self.settings.namespace.as_str() } else { "" };
        let given = role["rules"].as_array().map(Vec::as_slice).unwrap_or_default();
        for (rules, allowed) in [(given, true), (taken, false)] {
            for asked in rules.iter().flat_map(|rule| identity::reviews(&self.settings.namespace, namespace, rule)) {
                until(&format!("{allowed} as the answer to {asked}"), real::PATIENCE, || {
                    let review = json!({ "spec": asked });
                    let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
                    let answer = self.kube.request("POST", path, Some(("application/json", review)))?;
                    Ok((answer["status"]["allowed"] == allowed).then_some(()))
                })?;
            }
        }
        Ok(())
    }

    /// The Service `default/kubernetes` and its endpoints, which the real one keeps itself.
    fn furnish_control_plane(&self, kube: &Kube) -> Result<()> {
        let (ip, port) = (self.address.ip(), self.address.port());
        let metadata = |labels: Value| json!({ "name": "kubernetes", "namespace": "default", "labels": labels });
        let service = json!({
            "metadata": metadata(json!({ "component": "apiserver", "provider": "kubernetes" })),
            "spec": {
                "clusterIP": "10.96.0.1",
                "ports": [{ "name": "https", "port": 443, "targetPort": port, "protocol": "TCP" }],
            },
        });
        let slice = json!({
            "metadata": metadata(json!({ "kubernetes.io/service-name": "kubernetes" })),
            "addressType": if ip.is_ipv4() { "IPv4" } else { "IPv6" },
            "endpoints": [{ "addresses": [ip.to_string()], "conditions": { "ready": true } }],
            "ports": [{ "name": "https", "port": port, "protocol": "TCP" }],
        });
        kube.apply(Resource::Service, service)?;
        kube.apply(Resource::EndpointSlice, slice)?;
        Ok(())
    }
}

/// The ServiceAccount, Roles and bindings that a user installs: those of `manifests/`, and no others.
fn rights() -> Result<Vec<Value>> {
    const INSTALLED: &str = include_str!("../../manifests/10-rbac.yaml");
    serde_saphyr::from_multiple(INSTALLED).context("manifests/10-rbac.yaml is no YAML; run `make manifests`")
}

fn https(address: &impl std::fmt::Display) -> String {
    format!("https://{address}")
}
