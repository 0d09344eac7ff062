//! What is known of talking to the API server: which call was made, whether it is allowed, what stands in its way.
//!
//! What must hold: an operator reads which call fails and what to change; a call that works again is forgotten.

pub mod client;
pub mod meta;
mod pace;
pub mod retry;
mod watchful;

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::fmt;

use http::Method;

/// One kind of call, as RBAC and `wirevip_api_requests_total` see it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Call {
    /// `get`, `list`, `watch`, `create`, `update`, `patch` or `delete`.
    pub verb: &'static str,
    /// API group; empty for the core group.
    pub group: String,
    /// Plural, with its subresource: `services/status`.
    pub resource: String,
    /// Namespace; `None`: all of them, or no namespaced resource.
    pub namespace: Option<String>,
    /// The one object, where the right is bound to a name: Secrets.
    pub object: Option<String>,
}

/// Verbs of the rules that the sidecar needs, by resource: whoever lacks one verb is told the whole rule, not one verb
/// at a time. A watch that may not list is of no use, nor the other way round.
const VERBS: [(&str, &str); 4] = [
    ("secrets", "get, list, watch"),
    ("leases", "get, list, watch, create, update"),
    ("events", "create, patch"),
    ("services/status", "patch"),
];

impl Call {
    /// Reads a call off a request line. Paths that are no resource (`/version`) are a resource `other`.
    pub fn of(method: &Method, path: &str, query: Option<&str>) -> Self {
        let mut parts = path.split('/').filter(|part| !part.is_empty());
        let group = match parts.next() {
            Some("api") => {
                parts.next();
                String::new()
            }
            Some("apis") => {
                let group = parts.next().unwrap_or_default().to_owned();
                parts.next();
                group
            }
            _ => {
                let (group, resource) = (String::new(), "other".to_owned());
                return Call { verb: "get", group, resource, namespace: None, object: None };
            }
        };
        let rest: Vec<&str> = parts.collect();
        let (namespace, rest) = match rest.as_slice() {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some((*namespace).to_owned()), rest),
            rest => (None, rest),
        };
        let watches = query.is_some_and(|q| q.split('&').any(|pair| matches!(pair, "watch=true" | "watch=1")));
        let resource = match rest {
            [] => "other".to_owned(),
            [resource, _, sub, ..] => format!("{resource}/{sub}"),
            [resource, ..] => (*resource).to_owned(),
        };
        let verb = match *method {
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ if watches => "watch",
            _ if rest.len() > 1 => "get",
            _ => "list",
        };
        let object = match rest {
            ["secrets", name, ..] => Some((*name).to_owned()),
            ["secrets"] => query.and_then(selected_name),
            _ => None,
        };
        Call { verb, group, resource, namespace, object }
    }

    /// The same wherever it is, if the right to it is one for all namespaces: one that is refused in a namespace that is
    /// on its way out would never be made there again, and so never be known to work.
    fn anywhere(self) -> Self {
        match self.resource.as_str() {
            "events" | "services/status" => Self { namespace: None, ..self },
            _ => self,
        }
    }

    /// The RBAC rule that allows this call, as one line of YAML.
    pub fn rule(&self) -> String {
        let Call { verb, group, resource, namespace: _, object } = self;
        let verbs = match (VERBS.iter().find(|(of, _)| of == resource), *verb) {
            (Some((_, verbs)), _) => verbs,
            (None, "list" | "watch") => "list, watch",
            (None, verb) => verb,
        };
        // Without the name the right would be one to read every Secret there is.
        let names = object.as_ref().map(|name| format!(", resourceNames: [{name}]")).unwrap_or_default();
        format!("{{apiGroups: [\"{group}\"], resources: [{resource}]{names}, verbs: [{verbs}]}}")
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        match &self.namespace {
            Some(namespace) => write!(f, " in namespace {namespace}"),
            None => Ok(()),
        }
    }
}

/// The name that a list or watch is narrowed to: `fieldSelector=metadata.name=…`, as clients encode it.
fn selected_name(query: &str) -> Option<String> {
    let selector = query.split('&').find_map(|pair| pair.strip_prefix("fieldSelector=metadata.name"))?;
    let name = selector.strip_prefix("%3D").or_else(|| selector.strip_prefix('='))?;
    // A name has no character that needs encoding; whatever else stands there is no plain name.
    name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.')).then(|| name.to_owned())
}

/// Why calls fail. Each says what to do.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ApiFault {
    /// RBAC says no.
    #[error("not allowed to {call}; add to the {role} wirevip: {}", call.rule())]
    Forbidden {
        /// The call.
        call: Call,
        /// Where the rule belongs.
        role: &'static str,
    },
    /// The token or certificate is not accepted.
    #[error(
        "the API server does not know who we are (401); check that the ServiceAccount exists and that its token is \
         mounted and not expired, or the credentials in the kubeconfig"
    )]
    Unauthorized,
    /// The server's certificate is not to be trusted.
    #[error(
        "the API server's certificate is refused: {cause}; check the cluster's CA (the kubeconfig's \
         certificate-authority, or ca.crt beside the ServiceAccount token) and that the certificate names the address"
    )]
    Certificate {
        /// What TLS says.
        cause: String,
    },
    /// No answer.
    #[error("the API server does not answer: {cause}; check the network and that it runs")]
    Unreachable {
        /// What the connection says.
        cause: String,
    },
}

impl ApiFault {
    fn forbidden(call: Call) -> Self {
        let role = if call.namespace.is_some() && matches!(call.resource.as_str(), "secrets" | "leases") {
            "Role"
        } else {
            "ClusterRole"
        };
        ApiFault::Forbidden { call, role }
    }

    /// What a request without an answer failed of.
    fn of_transport(error: &(dyn StdError + 'static)) -> Self {
        let cause = chain(error);
        // rustls' own words; its errors come boxed in io errors of several layers.
        match cause.find("invalid peer certificate") {
            Some(at) => ApiFault::Certificate { cause: cause[at..].to_owned() },
            None => ApiFault::Unreachable { cause },
        }
    }
}

/// An error with all its causes, each told once.
pub fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        next = cause.source();
    }
    text
}

/// What keeps which call from working now. Empty: all is well.
pub type ApiFaults = BTreeMap<Call, ApiFault>;

#[cfg(test)]
mod tests;
