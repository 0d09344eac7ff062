//! What an earlier life left in hold, and a restarted controller makes of it.

use super::*;

const FORMER: i32 = 7;

fn stats() -> LinkStats {
    LinkStats { handshake_age: Some(Duration::from_secs(30)), received: 92, sent: 148 }
}

/// Restarted at 100 s, beside a session of the tenure with these transitions; nothing is done yet.
fn newborn() -> Controller {
    let mut controller = Controller::new(Slot::new(1).unwrap(), nic(), Arc::new(settings(51820, 5))).holding("we");
    let plan = controller.plan_at(HUB.parse().unwrap());
    controller.inherit(plan, FORMER, stats(), at(100_000));
    controller
}

/// The same, when its fence holds.
fn heir() -> Controller {
    let mut controller = newborn();
    assert_eq!(steps(&mut controller, at(100_000)), ["HoldFence", "Quiet"]);
    controller
}

fn tenure(transitions: i32) -> Event {
    let (since, until) = (at(100_500), at(105_000));
    Event::Leadership(Leadership::Leading(Tenure { since, until, transitions, before: Before::Other }))
}

fn named(holder: &str) -> Event {
    Event::Leadership(Leadership::Following { holder: Some(holder.into()) })
}

/// Without looks at counters and the kernel.
fn steps(controller: &mut Controller, now: Moment) -> Vec<String> {
    let mut taken = vec![];
    while let Next::Do(step) = controller.next(now) {
        let answer = match &step {
            Step::Inspect => Outcome::Stats(LinkStats { received: 200, ..stats() }),
            step => outcome(step, true),
        };
        controller.done(&step, answer, now);
        taken.push(step);
        assert!(taken.len() < 50, "it never comes to rest: {taken:?}");
    }
    names(&taken).into_iter().filter(|step| !["Inspect", "Audit"].contains(&step.as_str())).collect()
}

/// The former life may have armed it a moment before it died.
#[test]
fn i2_a_fence_that_may_still_be_open_holds_or_is_closed_before_the_campaign_may_take_it_for_quiet() {
    let mut controller = newborn();
    controller.handle(Event::Stop(Ending::HandOver), at(100_000));
    assert_eq!(steps(&mut controller, at(100_000)), ["HoldFence", "Quiet"]);
    let mut controller = newborn();
    assert_eq!(controller.next(at(100_000)), Next::Do(Step::HoldFence { port: 51820 }));
    controller.failed(&Step::HoldFence { port: 51820 }, "ENOBUFS".into(), at(100_000));
    assert_eq!(steps(&mut controller, at(100_000))[..2], ["CloseFence", "Quiet"]);
}

#[test]
fn what_was_left_is_held_untouched_while_the_lease_is_not_known() {
    let mut controller = heir();
    for now in (100..700).map(|seconds| at(seconds * 1000)) {
        assert_eq!(steps(&mut controller, now), Vec::<String>::new(), "{now:?}");
        assert_eq!(controller.state(now), State::Holding);
    }
}

#[test]
fn the_forwards_of_the_earlier_life_stay_until_there_are_newer_ones() {
    let mut controller = heir();
    assert_eq!(controller.applied(), None, "what they are is not known");
    controller.handle(Event::Forwards(Arc::new(Forwards::from([one_forward()]))), at(101_000));
    assert_eq!(steps(&mut controller, at(101_000)), ["ApplyForwards"]);
    assert_eq!(steps(&mut controller, at(102_000)), Vec::<String>::new());
}

#[test]
fn the_same_tenure_leads_on_with_the_session_and_wins_the_hub_from_nobody() {
    let mut controller = heir();
    controller.handle(Event::Forwards(Arc::default()), at(100_500));
    controller.handle(tenure(FORMER), at(100_500));
    let mut taken = vec![];
    for now in (100_500..103_000).map(at) {
        taken.extend(steps(&mut controller, now));
    }
    assert_eq!(taken[..4], ["Speak", "AskFence", "ArmFence", "ApplyForwards"]);
    assert!(
        !taken.iter().any(|step| ["SetPeer", "Kick", "CreateLink", "RaiseFence"].contains(&step.as_str())),
        "{taken:?}"
    );
    // Four ask whether the hub is still there; to win it would take dozens.
    assert!(taken.iter().filter(|step| *step == "Probe").count() <= 6, "{taken:?}");
    assert_eq!(controller.state(at(103_000)), State::Leading);
}

#[test]
fn another_tenure_makes_the_peer_afresh() {
    let mut controller = heir();
    controller.handle(Event::Forwards(Arc::default()), at(100_500));
    controller.handle(tenure(FORMER + 2), at(100_500));
    let taken = steps(&mut controller, at(100_500));
    assert!(taken.contains(&"SetPeer".to_owned()), "{taken:?}");
    assert!(!taken.contains(&"CreateLink".to_owned()), "the link is good: {taken:?}");
}

#[test]
fn a_lease_that_names_another_ends_it_within_a_second() {
    let mut controller = heir();
    controller.handle(named("other"), at(100_500));
    assert_eq!(steps(&mut controller, at(101_400)), Vec::<String>::new());
    let down = ["CloseFence", "RemoveLink", "RemoveForwards", "RemoveFence"];
    assert_eq!(steps(&mut controller, at(101_500)), down);
    assert_eq!(controller.state(at(101_500)), State::Standby);
}

#[test]
fn a_process_that_ends_takes_it_down() {
    let mut controller = heir();
    controller.handle(Event::Stop(Ending::Removal), at(100_500));
    assert_eq!(steps(&mut controller, at(100_500)), ["CloseFence", "RemoveLink", "RemoveForwards", "RemoveFence"]);
    assert_eq!(controller.next(at(100_500)), Next::Finished);
}

#[test]
fn settings_that_came_meanwhile_and_need_another_link_end_it() {
    let mut controller = heir();
    controller.handle(Event::Settings(Arc::new(settings(51821, 5))), at(100_500));
    assert_eq!(steps(&mut controller, at(100_500))[..2], ["CloseFence", "RemoveLink"]);
}
