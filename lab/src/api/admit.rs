//! What an object becomes on its way in: types checked, defaults filled, faults named. Pure.
//!
//! Only what the sidecar or the lab can run into, each as the real API server does it (`k8s.io/kubernetes/pkg/apis/*/
//! validation` and `defaults.go`); `tests/api.rs` holds both to it.

use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::failure::Failure;
use super::resource::{Place, Resource};

/// The object as it will be kept, apart from what only the store knows (uid, versions). 400 where a field has a wrong type.
pub fn admit(resource: Resource, mut object: Value) -> Result<Value, Failure> {
    let Place { kind, version, .. } = resource.place();
    let cannot = |why: String| {
        Failure::bad_request(format!("{kind} in version \"{version}\" cannot be handled as a {kind}: {why}"))
    };
    let Some(fields) = object.as_object_mut() else { return Err(cannot("expected an object".into())) };
    for (key, wanted) in [("kind", (*kind).to_owned()), ("apiVersion", resource.api_version())] {
        // As in the real one, a body that does not say what it is is what the path says.
        let said = fields.entry(key).or_insert_with(|| wanted.clone().into());
        if *said != wanted.as_str() {
            let message = format!("the {key} of the data ({said}) does not match the expected {key} (\"{wanted}\")");
            return Err(Failure::bad_request(message));
        }
    }
    micro_times(resource, &object).map_err(cannot)?;
    let mut object = resource.typed(object).map_err(|error| cannot(error.to_string()))?;
    defaults(resource, &mut object);
    Ok(object)
}

/// Go refuses a MicroTime with any other number of digits than six (`metav1.RFC3339Micro`).
fn micro_times(resource: Resource, object: &Value) -> Result<(), String> {
    let paths: &[&str] = match resource {
        Resource::Lease => &["/spec/acquireTime", "/spec/renewTime"],
        Resource::Event => &["/eventTime", "/series/lastObservedTime"],
        _ => &[],
    };
    for text in paths.iter().filter_map(|path| object.pointer(path)).filter_map(Value::as_str) {
        let after_seconds = text.get("2006-01-02T15:04:05".len()..).unwrap_or_default();
        let digits = after_seconds.strip_prefix('.').unwrap_or_default();
        if digits.bytes().take_while(u8::is_ascii_digit).count() != 6 {
            return Err(format!(
                "parsing time {text:?} as \"2006-01-02T15:04:05.000000Z07:00\": cannot parse {after_seconds:?} as \".000000\""
            ));
        }
    }
    Ok(())
}

fn default(object: &mut Map<String, Value>, key: &str, value: impl Into<Value>) {
    if object.get(key).is_none_or(Value::is_null) {
        object.insert(key.into(), value.into());
    }
}

fn each_map(list: Option<&mut Value>) -> impl Iterator<Item = &mut Map<String, Value>> {
    list.and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}

fn defaults(resource: Resource, object: &mut Value) {
    let Some(top) = object.as_object_mut() else { return };
    match resource {
        Resource::Secret => {
            default(top, "type", "Opaque");
            if let Some(Value::Object(plain)) = top.remove("stringData") {
                default(top, "data", json!({}));
                for (key, value) in plain {
                    top["data"][key] = STANDARD.encode(value.as_str().unwrap_or_default()).into();
                }
            }
        }
        Resource::Lease => default(top, "spec", json!({})),
        Resource::EndpointSlice => {
            // Go tells an empty list of a required field as null, once it was stored.
            for list in ["endpoints", "ports"] {
                if top.get(list).and_then(Value::as_array).is_none_or(Vec::is_empty) {
                    top.insert(list.into(), Value::Null);
                }
            }
            for endpoint in each_map(top.get_mut("endpoints")) {
                default(endpoint, "conditions", json!({}));
            }
            for port in each_map(top.get_mut("ports")) {
                default(port, "name", "");
                default(port, "protocol", "TCP");
            }
        }
        Resource::Service => {
            default(top, "spec", json!({}));
            default(top, "status", json!({}));
            let balancer = top["spec"]["type"] == "LoadBalancer";
            if let Some(spec) = top["spec"].as_object_mut() {
                default(spec, "type", "ClusterIP");
                default(spec, "sessionAffinity", "None");
                if spec["type"] != "ExternalName" {
                    default(spec, "internalTrafficPolicy", "Cluster");
                }
                if balancer {
                    default(spec, "externalTrafficPolicy", "Cluster");
                    default(spec, "allocateLoadBalancerNodePorts", true);
                }
                if spec["sessionAffinity"] == "ClientIP" {
                    default(spec, "sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": 10800}}));
                }
                for port in each_map(spec.get_mut("ports")) {
                    default(port, "protocol", "TCP");
                    let number = port.get("port").cloned().unwrap_or_default();
                    default(port, "targetPort", number);
                }
            }
            if let Some(status) = top["status"].as_object_mut() {
                default(status, "loadBalancer", json!({}));
                // A Service of another type keeps no load balancer's addresses.
                if !balancer {
                    status.insert("loadBalancer".into(), json!({}));
                }
                for ingress in each_map(status["loadBalancer"].get_mut("ingress")) {
                    if ingress.contains_key("ip") {
                        default(ingress, "ipMode", "VIP");
                    }
                }
            }
        }
        Resource::Pod | Resource::Node => default(top, "status", json!({})),
        _ => {}
    }
}

