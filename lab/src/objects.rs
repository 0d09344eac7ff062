//! The Kubernetes objects of a world, as plain JSON that tests change before they apply it. Pure.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use crate::client::Proto;

/// How an endpoint is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Condition {
    /// Ready and serving.
    Ready,
    /// Neither ready nor serving.
    NotReady,
    /// Not ready, since it is being deleted, but still serving.
    Leaving,
    /// No conditions at all: the API says this means ready.
    Unsaid,
}

impl Proto {
    /// As in a Service.
    pub fn as_str(self) -> &'static str {
        match self {
            Proto::Tcp => "TCP",
            Proto::Udp => "UDP",
        }
    }
}

/// The Secret `wireguard` with this document.
pub fn secret(namespace: &str, document: &str) -> Value {
    json!({ "metadata": { "name": "wireguard", "namespace": namespace }, "stringData": { "tunnels": document } })
}

/// A port of a Service, with a number as target.
pub fn port(protocol: Proto, port: u16, target: u16) -> Value {
    let name = format!("{}-{port}", protocol.as_str().to_lowercase());
    json!({ "name": name, "protocol": protocol.as_str(), "port": port, "targetPort": target })
}

/// A Service `default/<name>` of wirevip's class for a tunnel.
pub fn service(name: &str, tunnel: &str, ports: &[Value]) -> Value {
    json!({
        "metadata": { "name": name, "namespace": "default", "annotations": { "wirevip.io/tunnel": tunnel } },
        "spec": {
            "type": "LoadBalancer",
            "loadBalancerClass": "wirevip.io/tunnel",
            "allocateLoadBalancerNodePorts": false,
            "ports": ports,
        },
    })
}

/// A Service `default/<name>` that names VIPs by kube-vip's annotation.
pub fn service_on(name: &str, vips: &[Ipv4Addr], ports: &[Value]) -> Value {
    let vips = vips.iter().map(Ipv4Addr::to_string).collect::<Vec<_>>().join(",");
    let mut service = service(name, "", ports);
    service["metadata"]["annotations"] = json!({ "kube-vip.io/loadbalancerIPs": vips });
    if let Some(spec) = service["spec"].as_object_mut() {
        spec.remove("loadBalancerClass");
    }
    service
}

/// An EndpointSlice `default/<name>` of a Service. The ports are those of `service`, each on its `targetPort`, or on
/// `named` where that is a name.
pub fn slice(name: &str, service: &Value, named: u16, endpoints: &[(Ipv4Addr, Condition)]) -> Value {
    let ports: Vec<Value> = service["spec"]["ports"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|port| {
            let target = port["targetPort"].as_u64().unwrap_or(named.into());
            json!({ "name": port["name"], "protocol": port["protocol"], "port": target })
        })
        .collect();
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(address, condition)| {
            let mut endpoint = json!({ "addresses": [address.to_string()] });
            let conditions = |ready: bool, serving: bool, terminating: bool| json!({ "ready": ready, "serving": serving, "terminating": terminating });
            match condition {
                Condition::Ready => endpoint["conditions"] = conditions(true, true, false),
                Condition::NotReady => endpoint["conditions"] = conditions(false, false, false),
                Condition::Leaving => endpoint["conditions"] = conditions(false, true, true),
                Condition::Unsaid => {}
            }
            endpoint
        })
        .collect();
    json!({
        "metadata": {
            "name": name,
            "namespace": "default",
            "labels": { "kubernetes.io/service-name": service["metadata"]["name"] },
        },
        "addressType": "IPv4",
        "ports": ports,
        "endpoints": endpoints,
    })
}

/// A node.
pub fn node(name: &str) -> Value {
    json!({ "metadata": { "name": name } })
}

/// A sidecar's pod.
pub fn pod(namespace: &str, name: &str, node: &str) -> Value {
    json!({
        "metadata": { "name": name, "namespace": namespace, "labels": { "app.kubernetes.io/name": "wirevip" } },
        "spec": {
            "nodeName": node,
            "serviceAccountName": "wirevip",
            "automountServiceAccountToken": false,
            "containers": [{ "name": "wirevip", "image": "wirevip.invalid/wirevip" }],
        },
    })
}
