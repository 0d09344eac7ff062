use serde_json::{Value, json};

use super::super::objects::{WireService, WireSlice};
use super::*;

fn wire(name: &str, version: &str) -> WireService {
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "ns", "resourceVersion": version},
        "spec": {"type": "LoadBalancer"},
    }))
    .unwrap()
}

fn names(mirror: &Mirror<Service>) -> Vec<String> {
    mirror.objects().iter().map(|s| s.name.name.clone()).collect()
}

fn listed(names: &[&str]) -> Mirror<Service> {
    let mut mirror = Mirror::default();
    mirror.apply(Event::Init);
    for name in names {
        mirror.apply(Event::InitApply(wire(name, "1")));
    }
    assert!(mirror.apply(Event::InitDone));
    mirror
}

#[test]
fn an_empty_first_list_is_news() {
    assert_eq!(names(&listed(&[])), [""; 0]);
}

#[test]
fn what_a_new_list_lacks_is_gone() {
    let mut mirror = listed(&["a", "b"]);
    mirror.apply(Event::Init);
    mirror.apply(Event::InitApply(wire("b", "1")));
    assert_eq!(names(&mirror), ["a", "b"], "until the list is whole the old state stays");
    assert!(mirror.apply(Event::InitDone));
    assert_eq!(names(&mirror), ["b"]);
}

#[test]
fn a_list_that_was_broken_off_leaves_nothing_behind() {
    let mut mirror = listed(&["a"]);
    mirror.apply(Event::Init);
    mirror.apply(Event::InitApply(wire("half", "1")));
    mirror.apply(Event::Init);
    mirror.apply(Event::InitApply(wire("a", "1")));
    assert!(!mirror.apply(Event::InitDone), "nothing changed");
    assert_eq!(names(&mirror), ["a"]);
}

#[test]
fn events_change_the_state_once() {
    let mut mirror = listed(&["a"]);
    assert!(!mirror.apply(Event::Apply(wire("a", "1"))), "the same object again");
    assert!(mirror.apply(Event::Apply(wire("a", "2"))));
    assert!(mirror.apply(Event::Delete(wire("a", "3"))));
    assert!(!mirror.apply(Event::Delete(wire("a", "3"))), "deleted twice");
    assert_eq!(names(&mirror), [""; 0]);
}

#[test]
fn a_service_that_stops_being_of_use_is_dropped() {
    let mut mirror = listed(&["a"]);
    let plain = json!({"metadata": {"name": "a", "namespace": "ns"}, "spec": {"type": "ClusterIP"}});
    assert!(mirror.apply(Event::Apply(serde_json::from_value(plain).unwrap())));
    assert_eq!(names(&mirror), [""; 0]);
}

#[test]
fn a_deleted_slice_without_endpoints_or_labels_is_dropped_all_the_same() {
    let mut mirror = Mirror::<EndpointSlice>::default();
    let whole = json!({
        "metadata": {"name": "a", "namespace": "ns", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": null, "endpoints": null,
    });
    assert!(mirror.apply(Event::Apply(serde_json::from_value(whole).unwrap())));
    let bare: WireSlice = serde_json::from_value(json!({"metadata": {"name": "a", "namespace": "ns"}})).unwrap();
    assert!(mirror.apply(Event::Delete(bare)));
    assert!(mirror.objects().is_empty());
}

#[test]
fn only_a_services_status_makes_no_difference_to_what_is_forwarded() {
    let service = |change: Value| {
        let mut object = json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "1", "resourceVersion": "1"},
            "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]},
        });
        merge(&mut object, change);
        let service = Service::slim(&serde_json::from_value(object).unwrap()).unwrap();
        Inputs { services: Some(vec![Arc::new(service)]), slices: Some(vec![]), control_plane: Some(vec![]) }
    };
    let before = service(json!({}));
    let status = json!({
        "metadata": {"resourceVersion": "2"}, "status": {"loadBalancer": {"ingress": [{"ip": "10.9.0.2"}]}},
    });
    assert!(service(status).forwards_as(&before));
    for (what, after) in [
        ("a port", service(json!({"spec": {"ports": [{"port": 81}]}}))),
        ("another of that name", service(json!({"metadata": {"uid": "2"}}))),
        ("no Service", Inputs { services: Some(vec![]), ..before.clone() }),
        ("not listed yet", Inputs { slices: None, ..before.clone() }),
    ] {
        assert!(!after.forwards_as(&before), "{what}");
        assert!(!before.forwards_as(&after), "{what}, the other way round");
    }
}

/// As a merge patch without nulls does it.
fn merge(object: &mut Value, change: Value) {
    match (object, change) {
        (Value::Object(object), Value::Object(change)) => {
            for (key, value) in change {
                merge(object.entry(key).or_insert(Value::Null), value);
            }
        }
        (object, change) => *object = change,
    }
}
