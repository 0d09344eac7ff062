use proptest::prelude::*;
use serde_json::{Value, json};

use super::objects::{ServicePort, Slim};
use super::*;

const SETTINGS: Settings = Settings { control_plane: true, control_plane_port: 6443, unsound_tunnels: 0 };

fn tunnel(name: &str, vip: [u8; 4]) -> TunnelView {
    TunnelView { name: TunnelName::new(name).unwrap(), vip: vip.into(), control_plane: false }
}

fn wg0() -> TunnelView {
    tunnel("wg0", [10, 9, 0, 2])
}

fn wg1() -> TunnelView {
    tunnel("wg1", [10, 9, 1, 2])
}

/// A Service as the API sends it: `web` in `shop`, TCP 80, class ours; `patch` is merged over it.
fn service(patch: Value) -> Service {
    let mut object = json!({
        "metadata": {
            "name": "web", "namespace": "shop", "uid": "u1", "resourceVersion": "7",
            "creationTimestamp": "2026-01-01T00:00:00Z", "annotations": {},
        },
        "spec": {
            "type": "LoadBalancer",
            "loadBalancerClass": "wirevip.io/tunnel",
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": "web"}],
        },
        "status": {"loadBalancer": {}},
    });
    merge(&mut object, patch);
    let wire = serde_json::from_value(object).unwrap();
    Service::slim(&wire).expect("nothing is kept of this Service")
}

fn merge(base: &mut Value, patch: Value) {
    match (base, patch) {
        (Value::Object(base), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, patch) => *base = patch,
    }
}

/// An EndpointSlice of `shop/web` with port `http` on 8080.
fn slice(name: &str, endpoints: Value) -> EndpointSlice {
    slice_with(json!({"metadata": {"name": name}, "endpoints": endpoints}))
}

fn slice_with(patch: Value) -> EndpointSlice {
    slim_slice(patch).expect("nothing is kept of this slice")
}

fn slim_slice(patch: Value) -> Option<EndpointSlice> {
    let mut object = json!({
        "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": [],
    });
    merge(&mut object, patch);
    EndpointSlice::slim(&serde_json::from_value(object).unwrap())
}

fn ready(address: &str) -> Value {
    json!({"addresses": [address], "conditions": {"ready": true, "serving": true, "terminating": false}})
}

fn on(translation: &Translation, tunnel: &TunnelView) -> Vec<String> {
    translation.forwards[&tunnel.name]
        .iter()
        .map(|(port, forward)| {
            let backends: Vec<String> = forward.backends.iter().map(ToString::to_string).collect();
            format!("{port} {} -> [{}]", forward.owner, backends.join(" "))
        })
        .collect()
}

fn run(services: &[Service], slices: &[EndpointSlice]) -> Translation {
    translate(services, slices, &[wg0()], SETTINGS)
}

fn backends_of(slices: &[EndpointSlice]) -> Vec<String> {
    let translation = run(&[service(json!({}))], slices);
    let port = VipPort { protocol: Protocol::Tcp, port: 80 };
    translation.forwards[&wg0().name][&port].backends.iter().map(ToString::to_string).collect()
}

// Which Services are ours, and on which tunnel.

