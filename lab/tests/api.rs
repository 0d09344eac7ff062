//! One suite for both API servers: whatever the sidecar or the lab relies on must be the same in the stand-in and in a
//! real kube-apiserver. A difference found here is mended in the stand-in.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::{AsyncBufReadExt, Stream, StreamExt, TryStreamExt};
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::Api;
use kube::runtime::watcher;
use lab::api::{ApiServer, Kind, Kube, Refused, Resource, User};
use lab::netns::Netns;
use serde_json::{Value, json};

const ADDRESS: &str = "10.0.0.1:6443";
const PATIENCE: Duration = Duration::from_secs(20);

/// An API server in a namespace of its own, and the Kubernetes namespace of one case.
struct World {
    netns: Netns,
    api: ApiServer,
    namespace: String,
}

impl World {
    fn new(kind: Kind) -> Result<Self> {
        let netns = Netns::new("api")?;
        netns.sh("ip link set lo up")?;
        netns.sh("ip addr add 10.0.0.1/32 dev lo")?;
        let api = ApiServer::start(kind, &netns, ADDRESS.parse::<SocketAddr>()?)?;
        Ok(Self { netns, api, namespace: String::new() })
    }

    fn run(&mut self, name: &str, case: fn(&mut Self) -> Result<()>) -> Result<()> {
        self.namespace = name.replace('_', "-");
        let namespace = json!({ "metadata": { "name": self.namespace } });
        self.kube().create(Resource::Namespace, namespace)?;
        case(self)
    }

    fn kube(&self) -> Kube {
        self.api.kube()
    }

    /// Runs a future with the administrator's kube client inside the namespace, within bounds.
    fn inside<T: Send>(&self, work: impl AsyncFnOnce(kube::Client) -> Result<T> + Send) -> Result<T> {
        let kubeconfig = self.api.kubeconfig(User::Admin);
        self.netns.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let client = lab::api::kube::client(&kubeconfig).await?;
                tokio::time::timeout(PATIENCE, work(client)).await.context("took too long")?
            })
        })
    }

    /// The events of a raw watch, as (type, object), until it ends or `count` are there.
    fn watch(&self, path: &str, count: usize, meanwhile: impl FnOnce() -> Result<()> + Send) -> Result<Vec<Value>> {
        self.inside(async |client| {
            let request = axum::http::Request::get(path).body(Vec::new())?;
            let events = client.request_stream(request).await?;
            meanwhile()?;
            let lines = events.lines().take(count).try_collect::<Vec<String>>().await?;
            let told = lines.iter().map(|line| {
                let event: Value = serde_json::from_str(line)?;
                Ok(json!([event["type"], event["object"]]))
            });
            told.collect()
        })
    }

    fn lease(&self, name: &str) -> Value {
        json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": { "name": name, "namespace": self.namespace },
            "spec": {
                "holderIdentity": "pod-0_uid", "leaseDurationSeconds": 5, "leaseTransitions": 0,
                "acquireTime": "2026-07-01T10:00:00.000000Z", "renewTime": "2026-07-01T10:00:00.123456Z",
            },
        })
    }

    fn service(&self, name: &str) -> Value {
        json!({
            "metadata": { "name": name, "namespace": self.namespace },
            "spec": { "type": "LoadBalancer", "ports": [{ "port": 80 }] },
        })
    }

    fn slice(&self, name: &str) -> Value {
        json!({
            "metadata": {
                "name": name, "namespace": self.namespace, "labels": { "kubernetes.io/service-name": "web" },
            },
            "addressType": "IPv4",
            "endpoints": [{ "addresses": ["10.1.0.1"] }],
            "ports": [{ "port": 8080 }],
        })
    }

    fn event(&self, name: &str) -> Value {
        json!({
            "metadata": { "name": name, "namespace": self.namespace },
            "eventTime": "2026-07-01T10:00:00.123456Z", "type": "Normal", "reason": "TunnelUp", "action": "Raise",
            "note": "up", "reportingController": "wirevip.io/wirevip", "reportingInstance": "pod-0",
            "regarding": { "apiVersion": "v1", "kind": "Pod", "name": "pod-0", "namespace": self.namespace },
        })
    }

    fn secret(&self, name: &str) -> Value {
        json!({
            "metadata": { "name": name, "namespace": self.namespace, "labels": { "app": name } },
            "stringData": { "tunnels": "wg0: {}" },
        })
    }

    fn path(&self, resource: Resource) -> String {
        resource.path(&self.namespace, None)
    }
}

fn refused(answer: Result<impl std::fmt::Debug, Refused>) -> Result<Refused> {
    answer.err().context("granted, and should be refused")
}

#[track_caller]
fn same(refused: &Refused, code: u16, reason: &str, message: &str) -> Result<()> {
    let wanted = Refused { code, reason: reason.into(), message: message.into() };
    ensure!(*refused == wanted, "at {}:\n got {refused:?}\nwant {wanted:?}", std::panic::Location::caller());
    Ok(())
}

#[track_caller]
fn equal<A: std::fmt::Debug + PartialEq<B>, B: std::fmt::Debug>(got: A, wanted: B) -> Result<()> {
    ensure!(got == wanted, "at {}:\n got {got:?}\nwant {wanted:?}", std::panic::Location::caller());
    Ok(())
}

#[track_caller]
fn is(got: &Value, wanted: impl Into<Value>) -> Result<()> {
    equal(got, &wanted.into())
}

fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse().ok()).unwrap_or_default()
}

fn types(events: &[Value]) -> Vec<&str> {
    events.iter().filter_map(|event| event[0].as_str()).collect()
}

