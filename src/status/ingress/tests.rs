use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::services::objects::{Slim, WireService};

fn name(text: &str) -> TunnelName {
    TunnelName::new(text).unwrap()
}

fn web() -> ObjectName {
    ObjectName::new("shop", "web")
}

fn service(ingress: Value) -> Service {
    let object = json!({
        "metadata": {"name": "web", "namespace": "shop", "resourceVersion": "7"},
        "spec": {"type": "LoadBalancer"},
        "status": {"loadBalancer": {"ingress": ingress}},
    });
    Service::slim(&serde_json::from_value::<WireService>(object).unwrap()).unwrap()
}

fn publication(role: Role, vip: u8, claims: bool) -> Publication {
    let services = Arc::new(if claims { BTreeSet::from([web()]) } else { BTreeSet::new() });
    Publication {
        role,
        vip: [10, 9, vip, 2].into(),
        public_address: None,
        services: Arc::clone(&services),
        forwarded: services,
    }
}

fn all(list: &[(&str, Publication)]) -> Publications {
    let mut publications = Publications::default();
    for (tunnel, publication) in list {
        publications.set(&name(tunnel), publication.clone());
    }
    publications
}

fn vip(third: u8) -> Value {
    json!({"ip": format!("10.9.{third}.2"), "ipMode": "VIP"})
}

fn merged(publications: &Publications, ingress: Value) -> Option<Value> {
    publications.merge(&service(ingress)).map(|(list, _)| serde_json::to_value(list).unwrap())
}

#[test]
fn a_service_that_is_not_in_the_kernel_yet_gets_no_entry_and_keeps_the_one_it_has() {
    let waits = all(&[("wg0", Publication { forwarded: Arc::default(), ..publication(Role::Serving, 0, true) })]);
    for there in [json!([]), json!([vip(0)]), json!([{"ip": "10.9.0.2"}])] {
        assert_eq!(merged(&waits, there.clone()), None, "{there}");
    }
}

#[test]
fn each_role_changes_its_own_entries_alone() {
    let other = json!({"ip": "192.0.2.1", "ipMode": "VIP", "ports": [{"port": 80, "protocol": "TCP"}]});
    let cases = [
        ("serving, nothing there", Role::Serving, true, json!([]), Some(json!([vip(0)]))),
        ("serving, already there", Role::Serving, true, json!([vip(0)]), None),
        ("serving, beside another's", Role::Serving, true, json!([other]), Some(json!([other, vip(0)]))),
        ("serving, without its mode", Role::Serving, true, json!([{"ip": "10.9.0.2"}]), Some(json!([vip(0)]))),
        ("serving, there twice", Role::Serving, true, json!([vip(0), vip(0)]), Some(json!([vip(0)]))),
        ("serving, not ours any more", Role::Serving, false, json!([other, vip(0)]), Some(json!([other]))),
        ("serving, never ours", Role::Serving, false, json!([other]), None),
        ("rising, nothing there", Role::Rising, true, json!([]), None),
        ("rising, the predecessor's is there", Role::Rising, true, json!([vip(0)]), None),
        ("rising, not ours any more", Role::Rising, false, json!([vip(0)]), Some(json!([]))),
        ("standby, nothing there", Role::Standby, true, json!([]), None),
        ("standby, not ours any more", Role::Standby, false, json!([vip(0)]), None),
    ];
    for (what, role, claims, before, after) in cases {
        assert_eq!(merged(&all(&[("wg0", publication(role, 0, claims))]), before), after, "{what}");
    }
}

#[test]
fn of_two_tunnels_each_leader_writes_its_own() {
    let first = [("wg0", publication(Role::Serving, 0, true)), ("wg1", publication(Role::Standby, 1, true))];
    assert_eq!(merged(&all(&first), json!([vip(1)])), Some(json!([vip(1), vip(0)])));
    let both = [("wg0", publication(Role::Serving, 0, true)), ("wg1", publication(Role::Serving, 1, true))];
    assert_eq!(merged(&all(&both), json!([])), Some(json!([vip(0), vip(1)])));
    let moved = [("wg0", publication(Role::Serving, 0, false)), ("wg1", publication(Role::Standby, 1, true))];
    assert_eq!(merged(&all(&moved), json!([vip(0), vip(1)])), Some(json!([vip(1)])));
}

#[test]
fn a_public_address_stands_in_place_of_the_vip() {
    let with = |address: Host| {
        all(&[("wg0", Publication { public_address: Some(address), ..publication(Role::Serving, 0, true) })])
    };
    let address = with(Host::Address([203, 0, 113, 1].into()));
    let expected = json!([{"ip": "203.0.113.1", "ipMode": "Proxy"}]);
    assert_eq!(merged(&address, json!([vip(0)])), Some(expected.clone()));
    assert_eq!(merged(&address, expected), None);
    let named = with(Host::Name("vip.example.com".to_owned()));
    assert_eq!(merged(&named, json!([vip(0)])), Some(json!([{"hostname": "vip.example.com"}])));
}