#[test]
fn a_service_is_forwarded_where_it_asks_to_be_and_nowhere_else() {
    let kube_vip = |class: Value, more: Value| {
        let mut patch = json!({"spec": {"loadBalancerClass": class}});
        merge(&mut patch, more);
        patch
    };
    let addresses = |text: &str| json!({"metadata": {"annotations": {"kube-vip.io/loadbalancerIPs": text}}});
    let spec_ip = |text: &str| json!({"spec": {"loadBalancerIP": text}});
    let named = |text: &str| json!({"metadata": {"annotations": {"wirevip.io/tunnel": text}}});
    let ignored = json!({"metadata": {"annotations": {"kube-vip.io/ignore": "true", "wirevip.io/tunnel": "wg0"}}});
    let class = json!("kube-vip.io/kube-vip-class");
    let cases: Vec<(&str, Value, &[&str])> = vec![
        ("class and annotation", named("wg1"), &["wg1"]),
        ("class, unknown tunnel", named("wg7"), &[]),
        ("class, two tunnels to choose from", json!({}), &[]),
        ("class, and an address that is not asked for", addresses("10.9.0.2"), &[]),
        ("no class, one VIP", kube_vip(Value::Null, addresses("10.9.0.2")), &["wg0"]),
        ("no class, two VIPs with blanks", kube_vip(Value::Null, addresses(" 10.9.1.2 , 10.9.0.2")), &["wg0", "wg1"]),
        (
            "no class, VIP among others' addresses",
            kube_vip(Value::Null, addresses("192.0.2.1,fd00::1,10.9.1.2")),
            &["wg1"],
        ),
        ("no class, spec.loadBalancerIP", kube_vip(Value::Null, spec_ip("10.9.1.2")), &["wg1"]),
        ("no class, another's address", kube_vip(Value::Null, addresses("192.0.2.1")), &[]),
        ("no class, no address", kube_vip(Value::Null, json!({})), &[]),
        ("no class, only our annotation", kube_vip(Value::Null, named("wg0")), &[]),
        ("kube-vip's class", kube_vip(class.clone(), addresses("10.9.0.2")), &["wg0"]),
        ("another class", kube_vip(json!("example.com/lb"), addresses("10.9.0.2")), &[]),
        ("ignored", ignored.clone(), &[]),
        (
            "ignored by kube-vip's class",
            kube_vip(class, {
                let mut p = addresses("10.9.0.2");
                merge(&mut p, ignored);
                p
            }),
            &[],
        ),
        (
            "going away",
            json!({"metadata": {"annotations": {"wirevip.io/tunnel": "wg0"}, "deletionTimestamp": "2026-01-02T00:00:00Z"}}),
            &[],
        ),
        (
            "no LoadBalancer any more",
            json!({
                "metadata": {"annotations": {"wirevip.io/tunnel": "wg0"}},
                "spec": {"type": "ClusterIP"},
                "status": {"loadBalancer": {"ingress": [{"ip": "10.9.0.2"}]}},
            }),
            &[],
        ),
    ];
    for (what, patch, expected) in cases {
        let translation = translate(&[service(patch)], &[] as &[EndpointSlice], &[wg0(), wg1()], SETTINGS);
        let found: Vec<&str> =
            translation.forwards.iter().filter(|(_, f)| !f.is_empty()).map(|(name, _)| name.as_str()).collect();
        assert_eq!(found, expected, "{what}");
        let published: Vec<&str> = translation.published.values().flatten().map(TunnelName::as_str).collect();
        assert_eq!(published, expected, "{what}");
    }
}

#[test]
fn kube_vips_annotation_wins_over_a_load_balancer_ip_left_behind() {
    let patch = json!({
        "metadata": {"annotations": {"kube-vip.io/loadbalancerIPs": "10.9.1.2"}},
        "spec": {"loadBalancerClass": null, "loadBalancerIP": "10.9.0.2"},
    });
    let translation = translate(&[service(patch)], &[] as &[EndpointSlice], &[wg0(), wg1()], SETTINGS);
    assert!(translation.forwards[&wg0().name].is_empty());
    assert_eq!(translation.forwards[&wg1().name].len(), 1);
}

#[test]
fn the_only_tunnel_is_taken_without_an_annotation() {
    assert_eq!(on(&run(&[service(json!({}))], &[]), &wg0()), ["80/TCP shop/web -> []"]);
}

#[test]
fn a_tunnel_is_not_the_only_one_beside_one_that_is_unsound() {
    let settings = Settings { unsound_tunnels: 1, ..SETTINGS };
    let translation = translate(&[service(json!({}))], &[] as &[EndpointSlice], &[wg0()], settings);
    assert!(translation.forwards[&wg0().name].is_empty());
    let fault = &translation.faults[&ObjectName::new("shop", "web")];
    assert!(matches!(fault, ServiceFault::WhichTunnel { .. }), "{fault:?}");
}

