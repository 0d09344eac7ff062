use super::*;
use crate::tunnel::{LinkStats, testing};

const HUB: &str = "192.0.2.1:51820";

fn at(millis: u64) -> Moment {
    Moment::new(Duration::from_millis(millis))
}

fn settings(port: u16, keepalive: u16) -> Tunnel {
    Tunnel { listen_port: port, persistent_keepalive: keepalive, ..testing::settings("wg0") }
}

fn nic() -> Nic {
    Nic { name: "eth0".into(), index: 2, mtu: 1450, ipv4: None, ipv6: false }
}

fn leading(until: Moment) -> Event {
    Event::Leadership(Leadership::Leading(Tenure { since: at(0), until, transitions: 1, before: Before::Nobody }))
}

fn following() -> Event {
    Event::Leadership(Leadership::Following { holder: Some("other".into()) })
}

fn standby() -> Controller {
    let mut controller = Controller::new(Slot::new(1).unwrap(), nic(), Arc::new(settings(51820, 5)));
    controller.handle(Event::Endpoint(HUB.parse().unwrap()), at(0));
    controller
}

fn outcome(step: &Step, handshake: bool) -> Outcome {
    match step {
        Step::Inspect => Outcome::Stats(LinkStats {
            handshake_age: handshake.then_some(Duration::ZERO),
            received: if handshake { 92 } else { 0 },
            sent: 148,
        }),
        Step::Audit(_) => Outcome::Drift(Drift::default()),
        _ => Outcome::Done,
    }
}

/// Carries out steps until the controller waits; every one succeeds.
fn settle(controller: &mut Controller, now: Moment) -> Vec<Step> {
    let mut steps = vec![];
    while let Next::Do(step) = controller.next(now) {
        controller.done(&step, outcome(&step, true), now);
        steps.push(step);
        assert!(steps.len() < 50, "it never comes to rest: {steps:?}");
    }
    steps
}

fn names(steps: &[Step]) -> Vec<String> {
    steps.iter().map(|step| format!("{step:?}").split([' ', '(']).next().unwrap().to_owned()).collect()
}

fn leader() -> Controller {
    let mut controller = standby();
    controller.handle(leading(at(5000)), at(0));
    settle(&mut controller, at(0));
    settle(&mut controller, at(10));
    assert_eq!(controller.state(at(10)), State::Leading);
    controller
}

#[test]
fn a_standby_does_nothing() {
    assert_eq!(settle(&mut standby(), at(0)), []);
}

#[test]
fn the_way_up_puts_the_table_and_the_fence_before_the_link_and_the_peer_last() {
    let mut controller = standby();
    controller.handle(leading(at(5000)), at(0));
    assert_eq!(controller.state(at(0)), State::Rising);
    let steps = settle(&mut controller, at(0));
    assert_eq!(
        names(&steps),
        ["Speak", "ApplyForwards", "RaiseFence", "CreateLink", "AttachLink", "ArmFence", "SetPeer"]
    );
    assert!(steps.contains(&Step::ArmFence { port: 51820, until: at(5000) }));
}

#[test]
fn i2_the_way_down_is_silent_before_it_says_so() {
    let mut controller = leader();
    controller.handle(following(), at(100));
    let steps = settle(&mut controller, at(100));
    assert_eq!(names(&steps), ["CloseFence", "Quiet", "RemoveLink", "RemoveForwards", "RemoveFence"]);
    assert_eq!(controller.state(at(100)), State::Standby);
}

#[test]
fn a_renewal_re_arms_the_fence_before_anything_else() {
    let mut controller = leader();
    controller.handle(Event::Forwards(Arc::new(Forwards::from([one_forward()]))), at(1000));
    controller.handle(leading(at(6000)), at(1000));
    assert_eq!(controller.next(at(1000)), Next::Do(Step::ArmFence { port: 51820, until: at(6000) }));
}

fn one_forward() -> (crate::services::VipPort, crate::services::Forward) {
    let port = crate::services::VipPort { protocol: crate::services::Protocol::Tcp, port: 80 };
    let forward = crate::services::Forward {
        owner: crate::services::Owner::ControlPlane,
        backends: vec![],
        client_ip_affinity: false,
        source_ranges: vec![],
    };
    (port, forward)
}

#[test]
fn a_tenure_that_ends_without_a_word_takes_the_tunnel_down() {
    let mut controller = leader();
    assert_eq!(controller.state(at(5000)), State::Falling);
    assert_eq!(controller.next(at(5000)), Next::Do(Step::CloseFence));
}