#[test]
fn an_address_that_a_tunnel_had_before_is_replaced() {
    let mut publications = Publications::default();
    let at = |address: [u8; 4], role| Publication {
        public_address: Some(Host::Address(address.into())),
        ..publication(role, 0, true)
    };
    publications.set(&name("wg0"), at([203, 0, 113, 1], Role::Standby));
    publications.set(&name("wg0"), at([203, 0, 113, 2], Role::Serving));
    let before = json!([{"ip": "203.0.113.1", "ipMode": "Proxy"}]);
    assert_eq!(merged(&publications, before), Some(json!([{"ip": "203.0.113.2", "ipMode": "Proxy"}])));
}

#[test]
fn an_address_that_two_tunnels_share_stays_while_one_publishes_it() {
    let shared = |role, third, claims| Publication {
        public_address: Some(Host::Name("hub.example.com".to_owned())),
        ..publication(role, third, claims)
    };
    let entry = json!([{"hostname": "hub.example.com"}]);
    let left = [("wg0", shared(Role::Serving, 0, false)), ("wg1", shared(Role::Standby, 1, true))];
    assert_eq!(merged(&all(&left), entry.clone()), None);
    let gone = [("wg0", shared(Role::Serving, 0, false)), ("wg1", shared(Role::Standby, 1, false))];
    assert_eq!(merged(&all(&gone), entry), Some(json!([])));
}

#[test]
fn a_service_of_somebody_elses_class_is_never_written() {
    let mut foreign = service(json!([vip(0)]));
    foreign.class = Some("example.com/lb".to_owned());
    assert_eq!(all(&[("wg0", publication(Role::Serving, 0, false))]).merge(&foreign), None);
}

#[test]
fn it_says_which_tunnel_has_something_to_write() {
    let list = [("wg0", publication(Role::Serving, 0, false)), ("wg1", publication(Role::Serving, 1, true))];
    let (_, asking) = all(&list).merge(&service(json!([vip(0), vip(1)]))).unwrap();
    assert_eq!(asking, BTreeSet::from([name("wg0")]));
    let (_, asking) = all(&list).merge(&service(json!([]))).unwrap();
    assert_eq!(asking, BTreeSet::from([name("wg1")]));
}

#[test]
fn a_forgotten_tunnel_leaves_its_entries() {
    let mut publications = all(&[("wg0", publication(Role::Serving, 0, true))]);
    publications.remove(&name("wg0"));
    assert_eq!(merged(&publications, json!([vip(0)])), None);
}

fn any_publications() -> impl Strategy<Value = Publications> {
    let role = prop_oneof![Just(Role::Standby), Just(Role::Rising), Just(Role::Serving)];
    let one = (role, any::<bool>(), 0..4u8);
    proptest::collection::vec(one, 0..4).prop_map(|list| {
        let mut publications = Publications::default();
        for (n, (role, claims, public)) in (0u8..).zip(list) {
            let public_address = match public {
                0 => None,
                1 => Some(Host::Name("hub.example.com".to_owned())),
                n => Some(Host::Address([203, 0, 113, n].into())),
            };
            let publication = Publication { public_address, ..publication(role, n, claims) };
            publications.set(&name(&format!("wg{n}")), publication);
        }
        publications
    })
}

fn any_ingress() -> impl Strategy<Value = Vec<Ingress>> {
    let ip = prop_oneof!["10\\.9\\.[0-3]\\.2", "203\\.0\\.113\\.[1-3]", "192\\.0\\.2\\.[1-3]"];
    let mode = prop_oneof![Just(None), Just(Some("VIP".to_owned())), Just(Some("Proxy".to_owned()))];
    let entry = prop_oneof![
        3 => (ip, mode).prop_map(|(ip, ip_mode)| Ingress { ip: Some(ip), ip_mode, ..Ingress::default() }),
        1 => Just(Ingress { hostname: Some("hub.example.com".to_owned()), ..Ingress::default() }),
    ];
    proptest::collection::vec(entry, 0..5)
}

proptest! {
    #[test]
    fn merging_twice_changes_nothing(publications in any_publications(), ingress in any_ingress()) {
        let mut service = service(json!([]));
        service.ingress = ingress;
        if let Some((merged, _)) = publications.merge(&service) {
            service.ingress = merged;
            prop_assert_eq!(publications.merge(&service), None);
        }
    }

    #[test]
    fn entries_of_others_stay(publications in any_publications(), ingress in any_ingress()) {
        let mut service = service(json!([]));
        service.ingress = ingress.clone();
        let after = publications.merge(&service).map_or(ingress.clone(), |(merged, _)| merged);
        let others = |list: &[Ingress]| -> Vec<Ingress> {
            list.iter().filter(|e| e.ip.as_deref().is_some_and(|ip| ip.starts_with("192."))).cloned().collect()
        };
        prop_assert_eq!(others(&ingress), others(&after));
    }

    #[test]
    fn whoever_writes_says_for_whom(publications in any_publications(), ingress in any_ingress()) {
        let mut service = service(json!([]));
        service.ingress = ingress;
        if let Some((_, asking)) = publications.merge(&service) {
            prop_assert!(asking.iter().all(|name| publications.tunnels[name].role != Role::Standby));
        }
    }
}
