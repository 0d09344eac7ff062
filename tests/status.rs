//! `wirevip status` as a person runs it, against a small API server: each cluster in `tests/status/` beside what is
//! printed of it.
//!
//! After a change of words: run with `WIREVIP_BLESS=1`, and read the diff.

#![allow(clippy::unwrap_used, reason = "a test's helpers are part of the test")]

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

fn cluster(name: &str) -> Value {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/status").join(format!("{name}.json"));
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

/// The answer to a request: an object or list out of the cluster, or the refusal that stands in its place.
fn answer(cluster: &Value, uri: &Uri) -> Response {
    let pod = uri.path().strip_prefix("/api/v1/namespaces/wirevip/pods/");
    let found = match (uri.path(), pod.and_then(|rest| rest.strip_suffix("/proxy/status"))) {
        ("/api/v1/services", _) => &cluster["services"],
        ("/apis/coordination.k8s.io/v1/namespaces/wirevip/leases", _) => &cluster["leases"],
        ("/api/v1/namespaces/wirevip/pods", _) if uri.query().is_some_and(|q| q.contains("labelSelector=app.")) => {
            &cluster["pods"]
        }
        (_, Some(pod)) => &cluster["reports"][pod],
        _ => &Value::Null,
    };
    match found {
        Value::Null => (StatusCode::NOT_FOUND, "404 page not found\n").into_response(),
        Value::String(text) => text.clone().into_response(),
        Value::Array(items) => json!({"kind": "List", "metadata": {}, "items": items}).to_string().into_response(),
        Value::Object(object) => match object.get("code").and_then(Value::as_u64) {
            None => found.to_string().into_response(),
            Some(code) => {
                let mut status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"});
                status.as_object_mut().unwrap().extend(object.clone());
                (StatusCode::from_u16(u16::try_from(code).unwrap()).unwrap(), status.to_string()).into_response()
            }
        },
        _ => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Serves the cluster as long as the runtime lives.
async fn serve(cluster: Value) -> SocketAddr {
    let cluster = Arc::new(cluster);
    let handler = |State(cluster): State<Arc<Value>>, request: Request| async move { answer(&cluster, request.uri()) };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, Router::new().fallback(handler).with_state(cluster)).into_future());
    address
}

/// Runs the binary with a kubeconfig for this address.
async fn status(name: &str, server: SocketAddr, arguments: &[&str]) -> Output {
    let config: PathBuf = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("status-{name}.kubeconfig"));
    let text = format!(
        "{{apiVersion: v1, kind: Config, current-context: c, clusters: [{{name: c, cluster: {{server: \
         'http://{server}'}}}}], contexts: [{{name: c, context: {{cluster: c, user: u}}}}], users: [{{name: u, user: \
         {{}}}}]}}"
    );
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_wirevip"));
    command.arg("status").args(arguments).env_clear().env("KUBECONFIG", config);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

async fn prints_what_stands_beside_it(name: &str) {
    let cluster = cluster(name);
    let code = cluster["exit"].as_i64();
    let output = status(name, serve(cluster).await, &[]).await;
    let printed = String::from_utf8(output.stdout).unwrap();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/status").join(format!("{name}.txt"));
    if std::env::var_os("WIREVIP_BLESS").is_some() {
        std::fs::write(&file, &printed).unwrap();
    }
    let expected = std::fs::read_to_string(file).unwrap_or_default();
    assert_eq!(printed, expected, "--- printed\n{printed}--- expected\n{expected}");
    assert_eq!(output.status.code().map(i64::from), code, "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_healthy_cluster_is_a_table() {
    prints_what_stands_beside_it("healthy").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_does_not_fit_is_pointed_out() {
    prints_what_stands_beside_it("troubled").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_rbac_forbids_is_said_and_the_rest_is_shown() {
    prints_what_stands_beside_it("forbidden").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_empty_cluster_says_where_it_looked() {
    prints_what_stands_beside_it("empty").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn json_holds_the_reports_as_they_came() {
    let cluster = cluster("troubled");
    let output = status("json", serve(cluster.clone()).await, &["-o", "json"]).await;
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let pods = told["pods"].as_array().unwrap();
    let report = |name: &str| pods.iter().find(|pod| pod["name"] == name).unwrap()["report"].clone();
    assert_eq!(report("wirevip-a"), cluster["reports"]["wirevip-a:9586"]);
    assert_eq!(report("wirevip-c"), Value::Null);
    assert_eq!(told["leases"][0]["spec"], cluster["leases"][0]["spec"]);
    assert!(told["problems"].as_array().unwrap().iter().any(|problem| problem["unread"] == true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_absent_api_server_is_one_line_and_exit_1() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let output = status("absent", free, &[]).await;
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    assert!(told.contains("the API server does not answer") && told.contains("kubeconfig"), "{told}");
    assert_eq!(told.lines().count(), 1, "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_mute_api_server_is_given_up() {
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let output = status("mute", mute.local_addr().unwrap(), &[]).await;
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(told.contains("did not answer within 3s"), "{told}");
}

#[test]
fn flags_are_checked_before_a_cluster_is_read() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wirevip"));
    command.args(["status", "--namespace", "No!"]).env_clear().env("KUBECONFIG", "/nonexistent");
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("--namespace: `No!`"));
}