fn a_secret_is_kept_listed_and_deleted(world: &mut World) -> Result<()> {
    let (kube, namespace) = (world.kube(), world.namespace.as_str());
    let made = kube.create(Resource::Secret, world.secret("wireguard"))?;
    is(&made["data"], json!({ "tunnels": "d2cwOiB7fQ==" }))?;
    is(&made["type"], "Opaque")?;
    is(&made["stringData"], Value::Null)?;
    ensure!(made["metadata"]["uid"].as_str().is_some_and(|uid| uid.len() == 36), "{made}");
    ensure!(made["metadata"]["creationTimestamp"].as_str().is_some_and(|time| time.len() == 20), "{made}");
    let mut got = kube.get(Resource::Secret, namespace, "wireguard")?;
    is(&got, made.clone())?;
    let listed = kube.list(Resource::Secret, namespace)?;
    got.as_object_mut().map(|fields| (fields.remove("kind"), fields.remove("apiVersion")));
    equal(listed, vec![got])?;
    kube.delete(Resource::Secret, namespace, "wireguard")?;
    let gone = refused(kube.get(Resource::Secret, namespace, "wireguard"))?;
    same(&gone, 404, "NotFound", "secrets \"wireguard\" not found")?;
    let again = kube.create(Resource::Secret, world.secret("wireguard"))?;
    ensure!(again["metadata"]["uid"] != made["metadata"]["uid"], "the same uid again");
    ensure!(version(&again) > version(&made), "versions must grow");
    Ok(())
}

fn a_write_based_on_an_old_version_is_a_conflict(world: &mut World) -> Result<()> {
    let kube = world.kube();
    let first = kube.create(Resource::Lease, world.lease("l"))?;
    let mut second = first.clone();
    second["spec"]["holderIdentity"] = "pod-1_uid".into();
    kube.replace(Resource::Lease, second.clone())?;
    let conflict = "Operation cannot be fulfilled on leases.coordination.k8s.io \"l\": the object has been modified; \
                    please apply your changes to the latest version and try again";
    same(&refused(kube.replace(Resource::Lease, second))?, 409, "Conflict", conflict)?;
    let patch = json!({ "metadata": { "resourceVersion": first["metadata"]["resourceVersion"] }, "spec": {} });
    let patched = kube.patch(Resource::Lease, &world.namespace, "l", patch);
    same(&refused(patched)?, 409, "Conflict", conflict)?;
    let unconditional = refused(kube.replace(Resource::Lease, world.lease("l")))?;
    let must = "leases.coordination.k8s.io \"l\" is invalid: metadata.resourceVersion: Invalid value: 0: \
                must be specified for an update";
    same(&unconditional, 422, "Invalid", must)?;
    let twice = refused(kube.create(Resource::Lease, world.lease("l")))?;
    same(&twice, 409, "AlreadyExists", "leases.coordination.k8s.io \"l\" already exists")?;
    kube.create(Resource::Secret, world.secret("s"))?;
    kube.replace(Resource::Secret, world.secret("s"))?;
    Ok(())
}

fn a_deletion_may_have_preconditions(world: &mut World) -> Result<()> {
    let kube = world.kube();
    let made = kube.create(Resource::Lease, world.lease("l"))?;
    let path = Resource::Lease.path(&world.namespace, Some("l"));
    let options = |key: &str, value: &str| {
        let preconditions = json!({ "preconditions": { key: value } });
        kube.request("DELETE", &path, Some(("application/json", preconditions)))
    };
    equal(refused(options("uid", "other"))?.reason, "Conflict")?;
    equal(refused(options("resourceVersion", "1"))?.reason, "Conflict")?;
    let deleted = options("uid", made["metadata"]["uid"].as_str().unwrap_or_default())?;
    is(&deleted["status"], "Success")
}

fn a_write_that_changes_nothing_is_no_change(world: &mut World) -> Result<()> {
    let kube = world.kube();
    let made = kube.create(Resource::Lease, world.lease("l"))?;
    let again = kube.replace(Resource::Lease, made.clone())?;
    equal(version(&again), version(&made))?;
    let patch = json!({ "spec": { "leaseDurationSeconds": 5 } });
    let patched = kube.patch(Resource::Lease, &world.namespace, "l", patch)?;
    equal(version(&patched), version(&made))
}

fn lease_times_have_six_digits(world: &mut World) -> Result<()> {
    let kube = world.kube();
    let made = kube.create(Resource::Lease, world.lease("l"))?;
    is(&made["spec"], world.lease("l")["spec"].clone())?;
    for (time, digits) in [("2026-07-01T10:00:00Z", "Z"), ("2026-07-01T10:00:00.123Z", ".123Z")] {
        let mut bad = world.lease("bad");
        bad["spec"]["renewTime"] = time.into();
        let message = format!(
            "Lease in version \"v1\" cannot be handled as a Lease: parsing time \"{time}\" as \
             \"2006-01-02T15:04:05.000000Z07:00\": cannot parse \"{digits}\" as \".000000\""
        );
        same(&refused(kube.create(Resource::Lease, bad))?, 400, "BadRequest", &message)?;
    }
    Ok(())
}

fn a_lease_is_validated(world: &mut World) -> Result<()> {
    let kube = world.kube();
    let with = |key: &str, value: Value| {
        let mut lease = world.lease("l");
        lease["spec"][key] = value;
        kube.create(Resource::Lease, lease)
    };
    let invalid = |faults: &str| format!("Lease.coordination.k8s.io \"l\" is invalid: {faults}");
    let zero = invalid("spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0");
    same(&refused(with("leaseDurationSeconds", json!(0)))?, 422, "Invalid", &zero)?;
    let less = invalid("spec.leaseTransitions: Invalid value: -1: must be greater than or equal to 0");
    same(&refused(with("leaseTransitions", json!(-1)))?, 422, "Invalid", &less)?;
    equal(refused(with("leaseDurationSeconds", json!("5")))?.code, 400)?;
    equal(refused(with("holderIdentity", json!(5)))?.code, 400)?;
    let made = with("holderIdentity", json!(""))?;
    is(&made["spec"]["holderIdentity"], "")?;
    let empty = json!({ "metadata": { "name": "empty", "namespace": world.namespace } });
    is(&kube.create(Resource::Lease, empty)?["spec"], json!({}))?;
    let odd = json!({ "metadata": { "name": "odd", "namespace": world.namespace }, "spec": { "unknown": 1 } });
    is(&kube.create(Resource::Lease, odd)?["spec"], json!({}))?;
    let mut named = world.lease("l");
    named["metadata"]["name"] = "Wg_0".into();
    let message = refused(kube.create(Resource::Lease, named))?;
    let upper = "Lease.coordination.k8s.io \"Wg_0\" is invalid: metadata.name: Invalid value: \"Wg_0\": a lowercase RFC \
                 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end \
                 with an alphanumeric character (e.g. 'example.com', regex used for validation is \
                 '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
    same(&message, 422, "Invalid", upper)
}