/// Every fault of an object about to be kept; `old` is what it replaces.
pub fn faults(resource: Resource, new: &Value, old: Option<&Value>) -> Vec<String> {
    let mut faults = Vec::new();
    let name = new["metadata"]["name"].as_str().unwrap_or_default();
    if old.is_none() && !is_name(resource, name) {
        faults.push(if name.is_empty() {
            "metadata.name: Required value: name or generateName is required".into()
        } else {
            format!("metadata.name: Invalid value: \"{name}\": {}", name_rule(resource))
        });
    }
    match resource {
        Resource::Lease => lease(&new["spec"], &mut faults),
        Resource::Event => event(new, old, &mut faults),
        Resource::EndpointSlice => slice(new, old, &mut faults),
        Resource::Service => service(new, old, &mut faults),
        Resource::Secret => {
            if let Some(old) = old
                && old["type"] != new["type"]
            {
                faults.push(format!("type: Invalid value: {}: field is immutable", new["type"]));
            }
        }
        _ => {}
    }
    faults
}

fn name_rule(resource: Resource) -> &'static str {
    match resource {
        Resource::Service => {
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')"
        }
        _ => {
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
        }
    }
}

fn is_name(resource: Resource, name: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    match resource {
        Resource::Service => label(name) && name.len() <= 63 && name.starts_with(|c: char| c.is_ascii_lowercase()),
        // RBAC names are path segments: `system:node` is one.
        Resource::Role | Resource::RoleBinding | Resource::ClusterRole | Resource::ClusterRoleBinding => {
            !name.is_empty() && !name.contains(['/', '%'])
        }
        _ => name.len() <= 253 && name.split('.').all(label),
    }
}

fn lease(spec: &Value, faults: &mut Vec<String>) {
    if let Some(seconds) = spec["leaseDurationSeconds"].as_i64()
        && seconds <= 0
    {
        faults.push(format!("spec.leaseDurationSeconds: Invalid value: {seconds}: must be greater than 0"));
    }
    if let Some(transitions) = spec["leaseTransitions"].as_i64()
        && transitions < 0
    {
        faults.push(format!("spec.leaseTransitions: Invalid value: {transitions}: must be greater than or equal to 0"));
    }
}

fn event(new: &Value, old: Option<&Value>, faults: &mut Vec<String>) {
    let length = |key: &str| new[key].as_str().map_or(0, str::len);
    if new["eventTime"].is_null() {
        faults.push("eventTime: Required value".into());
    }
    for (key, limit) in
        [("reportingController", usize::MAX), ("reportingInstance", 128), ("action", 128), ("reason", 128)]
    {
        match length(key) {
            0 => faults.push(format!("{key}: Required value")),
            n if n > limit => {
                faults.push(format!("{key}: Invalid value: \"\": can have at most {limit} characters"));
            }
            _ => {}
        }
    }
    if length("note") > 1024 {
        faults.push("message: Invalid value: \"\": can have at most 1024 characters".into());
    }
    if new["type"] != "Normal" && new["type"] != "Warning" {
        let said = new["type"].as_str().unwrap_or_default();
        faults.push(format!("type: Invalid value: \"\": has invalid value: {said}"));
    }
    let (namespace, about) =
        (&new["metadata"]["namespace"], new["regarding"]["namespace"].as_str().unwrap_or_default());
    if about.is_empty() && namespace != "default" && namespace != "kube-system" {
        faults.push("involvedObject.namespace: Invalid value: \"\": does not match event.namespace".into());
    }
    if let Some(count) = new["series"]["count"].as_i64()
        && count < 2
    {
        faults.push("series.count: Invalid value: \"\": should be at least 2".into());
    }
    let Some(old) = old else { return };
    for (key, named) in [
        ("regarding", "involvedObject"),
        ("reason", "reason"),
        ("note", "message"),
        ("type", "type"),
        ("eventTime", "eventTime"),
        ("action", "action"),
        ("reportingController", "reportingController"),
        ("reportingInstance", "reportingInstance"),
    ] {
        if new[key] != old[key] {
            faults.push(format!("{named}: Invalid value: {}: field is immutable", new[key]));
        }
    }
}

