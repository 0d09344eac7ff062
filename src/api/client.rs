//! The connection to the API server.
//!
//! HTTP/1.1, one connection a watch: over a shared HTTP/2 connection a large list would hold a renewal of the Lease
//! up, and one stuck connection would take all of them along. A connection whose other end vanished without a word is
//! given up within [`DEAD_AFTER`], and no request waits for ever for its answer.

use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::{Body, ClientBuilder, ConfigExt};
use kube::config::{InClusterError, KubeConfigOptions, KubeconfigError};
use kube::{Client, Config};
use tokio::sync::watch;
use tower::{BoxError, ServiceBuilder};

use super::ApiFaults;
use super::pace::PaceLayer;
use super::watchful::WatchfulLayer;
use crate::metrics::Metrics;

/// A TCP handshake takes no longer, one lost SYN included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Silence before the kernel asks whether the other end is there …
const KEEPALIVE_IDLE: Duration = Duration::from_secs(2);
/// … how often it asks …
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
/// … and how many answers it misses before it gives up.
const KEEPALIVE_RETRIES: u32 = 3;
/// Data or probes unanswered for so long end a connection (TCP_USER_TIMEOUT).
const DEAD_AFTER: Duration = Duration::from_secs(4);
/// An unused connection is closed after this: its buffers are memory.
const IDLE_AFTER: Duration = Duration::from_secs(30);

/// Where the credentials come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Credentials {
    /// The pod's ServiceAccount, else `KUBECONFIG` or `~/.kube/config`.
    Pod,
    /// `KUBECONFIG` or `~/.kube/config`, else the pod's ServiceAccount.
    User,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Neither way works.
    #[error(
        "no access to a cluster: not in a pod ({in_cluster}), and no usable kubeconfig ({kubeconfig}); run in a pod \
         with a ServiceAccount token, or set KUBECONFIG"
    )]
    NoConfiguration {
        /// What is missing in the pod.
        in_cluster: InClusterError,
        /// What is wrong with the kubeconfig.
        kubeconfig: KubeconfigError,
    },
    /// The credentials cannot be used.
    #[error("the cluster's CA or credentials cannot be used; check ca.crt and token, or the kubeconfig")]
    Credentials(#[source] kube::Error),
}

/// A client, and what keeps its calls from working at any moment.
#[derive(Clone)]
pub struct Connection {
    /// The client. Cheap to clone.
    pub client: Client,
    /// Calls that fail now.
    pub faults: watch::Receiver<ApiFaults>,
}

/// Builds the client. Opens no connection: the API server may be away.
///
/// A ServiceAccount's token is read again from its file at least once a minute.
pub async fn connect(credentials: Credentials, metrics: &Metrics) -> Result<Connection, ConnectError> {
    let config = match credentials {
        Credentials::Pod => match Config::incluster() {
            Ok(config) => config,
            Err(in_cluster) => match Config::from_kubeconfig(&KubeConfigOptions::default()).await {
                Ok(config) => config,
                Err(kubeconfig) => return Err(ConnectError::NoConfiguration { in_cluster, kubeconfig }),
            },
        },
        Credentials::User => match Config::from_kubeconfig(&KubeConfigOptions::default()).await {
            Ok(config) => config,
            Err(kubeconfig) => match Config::incluster() {
                Ok(config) => config,
                Err(in_cluster) => return Err(ConnectError::NoConfiguration { in_cluster, kubeconfig }),
            },
        },
    };
    with_config(&config, metrics).map_err(ConnectError::Credentials)
}

/// As [`connect`], with a configuration that is already there.
pub fn with_config(config: &Config, metrics: &Metrics) -> Result<Connection, kube::Error> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    tcp.set_keepalive(Some(KEEPALIVE_IDLE));
    tcp.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    tcp.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
    tcp.set_tcp_user_timeout(Some(DEAD_AFTER));
    let https = config.rustls_https_connector_with_connector(tcp)?;
    let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_AFTER)
        .build::<_, Body>(https);
    let (faults, receiver) = watch::channel(ApiFaults::new());
    // kube's own stack retries 429 and 5xx by itself; an elector has to know how long each try took, so ours does not.
    let service = ServiceBuilder::new()
        // Outermost: the wait for its turn is no wait for an answer.
        .layer(PaceLayer::default())
        .layer(WatchfulLayer { metrics: metrics.clone(), faults })
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http);
    let client = ClientBuilder::new(service, config.default_namespace.clone()).build();
    Ok(Connection { client, faults: receiver })
}