fn a_deleted_lease_is_not_renewed(world: &mut World) -> Result<()> {
    let kube = world.kube();
    let made = kube.create(Resource::Lease, world.lease("l"))?;
    kube.delete(Resource::Lease, &world.namespace, "l")?;
    // This is how a leader learns of it: its own PUT carries the old object's uid and version.
    let renewal = refused(kube.replace(Resource::Lease, made.clone()))?;
    let uid = made["metadata"]["uid"].as_str().unwrap_or_default();
    let message = format!(
        "Operation cannot be fulfilled on leases.coordination.k8s.io \"l\": StorageError: invalid object, Code: 4, \
         Key: /registry/leases/{}/l, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: \
         {uid}, UID in object meta: ",
        world.namespace
    );
    same(&renewal, 409, "Conflict", &message)?;
    // Deleted and made again by somebody else: another object.
    kube.create(Resource::Lease, world.lease("l"))?;
    equal(refused(kube.replace(Resource::Lease, made))?.reason, "Conflict")
}

fn a_bare_lease_can_be_put(world: &mut World) -> Result<()> {
    let put = world.kube().replace(Resource::Lease, world.lease("l"))?;
    is(&put["spec"]["holderIdentity"], "pod-0_uid")?;
    ensure!(put["metadata"]["uid"].is_string(), "{put}");
    let mut versioned = world.lease("m");
    versioned["metadata"]["resourceVersion"] = "5".into();
    world.kube().replace(Resource::Lease, versioned.clone())?;
    versioned["metadata"]["name"] = "n".into();
    let message = refused(world.kube().create(Resource::Lease, versioned))?;
    same(&message, 500, "", "resourceVersion should not be set on objects to be created")
}

fn a_namespace_must_exist(world: &mut World) -> Result<()> {
    let mut lease = world.lease("l");
    lease["metadata"]["namespace"] = "nowhere".into();
    let message = refused(world.kube().create(Resource::Lease, lease))?;
    same(&message, 404, "NotFound", "namespaces \"nowhere\" not found")
}

