use serde_json::json;

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