#[test]
fn a_link_that_will_not_go_delays_the_release_only_while_the_fence_might_be_open() {
    let mut controller = leader();
    controller.handle(following(), at(100));
    let mut tried = vec![];
    // Neither the fence nor the link obeys: they take turns, and nothing is released, however long it takes.
    let mut now = at(100);
    while now < at(20_000) {
        match controller.next(now) {
            Next::Do(step) => {
                controller.failed(&step, "EBUSY".into(), now);
                tried.push(step);
            }
            Next::WaitUntil(then) => now = then,
            Next::Finished => panic!("not asked to stop"),
        }
    }
    assert_eq!(names(&tried[..4]), ["CloseFence", "RemoveLink", "CloseFence", "RemoveLink"]);
    assert!(!tried.contains(&Step::Quiet));
    // The fence closes at last: that is silence enough.
    controller.done(&Step::CloseFence, Outcome::Done, now);
    assert_eq!(controller.next(now), Next::Do(Step::Quiet));
}

#[test]
fn a_loss_closes_the_fence_at_once_though_another_step_has_just_failed() {
    let mut controller = leader();
    let probe = Step::Probe(Arc::clone(controller.plan().unwrap()));
    for failures in 0..6 {
        controller.failed(&probe, "EPERM".into(), at(100 + failures));
    }
    controller.handle(following(), at(110));
    assert_eq!(controller.next(at(110)), Next::Do(Step::CloseFence));
}

#[test]
fn a_renewal_is_not_held_up_by_the_patience_of_another_step() {
    let mut controller = leader();
    let apply = Step::ApplyForwards(Arc::clone(controller.plan().unwrap()));
    for failures in 0..6 {
        controller.failed(&apply, "ENOBUFS".into(), at(1000 + failures));
    }
    controller.handle(leading(at(6000)), at(1010));
    assert_eq!(controller.next(at(1010)), Next::Do(Step::ArmFence { port: 51820, until: at(6000) }));
}

#[test]
fn a_fence_that_can_neither_be_armed_nor_looked_at_is_tried_ten_times_a_second() {
    for hold in [false, true] {
        let mut controller = if hold { leader().holding("me") } else { leader() };
        controller.handle(leading(at(60_000)), at(1000));
        let (mut now, mut armed) = (at(1000), vec![]);
        while now < at(7000) {
            match controller.next(now) {
                Next::Do(step) => {
                    if let Step::ArmFence { .. } = step {
                        armed.push(now);
                    }
                    controller.failed(&step, "ENOBUFS".into(), now);
                    assert!(armed.len() < 100, "in a rush: {armed:?}");
                }
                Next::WaitUntil(then) => now = then,
                Next::Finished => panic!("not asked to stop"),
            }
        }
        assert_eq!((armed[0], armed[1], armed.len()), (at(1000), at(1100), 60));
    }
}

#[test]
fn a_changed_peer_keeps_the_link_and_a_changed_port_does_not() {
    let mut controller = leader();
    controller.handle(Event::Settings(Arc::new(settings(51820, 25))), at(100));
    assert_eq!(names(&settle(&mut controller, at(100))), ["UpdatePeer"]);
    controller.handle(Event::Settings(Arc::new(settings(51999, 25))), at(200));
    assert_eq!(
        names(&settle(&mut controller, at(200))),
        ["CloseFence", "RemoveLink", "RemoveFence", "RaiseFence", "CreateLink", "AttachLink", "ArmFence", "SetPeer"]
    );
    assert_eq!(controller.stats().handshake_age, None, "a new link has no handshake yet");
}

#[test]
fn changed_forwards_touch_neither_fence_nor_link() {
    let mut controller = leader();
    controller.handle(Event::Forwards(Arc::new(Forwards::from([one_forward()]))), at(100));
    assert_eq!(names(&settle(&mut controller, at(100))), ["ApplyForwards"]);
}

#[test]
fn the_same_forwards_again_change_nothing() {
    let mut controller = leader();
    controller.handle(Event::Forwards(Arc::new(Forwards::default())), at(100));
    assert_eq!(settle(&mut controller, at(100)), []);
}