#[test]
fn an_unknown_tunnel_is_a_fault_that_names_those_there_are() {
    let service = service(json!({"metadata": {"annotations": {"wirevip.io/tunnel": "wg7"}}}));
    let translation = translate(&[service], &[] as &[EndpointSlice], &[wg0(), wg1()], SETTINGS);
    let fault = translation.faults[&ObjectName::new("shop", "web")].to_string();
    assert!(fault.contains("\"wg7\"") && fault.contains("wg0, wg1"), "{fault}");
}

#[test]
fn a_fault_reads_the_same_whatever_order_the_tunnels_came_in() {
    let (nameless, none): (_, &[EndpointSlice]) = ([service(json!({}))], &[]);
    let unknown = [service(json!({"metadata": {"annotations": {"wirevip.io/tunnel": "wg7"}}}))];
    for services in [nameless, unknown] {
        let straight = translate(&services, none, &[wg0(), wg1()], SETTINGS);
        assert_eq!(straight, translate(&services, none, &[wg1(), wg0()], SETTINGS));
    }
}

#[test]
fn before_the_first_tunnel_is_known_nothing_is_at_fault() {
    let named = service(json!({"metadata": {"annotations": {"wirevip.io/tunnel": "wg7"}}}));
    let translation = translate(&[named, service(json!({}))], &[] as &[EndpointSlice], &[], SETTINGS);
    assert_eq!(translation, Translation::default());
}

// Backends.

#[test]
fn all_slices_of_a_service_count_and_each_backend_once() {
    let slices = [
        slice("web-2", json!([ready("10.0.0.3"), ready("10.0.0.1")])),
        slice("web-1", json!([ready("10.0.0.2"), ready("10.0.0.3")])),
    ];
    assert_eq!(backends_of(&slices), ["10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:8080"]);
}

#[test]
fn slices_of_other_services_and_namespaces_do_not_count() {
    let slices = [
        slice_with(json!({"metadata": {"namespace": "other"}, "endpoints": [ready("10.0.0.1")]})),
        slice_with(
            json!({"metadata": {"labels": {"kubernetes.io/service-name": "web2"}}, "endpoints": [ready("10.0.0.2")]}),
        ),
    ];
    assert_eq!(backends_of(&slices), [""; 0]);
}

/// The API takes any number there.
#[test]
fn a_port_that_is_none_costs_its_slice_no_other() {
    let ports: Vec<Value> = [70_000, -1, 0, 8080].map(|port| json!({"name": "http", "port": port})).into();
    let slice = slice_with(json!({"ports": ports, "endpoints": [ready("10.0.0.1")]}));
    assert_eq!(slice.ports.iter().map(|port| port.port.port).collect::<Vec<_>>(), [8080]);
}

#[test]
fn endpoints_are_chosen_by_their_conditions() {
    let endpoint = |conditions: Value| json!([{"addresses": ["10.0.0.1"], "conditions": conditions}]);
    let cases = [
        (json!({"ready": true}), true),
        (json!({}), true),
        (Value::Null, true),
        (json!({"ready": false}), false),
        (json!({"ready": false, "serving": true, "terminating": true}), true),
        (json!({"ready": false, "terminating": true}), true),
        (json!({"ready": false, "serving": false, "terminating": true}), false),
        (json!({"ready": false, "serving": true, "terminating": false}), false),
        (json!({"ready": false, "serving": true}), false),
    ];
    for (conditions, taken) in cases {
        let found = backends_of(&[slice("web-1", endpoint(conditions.clone()))]);
        assert_eq!(found.len(), usize::from(taken), "{conditions}");
    }
}

#[test]
fn draining_endpoints_serve_only_while_no_slice_has_a_ready_one() {
    let draining =
        json!({"addresses": ["10.0.0.1"], "conditions": {"ready": false, "serving": true, "terminating": true}});
    let old = slice("web-1", json!([draining]));
    assert_eq!(backends_of(std::slice::from_ref(&old)), ["10.0.0.1:8080"]);
    assert_eq!(backends_of(&[old, slice("web-2", json!([ready("10.0.0.2")]))]), ["10.0.0.2:8080"]);
}

