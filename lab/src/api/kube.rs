//! The lab's own hand on the API: blocking, from any thread, its connections made inside a namespace.

use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::http::{Request, header};
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use tokio::sync::mpsc as async_mpsc;

use super::resource::Resource;
use crate::netns::Netns;

/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// A request that was not granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The HTTP status code; 0 if there was no answer.
    pub code: u16,
    /// `NotFound`, `Conflict`, …; empty if there was no answer.
    pub reason: String,
    pub message: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} ({} {})", self.message, self.code, self.reason)
    }
}

impl std::error::Error for Refused {}

/// The answer to a request.
pub type Answer = Result<Value, Refused>;

/// A client of the API server, from inside its namespace. Clones share one connection pool.
#[derive(Clone, Debug)]
pub struct Kube {
    jobs: async_mpsc::UnboundedSender<Job>,
}

#[derive(Debug)]
struct Job {
    method: &'static str,
    path: String,
    content: Option<(&'static str, Value)>,
    answer: mpsc::Sender<Answer>,
}

impl Kube {
    /// A client with this kubeconfig, whose connections begin in this namespace.
    pub fn new(netns: &Netns, kubeconfig: &str) -> Result<Self> {
        let (jobs, inbox) = async_mpsc::unbounded_channel();
        let (netns, kubeconfig, (ready, made)) = (netns.clone(), kubeconfig.to_owned(), mpsc::channel());
        let run = move || {
            let ended = netns.run(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(work(&kubeconfig, inbox, &ready));
                Ok(())
            });
            // Without the namespace there is no client: the asker sees the closed channel.
            drop(ended);
        };
        std::thread::Builder::new().name("lab-kube".into()).spawn(run)?;
        made.recv().context("the client's thread could not enter the namespace")??;
        Ok(Self { jobs })
    }

    /// Any request: a path with its query, and a body with its media type. A text that is no JSON is answered as a string.
    pub fn request(&self, method: &'static str, path: &str, content: Option<(&'static str, Value)>) -> Answer {
        let lost = |what: &str| Refused { code: 0, reason: String::new(), message: what.into() };
        let (answer, answered) = mpsc::channel();
        let job = Job { method, path: path.into(), content, answer };
        self.jobs.send(job).map_err(|_| lost("the client's thread is gone"))?;
        answered.recv().unwrap_or_else(|_| Err(lost("the client's thread is gone")))
    }

    pub fn get(&self, resource: Resource, namespace: &str, name: &str) -> Answer {
        self.request("GET", &resource.path(namespace, Some(name)), None)
    }

    /// The items, each as it lies in the list; an empty namespace means all.
    pub fn list(&self, resource: Resource, namespace: &str) -> Result<Vec<Value>, Refused> {
        let mut list = self.request("GET", &resource.path(namespace, None), None)?;
        Ok(list["items"].as_array_mut().map(std::mem::take).unwrap_or_default())
    }

    pub fn create(&self, resource: Resource, object: Value) -> Answer {
        self.request("POST", &resource.path(&namespace(&object), None), Some(("application/json", object)))
    }

    /// PUT: a `resourceVersion` in the object is a precondition.
    pub fn replace(&self, resource: Resource, object: Value) -> Answer {
        let path = resource.path(&namespace(&object), Some(&name(&object)));
        self.request("PUT", &path, Some(("application/json", object)))
    }

    /// Makes it so: creates the object, or replaces it, whatever its version.
    pub fn apply(&self, resource: Resource, mut object: Value) -> Answer {
        loop {
            match self.create(resource, object.clone()) {
                Err(refused) if refused.reason == "AlreadyExists" => {}
                other => return other,
            }
            let now = match self.get(resource, &namespace(&object), &name(&object)) {
                Err(refused) if refused.code == 404 => continue,
                other => other?,
            };
            object["metadata"]["resourceVersion"] = now["metadata"]["resourceVersion"].clone();
            match self.replace(resource, object.clone()) {
                Err(refused) if refused.code == 404 || refused.reason == "Conflict" => {
                    object["metadata"]["resourceVersion"] = "".into();
                }
                other => return other,
            }
        }
    }

    /// A merge patch: null removes, lists are replaced whole.
    pub fn patch(&self, resource: Resource, namespace: &str, name: &str, patch: Value) -> Answer {
        let path = resource.path(namespace, Some(name));
        self.request("PATCH", &path, Some(("application/merge-patch+json", patch)))
    }

    /// A merge patch of `{"status": …}`.
    pub fn patch_status(&self, resource: Resource, namespace: &str, name: &str, patch: Value) -> Answer {
        let path = format!("{}/status", resource.path(namespace, Some(name)));
        self.request("PATCH", &path, Some(("application/merge-patch+json", patch)))
    }

    /// Deletes at once; what is not there is deleted already.
    pub fn delete(&self, resource: Resource, namespace: &str, name: &str) -> Result<(), Refused> {
        let options = json!({ "kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0 });
        let path = resource.path(namespace, Some(name));
        match self.request("DELETE", &path, Some(("application/json", options))) {
            Err(refused) if refused.code != 404 => Err(refused),
            _ => Ok(()),
        }
    }

    /// What a pod answers on `port`, through the API server's proxy, e.g. `/status`.
    pub fn pod_proxy(&self, namespace: &str, pod: &str, port: u16, path: &str) -> Answer {
        let pod = Resource::Pod.path(namespace, Some(&format!("{pod}:{port}")));
        self.request("GET", &format!("{pod}/proxy{path}"), None)
    }
}

async fn work(kubeconfig: &str, mut inbox: async_mpsc::UnboundedReceiver<Job>, ready: &mpsc::Sender<Result<()>>) {
    let client = match client(kubeconfig).await {
        Ok(client) => client,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    let _ = ready.send(Ok(()));
    while let Some(job) = inbox.recv().await {
        let client = client.clone();
        tokio::spawn(async move {
            let answer = send(&client, job.method, &job.path, job.content).await;
            // The asker may have given up.
            let _ = job.answer.send(answer);
        });
    }
}

/// A kube client for this kubeconfig, to be used on the thread's own runtime.
pub async fn client(kubeconfig: &str) -> Result<Client> {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig)?;
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    // By default kube asks again by itself after a 429, 503 or 504: here every answer counts.
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}

async fn send(client: &Client, method: &str, path: &str, content: Option<(&str, Value)>) -> Answer {
    let lost = |message: String| Refused { code: 0, reason: String::new(), message };
    let mut request = Request::builder().method(method).uri(path);
    let mut body = Vec::new();
    if let Some((kind, content)) = content {
        request = request.header(header::CONTENT_TYPE, kind);
        body = content.to_string().into_bytes();
    }
    let request = request.body(body).map_err(|error| lost(error.to_string()))?;
    let asked = tokio::time::timeout(PATIENCE, client.request_text(request));
    match asked.await {
        Err(_) => Err(lost(format!("{method} {path}: no answer within {PATIENCE:?}"))),
        Ok(Err(kube::Error::Api(status))) => {
            let status = *status;
            Err(Refused { code: status.code, reason: status.reason, message: status.message })
        }
        Ok(Ok(text)) => Ok(serde_json::from_str(&text).unwrap_or(Value::String(text))),
        Ok(answer) => answer
            .map(Value::String)
            .map_err(|error| lost(format!("{method} {path}: {:#}", anyhow::Error::from(error)))),
    }
}

fn namespace(object: &Value) -> String {
    object["metadata"]["namespace"].as_str().unwrap_or_default().into()
}

fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or_default().into()
}
