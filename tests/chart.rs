//! What is installed holds the contract: exactly the privileges it names, nothing else.
//!
//! The manifests are read as they lie in the repository; the tests that render the chart need helm.

// Every function here is part of a test, also those without the attribute, which clippy.toml cannot see.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

/// Kind of role, API group, resource, the one name if bound to one, verbs.
type Rights = (&'static str, &'static str, &'static str, Option<&'static str>, &'static [&'static str]);

/// Every right that `wirevip run` has.
const RIGHTS: &[Rights] = &[
    ("Role", "", "secrets", Some("wireguard"), &["get", "list", "watch"]),
    ("Role", "coordination.k8s.io", "leases", None, &["get", "list", "watch", "create", "update"]),
    ("ClusterRole", "", "services", None, &["list", "watch"]),
    ("ClusterRole", "discovery.k8s.io", "endpointslices", None, &["list", "watch"]),
    ("ClusterRole", "", "services/status", None, &["patch"]),
    ("ClusterRole", "events.k8s.io", "events", None, &["create", "patch"]),
];

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn documents(yaml: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(yaml).expect("YAML")
}

/// Every object that `kubectl apply -f manifests/` makes.
fn manifests() -> Vec<Value> {
    let mut files: Vec<PathBuf> =
        repository().join("manifests").read_dir().expect("manifests/").map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().flat_map(|file| documents(&std::fs::read_to_string(file).unwrap())).collect()
}

fn one<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let found: Vec<_> = objects.iter().filter(|object| object["kind"] == kind).collect();
    assert_eq!(found.len(), 1, "exactly one {kind}");
    found[0]
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().expect("a list").iter().map(|entry| entry.as_str().expect("a string").to_owned()).collect()
}

/// One line a right, so that a difference reads as the right that is missing or too much.
fn rights(objects: &[Value]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for role in objects.iter().filter(|object| object["kind"] == "Role" || object["kind"] == "ClusterRole") {
        for rule in role["rules"].as_array().expect("rules") {
            assert!(rule.get("nonResourceURLs").is_none(), "no right on a path: {rule}");
            let names = rule.get("resourceNames").map_or_else(|| vec!["*".to_owned()], strings);
            for group in strings(&rule["apiGroups"]) {
                for resource in strings(&rule["resources"]) {
                    for name in &names {
                        for verb in strings(&rule["verbs"]) {
                            found.insert(right(role["kind"].as_str().unwrap(), &group, &resource, name, &verb));
                        }
                    }
                }
            }
        }
    }
    found
}

fn right(kind: &str, group: &str, resource: &str, name: &str, verb: &str) -> String {
    format!("{kind}: {verb} {resource} in group '{group}', name {name}")
}

fn contract_rights() -> BTreeSet<String> {
    RIGHTS
        .iter()
        .flat_map(|(kind, group, resource, name, verbs)| {
            verbs.iter().map(|verb| right(kind, group, resource, name.unwrap_or("*"), verb))
        })
        .collect()
}

fn container(objects: &[Value]) -> Value {
    let pod = &one(objects, "DaemonSet")["spec"]["template"]["spec"];
    assert_eq!(pod["containers"].as_array().map(Vec::len), Some(1), "one container");
    pod["containers"][0].clone()
}

/// The contract's section "Privileges", for manifests and every rendering of the chart alike.
fn assert_privileges(objects: &[Value]) {
    let pod = &one(objects, "DaemonSet")["spec"]["template"]["spec"];
    assert_eq!(pod["hostNetwork"], false);
    for absent in ["hostPID", "hostIPC", "initContainers", "securityContext", "shareProcessNamespace"] {
        assert!(pod.get(absent).is_none(), "the pod has {absent}");
    }
    assert_eq!(
        container(objects)["securityContext"],
        json!({
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]},
            "readOnlyRootFilesystem": true,
            "seccompProfile": {"type": "RuntimeDefault"},
        })
    );
}

#[test]
fn the_manifests_grant_exactly_the_rights_of_the_contract() {
    assert_eq!(rights(&manifests()), contract_rights());
}

#[test]
fn the_roles_are_bound_to_the_service_account_of_the_pods_and_to_nobody_else() {
    let objects = manifests();
    for (binding, role) in [("RoleBinding", "Role"), ("ClusterRoleBinding", "ClusterRole")] {
        let binding = one(&objects, binding);
        assert_eq!(
            binding["roleRef"],
            json!({"apiGroup": "rbac.authorization.k8s.io", "kind": role, "name": "wirevip"})
        );
        assert_eq!(binding["subjects"], json!([{"kind": "ServiceAccount", "name": "wirevip", "namespace": "wirevip"}]));
    }
    assert_eq!(one(&objects, "DaemonSet")["spec"]["template"]["spec"]["serviceAccountName"], "wirevip");
}

