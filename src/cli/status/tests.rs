use clap::Parser;
use serde_json::{Value, json};

use super::read::{Pod, Seen};
use super::*;

#[derive(Parser)]
struct Only {
    #[command(flatten)]
    args: Args,
}

fn plan(given: &[&str]) -> Result<Plan, Vec<String>> {
    let Only { args } =
        Only::try_parse_from(["status"].iter().chain(given)).map_err(|error| vec![error.to_string()])?;
    Plan::check(args)
}

fn now() -> Timestamp {
    "2026-01-01T00:00:30Z".parse().unwrap()
}

fn seen(reports: Vec<Value>, leases: Vec<Value>, services: Vec<Value>) -> Seen {
    let pod = |(n, report): (usize, Value)| Pod {
        name: format!("p{n}"),
        uid: "u".into(),
        node: format!("n{n}"),
        phase: "Running".into(),
        report: Ok(report),
    };
    Seen {
        namespace: "wirevip".into(),
        selector: "app=w".into(),
        pods: Ok(reports.into_iter().enumerate().map(pod).collect()),
        leases: Ok(leases),
        services: Ok(services),
    }
}

fn problems(seen: Seen) -> Vec<String> {
    let problems = Picture::of(seen, now()).problems;
    problems.into_iter().map(|problem| format!("{}: {}", problem.about, problem.message)).collect()
}

#[test]
fn wrong_arguments_are_told_all_at_once() {
    let wrong = plan(&["--namespace=No!", "--selector= "]).unwrap_err();
    assert_eq!(wrong.len(), 2, "{wrong:?}");
    assert!(plan(&["--http-port=0"]).is_err());
    let plan = plan(&["--namespace="]).unwrap();
    assert_eq!((plan.namespace, plan.selector.as_str()), (None, "app.kubernetes.io/name=wirevip"));
}

#[test]
fn a_secret_that_cannot_be_read_is_told_once_where_no_tunnel_tells_of_it() {
    let report = json!({"tunnels": [], "faults": ["line 3: a mapping is not closed; close it"]});
    let told = problems(seen(vec![report.clone(), report], vec![], vec![]));
    assert_eq!(told, ["the Secret: line 3: a mapping is not closed; close it"]);
    let report = json!({"tunnels": [{"name": "wg0", "state": "standby", "faults": ["line 3"]}], "faults": ["line 3"]});
    let lease = json!({"metadata": {"name": "wirevip-wg0"}, "spec": {"holderIdentity": ""}});
    let told = problems(seen(vec![report], vec![lease], vec![]));
    assert!(told.iter().all(|problem| !problem.contains("line 3")), "{told:?}");
}

#[test]
fn a_holder_that_is_no_pod_is_told_with_the_age_of_its_renewal() {
    let report = json!({"tunnels": [{"name": "wg0", "state": "standby"}]});
    let lease = json!({"metadata": {"name": "wirevip-wg0"}, "spec": {
        "holderIdentity": "p0_another", "renewTime": "2026-01-01T00:00:18.500000Z", "leaseDurationSeconds": 5}});
    let problems = problems(seen(vec![report], vec![lease], vec![]));
    let begin = "tunnel wg0: its Lease names p0_another, which is none of the pods, renewed 11 s ago by this \
                 machine's clock; another takes over when its term of 5 s is over,";
    assert!(matches!(problems.as_slice(), [only] if only.starts_with(begin)), "{problems:?}");
}

#[test]
fn without_a_list_of_pods_no_holder_is_called_stale_and_no_lease_left_over() {
    let lease = json!({"metadata": {"name": "wirevip-wg0"}, "spec": {"holderIdentity": "p0_u"}});
    let seen = Seen { pods: Err("not allowed".into()), ..seen(vec![], vec![lease], vec![]) };
    assert!(!seen.suffices());
    assert_eq!(problems(seen), ["pods: not allowed"]);
}

#[test]
fn odd_data_are_shown_as_far_as_they_go() {
    let oddities = [
        json!(null),
        json!(7),
        json!("x"),
        json!([]),
        json!({}),
        json!([null]),
        json!({"tunnels": {}}),
        json!({"tunnels": [null, 7, {}, {"name": 3}, {"name": "wg0", "vip": {}, "tenureSeconds": "x"}]}),
        json!({"tunnels": [{"name": "../\u{1b}[2J", "state": "leading", "faults": [{}], "forwards": [null, {"port": -1}]}]}),
        json!({"metadata": 1, "spec": []}),
        json!({"metadata": {"name": "wirevip-"}, "spec": null}),
        json!({"metadata": {"name": "wirevip-wg0"}, "spec": {"holderIdentity": 9, "renewTime": "never"}}),
        json!({"metadata": {"name": "s"}, "spec": {"type": "LoadBalancer", "ports": [{"port": 70000}]}}),
    ];
    let all = seen(oddities.to_vec(), oddities.to_vec(), oddities.to_vec());
    let text = table::text(&Picture::of(all, now()));
    assert!(text.contains("../ [2J"), "{text}");
    assert!(!text.contains('\u{1b}'), "a pod must not drive the reader's terminal");
}

#[test]
fn a_falling_pod_without_tenure_beside_the_new_leader_is_no_second_leader() {
    let report =
        |state: &str, tenure: Value| json!({"tunnels": [{"name": "wg0", "state": state, "tenureSeconds": tenure}]});
    let lease = json!({"metadata": {"name": "wirevip-wg0"}, "spec": {"holderIdentity": "p1_u"}});
    let reports = vec![report("falling", Value::Null), report("rising", json!(4.5))];
    let picture = Picture::of(seen(reports, vec![lease], vec![]), now());
    assert_eq!(picture.problems.len(), 0, "{:?}", picture.problems);
    let leader = picture.tunnels[0].leader.as_ref().unwrap();
    assert_eq!((leader.pod.as_str(), picture.tunnels[0].leaders.len()), ("p1", 2));
}