#[test]
fn what_an_outsider_deletes_comes_back() {
    for (drift, again) in [
        (Drift { forwards: true, ..Drift::default() }, vec!["ApplyForwards"]),
        (Drift { network: true, ..Drift::default() }, vec!["AttachLink"]),
        (Drift { fence: true, ..Drift::default() }, vec!["RaiseFence", "ArmFence"]),
        (Drift { link: true, ..Drift::default() }, vec!["RemoveLink", "CreateLink", "AttachLink", "SetPeer"]),
    ] {
        let mut controller = leader();
        let audit = loop {
            match controller.next(at(600)) {
                Next::Do(step @ Step::Audit(_)) => break step,
                Next::Do(step) => controller.done(&step, outcome(&step, true), at(600)),
                other => panic!("no audit within 600 ms: {other:?}"),
            }
        };
        controller.done(&audit, Outcome::Drift(drift), at(600));
        let steps: Vec<_> = names(&settle(&mut controller, at(600)))
            .into_iter()
            .filter(|name| !matches!(name.as_str(), "Inspect" | "Probe"))
            .collect();
        assert_eq!(steps, again, "after {drift:?}");
    }
}

#[test]
fn a_fence_that_cannot_be_opened_or_closed_is_looked_at_and_made_again() {
    let (gone, whole) = (Drift { fence: true, ..Drift::default() }, Drift::default());
    let renewed = Step::ArmFence { port: 51820, until: at(6000) };
    for (drift, again) in [(gone, vec!["RaiseFence", "ArmFence"]), (whole, vec!["ArmFence"])] {
        let mut controller = leader();
        controller.handle(leading(at(6000)), at(100));
        assert_eq!(controller.next(at(100)), Next::Do(renewed.clone()));
        controller.failed(&renewed, "ENOENT".into(), at(100));
        let Next::Do(audit @ Step::Audit(_)) = controller.next(at(100)) else { panic!("it was not looked at") };
        controller.done(&audit, Outcome::Drift(drift), at(100));
        assert_eq!(names(&settle(&mut controller, at(300))), again);
    }
    // The same on the way to another port, for which the old link has to go.
    let mut controller = leader();
    controller.handle(Event::Settings(Arc::new(settings(51999, 5))), at(100));
    assert_eq!(controller.next(at(100)), Next::Do(Step::CloseFence));
    controller.failed(&Step::CloseFence, "ENOENT".into(), at(100));
    let Next::Do(audit @ Step::Audit(_)) = controller.next(at(100)) else { panic!("it was not looked at") };
    controller.done(&audit, Outcome::Drift(gone), at(100));
    assert_eq!(names(&settle(&mut controller, at(300)))[0], "RemoveLink");
}

#[test]
fn a_fence_that_an_arming_without_an_answer_may_have_opened_is_closed_before_the_lease_goes() {
    // Beside a living peer: an outsider had deleted the fence.
    let mut controller = leader();
    let audit = Step::Audit(Arc::clone(controller.plan().unwrap()));
    controller.done(&audit, Outcome::Drift(Drift { fence: true, ..Drift::default() }), at(600));
    for expected in ["RaiseFence", "ArmFence"] {
        let Next::Do(step) = controller.next(at(600)) else { panic!("no {expected}") };
        assert_eq!(names(std::slice::from_ref(&step)), [expected]);
        match step {
            Step::ArmFence { .. } => controller.failed(&step, "ENOBUFS".into(), at(600)),
            _ => controller.done(&step, Outcome::Done, at(600)),
        }
    }
    controller.handle(following(), at(610));
    assert_eq!(names(&settle(&mut controller, at(610)))[..2], ["CloseFence", "Quiet"]);
}

#[test]
fn a_fence_that_is_found_gone_is_not_open_whatever_an_arming_may_have_done() {
    let mut controller = leader();
    controller.handle(leading(at(9000)), at(600));
    let Next::Do(arm @ Step::ArmFence { .. }) = controller.next(at(600)) else { panic!("it is not armed") };
    controller.failed(&arm, "ENOBUFS".into(), at(600));
    let audit = Step::Audit(Arc::clone(controller.plan().unwrap()));
    controller.done(&audit, Outcome::Drift(Drift { fence: true, ..Drift::default() }), at(610));
    controller.handle(following(), at(620));
    let down = names(&settle(&mut controller, at(620)));
    assert_eq!(down[..2], ["RemoveLink", "Quiet"], "without a fence the link's going is silence: {down:?}");
}

#[test]
fn i2_a_link_that_is_not_found_may_speak_under_another_name_until_the_fence_is_closed_or_it_was_removed() {
    let lost = Drift { link: true, ..Drift::default() };
    let bare = Drift { fence: true, ..lost };
    for (drift, first) in
        [(lost, ["CloseFence", "Quiet", "RemoveLink"]), (bare, ["RemoveLink", "Quiet", "RemoveForwards"])]
    {
        let mut controller = leader();
        let audit = Step::Audit(Arc::clone(controller.plan().unwrap()));
        controller.done(&audit, Outcome::Drift(drift), at(100));
        controller.handle(following(), at(100));
        assert_eq!(names(&settle(&mut controller, at(100)))[..3], first, "after {drift:?}");
    }
}

