//! The layer round the HTTP client that counts every request, bounds the wait for its answer, and keeps the list of
//! calls that do not work.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response, StatusCode};
use tokio::sync::watch;
use tower::{BoxError, Layer, Service};

use super::{ApiFault, ApiFaults, Call};
use crate::metrics::Metrics;

/// How long the head of an answer may take, also of a watch, which the server begins at once. Callers bound their
/// calls more tightly; this is for the watches and lists that nobody else bounds.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// Makes services [`Watchful`].
#[derive(Clone)]
pub(super) struct WatchfulLayer {
    pub(super) metrics: Metrics,
    pub(super) faults: watch::Sender<ApiFaults>,
}

impl<S> Layer<S> for WatchfulLayer {
    type Service = Watchful<S>;

    fn layer(&self, inner: S) -> Watchful<S> {
        Watchful { inner, report: Report { metrics: self.metrics.clone(), faults: self.faults.clone() } }
    }
}

/// See the module.
#[derive(Clone)]
pub(super) struct Watchful<S> {
    inner: S,
    report: Report,
}

#[derive(Clone)]
struct Report {
    metrics: Metrics,
    faults: watch::Sender<ApiFaults>,
}

#[derive(Debug, thiserror::Error)]
#[error("no answer within {HEAD_TIMEOUT:?}")]
struct NoAnswer;

impl<S, A, B> Service<Request<A>> for Watchful<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let call = Call::of(request.method(), request.uri().path(), request.uri().query()).anywhere();
        // A caller that loses its patience drops this future: that request is counted as well, as one without answer.
        let pending = Pending { report: self.report.clone(), call: Some(call) };
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = match tokio::time::timeout(HEAD_TIMEOUT, answer).await {
                Ok(answer) => answer.map_err(Into::into),
                Err(_) => Err(NoAnswer.into()),
            };
            match &answer {
                Ok(response) => pending.answered(response.status()),
                Err(error) => pending.failed(error.as_ref()),
            }
            answer
        })
    }
}

struct Pending {
    report: Report,
    call: Option<Call>,
}

impl Pending {
    fn answered(mut self, status: StatusCode) {
        let Some(call) = self.call.take() else { return };
        self.report.metrics.api_request(call.verb, &call.resource, status.as_str());
        let fault = match status {
            StatusCode::FORBIDDEN => Some(ApiFault::forbidden(call.clone())),
            StatusCode::UNAUTHORIZED => Some(ApiFault::Unauthorized),
            _ => None,
        };
        self.report.tell(call, fault);
    }

    fn failed(mut self, error: &(dyn std::error::Error + 'static)) {
        let Some(call) = self.call.take() else { return };
        self.report.metrics.api_request(call.verb, &call.resource, "error");
        self.report.tell(call, Some(ApiFault::of_transport(error)));
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(call) = self.call.take() {
            self.report.metrics.api_request(call.verb, &call.resource, "error");
        }
    }
}

impl Report {
    /// Notes the present state of a call, and logs it when it is news.
    fn tell(&self, call: Call, fault: Option<ApiFault>) {
        self.faults.send_if_modified(|faults| match fault {
            None => {
                // Any answer shows that the server is there and trusted.
                let before = faults.len();
                faults.remove(&call);
                faults.retain(|_, fault| matches!(fault, ApiFault::Forbidden { .. } | ApiFault::Unauthorized));
                before != faults.len()
            }
            Some(fault) => {
                if faults.get(&call) == Some(&fault) {
                    return false;
                }
                // Which request met an absent server is of no interest; that it is absent is told once.
                if !faults.values().any(|known| known == &fault) {
                    match &fault {
                        ApiFault::Forbidden { .. } | ApiFault::Unauthorized | ApiFault::Certificate { .. } => {
                            tracing::error!(%call, "{fault}");
                        }
                        ApiFault::Unreachable { .. } => tracing::warn!(%call, "{fault}"),
                    }
                }
                faults.insert(call, fault);
                true
            }
        });
    }
}

#[cfg(test)]
mod tests;
