//! Certificates, bearer tokens and kubeconfigs: who the API server is, and who its clients are.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use serde_json::{Value, json};

use super::rbac::Who;

/// A client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// May do everything.
    Admin,
    /// The chart's ServiceAccount; the pod's name tells the requests of several apart.
    Sidecar(String),
}

/// An authority and a server certificate of it, as PEM and DER.
#[derive(Debug)]
pub struct Certificates {
    pub authority_pem: String,
    pub server_pem: String,
    pub key_pem: String,
    pub server_der: Vec<u8>,
    pub key_der: Vec<u8>,
}

impl Certificates {
    /// A fresh authority, and a server certificate for these names and addresses.
    pub fn issue(names: &[String]) -> Result<Self> {
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        authority.distinguished_name.push(DnType::CommonName, "lab");
        let authority_key = KeyPair::generate()?;
        let authority_pem = authority.self_signed(&authority_key)?.pem();
        let issuer = Issuer::new(authority, authority_key);
        let mut server = CertificateParams::new(names).context("a name for the API server's certificate is bad")?;
        server.distinguished_name.push(DnType::CommonName, "kube-apiserver");
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate()?;
        let certificate = server.signed_by(&key, &issuer)?;
        Ok(Self {
            authority_pem,
            server_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            server_der: certificate.der().to_vec(),
            key_der: key.serialize_der(),
        })
    }

    /// The names every API server's certificate has, and these.
    pub fn names(address: IpAddr, more: &[String]) -> Vec<String> {
        let usual =
            ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost", "127.0.0.1", "10.96.0.1"];
        let mut names: Vec<String> = usual.into_iter().map(str::to_owned).collect();
        names.push(address.to_string());
        names.extend(more.iter().cloned());
        names.dedup();
        names
    }
}

/// How many sidecars may have names of their own: the real API server reads its tokens once, at its start.
const SIDECARS: usize = 64;

/// The bearer tokens: one of the administrator, then one a sidecar, given out in the order of asking.
#[derive(Debug)]
pub struct Tokens {
    namespace: String,
    secrets: Vec<String>,
    pods: Mutex<Vec<String>>,
}

impl Tokens {
    /// Fresh ones, for the ServiceAccount `wirevip` of this namespace.
    pub fn new(namespace: &str) -> Self {
        let secrets = (0..=SIDECARS).map(|_| format!("{:032x}", rand::random::<u128>())).collect();
        Self { namespace: namespace.into(), secrets, pods: Mutex::default() }
    }

    /// The token of a user; the last one is shared by all sidecars beyond the sixty-fourth.
    pub fn of(&self, user: &User) -> &str {
        let User::Sidecar(pod) = user else { return &self.secrets[0] };
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let at = pods.iter().position(|name| name == pod).unwrap_or_else(|| {
            pods.push(pod.clone());
            pods.len() - 1
        });
        &self.secrets[1 + at.min(SIDECARS - 1)]
    }

    /// Whose token it is: for the authorizer, and for people ([`Self::label`]).
    pub fn who(&self, token: &str) -> Option<(Who, String)> {
        let at = self.secrets.iter().position(|secret| secret == token)?;
        Some((self.identity(at), self.label(&at.to_string())?))
    }

    /// What a user is called in [`super::Request`]: `admin`, or the pod's name. `uid` is that of the token file.
    pub fn label(&self, uid: &str) -> Option<String> {
        let at: usize = uid.parse().ok()?;
        let pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        Some(match at.checked_sub(1) {
            None => "admin".into(),
            Some(pod) => pods.get(pod).cloned().unwrap_or_else(|| format!("sidecar-{pod}")),
        })
    }

    /// kube-apiserver's `--token-auth-file`: token, user, uid, groups.
    pub fn file(&self) -> String {
        let line = |(at, secret): (usize, &String)| {
            let Who { name, groups } = self.identity(at);
            format!("{secret},{name},{at},\"{}\"\n", groups.join(","))
        };
        self.secrets.iter().enumerate().map(line).collect()
    }

    fn identity(&self, at: usize) -> Who {
        if at == 0 {
            return Who { name: "admin".into(), groups: vec!["system:masters".into(), AUTHENTICATED.into()] };
        }
        sidecar(&self.namespace)
    }
}

const AUTHENTICATED: &str = "system:authenticated";

/// The chart's ServiceAccount in this namespace.
fn sidecar(namespace: &str) -> Who {
    let groups = ["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}"), AUTHENTICATED.into()];
    Who { name: format!("system:serviceaccount:{namespace}:wirevip"), groups: groups.into() }
}

/// May the ServiceAccount of `home` do what this rule of RBAC says, in `namespace` (empty: in all)? As the specs of
/// SubjectAccessReviews, one for each thing that the rule names.
pub fn reviews(home: &str, namespace: &str, rule: &Value) -> Vec<Value> {
    let words = |key: &str| {
        let words = rule[key].as_array().into_iter().flatten();
        words.filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>()
    };
    let Who { name: user, groups } = sidecar(home);
    let mut names = words("resourceNames");
    if names.is_empty() {
        names.push(String::new());
    }
    let mut reviews = Vec::new();
    for group in words("apiGroups") {
        for full in words("resources") {
            let (resource, subresource) = full.split_once('/').unwrap_or((&full, ""));
            for (verb, name) in words("verbs").iter().flat_map(|verb| names.iter().map(move |name| (verb, name))) {
                reviews.push(json!({ "user": user, "groups": groups, "resourceAttributes": {
                    "namespace": namespace, "group": group, "resource": resource, "subresource": subresource,
                    "verb": verb, "name": name,
                } }));
            }
        }
    }
    reviews
}

/// A kubeconfig for `server` (`https://…`).
pub fn kubeconfig(server: &str, authority_pem: &str, namespace: &str, token: &str) -> String {
    let authority = STANDARD.encode(authority_pem);
    format!(
        "apiVersion: v1
kind: Config
current-context: lab
clusters:
- name: lab
  cluster: {{server: \"{server}\", certificate-authority-data: {authority}}}
users:
- name: lab
  user: {{token: \"{token}\"}}
contexts:
- name: lab
  context: {{cluster: lab, user: lab, namespace: {namespace}}}
"
    )
}