#[test]
fn a_failing_step_is_tried_again_ever_more_slowly_and_then_another_pod_may_try() {
    let mut controller = standby();
    controller.handle(leading(at(60_000)), at(0));
    let mut now = at(0);
    let mut tries = vec![];
    loop {
        match controller.next(now) {
            Next::Do(step @ Step::CreateLink(_)) => {
                tries.push(now);
                controller.failed(&step, "no /dev/net/tun".into(), now);
                assert_eq!(controller.failure(), Some("no /dev/net/tun"));
            }
            Next::Do(Step::StepDown) => break,
            Next::Do(step) => controller.done(&step, Outcome::Done, now),
            Next::WaitUntil(then) => now = then,
            Next::Finished => panic!("not asked to stop"),
        }
        assert!(tries.len() < 20);
    }
    let waits: Vec<_> = tries.windows(2).map(|pair| pair[1].since(pair[0]).as_millis()).collect();
    assert_eq!(waits, [100, 200, 400, 800, 1600]);
    assert!(now >= at(5000) && now <= at(8000), "stepped down at {now:?}");
}

#[test]
fn who_gave_way_raises_nothing_until_its_next_tenure_and_then_tries_before_it_gives_way_again() {
    let mut controller = standby();
    let tenure = |since, until| {
        Event::Leadership(Leadership::Leading(Tenure {
            since: at(since),
            until: at(until),
            transitions: 1,
            before: Before::Nobody,
        }))
    };
    controller.handle(tenure(0, 60_000), at(0));
    let (mut now, mut down) = (at(0), vec![]);
    while now < at(20_000) {
        match controller.next(now) {
            Next::Do(step @ Step::CreateLink(_)) => {
                assert_eq!(down, Vec::<String>::new(), "raised after it gave way");
                controller.failed(&step, "the port is taken".into(), now);
            }
            Next::Do(step) => {
                if step == Step::StepDown || !down.is_empty() {
                    down.extend(names(std::slice::from_ref(&step)));
                }
                controller.done(&step, Outcome::Done, now);
            }
            Next::WaitUntil(then) => now = then,
            Next::Finished => panic!("not asked to stop"),
        }
    }
    // What could not be made may be there all the same.
    assert_eq!(down, ["StepDown", "Quiet", "RemoveLink", "RemoveForwards", "RemoveFence"]);
    assert_eq!(controller.failure(), Some("the port is taken"), "it stays told");
    controller.handle(following(), at(20_000));
    controller.handle(tenure(22_000, 60_000), at(22_000));
    settle(&mut controller, at(22_000));
    settle(&mut controller, at(22_010));
    assert_eq!((controller.state(at(22_010)), controller.failure()), (State::Leading, None));
}

#[test]
fn a_failure_is_told_until_the_same_succeeds() {
    let mut controller = leader();
    let Next::Do(step) = controller.next(at(3000)) else { panic!("nothing to do") };
    controller.failed(&step, "not now".into(), at(3000));
    assert_eq!(controller.failure(), Some("not now"));
    let steps = settle(&mut controller, at(4000));
    assert!(steps.iter().any(|again| names(std::slice::from_ref(again)) == names(std::slice::from_ref(&step))));
    assert_eq!(controller.failure(), None);
}

#[test]
fn what_a_failed_step_may_have_made_all_the_same_is_removed_on_the_way_down() {
    for (kind, removed) in
        [("ApplyForwards", "RemoveForwards"), ("RaiseFence", "RemoveFence"), ("CreateLink", "RemoveLink")]
    {
        let mut controller = standby();
        controller.handle(leading(at(5000)), at(0));
        loop {
            let Next::Do(step) = controller.next(at(0)) else { panic!("nothing fails") };
            if names(std::slice::from_ref(&step)) == [kind] {
                controller.failed(&step, "no answer from the kernel within 1s".into(), at(0));
                break;
            }
            controller.done(&step, outcome(&step, false), at(0));
        }
        controller.handle(Event::Stop(Ending::HandOver), at(0));
        let steps = names(&settle(&mut controller, at(0)));
        assert_eq!(steps.iter().filter(|step| *step == removed).count(), 1, "{kind} failed: {steps:?}");
        assert_eq!(controller.next(at(0)), Next::Finished);
    }
}

mod hold;
mod inheritance;
mod orders;
mod silence;
