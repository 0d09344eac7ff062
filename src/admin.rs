//! The HTTP side: `/livez`, `/readyz`, `/metrics`, `/status` (contract.md, "HTTP").
//!
//! Whoever reaches the port costs no more than [`Limits`]: a connection that says nothing must neither keep the kubelet
//! out nor take the descriptors that the API server's connections need.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::task::AbortHandle;

use crate::status::board::Board;

/// What the pages are made from.
#[derive(Clone)]
pub struct Pages {
    /// Status, readiness, liveness.
    pub board: Arc<Board>,
    /// Renders the metrics of this moment.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
}

/// The address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}; choose another with --http-addr")]
pub struct ListenError {
    address: SocketAddr,
    source: std::io::Error,
}

/// Binds the address; serving is the second step, so that a port in use is found before anything is touched.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|source| ListenError { address, source })
}

/// What clients may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at one time. A further one ends the oldest: a request is answered within milliseconds, so that is one that
    /// says nothing, and those who say nothing must keep nobody waiting.
    pub connections: usize,
    /// For the head of a request, the first or the next of a connection.
    pub head: Duration,
    /// For a whole connection.
    pub whole: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 64, head: Duration::from_secs(5), whole: Duration::from_secs(60) }
    }
}

/// After an accept that failed: most likely there are no descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves for as long as it is polled.
pub async fn serve(listener: TcpListener, pages: Pages, limits: Limits) {
    let service = TowerToHyperService::new(router(pages));
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(limits.head);
        let connection = http.serve_connection(TokioIo::new(stream), service.clone());
        open.retain(|connection| !connection.is_finished());
        if open.len() >= limits.connections
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        // How a client leaves is its own affair.
        open.push_back(tokio::spawn(tokio::time::timeout(limits.whole, connection)).abort_handle());
    }
}

fn router(pages: Pages) -> Router {
    Router::new()
        .route("/livez", get(async |State(pages): State<Pages>| verdict(pages.board.liveness())))
        .route("/readyz", get(async |State(pages): State<Pages>| verdict(pages.board.readiness())))
        .route("/metrics", get(metrics))
        .route("/status", get(async |State(pages): State<Pages>| axum_json(&pages.board.report())))
        .with_state(pages)
}

async fn metrics(State(pages): State<Pages>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], (pages.metrics)())
}

fn verdict(result: Result<(), String>) -> (StatusCode, String) {
    match result {
        Ok(()) => (StatusCode::OK, "ok\n".into()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, why + "\n"),
    }
}

fn axum_json(report: &crate::status::PodReport) -> impl IntoResponse + use<> {
    match serde_json::to_string(report) {
        Ok(body) => (StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], body),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::clock::TokioClock;
    use crate::status::board::Pod;
    use crate::tunnel::Backend;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// Ten connections that say nothing, and what another is answered.
    async fn beside_silent_ones(head: Duration) -> (Vec<TcpStream>, String) {
        let pod = Pod { name: "p".into(), node: "n".into(), identity: "p_u".into(), backend: Backend::Kernel };
        let board = Arc::new(Board::new(pod, Arc::new(TokioClock::new())));
        let pages = Pages { board, metrics: Arc::new(String::new) };
        let listener = listen(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let limits = Limits { connections: 4, head, whole: Duration::from_secs(3600) };
        tokio::spawn(serve(listener, pages, limits));

        let mut silent = Vec::new();
        for _ in 0..10 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let mut asking = TcpStream::connect(address).await.unwrap();
        asking.write_all(b"GET /livez HTTP/1.1\r\nHost: p\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        tokio::time::timeout(PATIENCE, asking.read_to_end(&mut answer)).await.expect("kept out").unwrap();
        (silent, String::from_utf8(answer).unwrap())
    }

    #[tokio::test]
    async fn connections_that_say_nothing_keep_nobody_out() {
        let (_silent, answer) = beside_silent_ones(Duration::from_secs(3600)).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("ok\n"), "{answer}");
    }

    #[tokio::test]
    async fn connections_that_say_nothing_are_closed() {
        let (silent, _) = beside_silent_ones(Duration::from_millis(100)).await;
        for mut silent in silent {
            tokio::time::timeout(PATIENCE, silent.read_to_end(&mut Vec::new())).await.expect("kept").unwrap();
        }
    }
}
