//! The HTTP side: `/livez`, `/readyz`, `/metrics`, `/status` (contract.md, "HTTP").

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

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

/// Serves until the process ends.
pub async fn serve(listener: TcpListener, pages: Pages) -> std::io::Result<()> {
    axum::serve(listener, router(pages)).await
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
