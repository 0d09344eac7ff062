use super::*;

fn call(method: Method, uri: &str) -> Call {
    let uri: http::Uri = uri.parse().unwrap();
    Call::of(&method, uri.path(), uri.query())
}

#[test]
fn calls_are_told_apart_as_rbac_does() {
    let cases = [
        (Method::GET, "/api/v1/services?limit=100", "list services"),
        (Method::GET, "/api/v1/services?&watch=true&resourceVersion=1", "watch services"),
        (Method::GET, "/api/v1/namespaces/a/services/b", "get services in namespace a"),
        (Method::PATCH, "/api/v1/namespaces/a/services/b/status?", "patch services/status in namespace a"),
        (
            Method::GET,
            "/apis/coordination.k8s.io/v1/namespaces/a/leases/l",
            "get leases.coordination.k8s.io in namespace a",
        ),
        (
            Method::PUT,
            "/apis/coordination.k8s.io/v1/namespaces/a/leases/l",
            "update leases.coordination.k8s.io in namespace a",
        ),
        (Method::POST, "/apis/events.k8s.io/v1/namespaces/a/events?", "create events.events.k8s.io in namespace a"),
        (Method::GET, "/apis/discovery.k8s.io/v1/endpointslices", "list endpointslices.discovery.k8s.io"),
        (Method::GET, "/api/v1/namespaces/a", "get namespaces"),
        (Method::GET, "/version", "get other"),
        (Method::GET, "/", "get other"),
    ];
    for (method, uri, expected) in cases {
        assert_eq!(call(method, uri).to_string(), expected, "{uri}");
    }
}

#[test]
fn a_forbidden_call_names_itself_and_the_rule_to_add() {
    let fault = ApiFault::forbidden(call(Method::PATCH, "/api/v1/namespaces/a/services/b/status"));
    let expected = "not allowed to patch services/status in namespace a; add to the ClusterRole wirevip: \
                    {apiGroups: [\"\"], resources: [services/status], verbs: [patch]}";
    assert_eq!(fault.to_string(), expected);
    let fault = ApiFault::forbidden(call(Method::PUT, "/apis/coordination.k8s.io/v1/namespaces/a/leases/l"));
    let expected = "not allowed to update leases.coordination.k8s.io in namespace a; add to the Role wirevip: \
                    {apiGroups: [\"coordination.k8s.io\"], resources: [leases], verbs: [get, list, watch, create, update]}";
    assert_eq!(fault.to_string(), expected);
    // Never the right to read every Secret.
    for uri in [
        "/api/v1/namespaces/a/secrets?&fieldSelector=metadata.name%3Dwireguard&limit=500",
        "/api/v1/namespaces/a/secrets?&watch=true&fieldSelector=metadata.name%3Dwireguard",
        "/api/v1/namespaces/a/secrets/wireguard",
    ] {
        let rule = "{apiGroups: [\"\"], resources: [secrets], resourceNames: [wireguard], verbs: [get, list, watch]}";
        assert_eq!(call(Method::GET, uri).rule(), rule, "{uri}");
    }
    let other = call(Method::GET, "/api/v1/services?fieldSelector=metadata.name%3Dweb");
    assert_eq!(other.rule(), "{apiGroups: [\"\"], resources: [services], verbs: [list, watch]}");
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Layered(&'static str, #[source] Option<Box<Layered>>);

#[test]
fn a_refused_certificate_is_told_from_an_absent_server() {
    let deep = Layered("invalid peer certificate: UnknownIssuer", None);
    let error = Layered("client error (Connect)", Some(Box::new(deep)));
    let expected = ApiFault::Certificate { cause: "invalid peer certificate: UnknownIssuer".to_owned() };
    assert_eq!(ApiFault::of_transport(&error), expected);
    let refused = Layered("client error (Connect)", Some(Box::new(Layered("connection refused", None))));
    let expected = ApiFault::Unreachable { cause: "client error (Connect): connection refused".to_owned() };
    assert_eq!(ApiFault::of_transport(&refused), expected);
}
