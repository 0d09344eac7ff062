//! What the cluster answers. Every request is bounded by [`CALL_TIMEOUT`](crate::api::retry::CALL_TIMEOUT), and all go
//! out at once.

use std::fmt;

use futures::{StreamExt, stream};
use kube::Client;
use kube::api::ListParams;
use kube::core::Request;
use serde_json::Value;

use crate::api::chain;
use crate::api::retry::{CallError, bounded};
use crate::secret::is_subdomain;

/// Pods asked at one time: the API server dials each of them.
const AT_ONCE: usize = 32;
/// Objects in one answer, as kubectl asks for them.
const PAGE: u32 = 500;
/// Where `wirevip run` serves unless told otherwise.
const HTTP_PORT: u16 = 9586;

/// All that was read; where it could not be, why not, for people.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) namespace: String,
    pub(super) selector: String,
    pub(super) pods: Result<Vec<Pod>, String>,
    pub(super) leases: Result<Vec<Value>, String>,
    pub(super) services: Result<Vec<Value>, String>,
}

/// A pod, and what it says of itself.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) node: String,
    /// `Running`, …, or `Terminating`.
    pub(super) phase: String,
    pub(super) report: Result<Value, String>,
}

impl Seen {
    /// Why there is nothing at all to show, if so.
    pub(super) fn nothing(&self) -> Option<&str> {
        match (&self.pods, &self.leases, &self.services) {
            (Err(why), Err(_), Err(_)) => Some(why),
            _ => None,
        }
    }

    /// Was enough read to tell what the tunnels do?
    pub(super) fn suffices(&self) -> bool {
        let heard = |pods: &Vec<Pod>| pods.is_empty() || pods.iter().any(|pod| pod.report.is_ok());
        self.leases.is_ok() && self.pods.as_ref().is_ok_and(heard)
    }
}

/// Asks for everything.
pub(super) async fn everything(client: &Client, namespace: String, selector: &str, http_port: Option<u16>) -> Seen {
    let leases_at = format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases");
    let (pods, leases, services) = tokio::join!(
        pods(client, &namespace, selector, http_port),
        list(client, &leases_at, None),
        list(client, "/api/v1/services", None),
    );
    Seen { namespace, selector: selector.to_owned(), pods, leases, services }
}

async fn pods(client: &Client, namespace: &str, selector: &str, port: Option<u16>) -> Result<Vec<Pod>, String> {
    let at = format!("/api/v1/namespaces/{namespace}/pods");
    let pods = list(client, &at, Some(selector)).await?;
    let asked = pods.iter().map(|pod| ask(client, namespace, pod, port));
    Ok(stream::iter(asked).buffered(AT_ONCE).collect().await)
}

async fn ask(client: &Client, namespace: &str, pod: &Value, port: Option<u16>) -> Pod {
    let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let name = text("/metadata/name");
    let phase = match text("/metadata/deletionTimestamp").as_str() {
        "" => text("/status/phase"),
        _ => "Terminating".to_owned(),
    };
    let report = if !is_subdomain(&name) {
        Err("its name is no name of a pod".to_owned())
    } else if matches!(phase.as_str(), "Running" | "Terminating") {
        report(client, namespace, &name, port.or_else(|| declared_port(pod)).unwrap_or(HTTP_PORT)).await
    } else {
        let waits = waiting(pod).map(|why| format!(", {why}")).unwrap_or_default();
        Err(format!("it does not run ({phase}{waits}); see kubectl -n {namespace} describe pod {name}"))
    };
    Pod { name, uid: text("/metadata/uid"), node: text("/spec/nodeName"), phase, report }
}

/// The container port called `http`, as the chart declares it.
fn declared_port(pod: &Value) -> Option<u16> {
    let containers = pod.pointer("/spec/containers")?.as_array()?;
    let mut ports = containers.iter().filter_map(|container| container["ports"].as_array()).flatten();
    let port = ports.find(|port| port["name"] == "http")?["containerPort"].as_u64()?;
    u16::try_from(port).ok().filter(|port| *port > 0)
}

/// What a container that has not started waits for, e.g. `ImagePullBackOff`.
fn waiting(pod: &Value) -> Option<&str> {
    let containers = pod.pointer("/status/containerStatuses")?.as_array()?;
    containers.iter().find_map(|container| container.pointer("/state/waiting/reason")?.as_str())
}

async fn report(client: &Client, namespace: &str, pod: &str, port: u16) -> Result<Value, String> {
    let at = format!("/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy/status");
    let request = http::Request::get(at).body(vec![]).map_err(|error| error.to_string())?;
    let text = bounded(client.request_text(request)).await.map_err(|error| match (error.code(), &error) {
        // The API server's own 404 names a reason; that of the pod is passed on as it is.
        (Some(404), CallError::Failed(kube::Error::Api(status))) if status.reason == "NotFound" => {
            "it is gone".to_owned()
        }
        (Some(404), _) => format!("it has no /status on port {port}: it is an older wirevip, or none"),
        (Some(500..), CallError::Failed(kube::Error::Api(status))) => {
            format!("it does not answer on port {port}: {}; is --http-port that of its --http-addr?", status.message)
        }
        _ => why(&error),
    })?;
    serde_json::from_str(&text).map_err(|_| format!("its answer on port {port} is no JSON: is that wirevip's port?"))
}

/// All objects of a collection, page by page.
async fn list(client: &Client, at: &str, selector: Option<&str>) -> Result<Vec<Value>, String> {
    let mut params = ListParams::default().limit(PAGE);
    if let Some(selector) = selector {
        params = params.labels(selector);
    }
    let mut all = Vec::new();
    loop {
        let request = Request::new(at).list(&params).map_err(|error| error.to_string())?;
        let mut page: Value = bounded(client.request(request)).await.map_err(|error| why(&error))?;
        match page["items"].take() {
            Value::Array(items) => all.extend(items),
            Value::Null => {}
            _ => return Err(format!("the answer to {at} is no list; is this the API server?")),
        }
        match page.pointer("/metadata/continue").and_then(Value::as_str) {
            Some(more) if !more.is_empty() && params.continue_token.as_deref() != Some(more) => {
                params = params.continue_token(more);
            }
            _ => return Ok(all),
        }
    }
}

/// Why a call came to nothing, and what to do.
fn why(error: &CallError) -> String {
    let told = |told: &dyn fmt::Display| told.to_string();
    match error {
        CallError::Timeout(_) => told(error),
        CallError::Failed(kube::Error::Api(status)) => match status.code {
            401 => {
                "the API server does not know who you are (401); check the credentials in your kubeconfig".to_owned()
            }
            403 => format!("not allowed: {}; ask the cluster's administrator for this right", status.message),
            code => format!("the API server answered {code}: {}", status.message),
        },
        CallError::Failed(kube::Error::SerdeError(_)) => {
            "the answer is no JSON; check that the server in your kubeconfig is a Kubernetes API server".to_owned()
        }
        CallError::Failed(error) => {
            format!("the API server does not answer: {}; check the server in your kubeconfig", chain(error))
        }
    }
}
