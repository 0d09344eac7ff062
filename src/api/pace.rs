//! The layer round the HTTP client that keeps a watch from being begun again and again.
//!
//! kube's watcher begins a watch anew at once when the old one ends without an error, and tells nobody. A server, or a
//! proxy before it, that ends each watch as soon as it has begun would get thousands of requests a second from each pod.

use std::collections::BTreeMap;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Uri};
use tokio::time::Instant;
use tower::{Layer, Service};

/// From one beginning of a watch to the next. Far below what an operator would notice after a watch that broke.
const PACE: Duration = Duration::from_millis(250);

/// Makes services [`Paced`].
#[derive(Clone, Default)]
pub(super) struct PaceLayer(Arc<Mutex<Began>>);

impl<S> Layer<S> for PaceLayer {
    type Service = Paced<S>;

    fn layer(&self, inner: S) -> Paced<S> {
        Paced { inner, began: self.0.clone() }
    }
}

/// See the module.
#[derive(Clone)]
pub(super) struct Paced<S> {
    inner: S,
    began: Arc<Mutex<Began>>,
}

impl<S, A> Service<Request<A>> for Paced<S>
where
    S: Service<Request<A>> + Clone + Send + 'static,
    S::Future: Send,
    A: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        // The one that was asked whether it is ready goes; its clone stays.
        let clone = self.inner.clone();
        let mut inner = mem::replace(&mut self.inner, clone);
        let Some(watch) = watch_of(request.uri()) else { return Box::pin(inner.call(request)) };
        let due = self.began.lock().unwrap_or_else(PoisonError::into_inner).due(watch, now());
        Box::pin(async move {
            tokio::time::sleep_until(due).await;
            inner.call(request).await
        })
    }
}

#[expect(clippy::disallowed_methods, reason = "a timer's deadline, nothing that is decided upon")]
fn now() -> Instant {
    Instant::now()
}

/// What a request watches, in the same words each time; `None` for one that is no watch.
fn watch_of(uri: &Uri) -> Option<String> {
    let pairs = || uri.query().unwrap_or_default().split('&');
    pairs().find(|pair| matches!(*pair, "watch=true" | "watch=1"))?;
    let same: Vec<&str> = pairs().filter(|pair| !pair.starts_with("resourceVersion=")).collect();
    Some(format!("{}?{}", uri.path(), same.join("&")))
}

/// When each watch last began, as long as that matters.
#[derive(Default)]
struct Began(BTreeMap<String, Instant>);

impl Began {
    /// When this watch may begin; taken to begin then.
    fn due(&mut self, watch: String, now: Instant) -> Instant {
        self.0.retain(|_, last| now < *last + PACE);
        let due = self.0.get(&watch).map_or(now, |last| *last + PACE);
        self.0.insert(watch, due);
        due
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::StreamExt;
    use http::Response;
    use k8s_openapi::api::coordination::v1::Lease;
    use kube::client::Body;
    use kube::runtime::watcher;
    use kube::{Api, Client};
    use tower::{ServiceBuilder, service_fn};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_server_that_ends_each_watch_at_once_is_asked_four_times_a_second() {
        let watches = Arc::new(AtomicUsize::new(0));
        let counted = watches.clone();
        let server = service_fn(move |request: Request<Body>| {
            let watch = watch_of(request.uri()).is_some();
            counted.fetch_add(usize::from(watch), Ordering::Relaxed);
            let list = r#"{"metadata": {"resourceVersion": "1"}, "items": []}"#;
            let body = if watch { Vec::new() } else { list.as_bytes().to_vec() };
            async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                Ok::<_, Infallible>(Response::new(Body::from(body)))
            }
        });
        let service = ServiceBuilder::new().layer(PaceLayer::default()).service(server);
        let api: Api<Lease> = Api::namespaced(Client::new(service, "a"), "a");
        let events = watcher(api, watcher::Config::default()).for_each(|_| std::future::ready(()));
        assert!(tokio::time::timeout(Duration::from_secs(10), events).await.is_err());
        let watches = watches.load(Ordering::Relaxed);
        assert!((30..=41).contains(&watches), "{watches} watches in 10 s");
    }

    #[tokio::test(start_paused = true)]
    async fn watches_of_several_things_and_one_that_lasted_do_not_wait() {
        let mut began = Began::default();
        let start = now();
        for name in ["a", "b", "c"] {
            assert_eq!(began.due(name.to_owned(), start), start);
        }
        assert_eq!(began.due("a".to_owned(), start), start + PACE);
        assert_eq!(began.due("a".to_owned(), start), start + 2 * PACE);
        assert_eq!(began.due("b".to_owned(), start + PACE), start + PACE);
        assert_eq!(began.0.len(), 2, "what is over is forgotten");
    }

    #[test]
    fn the_version_makes_no_other_watch() {
        let of = |text: &str| watch_of(&text.parse().unwrap());
        assert_eq!(of("/api/v1/services?limit=5"), None);
        assert_eq!(
            of("/api/v1/services?watch=true&resourceVersion=5"),
            of("/api/v1/services?watch=true&resourceVersion=6")
        );
        assert_ne!(
            of("/a?watch=true&fieldSelector=metadata.name%3Da"),
            of("/a?watch=true&fieldSelector=metadata.name%3Db")
        );
    }
}
