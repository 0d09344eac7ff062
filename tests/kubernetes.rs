//! The watches, the Service status, the Events and the connection itself, against the stand-in and a real API server.

#![expect(clippy::expect_used, reason = "a test")]
#![expect(clippy::print_stderr, reason = "times are told, not asserted: the machine may be busy")]

use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kube::config::{KubeConfigOptions, Kubeconfig};
use lab::api::faults::{Fault, Target};
use lab::api::{ApiServer, Kind, Resource, User};
use lab::netns::Netns;
use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use wirevip::api::ApiFault;
use wirevip::api::client::{self, Connection};
use wirevip::clock::BootClock;
use wirevip::metrics::Metrics;
use wirevip::secret::TunnelName;
use wirevip::secret::watch::SecretState;
use wirevip::services::ObjectName;
use wirevip::services::watch::Inputs;
use wirevip::status::events::{ApiEventStore, Events, Reason, Regarding, Reporter};
use wirevip::status::ingress::{Publication, Role};
use wirevip::status::publish::{ApiStatusStore, Publisher};

/// Two namespaces with a wire between them: the API server's 10.5.0.1 and a pod's 10.5.0.2.
struct World {
    server: Netns,
    pod: Netns,
    api: ApiServer,
}

impl World {
    fn new(kind: Kind) -> Result<Self> {
        let (server, pod) = (Netns::new("api")?, Netns::new("pod")?);
        server.sh(&format!("ip link add wire type veth peer name wire netns {}", pod.path()))?;
        for (netns, address) in [(&server, "10.5.0.1/24"), (&pod, "10.5.0.2/24")] {
            netns.sh("ip link set lo up")?;
            netns.sh(&format!("ip address add {address} dev wire"))?;
            netns.sh("ip link set wire up")?;
        }
        let api = ApiServer::start(kind, &server, "10.5.0.1:6443".parse()?)?;
        Ok(Self { server, pod, api })
    }

    /// Runs what `start` makes in the pod's namespace, as the sidecar's ServiceAccount, until the guard is dropped.
    fn start<T: Send + 'static>(&self, start: impl FnOnce(&Connection) -> T + Send + 'static) -> Result<(T, Pod)> {
        let (netns, kubeconfig) = (self.pod.clone(), self.api.kubeconfig(User::Sidecar("pod-a".into())));
        let (made, making) = mpsc::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            netns.run(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async {
                    let kubeconfig = Kubeconfig::from_yaml(&kubeconfig)?;
                    let options = KubeConfigOptions::default();
                    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?;
                    let connection = client::with_config(&config, &Metrics::new())?;
                    made.send(start(&connection)).ok();
                    stopped.await.ok();
                    Ok(())
                })
            })
        });
        let made = making.recv().context("the pod did not start")?;
        Ok((made, Pod { stop: Some(stop), thread: Some(thread) }))
    }

    fn inputs(&self, namespace: Option<&'static str>) -> Result<(Watches, Pod)> {
        self.start(move |c| wirevip::services::watch::spawn(&c.client, namespace))
    }

    fn create(&self, resource: Resource, object: Value) -> Result<()> {
        self.api.kube().apply(resource, object).map(drop).map_err(|refused| anyhow::anyhow!("{refused:?}"))
    }

    fn delete(&self, resource: Resource, name: &str) -> Result<()> {
        self.api.kube().delete(resource, "default", name).map_err(|refused| anyhow::anyhow!("{refused:?}"))
    }

    fn ingress(&self) -> Result<Value> {
        let service = self.api.kube().get(Resource::Service, "default", "web");
        let service = service.map_err(|refused| anyhow::anyhow!("{refused:?}"))?;
        Ok(service["status"]["loadBalancer"]["ingress"].clone())
    }
}

type Watches = (watch::Receiver<Arc<Inputs>>, JoinSet<()>);

struct Pod {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Drop for Pod {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the pod's thread").expect("the pod");
        }
    }
}

/// How long it took until it was so.
#[expect(clippy::disallowed_methods, reason = "a test's patience")]
fn until(what: &str, mut so: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !so() {
        assert!(begun.elapsed() < Duration::from_secs(30), "not within 30 s: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    begun.elapsed()
}

fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "type": "LoadBalancer", "loadBalancerClass": "wirevip.io/tunnel", "allocateLoadBalancerNodePorts": false,
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
        },
    })
}

fn slice(name: &str, addresses: &[&str]) -> Value {
    let endpoints: Vec<Value> = addresses.iter().map(|a| json!({"addresses": [a]})).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    })
}

fn services(inputs: &watch::Receiver<Arc<Inputs>>) -> Vec<String> {
    inputs.borrow().services().iter().map(|s| s.name.name.clone()).collect()
}

