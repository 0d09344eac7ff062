//! The seam over a cluster: one Lease through a kube client.
//!
//! Needs `get`, `list`, `watch`, `create` and `update` on `leases.coordination.k8s.io` in the Lease's namespace.

use std::time::Duration;

use futures::stream::{BoxStream, StreamExt};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::Client;
use kube::api::{ObjectMeta, PostParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, watch_object};

use super::{LeaseStore, Record, Sight, StoreError};

/// One Lease of a cluster.
#[derive(Clone, Debug)]
pub struct KubeLease {
    api: Api<Lease>,
    name: String,
}

impl KubeLease {
    /// The Lease of this name, which need not exist.
    pub fn new(client: Client, namespace: &str, name: impl Into<String>) -> Self {
        Self { api: Api::namespaced(client, namespace), name: name.into() }
    }
}

impl LeaseStore for KubeLease {
    async fn get(&self) -> Result<Lease, StoreError> {
        // Without a resourceVersion the API server reads from etcd, not from its cache.
        self.api.get(&self.name).await.map_err(|e| refused("get", e))
    }

    async fn create(&self, record: Record) -> Result<Lease, StoreError> {
        let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
        let lease = Lease { metadata, spec: Some(record.spec()) };
        self.api.create(&PostParams::default(), &lease).await.map_err(|e| refused("create", e))
    }

    async fn replace(&self, mut last: Lease, record: Record) -> Result<Lease, StoreError> {
        last.spec = Some(record.spec());
        self.api.replace(&self.name, &PostParams::default(), &last).await.map_err(|e| refused("update", e))
    }

    fn watch(&self) -> BoxStream<'static, Sight> {
        watch_object(self.api.clone(), &self.name)
            .backoff(EverySecond)
            .map(|sight| match sight {
                Ok(Some(lease)) => Sight::Lease(Box::new(lease)),
                Ok(None) => Sight::Gone,
                Err(error) => Sight::Broken(broken(error)),
            })
            .boxed()
    }
}

/// One small request a second is all that a broken watch costs, and a leader is to be back within 3 s of the API.
struct EverySecond;

impl Iterator for EverySecond {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(Duration::from_secs(1))
    }
}

impl Backoff for EverySecond {
    fn reset(&mut self) {}
}

fn refused(verb: &'static str, error: kube::Error) -> StoreError {
    let kube::Error::Api(status) = &error else {
        return StoreError::Other { verb, cause: error.into() };
    };
    // By reason, not by code: both "conflict" and "already exists" are 409.
    if status.is_not_found() {
        StoreError::NotFound
    } else if status.is_already_exists() {
        StoreError::AlreadyExists
    } else if status.is_conflict() {
        StoreError::Conflict
    } else if status.is_forbidden() {
        StoreError::Forbidden { verb, cause: status.message.clone().into() }
    } else {
        StoreError::Other { verb, cause: error.into() }
    }
}

fn broken(error: watcher::Error) -> StoreError {
    match error {
        watcher::Error::InitialListFailed(e) => refused("list", e),
        watcher::Error::WatchStartFailed(e) | watcher::Error::WatchFailed(e) => refused("watch", e),
        other => StoreError::Other { verb: "watch", cause: other.into() },
    }
}