#[test]
fn everything_is_named_wirevip_and_lies_in_the_namespace_wirevip() {
    let objects = manifests();
    let kinds: Vec<&str> = objects.iter().map(|object| object["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds[0], "Namespace", "kubectl applies in this order");
    let mut sorted = kinds.clone();
    sorted.sort_unstable();
    assert_eq!(
        sorted,
        ["ClusterRole", "ClusterRoleBinding", "DaemonSet", "Namespace", "Role", "RoleBinding", "ServiceAccount"]
    );
    for object in &objects {
        let kind = object["kind"].as_str().unwrap();
        assert_eq!(object["metadata"]["name"], "wirevip", "{kind}");
        let namespaced = !kind.starts_with("Cluster") && kind != "Namespace";
        let namespace = object["metadata"].get("namespace").and_then(Value::as_str);
        assert_eq!(namespace, namespaced.then_some("wirevip"), "{kind}");
    }
}

#[test]
fn the_namespace_lets_the_pods_in() {
    let objects = manifests();
    let labels = &one(&objects, "Namespace")["metadata"]["labels"];
    assert_eq!(labels["pod-security.kubernetes.io/enforce"], "privileged");
}

#[test]
fn the_pods_have_the_privileges_of_the_contract_and_no_volume() {
    let objects = manifests();
    assert_privileges(&objects);
    assert!(one(&objects, "DaemonSet")["spec"]["template"]["spec"].get("volumes").is_none());
}

#[test]
fn the_pods_learn_who_they_are_and_are_probed_where_they_listen() {
    let container = container(&manifests());
    let told: Vec<(String, String)> = container["env"]
        .as_array()
        .unwrap()
        .iter()
        .map(|env| {
            let path = &env["valueFrom"]["fieldRef"]["fieldPath"];
            (env["name"].as_str().unwrap().to_owned(), path.as_str().unwrap().to_owned())
        })
        .collect();
    let expected = [
        ("POD_NAME", "metadata.name"),
        ("POD_NAMESPACE", "metadata.namespace"),
        ("POD_UID", "metadata.uid"),
        ("NODE_NAME", "spec.nodeName"),
    ];
    assert_eq!(told, expected.map(|(name, path)| (name.to_owned(), path.to_owned())));
    assert_eq!(container["ports"], json!([{"name": "http", "containerPort": 9586, "protocol": "TCP"}]));
    assert!(strings(&container["args"]).contains(&"--http-addr=0.0.0.0:9586".to_owned()));
    for (probe, path) in [("livenessProbe", "/livez"), ("readinessProbe", "/readyz")] {
        assert_eq!(container[probe]["httpGet"], json!({"path": path, "port": "http"}));
    }
}

#[test]
fn every_argument_of_the_pods_is_one_that_the_program_knows() {
    let args = strings(&container(&manifests())["args"]);
    assert_eq!(args[0], "run");
    // Arguments are checked before the environment: what is missing without a cluster is who the pod is, and no more.
    let output = run(Command::new(env!("CARGO_BIN_EXE_wirevip")).args(&args).env_clear());
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains("POD_NAMESPACE"), "{told}");
}

fn run(program: &mut Command) -> Output {
    program.current_dir(repository()).output().expect("the program is there")
}

/// Renders the chart as release `r` in the namespace `elsewhere`, with these `--set` values.
fn helm_template(values: &[&str]) -> Output {
    let mut helm = Command::new("helm");
    helm.args(["template", "r", "charts/wirevip", "--namespace", "elsewhere", "--kube-version", "1.34.0"]);
    values.iter().for_each(|value| {
        helm.args(["--set", value]);
    });
    run(&mut helm)
}

fn rendered(values: &[&str]) -> Vec<Value> {
    let output = helm_template(values);
    assert!(output.status.success(), "{values:?}: {}", String::from_utf8_lossy(&output.stderr));
    documents(&String::from_utf8(output.stdout).unwrap())
}

#[test]
#[ignore = "needs helm"]
fn the_manifests_are_what_the_chart_renders() {
    let output = run(Command::new("lab/setup/manifests.sh").arg("--check"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
#[ignore = "needs helm"]
fn the_chart_lints_without_a_warning() {
    let output = run(Command::new("helm").args(["lint", "--strict", "charts/wirevip", "--kube-version", "1.34.0"]));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
#[ignore = "needs helm"]
fn the_chart_goes_into_any_namespace_under_any_release_name() {
    let objects = rendered(&[]);
    assert_eq!(rights(&objects), contract_rights());
    assert_privileges(&objects);
    for object in &objects {
        assert_eq!(object["metadata"]["name"], "r-wirevip");
    }
    for binding in ["RoleBinding", "ClusterRoleBinding"] {
        assert_eq!(
            one(&objects, binding)["subjects"],
            json!([{"kind": "ServiceAccount", "name": "r-wirevip", "namespace": "elsewhere"}])
        );
    }
}

#[test]
#[ignore = "needs helm"]
fn the_tun_device_is_given_only_where_the_backend_may_use_it() {
    let table: [(&[&str], bool); 4] = [
        (&[], false),
        (&["tun=true"], true),
        (&["config.backend=userspace"], true),
        (&["config.backend=kernel", "tun=true"], false),
    ];
    for (values, given) in table {
        let objects = rendered(values);
        assert_privileges(&objects);
        let volumes = one(&objects, "DaemonSet")["spec"]["template"]["spec"].get("volumes").cloned();
        let device = json!([{"name": "tun", "hostPath": {"path": "/dev/net/tun", "type": "CharDevice"}}]);
        assert_eq!(volumes, given.then_some(device), "{values:?}");
        let mounts = container(&objects).get("volumeMounts").cloned();
        let mount = json!([{"name": "tun", "mountPath": "/dev/net/tun"}]);
        assert_eq!(mounts, given.then_some(mount), "{values:?}");
    }
}

#[test]
#[ignore = "needs helm"]
fn values_reach_the_arguments_and_the_one_secret_that_may_be_read() {
    let objects = rendered(&[
        "config.secretName=tunnels",
        "config.controlPlane=false",
        "config.controlPlanePort=16443",
        "config.serviceNamespace=shop",
        "config.backend=kernel",
        "config.hold=false",
        "config.leaseDuration=15s",
        "config.renewDeadline=10s",
        "config.retryPeriod=500ms",
        "config.logFormat=json",
        "config.logLevel=debug",
        "http.port=8080",
        "extraArgs[0]=--pod-uid=x",
    ]);
    assert_eq!(
        strings(&container(&objects)["args"]),
        [
            "run",
            "--secret-name=tunnels",
            "--control-plane=false",
            "--control-plane-port=16443",
            "--service-namespace=shop",
            "--backend=kernel",
            "--hold=false",
            "--lease-duration=15s",
            "--renew-deadline=10s",
            "--retry-period=500ms",
            "--http-addr=0.0.0.0:8080",
            "--log-format=json",
            "--log-level=debug",
            "--pod-uid=x",
        ]
    );
    let secret = rights(&objects).into_iter().filter(|right| right.contains("secrets")).collect::<Vec<_>>();
    assert!(!secret.is_empty() && secret.iter().all(|right| right.ends_with("name tunnels")), "{secret:?}");
}

#[test]
#[ignore = "needs helm"]
fn the_example_secret_is_read_back_as_the_values_say() {
    let key = "A".repeat(43) + "=";
    let objects = rendered(&[
        "secret.create=true",
        "secret.tunnels.wg0.vip=10.99.0.2",
        &format!("secret.tunnels.wg0.privateKey={key}"),
        &format!("secret.tunnels.wg0.peerPublicKey={key}"),
        "secret.tunnels.wg0.peerEndpoint=hub.example.org:51820",
        "secret.tunnels.wg0.listenPort=51821",
    ]);
    let secret = one(&objects, "Secret");
    assert_eq!(secret["metadata"]["name"], "wireguard");
    assert_eq!(
        documents(secret["stringData"]["tunnels"].as_str().unwrap()),
        [json!({"wg0": {
            "vip": "10.99.0.2", "privateKey": key, "peerPublicKey": key,
            "peerEndpoint": "hub.example.org:51820", "listenPort": 51821,
        }})]
    );
}

#[test]
#[ignore = "needs helm"]
fn the_pod_monitor_finds_the_pods() {
    let objects = rendered(&["podMonitor.enabled=true"]);
    let monitor = &one(&objects, "PodMonitor")["spec"];
    assert_eq!(monitor["selector"], one(&objects, "DaemonSet")["spec"]["selector"]);
    assert_eq!(monitor["podMetricsEndpoints"][0]["port"], container(&objects)["ports"][0]["name"]);
}

#[test]
#[ignore = "needs helm"]
fn a_value_that_the_schema_does_not_know_is_refused_by_name() {
    let table = [
        ("hostNetwork=true", "hostNetwork"),
        ("image.registry=example.org", "registry"),
        ("config.backend=fast", "backend"),
        ("config.leaseDuration=5", "leaseDuration"),
        ("config.controlPlanePort=0", "controlPlanePort"),
        ("terminationGracePeriodSeconds=3", "terminationGracePeriodSeconds"),
        ("secret.tunnels.wg0.privatKey=x", "privatKey"),
    ];
    for (value, named) in table {
        let output = helm_template(&[value]);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && told.contains(named), "{value}: {told}");
    }
}
