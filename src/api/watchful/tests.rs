use std::convert::Infallible;

use tower::{ServiceBuilder, ServiceExt, service_fn};

use super::*;

/// Asks for the Services of all namespaces once, from a server that answers so.
async fn ask(layer: &WatchfulLayer, status: u16) {
    send(layer, Request::get("/api/v1/services").body(()).unwrap(), status).await;
}

async fn send(layer: &WatchfulLayer, request: Request<()>, status: u16) {
    let server = service_fn(move |_: Request<()>| async move {
        Ok::<_, Infallible>(Response::builder().status(status).body(()).unwrap())
    });
    ServiceBuilder::new().layer(layer.clone()).service(server).oneshot(request).await.unwrap();
}

fn layer() -> (WatchfulLayer, watch::Receiver<ApiFaults>) {
    let (faults, receiver) = watch::channel(ApiFaults::new());
    (WatchfulLayer { metrics: Metrics::new(), faults }, receiver)
}

#[tokio::test]
async fn a_forbidden_call_is_told_until_it_is_allowed() {
    let (layer, faults) = layer();
    ask(&layer, 403).await;
    let told: Vec<String> = faults.borrow().values().map(ToString::to_string).collect();
    assert_eq!(told.len(), 1);
    assert!(told[0].contains("list services") && told[0].contains("verbs: [list, watch]"), "{}", told[0]);
    ask(&layer, 200).await;
    assert!(faults.borrow().is_empty());
    let text = layer.metrics.encode();
    assert!(text.contains(r#"wirevip_api_requests_total{verb="list",resource="services",code="403"} 1"#), "{text}");
    assert!(text.contains(r#"wirevip_api_requests_total{verb="list",resource="services",code="200"} 1"#), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_never_answers_is_given_up_and_told() {
    let (layer, faults) = layer();
    let server = service_fn(|_: Request<()>| std::future::pending::<Result<Response<()>, Infallible>>());
    let request = Request::get("/api/v1/services?watch=true").body(()).unwrap();
    let answer = ServiceBuilder::new().layer(layer.clone()).service(server).oneshot(request).await;
    assert!(answer.is_err());
    assert!(matches!(faults.borrow().values().next(), Some(ApiFault::Unreachable { .. })));
    let expected = r#"wirevip_api_requests_total{verb="watch",resource="services",code="error"} 1"#;
    assert!(layer.metrics.encode().contains(expected));
    ask(&layer, 404).await;
    assert!(faults.borrow().is_empty(), "any answer shows that the server is there");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_its_caller_gives_up_is_counted() {
    let (layer, _faults) = layer();
    let server = service_fn(|_: Request<()>| std::future::pending::<Result<Response<()>, Infallible>>());
    let request = Request::put("/apis/coordination.k8s.io/v1/namespaces/a/leases/l").body(()).unwrap();
    let call = ServiceBuilder::new().layer(layer.clone()).service(server).oneshot(request);
    assert!(tokio::time::timeout(Duration::from_secs(1), call).await.is_err());
    let expected = r#"wirevip_api_requests_total{verb="update",resource="leases",code="error"} 1"#;
    assert!(layer.metrics.encode().contains(expected));
}

/// One on its way out refuses what it is told, and is never asked again.
#[tokio::test]
async fn what_was_refused_in_a_namespace_is_over_when_it_is_allowed_in_another() {
    let (layer, faults) = layer();
    let tell = async |namespace: &str, status: u16| {
        let path = format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events");
        send(&layer, Request::post(path).body(()).unwrap(), status).await;
    };
    for namespace in ["a", "b", "c"] {
        tell(namespace, 403).await;
    }
    assert_eq!(faults.borrow().len(), 1);
    tell("d", 201).await;
    assert!(faults.borrow().is_empty());
}
