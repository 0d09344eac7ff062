//! What is known of talking to the API server: which call was made, whether it is allowed, what stands in its way.
//!
//! What must hold: an operator reads which call fails and what to change; a call that works again is forgotten.

pub mod client;
pub mod meta;
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
}

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
            _ => return Call { verb: "get", group: String::new(), resource: "other".to_owned(), namespace: None },
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
        Call { verb, group, resource, namespace }
    }

    /// The RBAC rule that allows this call, as one line of YAML.
    pub fn rule(&self) -> String {
        let Call { verb, group, resource, namespace: _ } = self;
        // A watch that may not list is of no use, nor the other way round.
        let verbs = match *verb {
            "list" | "watch" => "list, watch",
            verb => verb,
        };
        format!("{{apiGroups: [\"{group}\"], resources: [{resource}], verbs: [{verbs}]}}")
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