/// Names of the slices of `web`, with the number of endpoints.
fn slices(inputs: &watch::Receiver<Arc<Inputs>>) -> Vec<String> {
    let all = inputs.borrow().all_slices();
    all.iter().filter(|s| s.service == "web").map(|s| format!("{}:{}", s.name.name, s.endpoints.len())).collect()
}

fn watches_follow(kind: Kind) -> Result<()> {
    let mut world = World::new(kind)?;
    world.create(Resource::Service, service("web"))?;
    world.create(Resource::EndpointSlice, slice("web-1", &["10.0.0.1"]))?;
    // The API takes any number as the port of an endpoint; one that is none must not cost the others.
    let mut odd = slice("odd", &["10.0.0.9"]);
    odd["metadata"]["labels"] = json!({"kubernetes.io/service-name": "odd"});
    odd["ports"] = json!([{"name": "high", "port": 70_000}, {"name": "low", "port": -1}]);
    world.create(Resource::EndpointSlice, odd)?;
    let ((inputs, _tasks), _pod) = world.inputs(None)?;
    until("the first lists", || inputs.borrow().complete());
    assert_eq!((services(&inputs), slices(&inputs)), (vec!["web".to_owned()], vec!["web-1:1".to_owned()]));

    world.create(Resource::EndpointSlice, slice("web-1", &["10.0.0.1", "10.0.0.2"]))?;
    world.create(Resource::EndpointSlice, slice("web-2", &["10.0.0.3"]))?;
    until("the new slice", || slices(&inputs) == ["web-1:2", "web-2:1"]);
    world.delete(Resource::EndpointSlice, "web-1")?;
    until("the deleted slice", || slices(&inputs) == ["web-2:1"]);

    world.api.stop()?;
    world.api.resume()?;
    world.delete(Resource::EndpointSlice, "web-2")?;
    world.create(Resource::Service, service("more"))?;
    let took = until("changes after a restart", || slices(&inputs).is_empty() && services(&inputs) == ["more", "web"]);
    eprintln!("{kind:?}: applied {took:?} after the API server's restart");

    if kind == Kind::Embedded {
        world.api.stop()?;
        world.api.resume()?;
        world.delete(Resource::Service, "more")?;
        world.api.compact()?;
        world.api.faults()?.drop_watches();
        until("a deletion in a history that is forgotten", || services(&inputs) == ["web"]);
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn watches_follow_and_survive_restarts() -> Result<()> {
    watches_follow(Kind::Embedded)
}

#[test]
#[ignore = "needs root, kube-apiserver and etcd"]
fn watches_follow_and_survive_restarts_of_a_real_api_server() -> Result<()> {
    watches_follow(Kind::Real)
}

#[test]
#[ignore = "needs root"]
fn the_control_plane_is_watched_beside_one_namespace() -> Result<()> {
    let world = World::new(Kind::Embedded)?;
    let mut kubernetes = slice("kubernetes", &["10.5.0.1"]);
    kubernetes["metadata"]["labels"] = json!({"kubernetes.io/service-name": "kubernetes"});
    world.create(Resource::EndpointSlice, kubernetes)?;
    world.create(Resource::EndpointSlice, slice("web-1", &["10.0.0.1"]))?;
    let ((inputs, _tasks), _pod) = world.inputs(Some("wirevip"))?;
    until("the first lists", || inputs.borrow().complete());
    let names: Vec<String> = inputs.borrow().all_slices().iter().map(|s| s.name.name.clone()).collect();
    assert_eq!(names, ["kubernetes"]);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn changes_during_a_silent_cut_are_applied_after_it() -> Result<()> {
    let world = World::new(Kind::Embedded)?;
    world.create(Resource::Service, service("web"))?;
    let ((inputs, _tasks), _pod) = world.inputs(None)?;
    until("the first lists", || inputs.borrow().complete());
    // Packets vanish, nobody is told: the worst way for a connection to die.
    world.server.sh("ip link set wire down")?;
    world.create(Resource::Service, service("more"))?;
    std::thread::sleep(Duration::from_secs(12));
    assert_eq!(services(&inputs), ["web"]);
    world.server.sh("ip link set wire up")?;
    let took = until("what changed during the cut", || services(&inputs) == ["more", "web"]);
    eprintln!("applied {took:?} after the cut");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_server_frozen_for_long_is_followed_again_when_it_thaws() -> Result<()> {
    let mut world = World::new(Kind::Embedded)?;
    let ((inputs, _tasks), _pod) = world.inputs(None)?;
    until("the first lists", || inputs.borrow().complete());
    world.api.freeze()?;
    std::thread::sleep(Duration::from_secs(8));
    world.api.thaw()?;
    world.create(Resource::Service, service("web"))?;
    let took = until("what changed after it", || services(&inputs) == ["web"]);
    eprintln!("applied {took:?} after the thaw");
    Ok(())
}

/// As one does that has just started: it refuses everything until it has read its own rules.
#[test]
#[ignore = "needs root"]
fn what_is_refused_for_a_moment_is_not_taken_for_empty() -> Result<()> {
    let world = World::new(Kind::Embedded)?;
    world.create(Resource::Service, service("web"))?;
    world.api.faults()?.add(Target::any().resource("services"), Fault::Refuse(403));
    let ((inputs, faults, _tasks), _pod) = world.start(|c| {
        let (inputs, tasks) = wirevip::services::watch::spawn(&c.client, None);
        (inputs, c.faults.clone(), tasks)
    })?;
    until("a refusal, and the rest", || !faults.borrow().is_empty() && inputs.borrow().slices.is_some());
    assert!(inputs.borrow().services.is_none(), "taken for empty at once");
    world.api.faults()?.clear();
    until("the Services", || inputs.borrow().services.is_some());
    assert_eq!(services(&inputs), ["web"]);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn what_may_not_be_read_is_told_and_holds_nothing_else_up() -> Result<()> {
    let world = World::new(Kind::Embedded)?;
    world.create(Resource::EndpointSlice, slice("web-1", &["10.0.0.1"]))?;
    world.api.faults()?.add(Target::any().resource("services"), Fault::Refuse(403));
    let ((inputs, faults, _tasks), _pod) = world.start(|c| {
        let (inputs, tasks) = wirevip::services::watch::spawn(&c.client, None);
        (inputs, c.faults.clone(), tasks)
    })?;
    until("the rest", || inputs.borrow().complete() && slices(&inputs) == ["web-1:1"]);
    let told: Vec<String> = faults.borrow().values().map(ToString::to_string).collect();
    let rule = "{apiGroups: [\"\"], resources: [services], verbs: [list, watch]}";
    assert!(told.len() == 1 && told[0].contains("list services") && told[0].contains(rule), "{told:?}");
    world.create(Resource::Service, service("web"))?;
    world.api.faults()?.clear();
    until("what may be read now", || services(&inputs) == ["web"] && faults.borrow().is_empty());
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_wrong_certificate_is_told_as_such() -> Result<()> {
    let world = World::new(Kind::Embedded)?;
    world.api.faults()?.wrong_certificate(true);
    let ((inputs, faults, _tasks), _pod) = world.start(|c| {
        let (inputs, tasks) = wirevip::services::watch::spawn(&c.client, None);
        (inputs, c.faults.clone(), tasks)
    })?;
    let wrong = |fault: &ApiFault| matches!(fault, ApiFault::Certificate { .. });
    until("the fault", || faults.borrow().values().any(wrong));
    world.api.faults()?.wrong_certificate(false);
    until("the recovery", || inputs.borrow().complete() && faults.borrow().is_empty());
    Ok(())
}

fn secret_is_followed(kind: Kind) -> Result<()> {
    let mut world = World::new(kind)?;
    let spawn = |c: &Connection| wirevip::secret::watch::spawn(c.client.clone(), "wirevip", "wireguard");
    let (state, _pod) = world.start(spawn)?;
    let secret = |name: &str, text: &str| {
        json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": "wirevip"},
            "data": {"tunnels": lab_base64(text)},
        })
    };
    let says = |text: &str| match &*state.borrow() {
        SecretState::Data { document, .. } => document.as_slice() == text.as_bytes(),
        _ => false,
    };
    until("that there is none", || matches!(&*state.borrow(), SecretState::Missing));
    world.create(Resource::Secret, secret("wireguard", "one"))?;
    until("the first document", || says("one"));
    world.create(Resource::Secret, secret("other", "not ours"))?;
    world.create(Resource::Secret, secret("wireguard", "two"))?;
    until("the second document", || says("two"));
    world.api.stop()?;
    assert!(says("two"));
    world.api.resume()?;
    world.create(Resource::Secret, secret("wireguard", "three"))?;
    until("the document after an outage", || says("three"));
    let deleted = world.api.kube().delete(Resource::Secret, "wirevip", "wireguard");
    deleted.map_err(|refused| anyhow::anyhow!("{refused:?}"))?;
    until("the deletion", || matches!(&*state.borrow(), SecretState::Missing));
    Ok(())
}

fn lab_base64(text: &str) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(text)
}

#[test]
#[ignore = "needs root"]
fn the_secret_is_followed() -> Result<()> {
    secret_is_followed(Kind::Embedded)
}

#[test]
#[ignore = "needs root, kube-apiserver and etcd"]
fn the_secret_is_followed_on_a_real_api_server() -> Result<()> {
    secret_is_followed(Kind::Real)
}

fn status_and_events_are_written(kind: Kind) -> Result<()> {
    let world = World::new(kind)?;
    world.create(Resource::Service, service("web"))?;
    let other = json!({"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1", "ipMode": "VIP"}]}}});
    let patched = world.api.kube().patch_status(Resource::Service, "default", "web", other);
    patched.map_err(|refused| anyhow::anyhow!("{refused:?}"))?;
    let ((publisher, events, _tasks), _pod) = world.start(|c| {
        let (inputs, tasks) = wirevip::services::watch::spawn(&c.client, None);
        let reporter = Reporter {
            namespace: "wirevip".into(),
            pod_name: "pod-a".into(),
            pod_uid: "0f0e".into(),
            secret_name: "wireguard".into(),
        };
        let events = Events::spawn(ApiEventStore(c.client.clone()), reporter, Arc::new(BootClock), Metrics::new());
        (Publisher::spawn(ApiStatusStore(c.client.clone()), inputs), events, tasks)
    })?;
    let wg0 = TunnelName::new("wg0").context("a tunnel name")?;
    let publication = |claims: bool| {
        let services = Arc::new(claims.then(|| ObjectName::new("default", "web")).into_iter().collect());
        let (role, vip, forwarded) = (Role::Serving, [10, 9, 0, 2].into(), Arc::clone(&services));
        Publication { role, vip, public_address: None, services, forwarded }
    };
    let (foreign, own) = (json!({"ip": "192.0.2.1", "ipMode": "VIP"}), json!({"ip": "10.9.0.2", "ipMode": "VIP"}));
    publisher.set(&wg0, publication(true));
    until("our entry beside the other's", || world.ingress().is_ok_and(|list| list == json!([foreign, own])));
    publisher.set(&wg0, publication(false));
    until("the other's entry alone", || world.ingress().is_ok_and(|list| list == json!([foreign])));

    let uid = world.api.kube().get(Resource::Service, "default", "web").map_err(|r| anyhow::anyhow!("{r:?}"))?;
    let uid = uid["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    let web = ObjectName::new("default", "web");
    events.tell(Regarding::Service { name: web, uid: uid.clone() }, Reason::NoBackends, "no endpoint is ready");
    events.tell(Regarding::Pod, Reason::TunnelUp, "wg0 is up");
    events.tell(Regarding::Secret { uid: None }, Reason::InvalidConfiguration, "line 3");
    let told = |namespace: &str, reason: &str| {
        let all = world.api.kube().list(Resource::Event, namespace).unwrap_or_default();
        all.into_iter().find(|event| event["reason"] == reason)
    };
    for (namespace, reason) in [("default", "NoBackends"), ("wirevip", "TunnelUp"), ("wirevip", "InvalidConfiguration")]
    {
        until(reason, || told(namespace, reason).is_some());
    }
    let event = told("default", "NoBackends").context("the Event")?;
    assert_eq!(event["regarding"]["uid"], uid.as_str());
    assert_eq!(event["type"], "Warning");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn service_status_and_events_are_written() -> Result<()> {
    status_and_events_are_written(Kind::Embedded)
}

#[test]
#[ignore = "needs root, kube-apiserver and etcd"]
fn service_status_and_events_are_written_on_a_real_api_server() -> Result<()> {
    status_and_events_are_written(Kind::Real)
}

#[test]
#[ignore = "needs root, kube-apiserver and etcd"]
fn an_event_that_happens_again_is_taken_by_a_real_api_server() -> Result<()> {
    use wirevip::status::events::EventStore;
    let world = World::new(Kind::Real)?;
    let (outcome, outcomes) = mpsc::channel();
    let ((), _pod) = world.start(move |c| {
        let store = ApiEventStore(c.client.clone());
        tokio::spawn(async move {
            let event = serde_json::from_value(json!({
                "metadata": {"name": "e.1", "namespace": "wirevip"}, "eventTime": "2026-01-01T00:00:00.000001Z",
                "action": "Tunnel", "reason": "TunnelUp", "type": "Normal", "note": "n",
                "reportingController": "wirevip", "reportingInstance": "pod-a",
                "regarding": {"apiVersion": "v1", "kind": "Pod", "namespace": "wirevip", "name": "pod-a"},
            }));
            let at = "2026-01-01T00:02:00Z".parse().expect("a time");
            let made = store.create(&event.expect("an Event")).await;
            let again = store.repeat("wirevip", "e.1", 7, at).await;
            outcome.send((made.is_ok(), again.map_err(|error| format!("{error:?}")))).ok();
        });
    })?;
    assert_eq!(outcomes.recv()?, (true, Ok(())));
    let event = world.api.kube().get(Resource::Event, "wirevip", "e.1").map_err(|r| anyhow::anyhow!("{r:?}"))?;
    assert_eq!(event["series"]["count"], 7);
    Ok(())
}