fn slice(new: &Value, old: Option<&Value>, faults: &mut Vec<String>) {
    let family = new["addressType"].as_str().unwrap_or_default();
    if family.is_empty() {
        faults.push("addressType: Required value".into());
    } else if !["IPv4", "IPv6", "FQDN"].contains(&family) {
        faults.push(format!(
            "addressType: Unsupported value: \"{family}\": supported values: \"FQDN\", \"IPv4\", \"IPv6\""
        ));
    }
    if let Some(old) = old
        && old["addressType"] != new["addressType"]
    {
        faults.push(format!("addressType: Invalid value: \"{family}\": field is immutable"));
    }
    for (at, endpoint) in new["endpoints"].as_array().into_iter().flatten().enumerate() {
        let addresses = endpoint["addresses"].as_array().map(Vec::as_slice).unwrap_or_default();
        if addresses.is_empty() {
            faults.push(format!("endpoints[{at}].addresses: Required value: must contain at least 1 address"));
        }
        for (n, address) in addresses.iter().filter_map(Value::as_str).enumerate() {
            let path = format!("endpoints[{at}].addresses[{n}]");
            match (address.parse::<IpAddr>(), family) {
                (_, "FQDN") => {}
                (Err(_), _) => faults.push(format!(
                    "{path}: Invalid value: \"{address}\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
                )),
                (Ok(ip), "IPv4") if !ip.is_ipv4() => {
                    faults.push(format!("{path}: Invalid value: \"{address}\": must be an IPv4 address"));
                }
                (Ok(ip), "IPv6") if !ip.is_ipv6() => {
                    faults.push(format!("{path}: Invalid value: \"{address}\": must be an IPv6 address"));
                }
                (Ok(ip), _) if ip.is_loopback() => faults.push(format!(
                    "{path}: Invalid value: \"{address}\": may not be in the loopback range (127.0.0.0/8, ::1/128)"
                )),
                (Ok(ip), _) if ip.is_unspecified() => faults.push(format!(
                    "{path}: Invalid value: \"{address}\": may not be unspecified (0.0.0.0 or ::)"
                )),
                _ => {}
            }
        }
    }
}

fn service(new: &Value, old: Option<&Value>, faults: &mut Vec<String>) {
    let spec = &new["spec"];
    let ports = spec["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    if ports.is_empty() && spec["type"] != "ExternalName" && spec["clusterIP"] != "None" {
        faults.push("spec.ports: Required value".into());
    }
    for (at, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{at}]");
        if ports.len() > 1 && port["name"].as_str().unwrap_or_default().is_empty() {
            faults.push(format!("{path}.name: Required value"));
        }
        for key in ["port", "targetPort"] {
            let number = &port[key];
            if !number.is_string() && !number.as_i64().is_some_and(|number| (1..=65535).contains(&number)) {
                faults.push(format!("{path}.{key}: Invalid value: {number}: must be between 1 and 65535, inclusive"));
            }
        }
        let same = |other: &&Value| other["port"] == port["port"] && other["protocol"] == port["protocol"];
        if ports[..at].iter().any(|other| same(&other)) {
            faults.push(format!(
                "{path}: Duplicate value: {{\"port\":{},\"protocol\":{}}}",
                port["port"], port["protocol"]
            ));
        }
    }
    let class = spec["loadBalancerClass"].as_str();
    if class.is_some() && spec["type"] != "LoadBalancer" {
        faults.push("spec.loadBalancerClass: Forbidden: may only be used when `type` is 'LoadBalancer'".into());
    }
    if let Some(old) = old
        && old["spec"]["type"] == "LoadBalancer"
        && spec["type"] == "LoadBalancer"
        && old["spec"]["loadBalancerClass"] != spec["loadBalancerClass"]
    {
        faults.push(format!(
            "spec.loadBalancerClass: Invalid value: {}: may not change once set",
            spec["loadBalancerClass"]
        ));
    }
    for (at, ingress) in new["status"]["loadBalancer"]["ingress"].as_array().into_iter().flatten().enumerate() {
        let path = format!("status.loadBalancer.ingress[{at}]");
        if let Some(ip) = ingress["ip"].as_str()
            && ip.parse::<IpAddr>().is_err()
        {
            faults.push(format!(
                "{path}.ip: Invalid value: \"{ip}\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
            ));
        }
        if ingress["ip"].is_null() && !ingress["ipMode"].is_null() {
            faults.push(format!("{path}.ipMode: Forbidden: may not be specified when `ip` is not set"));
        }
        if let Some(host) = ingress["hostname"].as_str() {
            if host.parse::<IpAddr>().is_ok() {
                faults
                    .push(format!("{path}.hostname: Invalid value: \"{host}\": must be a DNS name, not an IP address"));
            } else if !is_name(Resource::Namespace, host) {
                faults.push(format!("{path}.hostname: Invalid value: \"{host}\": {}", name_rule(Resource::Namespace)));
            }
        }
    }
}
