//! What a client outside reaches, and what the cluster's own people see.

use std::net::SocketAddrV4;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::api::Resource;
use lab::client::Proto;
use lab::clock::until;
use lab::cluster::{Installed, NODES, repository};
use lab::kubeconfig::KubeconfigFile;
use lab::plan;
use serde_json::json;

/// All backends answer the client over TCP and UDP.
fn services_are_reached(installed: &Installed) -> Result<()> {
    for proto in [Proto::Tcp, Proto::Udp] {
        let spread = installed.cluster.client.spread(proto, installed.web(), 60)?;
        assert!(spread.len() == 3 && spread.keys().all(|name| name.starts_with("web-")), "{proto:?}: {spread:?}");
    }
    Ok(())
}

/// `kubectl get nodes` at the client, with a kubeconfig for this address; what it printed.
fn nodes_from_outside(installed: &Installed, server: SocketAddrV4, name: &str) -> Result<String> {
    let kubeconfig = KubeconfigFile::new(&installed.kubeconfig_at(server, name)?)?;
    let kubectl = repository().join("target/cluster/programs/kubectl").display().to_string();
    let mut command = installed.cluster.client.netns.command(&kubectl);
    command.arg("--kubeconfig").arg(kubeconfig.path()).args(["get", "nodes", "--no-headers"]).stdin(Stdio::null());
    command.arg(concat!("--cache-dir=", env!("CARGO_TARGET_TMPDIR"), "/kubectl"));
    let output = command.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn api_server_is_reached(installed: &Installed) -> Result<()> {
    let port = plan::API_SOCKET.port();
    let hub = installed.cluster.hub.public(port);
    // Whoever is in the hub's network reaches the VIP itself.
    let vip = SocketAddrV4::new(plan::vip(0), port);
    installed.cluster.route_to_vip()?;
    for (server, name) in [(hub, "kubernetes.default.svc"), (hub, "10.77.0.2"), (vip, "10.77.0.2")] {
        let nodes = nodes_from_outside(installed, server, name)?;
        assert_eq!(nodes.lines().count(), usize::from(NODES), "{server} as {name}: {nodes}");
    }
    let refused = nodes_from_outside(installed, hub, "another.example").unwrap_err().to_string();
    assert!(refused.contains("x509"), "{refused}");
    Ok(())
}

fn people_inside_see_the_address(installed: &Installed) -> Result<()> {
    let within = Duration::from_secs(10);
    let vip = plan::vip(0).to_string();
    until("the VIP in `kubectl get svc`", within, || {
        let services = installed.cluster.kubectl(&["get", "svc", "web", "--no-headers"], "")?;
        Ok((services.split_whitespace().nth(3) == Some(&vip)).then_some(()))
    })?;
    let events = installed.cluster.kube.list(Resource::Event, "")?;
    let told = |reason: &str| events.iter().any(|event| event["reason"] == reason);
    assert!(told("TunnelUp") && told("Forwarded"), "{events:#?}");
    Ok(())
}

fn all_is_reached(forwarding: &str) -> Result<()> {
    Installed::play(&[], |installed| {
        for pod in installed.pods()? {
            let said = installed.in_pod(&pod, &["cat", "/proc/sys/net/ipv4/ip_forward"])?;
            assert_eq!(said.trim(), forwarding, "{}'s IPv4 forwarding as the CNI set it", pod.name);
        }
        services_are_reached(installed)?;
        api_server_is_reached(installed)?;
        people_inside_see_the_address(installed)
    })
}

#[test]
#[ignore = "needs a cluster, see make cluster-test"]
fn a_client_outside_reaches_the_api_server_and_services() -> Result<()> {
    lab::cluster::forwarding("1")?;
    all_is_reached("1")
}

#[test]
#[ignore = "needs a cluster, see make cluster-test"]
fn pods_without_ipv4_forwarding_serve_as_well() -> Result<()> {
    lab::cluster::forwarding("0")?;
    let reached = all_is_reached("0");
    lab::cluster::forwarding("1").and(reached)
}

/// A headless Service without a selector, whose one address is that of something outside.
fn named_in_the_cluster(name: &str, address: std::net::Ipv4Addr) -> String {
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": "default" },
        "spec": { "clusterIP": "None" },
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "ports": [],
        "metadata": { "name": name, "namespace": "default", "labels": { "kubernetes.io/service-name": name } },
        "endpoints": [{ "addresses": [address] }],
    });
    json!({ "apiVersion": "v1", "kind": "List", "items": [service, slice] }).to_string()
}

#[test]
#[ignore = "needs a cluster, see make cluster-test"]
fn a_hub_by_name_is_found_by_the_clusters_dns_whoever_knows_the_name() -> Result<()> {
    Installed::play(&[], |installed| {
        let hub = installed.cluster.hub.address;
        installed.cluster.dns.set("hub.example.org", hub, 60);
        let inside = named_in_the_cluster("hub", hub);
        installed.cluster.kubectl(&["apply", "-f", "-"], &inside)?;
        // The second is found by the search list that Kubernetes writes into a pod's resolv.conf.
        for name in ["hub.example.org", "hub.default"] {
            installed.cluster.tunnel.endpoint = format!("{name}:{}", plan::HUB_PORT);
            installed.write_secret()?;
            // New pods, which have never known an address.
            let old = installed.pods()?;
            installed.cluster.kubectl(&["-n", "wirevip", "delete", "pods", "--all", "--wait=true"], "")?;
            assert!(installed.pods()?.iter().all(|pod| !old.contains(pod)), "{old:?}");
            installed.wait_serving()?;
        }
        installed.cluster.kubectl(&["delete", "-f", "-"], &inside).map(drop)
    })
}