#[test]
fn without_any_endpoint_the_port_refuses_and_says_so() {
    for slices in [vec![], vec![slice_with(json!({"ports": null, "endpoints": null}))]] {
        let translation = run(&[service(json!({}))], &slices);
        assert_eq!(on(&translation, &wg0()), ["80/TCP shop/web -> []"]);
        let port = VipPort { protocol: Protocol::Tcp, port: 80 };
        let owner = Owner::from(&ObjectName::new("shop", "web"));
        assert_eq!(translation.no_backends, [NoBackends { owner, tunnel: wg0().name, port }]);
    }
}

#[test]
fn a_v4_vip_with_slices_of_both_families_takes_the_v4_ones() {
    assert_eq!(slim_slice(json!({"addressType": "IPv6", "endpoints": [ready("fd00::1")]})), None);
    assert_eq!(slim_slice(json!({"addressType": "FQDN", "endpoints": [ready("a.example")]})), None);
}

#[test]
fn target_ports_are_found_by_the_name_of_the_services_port() {
    let two = service(json!({"spec": {"ports": [
        {"name": "http", "port": 80, "targetPort": "web"},
        {"name": "admin", "port": 81, "targetPort": 9000},
        {"name": "gone", "port": 82, "targetPort": "nowhere"},
    ]}}));
    let slices = [slice_with(json!({
        "ports": [{"name": "admin", "protocol": "TCP", "port": 9000}, {"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": [ready("10.0.0.1")],
    }))];
    let expected =
        ["80/TCP shop/web -> [10.0.0.1:8080]", "81/TCP shop/web -> [10.0.0.1:9000]", "82/TCP shop/web -> []"];
    assert_eq!(on(&run(&[two], &slices), &wg0()), expected);
}

#[test]
fn pods_that_give_one_port_name_different_numbers_come_in_several_slices() {
    let new = slice_with(json!({
        "metadata": {"name": "web-2"},
        "ports": [{"name": "http", "protocol": "TCP", "port": 9090}],
        "endpoints": [ready("10.0.0.2")],
    }));
    assert_eq!(backends_of(&[slice("web-1", json!([ready("10.0.0.1")])), new]), ["10.0.0.1:8080", "10.0.0.2:9090"]);
}

#[test]
fn a_service_with_one_nameless_port_finds_the_nameless_one() {
    let nameless = service(json!({"spec": {"ports": [{"port": 80}]}}));
    for name in [json!(""), Value::Null] {
        let ports = json!([{"name": name, "protocol": "TCP", "port": 8080}]);
        let slices = [slice_with(json!({"ports": ports, "endpoints": [ready("10.0.0.1")]}))];
        assert_eq!(on(&run(std::slice::from_ref(&nameless), &slices), &wg0()), ["80/TCP shop/web -> [10.0.0.1:8080]"]);
    }
}

#[test]
fn tcp_udp_and_sctp_share_a_port_number() {
    let ports = |port: u16| {
        json!([
            {"name": "t", "protocol": "TCP", "port": port}, {"name": "u", "protocol": "UDP", "port": port + 1},
            {"name": "s", "protocol": "SCTP", "port": port + 2},
        ])
    };
    let all = service(json!({"spec": {"ports": [
        {"name": "t", "protocol": "TCP", "port": 53}, {"name": "u", "protocol": "UDP", "port": 53},
        {"name": "s", "protocol": "SCTP", "port": 53},
    ]}}));
    let slices = [slice_with(json!({"ports": ports(1000), "endpoints": [ready("10.0.0.1")]}))];
    let expected = [
        "53/TCP shop/web -> [10.0.0.1:1000]",
        "53/UDP shop/web -> [10.0.0.1:1001]",
        "53/SCTP shop/web -> [10.0.0.1:1002]",
    ];
    assert_eq!(on(&run(&[all], &slices), &wg0()), expected);
}

#[test]
fn an_endpoint_slice_cannot_lead_into_the_pod_itself() {
    let endpoints = json!([
        ready("127.0.0.1"), ready("10.9.0.2"), ready("0.0.0.0"), ready("224.0.0.1"), ready("255.255.255.255"),
        ready("not an address"), {"addresses": []}, ready("10.0.0.1"),
    ]);
    assert_eq!(backends_of(&[slice("web-1", endpoints)]), ["10.0.0.1:8080"]);
}

// Affinity and source ranges.

#[test]
fn client_ip_affinity_and_source_ranges_reach_the_forward() {
    let service = service(json!({"spec": {
        "sessionAffinity": "ClientIP",
        "loadBalancerSourceRanges": [" 192.0.2.0/24", "198.51.100.7/24", "fd00::/8", "192.0.2.128/25"],
    }}));
    let translation = run(&[service], &[]);
    let forward = translation.forwards[&wg0().name].values().next().unwrap();
    assert!(forward.client_ip_affinity);
    let ranges: Vec<String> = forward.source_ranges.iter().map(ToString::to_string).collect();
    assert_eq!(ranges, ["192.0.2.0/24", "198.51.100.0/24"]);
}

#[test]
fn a_service_whose_ranges_cannot_be_read_is_open_to_nobody() {
    for ranges in [json!(["192.0.2.0/24", "192.0.2.0/99"]), json!([""]), json!(["fd00::/8"])] {
        let translation = run(&[service(json!({"spec": {"loadBalancerSourceRanges": ranges}}))], &[]);
        assert!(translation.forwards[&wg0().name].is_empty(), "{ranges}");
        assert!(translation.published.is_empty());
        assert_eq!(translation.faults.len(), 1);
    }
}

#[test]
fn a_service_whose_ranges_cannot_be_read_keeps_its_port_from_younger_ones() {
    let bad = service(json!({"spec": {"loadBalancerSourceRanges": ["x"]}}));
    let young = service(json!({"metadata": {"name": "young", "creationTimestamp": "2026-02-01T00:00:00Z"}}));
    let translation = run(&[young, bad], &[]);
    assert!(translation.forwards[&wg0().name].is_empty());
    assert_eq!(translation.conflicts.len(), 1);
    assert_eq!(translation.conflicts[0].loser, ObjectName::new("shop", "young"));
}

// Conflicts.

#[test]
fn the_older_service_keeps_a_port_that_two_want() {
    let old = service(json!({"metadata": {"name": "z-old"}}));
    let young = service(json!({
        "metadata": {"name": "a-young", "creationTimestamp": "2026-01-01T00:00:01Z"},
        "spec": {"ports": [{"name": "http", "port": 80}, {"name": "more", "port": 81}]},
    }));
    let translation = run(&[young, old], &[]);
    assert_eq!(on(&translation, &wg0()), ["80/TCP shop/z-old -> []", "81/TCP shop/a-young -> []"]);
    let conflict = PortConflict {
        loser: ObjectName::new("shop", "a-young"),
        winner: Owner::from(&ObjectName::new("shop", "z-old")),
        tunnel: wg0().name,
        port: VipPort { protocol: Protocol::Tcp, port: 80 },
    };
    assert_eq!(translation.conflicts, [conflict]);
    assert_eq!(translation.published.len(), 2);
}

#[test]
fn of_two_services_of_one_second_the_first_by_name_keeps_the_port() {
    let (a, b) = (service(json!({"metadata": {"name": "a"}})), service(json!({"metadata": {"name": "b"}})));
    assert_eq!(on(&run(&[b, a], &[]), &wg0()), ["80/TCP shop/a -> []"]);
}

#[test]
fn a_service_that_lost_all_its_ports_is_not_published() {
    let (a, b) = (service(json!({"metadata": {"name": "a"}})), service(json!({"metadata": {"name": "b"}})));
    let published: Vec<ObjectName> = run(&[a, b], &[]).published.into_keys().collect();
    assert_eq!(published, [ObjectName::new("shop", "a")]);
}

#[test]
fn one_port_on_two_tunnels_is_no_conflict() {
    let on_tunnel = |name: &str, tunnel: &str| {
        service(json!({"metadata": {"name": name, "annotations": {"wirevip.io/tunnel": tunnel}}}))
    };
    let services = [on_tunnel("a", "wg0"), on_tunnel("b", "wg1")];
    let translation = translate(&services, &[] as &[EndpointSlice], &[wg0(), wg1()], SETTINGS);
    assert_eq!(translation.conflicts, []);
    assert_eq!(on(&translation, &wg1()), ["80/TCP shop/b -> []"]);
}

// The control plane.

fn kubernetes(endpoints: Value) -> EndpointSlice {
    slice_with(json!({
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "ports": [{"name": "https", "protocol": "TCP", "port": 6444}],
        "endpoints": endpoints,
    }))
}

#[test]
fn the_control_plane_goes_to_the_api_servers_on_their_port() {
    let with = TunnelView { control_plane: true, ..wg0() };
    let slices = [kubernetes(json!([ready("172.16.0.2"), ready("172.16.0.1")]))];
    let translation = translate(&[] as &[Service], &slices, &[with, wg1()], SETTINGS);
    assert_eq!(on(&translation, &wg0()), ["6443/TCP control-plane -> [172.16.0.1:6444 172.16.0.2:6444]"]);
    assert_eq!(on(&translation, &wg1()), [""; 0]);
}

#[test]
fn the_control_plane_can_be_off_and_on_another_port() {
    let with = TunnelView { control_plane: true, ..wg0() };
    let none: (&[Service], &[EndpointSlice]) = (&[], &[]);
    let off = translate(none.0, none.1, std::slice::from_ref(&with), Settings { control_plane: false, ..SETTINGS });
    assert!(off.forwards[&with.name].is_empty());
    let moved = translate(none.0, none.1, &[with], Settings { control_plane_port: 443, ..SETTINGS });
    assert_eq!(on(&moved, &wg0()), ["443/TCP control-plane -> []"]);
}

#[test]
fn no_service_takes_the_control_planes_port_however_old() {
    let with = TunnelView { control_plane: true, ..wg0() };
    let greedy = service(json!({"spec": {"ports": [
        {"name": "t", "protocol": "TCP", "port": 6443}, {"name": "u", "protocol": "UDP", "port": 6443},
    ]}}));
    let translation = translate(&[greedy], &[] as &[EndpointSlice], &[with], SETTINGS);
    assert_eq!(on(&translation, &wg0()), ["6443/TCP control-plane -> []", "6443/UDP shop/web -> []"]);
    assert_eq!(translation.conflicts[0].winner, Owner::ControlPlane);
}

// Properties.

fn any_services() -> impl Strategy<Value = Vec<Service>> {
    let one = (0..6u8, 0..3i64, 0..4usize, 0..4u16, any::<bool>(), any::<bool>());
    proptest::collection::vec(one, 0..8).prop_map(|all| {
        let mut services: Vec<Service> = all
            .into_iter()
            .map(|(name, created, place, port, ours, deleting)| Service {
                name: ObjectName::new("ns", &format!("s{name}")),
                created,
                deleting: deleting && created == 0,
                class: (!ours).then(|| "example.com/other".to_owned()),
                addresses: ["10.9.0.2", "10.9.1.2", "10.9.0.2,10.9.1.2", "192.0.2.1"]
                    .get(place)
                    .map(|a| (*a).to_owned()),
                ports: vec![ServicePort {
                    name: "http".to_owned(),
                    port: VipPort { protocol: Protocol::Tcp, port: 80 + port },
                }],
                ..service(json!({}))
            })
            .collect();
        // A cluster has one object of a name.
        services.sort_by(|a, b| a.name.cmp(&b.name));
        services.dedup_by(|a, b| a.name == b.name);
        services
    })
}

fn any_slices() -> impl Strategy<Value = Vec<EndpointSlice>> {
    let endpoint = (1..20u8, any::<bool>(), any::<bool>()).prop_map(|(last, ready, draining)| objects::Endpoint {
        address: [10, 0, 0, last].into(),
        ready,
        draining,
    });
    let one = (0..6u8, proptest::collection::vec(endpoint, 0..5));
    proptest::collection::vec(one, 0..8).prop_map(|all| {
        let slice = |(n, (service, endpoints)): (usize, (u8, Vec<objects::Endpoint>))| EndpointSlice {
            name: ObjectName::new("ns", &format!("slice{n}")),
            service: format!("s{service}"),
            endpoints,
            ..super::tests::slice("web-1", json!([]))
        };
        all.into_iter().enumerate().map(slice).collect()
    })
}

proptest! {
    #[test]
    fn neither_order_nor_duplicates_matter(
        (services, shuffled) in any_services().prop_flat_map(|s| (Just(s.clone()), Just(s).prop_shuffle())),
        (slices, shuffled_slices) in any_slices().prop_flat_map(|s| (Just(s.clone()), Just(s).prop_shuffle())),
    ) {
        let tunnels = [wg0(), wg1()];
        let straight = translate(&services, &slices, &tunnels, SETTINGS);
        let twice = [shuffled.clone(), shuffled].concat();
        let slices_twice = [shuffled_slices.clone(), shuffled_slices].concat();
        prop_assert_eq!(straight, translate(&twice, &slices_twice, &[wg1(), wg0()], SETTINGS));
    }

    #[test]
    fn nothing_is_forwarded_for_a_service_that_is_not_ours(services in any_services(), slices in any_slices()) {
        let tunnels = [wg0(), wg1()];
        let translation = translate(&services, &slices, &tunnels, SETTINGS);
        for tunnel in &tunnels {
            for forward in translation.forwards[&tunnel.name].values() {
                let asks = services.iter().find(|s| Owner::from(&s.name) == forward.owner).expect("an unknown owner");
                prop_assert!(asks.class.is_none() && !asks.deleting);
                prop_assert!(asks.addresses.as_ref().unwrap().split(',').any(|a| a == tunnel.vip.to_string()));
                prop_assert!(forward.backends.is_sorted());
            }
        }
    }

    #[test]
    fn a_ready_endpoint_keeps_all_others_out(services in any_services(), slices in any_slices()) {
        let translation = translate(&services, &slices, &[wg0()], SETTINGS);
        for forward in translation.forwards[&wg0().name].values() {
            let Owner::Service { name, .. } = &forward.owner else { continue };
            let all = || slices.iter().filter(|s| s.service == *name).flat_map(|s| &s.endpoints);
            if all().any(|e| e.ready) {
                for backend in &forward.backends {
                    prop_assert!(all().any(|e| e.ready && e.address == *backend.ip()));
                }
            } else {
                prop_assert!(forward.backends.iter().all(|b| all().any(|e| e.draining && e.address == *b.ip())));
            }
        }
    }
}

#[test]
fn a_thousand_services_of_ten_backends_are_translated_whole() {
    let services: Vec<Service> = (0..1000u32)
        .map(|n| {
            service(json!({
                "metadata": {"name": format!("s{n}")},
                "spec": {"ports": [{"name": "http", "protocol": "TCP", "port": 1000 + n}]},
            }))
        })
        .collect();
    let slices: Vec<EndpointSlice> = (0..1000u32)
        .map(|n| {
            let endpoints = (0..10u32).map(|e| ready(&format!("10.{}.{}.{}", n / 250, n % 250, e + 1))).collect();
            let service = json!({"kubernetes.io/service-name": format!("s{n}")});
            slice_with(json!({
                "metadata": {"name": format!("s{n}-1"), "labels": service}, "endpoints": Value::Array(endpoints),
            }))
        })
        .collect();
    let translation = run(&services, &slices);
    let forwards = &translation.forwards[&wg0().name];
    assert_eq!(forwards.len(), 1000);
    assert!(forwards.values().all(|forward| forward.backends.len() == 10));
}