fn a_status_is_apart_from_its_object(world: &mut World) -> Result<()> {
    let (kube, namespace) = (world.kube(), world.namespace.as_str());
    let made = kube.create(Resource::Service, world.service("s"))?;
    is(&made["status"], json!({ "loadBalancer": {} }))?;
    let status = json!({
        "metadata": { "resourceVersion": made["metadata"]["resourceVersion"] },
        "spec": { "ports": [] },
        "status": { "loadBalancer": { "ingress": [{ "ip": "192.0.2.9" }] } },
    });
    let after = kube.patch_status(Resource::Service, namespace, "s", status.clone())?;
    let ingress = json!([{ "ip": "192.0.2.9", "ipMode": "VIP" }]);
    is(&after["status"]["loadBalancer"]["ingress"], ingress.clone())?;
    is(&after["spec"], made["spec"].clone())?;
    // The version in the patch is a precondition.
    equal(refused(kube.patch_status(Resource::Service, namespace, "s", status))?.reason, "Conflict")?;
    let main = json!({ "spec": { "sessionAffinity": "ClientIP" }, "status": { "loadBalancer": {} } });
    let after = kube.patch(Resource::Service, namespace, "s", main)?;
    is(&after["status"]["loadBalancer"]["ingress"], ingress)?;
    is(&after["spec"]["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"], 10800)?;
    let host = json!({ "status": { "loadBalancer": { "ingress": [{ "hostname": "vip.example" }, { "ip": "192.0.2.8", "ipMode": "Proxy" }] } } });
    let after = kube.patch_status(Resource::Service, namespace, "s", host)?;
    let ingress = json!([{ "hostname": "vip.example" }, { "ip": "192.0.2.8", "ipMode": "Proxy" }]);
    is(&after["status"]["loadBalancer"]["ingress"], ingress)?;
    for (bad, fault) in [
        (
            json!({ "ip": "192.0.2" }),
            "status.loadBalancer.ingress[0].ip: Invalid value: \"192.0.2\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ),
        (
            json!({ "hostname": "192.0.2.1" }),
            "status.loadBalancer.ingress[0].hostname: Invalid value: \"192.0.2.1\": must be a DNS name, not an IP address",
        ),
        (
            json!({ "hostname": "vip.example", "ipMode": "Proxy" }),
            "status.loadBalancer.ingress[0].ipMode: Forbidden: may not be specified when `ip` is not set",
        ),
    ] {
        let bad = json!({ "status": { "loadBalancer": { "ingress": [bad] } } });
        let message = refused(kube.patch_status(Resource::Service, namespace, "s", bad))?;
        same(&message, 422, "Invalid", &format!("Service \"s\" is invalid: {fault}"))?;
    }
    // No longer a load balancer: no address.
    let after = kube.patch(Resource::Service, namespace, "s", json!({ "spec": { "type": "ClusterIP" } }))?;
    is(&after["status"], json!({ "loadBalancer": {} }))
}

fn a_service_is_filled_and_validated(world: &mut World) -> Result<()> {
    let (kube, namespace) = (world.kube(), world.namespace.as_str());
    let made = kube.create(Resource::Service, world.service("s"))?;
    let port = &made["spec"]["ports"][0];
    equal((&port["protocol"], &port["targetPort"]), (&json!("TCP"), &json!(80)))?;
    for (key, value) in [
        ("sessionAffinity", "None"),
        ("externalTrafficPolicy", "Cluster"),
        ("internalTrafficPolicy", "Cluster"),
        ("ipFamilyPolicy", "SingleStack"),
    ] {
        is(&made["spec"][key], value)?;
    }
    ensure!(made["spec"]["clusterIP"].as_str().is_some_and(|ip| ip.starts_with("10.96.")), "{made}");
    let mut replaced = world.service("s");
    replaced["spec"]["ports"] = json!([
        { "name": "dns", "port": 53, "protocol": "UDP" }, { "name": "dns-tcp", "port": 53, "targetPort": "dns" },
    ]);
    let after = kube.replace(Resource::Service, replaced)?;
    is(&after["spec"]["clusterIP"], made["spec"]["clusterIP"].clone())?;
    let class = json!({ "spec": { "loadBalancerClass": "wirevip.io/tunnel" } });
    let message = refused(kube.patch(Resource::Service, namespace, "s", class.clone()))?;
    let fault = "Service \"s\" is invalid: spec.loadBalancerClass: Invalid value: \"wirevip.io/tunnel\": may not change once set";
    same(&message, 422, "Invalid", fault)?;
    let mut classed = world.service("classed");
    classed["spec"]["loadBalancerClass"] = "wirevip.io/tunnel".into();
    kube.create(Resource::Service, classed)?;
    let after = kube.patch(Resource::Service, namespace, "classed", json!({ "spec": { "type": "ClusterIP" } }))?;
    is(&after["spec"]["loadBalancerClass"], Value::Null)?;
    let mut bad = world.service("bad");
    bad["spec"]["ports"] = json!([]);
    let message = refused(kube.create(Resource::Service, bad.clone()))?;
    same(&message, 422, "Invalid", "Service \"bad\" is invalid: spec.ports: Required value")?;
    bad["spec"]["ports"] = json!([{ "port": 1 }, { "port": 0, "name": "b" }]);
    let message = refused(kube.create(Resource::Service, bad))?;
    let faults = "Service \"bad\" is invalid: [spec.ports[0].name: Required value, spec.ports[1].port: Invalid value: 0: \
                  must be between 1 and 65535, inclusive, spec.ports[1].targetPort: Invalid value: 0: must be between 1 \
                  and 65535, inclusive]";
    same(&message, 422, "Invalid", faults)
}

fn an_endpointslice_is_filled_and_validated(world: &mut World) -> Result<()> {
    let kube = world.kube();
    let made = kube.create(Resource::EndpointSlice, world.slice("web-1"))?;
    is(&made["ports"], json!([{ "name": "", "port": 8080, "protocol": "TCP" }]))?;
    is(&made["endpoints"], json!([{ "addresses": ["10.1.0.1"], "conditions": {} }]))?;
    let with = |key: &str, value: Value| {
        let mut slice = world.slice("bad");
        slice[key] = value;
        kube.create(Resource::EndpointSlice, slice)
    };
    let invalid = |faults: &str| format!("EndpointSlice.discovery.k8s.io \"bad\" is invalid: {faults}");
    for (key, value, fault) in [
        (
            "endpoints",
            json!([{ "addresses": [] }]),
            "endpoints[0].addresses: Required value: must contain at least 1 address",
        ),
        (
            "endpoints",
            json!([{ "addresses": ["127.0.0.1"] }]),
            "endpoints[0].addresses[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
        ),
        (
            "addressType",
            json!("ipv4"),
            "addressType: Unsupported value: \"ipv4\": supported values: \"FQDN\", \"IPv4\", \"IPv6\"",
        ),
    ] {
        same(&refused(with(key, value))?, 422, "Invalid", &invalid(fault))?;
    }
    let patch = json!({ "endpoints": [{ "addresses": ["10.1.0.2"], "conditions": { "ready": false, "serving": true, "terminating": true } }] });
    let after = kube.patch(Resource::EndpointSlice, &world.namespace, "web-1", patch.clone())?;
    is(&after["endpoints"][0]["conditions"], patch["endpoints"][0]["conditions"].clone())?;
    let bare =
        kube.patch(Resource::EndpointSlice, &world.namespace, "web-1", json!({ "endpoints": [], "ports": [] }))?;
    // Not an empty list: a client must take null for one.
    equal((&bare["endpoints"], &bare["ports"]), (&Value::Null, &Value::Null))
}

fn an_event_is_made_counted_and_validated(world: &mut World) -> Result<()> {
    let kube = world.kube();
    let made = kube.create(Resource::Event, world.event("e"))?;
    is(&made["note"], "up")?;
    is(&made["eventTime"], "2026-07-01T10:00:00.123456Z")?;
    let series = json!({ "series": { "count": 2, "lastObservedTime": "2026-07-01T10:01:00.000000Z" } });
    let after = kube.patch(Resource::Event, &world.namespace, "e", series.clone())?;
    is(&after["series"], series["series"].clone())?;
    let edited = refused(kube.patch(Resource::Event, &world.namespace, "e", json!({ "note": "down" })))?;
    equal((edited.code, edited.message.contains("field is immutable")), (422, true))?;
    for (key, value, fault) in [
        ("reportingInstance", json!(""), "reportingInstance: Required value"),
        ("action", json!(""), "action: Required value"),
        ("reason", json!(""), "reason: Required value"),
        ("type", json!("Odd"), "type: Invalid value: \"\": has invalid value: Odd"),
        ("eventTime", Value::Null, "eventTime: Required value"),
        ("note", json!("x".repeat(1025)), "message: Invalid value: \"\": can have at most 1024 characters"),
        ("action", json!("x".repeat(129)), "action: Invalid value: \"\": can have at most 128 characters"),
        (
            "regarding",
            json!({ "kind": "Node", "name": "n" }),
            "involvedObject.namespace: Invalid value: \"\": does not match event.namespace",
        ),
    ] {
        let mut event = world.event("bad");
        event[key] = value;
        let message = refused(kube.create(Resource::Event, event))?;
        same(&message, 422, "Invalid", &format!("Event \"bad\" is invalid: {fault}"))?;
    }
    let mut event = world.event("bad");
    event["reportingController"] = "".into();
    equal(refused(kube.create(Resource::Event, event))?.code, 422)
}

fn a_watch_tells_every_change_after_a_version(world: &mut World) -> Result<()> {
    let (kube, namespace) = (world.kube(), world.namespace.as_str());
    let first = kube.create(Resource::Lease, world.lease("l"))?;
    let patch =
        |holder: &str| kube.patch(Resource::Lease, namespace, "l", json!({ "spec": { "holderIdentity": holder } }));
    patch("a")?;
    let path = format!("{}?watch=true&resourceVersion={}", world.path(Resource::Lease), version(&first));
    let events = world.watch(&path, 4, || {
        patch("b")?;
        kube.delete(Resource::Lease, namespace, "l")?;
        kube.create(Resource::Lease, world.lease("l"))?;
        Ok(())
    })?;
    equal(types(&events), ["MODIFIED", "MODIFIED", "DELETED", "ADDED"])?;
    is(&events[0][1]["spec"]["holderIdentity"], "a")?;
    is(&events[2][1]["spec"]["holderIdentity"], "b")?;
    is(&events[2][1]["kind"], "Lease")?;
    let versions: Vec<u64> = events.iter().map(|event| version(&event[1])).collect();
    ensure!(versions.is_sorted() && versions[2] > versions[1], "{versions:?}");
    Ok(())
}

fn a_watch_without_a_version_begins_with_all(world: &mut World) -> Result<()> {
    let kube = world.kube();
    kube.create(Resource::Secret, world.secret("a"))?;
    kube.create(Resource::Secret, world.secret("b"))?;
    for start in ["", "&resourceVersion=0"] {
        let path = format!("{}?watch=1{start}", world.path(Resource::Secret));
        let events = world.watch(&path, 2, || Ok(()))?;
        equal(types(&events), ["ADDED", "ADDED"])?;
    }
    let path = format!("{}?watch=1&fieldSelector=metadata.name%3Db", world.path(Resource::Secret));
    let events = world.watch(&path, 1, || Ok(()))?;
    is(&events[0][1]["metadata"]["name"], "b")
}

fn an_object_that_leaves_a_selector_is_deleted_for_it(world: &mut World) -> Result<()> {
    let (kube, namespace) = (world.kube(), world.namespace.as_str());
    let made = kube.create(Resource::Secret, world.secret("a"))?;
    let label = |value: Value| {
        kube.patch(Resource::Secret, namespace, "a", json!({ "metadata": { "labels": { "app": value } } }))
    };
    let path =
        format!("{}?watch=1&labelSelector=app%3Da&resourceVersion={}", world.path(Resource::Secret), version(&made));
    let events = world.watch(&path, 3, || {
        label(json!("other"))?;
        label(Value::Null)?;
        let back = label(json!("a"))?;
        kube.delete(Resource::Secret, namespace, "a")?;
        ensure!(version(&back) > version(&made));
        Ok(())
    })?;
    equal(types(&events), ["DELETED", "ADDED", "DELETED"])
}

fn a_watch_ends_at_its_timeout_after_a_bookmark(world: &mut World) -> Result<()> {
    let (kube, namespace) = (world.kube(), world.namespace.as_str());
    let made = kube.create(Resource::Lease, world.lease("l"))?;
    kube.create(Resource::Lease, world.lease("other"))?;
    let options = "watch=1&allowWatchBookmarks=true&timeoutSeconds=4&fieldSelector=metadata.name%3Dl";
    let path = format!("{}?{options}&resourceVersion={}", world.path(Resource::Lease), version(&made));
    let events = world.watch(&path, 10, || {
        kube.patch(Resource::Lease, namespace, "other", json!({ "spec": { "holderIdentity": "x" } }))?;
        Ok(())
    })?;
    ensure!(!events.is_empty() && types(&events).iter().all(|kind| *kind == "BOOKMARK"), "{events:?}");
    ensure!(version(&events[0][1]) > version(&made), "{events:?}");
    is(&events[0][1]["kind"], "Lease")
}

fn a_watch_from_a_forgotten_version_is_gone(world: &mut World) -> Result<()> {
    world.api.compact()?;
    let path = format!("{}?watch=1&resourceVersion=1", world.path(Resource::Lease));
    let events = world.watch(&path, 1, || Ok(()))?;
    equal(types(&events), ["ERROR"])?;
    equal((&events[0][1]["code"], &events[0][1]["reason"]), (&json!(410), &json!("Expired")))?;
    let message = events[0][1]["message"].as_str().unwrap_or_default();
    ensure!(message.starts_with("too old resource version: 1 ("), "{message}");
    Ok(())
}

fn a_watch_may_stream_its_list(world: &mut World) -> Result<()> {
    world.kube().create(Resource::Secret, world.secret("a"))?;
    let path = world.path(Resource::Secret);
    let options = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let events = world.watch(&format!("{path}?{options}"), 2, || Ok(()))?;
    equal(types(&events), ["ADDED", "BOOKMARK"])?;
    is(&events[1][1]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true")?;
    let bad = world.kube().request("GET", &format!("{path}?watch=1&sendInitialEvents=true"), None);
    equal(refused(bad)?.code, 422)
}

fn the_watcher_of_kube_sees_it_all(world: &mut World) -> Result<()> {
    let (kube, namespace) = (world.kube(), world.namespace.as_str());
    kube.create(Resource::Lease, world.lease("l"))?;
    kube.create(Resource::Lease, world.lease("other"))?;
    for config in [watcher::Config::default(), watcher::Config::default().streaming_lists()] {
        let told = world.inside(async |client| {
            let leases = Api::<Lease>::namespaced(client, namespace);
            let mut events = std::pin::pin!(watcher(leases, config.fields("metadata.name=l")));
            let mut told = Vec::new();
            next(&mut events, &mut told, 3).await?;
            kube.patch(Resource::Lease, namespace, "l", json!({ "spec": { "holderIdentity": "x" } }))?;
            kube.patch(Resource::Lease, namespace, "other", json!({ "spec": { "holderIdentity": "x" } }))?;
            kube.delete(Resource::Lease, namespace, "l")?;
            kube.create(Resource::Lease, world.lease("l"))?;
            next(&mut events, &mut told, 3).await?;
            Ok(told)
        })?;
        equal(told, ["init", "init pod-0_uid", "done", "x", "deleted x", "pod-0_uid"])?;
    }
    Ok(())
}

async fn next(
    events: &mut (impl Stream<Item = watcher::Result<watcher::Event<Lease>>> + Unpin),
    told: &mut Vec<String>,
    count: usize,
) -> Result<()> {
    let holder = |lease: Lease| lease.spec.and_then(|spec| spec.holder_identity).unwrap_or_default();
    for _ in 0..count {
        told.push(match events.next().await.context("the watcher ended")?? {
            watcher::Event::Init => "init".into(),
            watcher::Event::InitApply(lease) => format!("init {}", holder(lease)),
            watcher::Event::InitDone => "done".into(),
            watcher::Event::Apply(lease) => holder(lease),
            watcher::Event::Delete(lease) => format!("deleted {}", holder(lease)),
        });
    }
    Ok(())
}

fn lists_select_and_come_in_pages(world: &mut World) -> Result<()> {
    let kube = world.kube();
    for name in ["a", "b", "c"] {
        kube.create(Resource::Secret, world.secret(name))?;
    }
    let path = world.path(Resource::Secret);
    let names = |list: &Value| -> Vec<String> {
        let items = list["items"].as_array().into_iter().flatten();
        items.filter_map(|item| item["metadata"]["name"].as_str().map(str::to_owned)).collect()
    };
    let get = |query: &str| kube.request("GET", &format!("{path}?{query}"), None);
    equal(names(&get("fieldSelector=metadata.name%3Db")?), ["b"])?;
    equal(names(&get("labelSelector=app%20in%20(a,c)")?), ["a", "c"])?;
    equal(names(&get("labelSelector=app!%3Da")?), ["b", "c"])?;
    equal(names(&get("resourceVersion=0")?), ["a", "b", "c"])?;
    let first = get("limit=2")?;
    equal(names(&first), ["a", "b"])?;
    is(&first["kind"], "SecretList")?;
    let token = first["metadata"]["continue"].as_str().context("no continue")?;
    let second = get(&format!("limit=2&continue={token}"))?;
    equal(names(&second), ["c"])?;
    is(&second["metadata"]["continue"], Value::Null)?;
    equal(version(&second), version(&first))?;
    let unknown = refused(get("fieldSelector=spec.x%3Db"))?;
    same(&unknown, 400, "BadRequest", "field label not supported: spec.x")
}

fn only_what_the_chart_grants_is_allowed(world: &mut World) -> Result<()> {
    let sidecar = world.api.kube_as(User::Sidecar("pod-0".into()))?;
    let get = |path: &str| sidecar.request("GET", path, None);
    for path in [
        "/api/v1/namespaces/wirevip/secrets?fieldSelector=metadata.name%3Dwireguard",
        "/apis/coordination.k8s.io/v1/namespaces/wirevip/leases",
        "/api/v1/services",
        "/apis/discovery.k8s.io/v1/endpointslices",
    ] {
        get(path)?;
    }
    let account = "system:serviceaccount:wirevip:wirevip";
    for (path, message) in [
        (
            "/api/v1/namespaces/wirevip/secrets",
            "secrets is forbidden: User \"{}\" cannot list resource \"secrets\" in API group \"\" in the namespace \"wirevip\"",
        ),
        (
            "/api/v1/namespaces/wirevip/secrets/other",
            "secrets \"other\" is forbidden: User \"{}\" cannot get resource \"secrets\" in API group \"\" in the namespace \"wirevip\"",
        ),
        (
            "/api/v1/namespaces/default/secrets?fieldSelector=metadata.name%3Dwireguard",
            "secrets \"wireguard\" is forbidden: User \"{}\" cannot list resource \"secrets\" in API group \"\" in the namespace \"default\"",
        ),
        (
            "/apis/coordination.k8s.io/v1/leases",
            "leases.coordination.k8s.io is forbidden: User \"{}\" cannot list resource \"leases\" in API group \"coordination.k8s.io\" at the cluster scope",
        ),
        (
            "/api/v1/nodes",
            "nodes is forbidden: User \"{}\" cannot list resource \"nodes\" in API group \"\" at the cluster scope",
        ),
    ] {
        same(&refused(get(path))?, 403, "Forbidden", &message.replace("{}", account))?;
    }
    let mut service = world.service("s");
    service["metadata"]["namespace"] = "default".into();
    world.kube().apply(Resource::Service, service.clone())?;
    sidecar.patch_status(Resource::Service, "default", "s", json!({ "status": { "loadBalancer": {} } }))?;
    let spec = refused(sidecar.patch(Resource::Service, "default", "s", json!({ "spec": {} })))?;
    let message = "services \"s\" is forbidden: User \"{}\" cannot patch resource \"services\" in API group \"\" in the namespace \"default\"";
    same(&spec, 403, "Forbidden", &message.replace("{}", account))?;
    let mut lease = world.lease("wirevip-wg0");
    lease["metadata"]["namespace"] = "wirevip".into();
    let made = sidecar.create(Resource::Lease, lease)?;
    sidecar.replace(Resource::Lease, made)?;
    equal(refused(sidecar.delete(Resource::Lease, "wirevip", "wirevip-wg0"))?.code, 403)?;
    let mut event = world.event("e");
    event["metadata"]["namespace"] = "default".into();
    event["regarding"]["namespace"] = "default".into();
    sidecar.create(Resource::Event, event)?;
    // A right that is taken away is gone at once.
    let role = world.kube().get(Resource::Role, "wirevip", "wirevip")?;
    world.kube().patch(Resource::Role, "wirevip", "wirevip", json!({ "rules": [] }))?;
    let leases = "/apis/coordination.k8s.io/v1/namespaces/wirevip/leases";
    let taken = poll(|| refused(get(leases)).ok());
    world.kube().patch(Resource::Role, "wirevip", "wirevip", json!({ "rules": role["rules"] }))?;
    equal(taken?.code, 403)?;
    poll(|| get(leases).ok()).map(drop)
}

/// RBAC is read from a cache: a change takes a moment.
fn poll<T>(mut attempt: impl FnMut() -> Option<T>) -> Result<T> {
    for _ in 0..200 {
        if let Some(done) = attempt() {
            return Ok(done);
        }
        std::thread::sleep(Duration::from_millis(25));
    }
    anyhow::bail!("did not happen")
}

fn strangers_are_refused(world: &mut World) -> Result<()> {
    let admin = world.api.kubeconfig(User::Admin);
    let token = admin.split("token: \"").nth(1).and_then(|rest| rest.split('"').next()).context("no token")?;
    let stranger = Kube::new(&world.netns, &admin.replace(token, "wrong"))?;
    let refusal = refused(stranger.list(Resource::Secret, "default"))?;
    same(&refusal, 401, "Unauthorized", "Unauthorized")?;
    let nobody = Kube::new(&world.netns, &admin.replace(&format!("token: \"{token}\""), ""))?;
    let message = "secrets is forbidden: User \"system:anonymous\" cannot list resource \"secrets\" in API group \"\" in the namespace \"default\"";
    same(&refused(nobody.list(Resource::Secret, "default"))?, 403, "Forbidden", message)?;
    let missing = refused(world.kube().request("GET", "/apis/none.example/v1/nothings", None))?;
    equal((missing.code, missing.message.trim()), (404, "404 page not found"))?;
    let missing = refused(world.kube().request("GET", "/apis/discovery.k8s.io/v1/nothings", None))?;
    equal((missing.code, missing.message.trim()), (404, "the server could not find the requested resource"))
}

fn requests_are_recorded(world: &mut World) -> Result<()> {
    let sidecar = world.api.kube_as(User::Sidecar("pod-7".into()))?;
    let _ = sidecar.get(Resource::Secret, "wirevip", "wireguard");
    let _ = sidecar.patch_status(Resource::Service, "default", "none", json!({}));
    let _ = sidecar.request("GET", "/api/v1/namespaces/wirevip/secrets?fieldSelector=metadata.name%3Dwireguard", None);
    let seen = poll(|| {
        let all = world.api.requests();
        let mine: Vec<_> = all.into_iter().filter(|request| request.user == "pod-7").collect();
        (mine.len() >= 3).then_some(mine)
    })?;
    let told: Vec<_> =
        seen.iter().map(|r| format!("{} {} {}/{} {}", r.verb, r.resource, r.namespace, r.name, r.code)).collect();
    equal(
        told,
        [
            "get secrets wirevip/wireguard 404",
            "patch services/status default/none 404",
            "list secrets wirevip/wireguard 200",
        ],
    )?;
    ensure!(seen.is_sorted_by_key(|request| request.at), "{seen:?}");
    Ok(())
}

fn the_control_plane_is_a_service(world: &mut World) -> Result<()> {
    let slice = poll(|| world.kube().get(Resource::EndpointSlice, "default", "kubernetes").ok())?;
    is(&slice["endpoints"][0]["addresses"], json!(["10.0.0.1"]))?;
    is(&slice["ports"], json!([{ "name": "https", "port": 6443, "protocol": "TCP" }]))?;
    is(&slice["metadata"]["labels"]["kubernetes.io/service-name"], "kubernetes")?;
    let service = poll(|| world.kube().get(Resource::Service, "default", "kubernetes").ok())?;
    is(&service["spec"]["clusterIP"], "10.96.0.1")
}

fn the_api_goes_away_and_comes_back_with_its_data(world: &mut World) -> Result<()> {
    let made = world.kube().create(Resource::Lease, world.lease("l"))?;
    world.api.stop()?;
    equal(refused(world.kube().get(Resource::Lease, &world.namespace, "l"))?.code, 0)?;
    let connected = world.netns.run(|| Ok(TcpStream::connect(ADDRESS)))?;
    equal(connected.err().map(|error| error.kind()), Some(ErrorKind::ConnectionRefused))?;
    world.api.resume()?;
    is(&world.kube().get(Resource::Lease, &world.namespace, "l")?, made)
}

fn a_frozen_api_accepts_and_never_answers(world: &mut World) -> Result<()> {
    world.api.freeze()?;
    let (kube, (tell, told)) = (world.kube(), mpsc::channel());
    let asker = std::thread::spawn(move || tell.send(kube.list(Resource::Secret, "default").is_ok()));
    let connected = world.netns.run(|| Ok(TcpStream::connect(ADDRESS)?))?;
    connected.set_read_timeout(Some(Duration::from_millis(300)))?;
    (&connected).write_all(b"hello")?;
    equal((&connected).read(&mut [0; 1]).map_err(|error| error.kind()), Err(ErrorKind::WouldBlock))?;
    equal(told.try_recv(), Err(mpsc::TryRecvError::Empty))?;
    world.api.thaw()?;
    // What waited is answered now.
    equal(told.recv_timeout(PATIENCE), Ok(true))?;
    equal(asker.join().is_ok(), true)
}

fn a_pod_is_reached_through_the_proxy(world: &mut World) -> Result<()> {
    let (kube, namespace) = (world.kube(), world.namespace.as_str());
    let pod = json!({
        "metadata": { "name": "pod-0", "namespace": namespace },
        "spec": { "nodeName": "node-0", "containers": [{ "name": "wirevip", "image": "wirevip" }] },
    });
    kube.create(Resource::Pod, pod)?;
    let status = json!({ "status": { "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{ "ip": "10.0.0.1" }] } });
    kube.patch_status(Resource::Pod, namespace, "pod-0", status)?;
    let listener = world.netns.run(|| Ok(TcpListener::bind("10.0.0.1:9586")?))?;
    let server = std::thread::spawn(move || -> Result<String> {
        let (stream, _) = listener.accept()?;
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line)?;
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 15\r\nConnection: close\r\n\r\n{\"pod\":\"pod-0\"}";
        (&stream).write_all(answer.as_bytes())?;
        Ok(line)
    });
    is(&kube.pod_proxy(namespace, "pod-0", 9586, "/status")?, json!({ "pod": "pod-0" }))?;
    let line = server.join().map_err(|_| anyhow::anyhow!("the pod panicked"))??;
    ensure!(line.starts_with("GET /status HTTP/1."), "{line}");
    kube.delete(Resource::Pod, namespace, "pod-0")?;
    equal(refused(kube.get(Resource::Pod, namespace, "pod-0"))?.code, 404)
}

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        const CASES: &[(&str, fn(&mut World) -> Result<()>)] = &[$((stringify!($name), $name)),*];

        mod stand_in {
            use super::*;
            $(
                #[test]
                #[ignore = "needs root or a user namespace"]
                fn $name() -> Result<()> {
                    World::new(Kind::Embedded)?.run(stringify!($name), super::$name)
                }
            )*
        }
    };
}

cases![
    a_secret_is_kept_listed_and_deleted,
    a_write_based_on_an_old_version_is_a_conflict,
    a_deletion_may_have_preconditions,
    a_write_that_changes_nothing_is_no_change,
    lease_times_have_six_digits,
    a_lease_is_validated,
    a_deleted_lease_is_not_renewed,
    a_bare_lease_can_be_put,
    a_namespace_must_exist,
    a_status_is_apart_from_its_object,
    a_service_is_filled_and_validated,
    an_endpointslice_is_filled_and_validated,
    an_event_is_made_counted_and_validated,
    a_watch_tells_every_change_after_a_version,
    a_watch_without_a_version_begins_with_all,
    an_object_that_leaves_a_selector_is_deleted_for_it,
    a_watch_ends_at_its_timeout_after_a_bookmark,
    a_watch_from_a_forgotten_version_is_gone,
    a_watch_may_stream_its_list,
    the_watcher_of_kube_sees_it_all,
    lists_select_and_come_in_pages,
    only_what_the_chart_grants_is_allowed,
    strangers_are_refused,
    requests_are_recorded,
    the_control_plane_is_a_service,
    a_pod_is_reached_through_the_proxy,
    the_api_goes_away_and_comes_back_with_its_data,
    a_frozen_api_accepts_and_never_answers,
];

/// One server for all cases: a start takes seconds and 250 MB.
#[test]
#[ignore = "needs root, kube-apiserver and etcd"]
fn a_real_api_server_passes_every_case() -> Result<()> {
    let mut world = World::new(Kind::Real)?;
    let mut failed = Vec::new();
    for (name, case) in CASES {
        if let Err(error) = world.run(name, *case) {
            failed.push(format!("{name}: {error:#}"));
        }
    }
    ensure!(failed.is_empty(), "{} of {} failed:\n{}", failed.len(), CASES.len(), failed.join("\n"));
    Ok(())
}

/// What only the stand-in can do: go wrong on demand.
mod faults {
    use lab::api::faults::{Fault, Target};

    use super::*;

    fn world() -> Result<(World, Kube)> {
        let mut world = World::new(Kind::Embedded)?;
        world.run("faults", |_| Ok(()))?;
        let sidecar = world.api.kube_as(User::Sidecar("pod-0".into()))?;
        Ok((world, sidecar))
    }

    const SERVICES: &str = "/api/v1/services";

    #[test]
    #[ignore = "needs root or a user namespace"]
    fn a_request_is_refused_as_often_as_told() -> Result<()> {
        let (world, sidecar) = world()?;
        for code in [401, 403, 429, 500, 503] {
            world.api.faults()?.next(1, Target::any().verb("list").resource("services"), Fault::Refuse(code));
            equal(refused(sidecar.request("GET", SERVICES, None))?.code, code)?;
        }
        sidecar.request("GET", SERVICES, None)?;
        Ok(())
    }

    #[test]
    #[ignore = "needs root or a user namespace"]
    fn a_lost_reply_was_applied_and_a_cut_request_was_not() -> Result<()> {
        let (world, sidecar) = world()?;
        let mut lease = world.lease("wirevip-wg0");
        lease["metadata"]["namespace"] = "wirevip".into();
        let creates = || Target::any().user("pod-0").verb("create");
        world.api.faults()?.next(1, creates(), Fault::Cut);
        equal(refused(sidecar.create(Resource::Lease, lease.clone()))?.code, 0)?;
        equal(world.kube().list(Resource::Lease, "wirevip")?.len(), 0)?;
        world.api.faults()?.next(1, creates(), Fault::LoseReply);
        equal(refused(sidecar.create(Resource::Lease, lease))?.code, 0)?;
        equal(world.kube().list(Resource::Lease, "wirevip")?.len(), 1)?;
        Ok(())
    }

    #[test]
    #[ignore = "needs root or a user namespace"]
    fn a_request_that_hangs_is_not_answered_and_others_are() -> Result<()> {
        let (world, sidecar) = world()?;
        world.api.faults()?.next(1, Target::any().user("pod-0"), Fault::Hang);
        let (other, (tell, told)) = (sidecar.clone(), mpsc::channel());
        std::thread::spawn(move || tell.send(other.request("GET", SERVICES, None).is_ok()));
        // It hangs once it is on record.
        poll(|| world.api.requests().iter().any(|request| request.user == "pod-0").then_some(()))?;
        sidecar.request("GET", SERVICES, None)?;
        equal(told.try_recv(), Err(mpsc::TryRecvError::Empty))
    }

    #[test]
    #[ignore = "needs root or a user namespace"]
    fn dropped_watches_end_and_gone_ones_are_told() -> Result<()> {
        let (world, _) = world()?;
        let version = version(&world.kube().create(Resource::Lease, world.lease("l"))?);
        let path = format!("{}?watch=1&resourceVersion={version}", world.path(Resource::Lease));
        let faults = world.api.faults()?.clone();
        let ended = world.watch(&path, 1, || {
            faults.drop_watches();
            Ok(())
        })?;
        equal(ended.len(), 0)?;
        faults.next(1, Target::any().user("admin").verb("watch"), Fault::Gone);
        let events = world.watch(&path, 1, || Ok(()))?;
        is(&events[0][1]["code"], 410)
    }

    #[test]
    #[ignore = "needs root or a user namespace"]
    fn a_stuck_watch_stays_open_and_tells_nothing_until_it_is_loose() -> Result<()> {
        let (world, _) = world()?;
        let kube = world.kube();
        let version = version(&kube.create(Resource::Lease, world.lease("l"))?);
        let path = format!("{}?watch=1&resourceVersion={version}", world.path(Resource::Lease));
        let faults = world.api.faults()?.clone();
        let change = |holder: &str| {
            kube.patch(Resource::Lease, &world.namespace, "l", json!({ "spec": { "holderIdentity": holder } }))
        };
        faults.stick_watches(true);
        let stuck =
            world.watch(&format!("{path}&timeoutSeconds=1"), 1, || change("a").map(drop).map_err(Into::into))?;
        equal(stuck.len(), 0)?;
        let loose = world.watch(&path, 2, || {
            change("b")?;
            faults.stick_watches(false);
            Ok(())
        })?;
        equal(types(&loose), ["MODIFIED", "MODIFIED"])
    }

    #[test]
    #[ignore = "needs root or a user namespace"]
    fn a_wrong_certificate_is_refused_by_clients() -> Result<()> {
        let (world, _) = world()?;
        world.api.faults()?.wrong_certificate(true);
        let fresh = world.api.kube_as(User::Sidecar("pod-1".into()))?;
        let refusal = refused(fresh.request("GET", SERVICES, None))?;
        ensure!(refusal.message.to_lowercase().contains("certificate"), "{refusal:?}");
        world.api.faults()?.clear();
        fresh.request("GET", SERVICES, None)?;
        Ok(())
    }
}
