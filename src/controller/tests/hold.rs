//! Hold: what is answered without a tenure, for how long, and what becomes of the session.

use super::*;

const SINCE: u64 = 10;

fn tenure(since: u64, until: u64, transitions: i32, clean: bool) -> Event {
    Event::Leadership(Leadership::Leading(Tenure {
        since: at(since),
        until: at(until),
        transitions,
        before: if clean { Before::Nobody } else { Before::Other },
    }))
}

fn named(holder: &str) -> Event {
    Event::Leadership(Leadership::Following { holder: Some(holder.into()) })
}

fn unknown() -> Event {
    Event::Leadership(Leadership::Following { holder: None })
}

/// Leads until 5 s, with a session since 10 ms.
fn holder() -> Controller {
    let mut controller = standby().holding("we");
    controller.handle(leading(at(5000)), at(0));
    settle(&mut controller, at(0));
    settle(&mut controller, at(SINCE));
    assert_eq!(controller.state(at(SINCE)), State::Leading);
    controller
}

/// Without looks at counters and the kernel, which come and go.
fn steps(controller: &mut Controller, now: Moment) -> Vec<String> {
    names(&settle(controller, now)).into_iter().filter(|step| !["Inspect", "Audit"].contains(&step.as_str())).collect()
}

/// Holds since 5 s: the API is away.
fn held() -> Controller {
    let mut controller = holder();
    controller.handle(unknown(), at(5000));
    assert_eq!(steps(&mut controller, at(5000)), ["HoldFence", "Quiet"]);
    assert_eq!(controller.state(at(5000)), State::Holding);
    controller
}

#[test]
fn a_tenure_that_lapses_is_held_for_as_long_as_the_api_is_away() {
    let mut controller = held();
    for now in (6..600).map(|seconds| at(seconds * 1000)) {
        assert_eq!(steps(&mut controller, now), Vec::<String>::new(), "{now:?}");
        assert_eq!(controller.state(now), State::Holding);
    }
}

#[test]
fn a_hub_that_says_nothing_in_hold_is_not_looked_for_elsewhere() {
    let mut controller = held();
    assert_eq!(steps(&mut controller, at(90_000)), Vec::<String>::new());
    assert_eq!(controller.unheard_for(at(90_000)), None);
    controller.handle(tenure(91_000, 96_000, 1, true), at(91_000));
    steps(&mut controller, at(91_000));
    assert_eq!(controller.unheard_for(at(91_500)), Some(Duration::from_millis(500)), "asked for from here on");
}

#[test]
fn nothing_is_held_without_a_session_or_where_hold_is_forbidden() {
    let mut silent = standby().holding("we");
    silent.handle(leading(at(5000)), at(0));
    while let Next::Do(step) = silent.next(at(0)) {
        silent.done(&step, outcome(&step, false), at(0));
    }
    let mut forbidden = leader();
    for controller in [&mut silent, &mut forbidden] {
        controller.handle(unknown(), at(5000));
        assert_eq!(steps(controller, at(5000)), ["CloseFence", "Quiet", "RemoveLink", "RemoveForwards", "RemoveFence"]);
    }
}

#[test]
fn the_lease_renewed_leads_on_with_the_session_that_was_held() {
    let mut controller = held();
    controller.handle(tenure(60_000, 65_000, 1, true), at(60_000));
    assert_eq!(steps(&mut controller, at(60_000)), ["Speak", "AskFence", "ArmFence", "Probe"]);
    assert_eq!(controller.state(at(60_000)), State::Leading);
}

#[test]
fn a_lapsed_fence_is_told_to_hold_before_the_lease_goes_though_the_lease_came_back_in_between() {
    // The kernel's ticks may be slower than our clock, and its answer to a re-arming may be lost.
    for answer_lost in [false, true] {
        let mut controller = holder();
        controller.handle(tenure(0, 10_000, 1, true), at(5000));
        assert_eq!(controller.next(at(5000)), Next::Do(Step::AskFence));
        if answer_lost {
            controller.done(&Step::AskFence, Outcome::Foreign(false), at(5000));
            let Next::Do(arm @ Step::ArmFence { .. }) = controller.next(at(5000)) else { panic!("it is not armed") };
            controller.failed(&arm, "ENOBUFS".into(), at(5000));
        }
        controller.handle(Event::Stop(Ending::HandOver), at(5001));
        assert_eq!(steps(&mut controller, at(5001))[..2], ["HoldFence", "Quiet"], "answer lost: {answer_lost}");
    }
}

#[test]
fn a_session_that_the_hub_may_have_forgotten_is_made_afresh() {
    let fresh = ["Speak", "AskFence", "ArmFence", "SetPeer", "Probe"];
    let mut led_by_another = held();
    led_by_another.handle(tenure(60_000, 65_000, 3, true), at(60_000));
    assert_eq!(steps(&mut led_by_another, at(60_000))[..4], fresh[..4]);

    let mut silenced = held();
    silenced.handle(tenure(60_000, 65_000, 1, true), at(60_000));
    let mut taken = vec![];
    while let Next::Do(step) = silenced.next(at(60_000)) {
        let answer = if step == Step::AskFence { Outcome::Foreign(true) } else { outcome(&step, true) };
        silenced.done(&step, answer, at(60_000));
        taken.push(step);
    }
    assert_eq!(names(&taken)[..4], fresh[..4]);

    // Nothing is heard in it.
    let mut deaf = held();
    let (mut now, mut taken) = (at(60_000), vec![]);
    deaf.handle(tenure(60_000, 70_000, 1, true), now);
    while now <= at(61_000) {
        match deaf.next(now) {
            Next::Do(step) => {
                deaf.done(&step, outcome(&step, true), now);
                taken.push((step, now));
            }
            Next::WaitUntil(then) => now = then,
            Next::Finished => panic!("not asked to stop"),
        }
    }
    assert!(taken.iter().any(|(step, at)| matches!(step, Step::SetPeer(_)) && *at <= super::at(61_000)), "{taken:?}");
}

#[test]
fn a_fence_that_cannot_be_asked_is_no_reason_to_trust_it() {
    let mut controller = held();
    controller.handle(tenure(60_000, 65_000, 1, true), at(60_000));
    controller.done(&Step::Speak, Outcome::Done, at(60_000));
    controller.failed(&Step::AskFence, "ENOBUFS".into(), at(60_000));
    assert_eq!(steps(&mut controller, at(60_000))[..2], ["ArmFence", "SetPeer"]);
}

#[test]
fn a_successor_that_is_named_ends_the_hold_a_second_later() {
    let down = ["CloseFence", "RemoveLink", "RemoveForwards", "RemoveFence"];
    let mut controller = held();
    controller.handle(named("we"), at(9000));
    assert_eq!(steps(&mut controller, at(9000)), Vec::<String>::new(), "our own name is no successor's");
    controller.handle(named("other"), at(10_000));
    controller.handle(unknown(), at(10_300));
    assert_eq!(steps(&mut controller, at(10_999)), Vec::<String>::new());
    assert_eq!(steps(&mut controller, at(11_000)), down);
    assert_eq!(controller.state(at(11_000)), State::Standby);

    // The same for one that is robbed of its Lease.
    let mut controller = holder();
    controller.handle(named("other"), at(1000));
    assert_eq!(steps(&mut controller, at(1000)), ["HoldFence", "Quiet"]);
    assert_eq!(steps(&mut controller, at(2000)), down);
}

#[test]
fn a_pod_that_ends_holds_until_its_successor_has_the_hub_but_not_for_ever() {
    for (successor, end) in [(Some(100), 1100), (None, 1900), (Some(1500), 1900)] {
        let mut controller = holder();
        controller.handle(Event::Stop(Ending::HandOver), at(100));
        assert_eq!(steps(&mut controller, at(100)), ["HoldFence", "Quiet"], "before the Lease is given back");
        let named = |controller: &mut Controller| controller.handle(named("other"), at(successor.unwrap_or_default()));
        if successor.is_some() {
            named(&mut controller);
        }
        assert_eq!(steps(&mut controller, at(end - 1)), Vec::<String>::new(), "{successor:?}");
        assert_eq!(controller.state(at(end - 1)), State::Holding);
        assert_eq!(steps(&mut controller, at(end)).len(), 4);
        assert_eq!(controller.next(at(end)), Next::Finished);
    }
}

#[test]
fn a_tunnel_that_left_the_secret_is_not_held() {
    let mut controller = holder();
    controller.handle(Event::Stop(Ending::Removal), at(100));
    assert_eq!(steps(&mut controller, at(100))[0], "CloseFence");
    assert_eq!(controller.next(at(100)), Next::Finished);
}

#[test]
fn what_is_forwarded_stays_true_in_hold_and_what_an_outsider_sets_down_comes_back() {
    let mut controller = held();
    controller.handle(Event::Forwards(Arc::new(Forwards::from([one_forward()]))), at(6000));
    assert_eq!(steps(&mut controller, at(6000)), ["ApplyForwards"]);
    let audit = Step::Audit(Arc::clone(controller.plan().unwrap()));
    controller.done(&audit, Outcome::Drift(Drift { network: true, ..Drift::default() }), at(6500));
    assert_eq!(steps(&mut controller, at(6500)), ["AttachLink"]);
    // Without its fence nothing may be answered, and a new one would know none of our sessions.
    controller.done(&audit, Outcome::Drift(Drift { fence: true, ..Drift::default() }), at(7000));
    assert_eq!(steps(&mut controller, at(7000)), ["RemoveLink", "RemoveForwards"]);
}

#[test]
fn settings_that_need_another_session_end_the_hold_and_others_wait() {
    let mut controller = held();
    controller.handle(Event::Settings(Arc::new(settings(51820, 25))), at(6000));
    assert_eq!(steps(&mut controller, at(6000)), Vec::<String>::new());
    controller.handle(Event::Settings(Arc::new(settings(51999, 25))), at(7000));
    assert_eq!(steps(&mut controller, at(7000))[0], "CloseFence");
}

#[test]
fn a_fence_that_will_not_fall_to_hold_is_closed() {
    let mut controller = holder();
    controller.handle(named("other"), at(1000));
    assert_eq!(controller.next(at(1000)), Next::Do(Step::HoldFence { port: 51820 }));
    controller.failed(&Step::HoldFence { port: 51820 }, "EBUSY".into(), at(1000));
    assert_eq!(controller.next(at(1000)), Next::Do(Step::CloseFence));
}

/// Else WireGuard in user space gives up in the end, and a NAT on the way forgets the tunnel.
#[test]
fn in_hold_a_session_that_is_over_is_knocked_at_every_5_s_and_the_tunnel_stays() {
    let mut controller = holder();
    controller.handle(unknown(), at(5000));
    let (mut now, mut knocks) = (at(5000), vec![]);
    while now < at(250_000) {
        match controller.next(now) {
            Next::Do(step) => {
                if let Step::Probe(_) = step {
                    knocks.push(now.since_boot().as_secs());
                }
                // In user space a session that is over is forgotten.
                let age = Some(now.since(at(0))).filter(|age| age.as_secs() < 180);
                let outcome = if step == Step::Inspect {
                    Outcome::Stats(LinkStats { handshake_age: age, received: 1, sent: 1 })
                } else {
                    outcome(&step, true)
                };
                controller.done(&step, outcome, now);
            }
            Next::WaitUntil(then) => now = then,
            Next::Finished => panic!("not asked to stop"),
        }
        assert_eq!(controller.state(now), State::Holding, "at {now:?}");
    }
    assert_eq!(knocks, (180..250).step_by(5).collect::<Vec<_>>());
}

/// What a successor sends from its first handshake on: when, and what.
fn sent(before: Before) -> Vec<(u128, &'static str)> {
    sent_at(before, Duration::from_millis(10))
}

/// The same where the hub answers the last handshake, and each probe, after a round trip.
fn sent_at(before: Before, round_trip: Duration) -> Vec<(u128, &'static str)> {
    sent_knowing(before, round_trip, None)
}

/// The same where the former leader left word how long that takes.
fn sent_knowing(before: Before, round_trip: Duration, told: Option<Duration>) -> Vec<(u128, &'static str)> {
    let mut controller = standby().holding("we");
    if let Some(told) = told {
        controller.expect(told);
    }
    let tenure = Tenure { since: at(0), until: at(60_000), transitions: 2, before };
    controller.handle(Event::Leadership(Leadership::Leading(tenure)), at(0));
    let (mut now, mut sent, mut asked) = (at(0), vec![], at(0));
    let mut served = None;
    while now < at(3000) {
        match controller.next(now) {
            Next::Do(step) => {
                if let Step::SetPeer(_) | Step::Kick(_) | Step::Probe(_) = step {
                    sent.push((now.since_boot().as_millis(), step.names().0));
                }
                if let Step::SetPeer(_) | Step::Kick(_) = step {
                    asked = now;
                }
                let mut outcome = outcome(&step, now.since(asked) >= round_trip);
                if let Outcome::Stats(stats) = &mut outcome {
                    let probed = |(at_ms, step): &&(u128, &str)| {
                        *step == "probe" && now.since_boot().as_millis() >= at_ms + round_trip.as_millis()
                    };
                    stats.received += 32 * sent.iter().filter(probed).count() as u64;
                }
                controller.done(&step, outcome, now);
                if controller.serves(now) {
                    let since = served.get_or_insert(now);
                    assert!(*since >= at(0) + round_trip, "served before the hub's first answer, at {since:?}");
                }
                assert!(served.is_none() || controller.serves(now), "seen to serve all along, also at {now:?}");
            }
            Next::WaitUntil(then) => now = then,
            Next::Finished => panic!("not asked to stop"),
        }
    }
    sent
}

#[test]
fn a_successor_to_a_lease_that_was_not_given_back_wins_the_hub_from_whoever_had_it() {
    let insisting = sent(Before::Other);
    let handshakes: Vec<_> = insisting.iter().filter(|(_, step)| *step == "set-peer").map(|(at, _)| *at).collect();
    assert_eq!(handshakes.len(), 2, "{insisting:?}");
    assert!((40..=70).contains(&handshakes[1]), "{handshakes:?}");
    assert!(insisting.iter().any(|(at, step)| *step == "probe" && *at < handshakes[1]), "nothing confirmed the first");
    let spoken: Vec<_> = insisting.iter().map(|(at, _)| *at).filter(|at| *at >= 10 && *at <= 1500).collect();
    assert!(spoken.windows(2).all(|pair| pair[1] - pair[0] <= 60), "{spoken:?}");
    let rest = insisting.iter().filter(|(at, _)| *at > handshakes[1] + 1600).count();
    assert!(rest <= 1, "it goes back to a probe every 2 s: {insisting:?}");
}

/// Answers of its predecessor that were on their way come in for a round trip, and each has the hub look back.
#[test]
fn a_successor_is_heard_every_2_ms_for_a_round_trip_and_seldomer_then() {
    for (before, round_trip) in [(Before::GaveBack, 100), (Before::GaveBack, 500), (Before::Other, 100)] {
        let sent = sent_at(before, Duration::from_millis(round_trip));
        let answered = |(at, _): &(u128, &str)| at + u128::from(round_trip);
        let last = sent.iter().rfind(|(_, step)| *step != "probe").map(answered).unwrap();
        let within = |from: u128, to: u128| sent.iter().filter(|(at, _)| (last + from..last + to).contains(at)).count();
        let often = usize::try_from(round_trip / 2).unwrap();
        let first = within(0, u128::from(round_trip));
        assert!((often * 9 / 10..=often + 5).contains(&first), "{first} in the first {round_trip} ms: {sent:?}");
        let later = within(u128::from(round_trip) + 10, u128::from(round_trip) + 510);
        assert!((9..=25).contains(&later), "{later} in half a second after: {sent:?}");
    }
}

/// Each kick has the handshake before forgotten, so that one too many costs a round trip.
#[test]
fn a_successor_that_was_told_the_round_trip_kicks_no_handshake_that_is_under_way() {
    for round_trip in [1, 30, 100, 280, 500].map(Duration::from_millis) {
        for before in [Before::GaveBack, Before::Other] {
            let sent = sent_knowing(before, round_trip, Some(round_trip));
            assert!(!sent.iter().any(|(_, step)| *step == "kick"), "{round_trip:?}: {sent:?}");
        }
    }
    let unknown = sent_at(Before::GaveBack, Duration::from_millis(280));
    assert!(unknown.iter().any(|(_, step)| *step == "kick"), "nothing is gained: {unknown:?}");
    // A near hub whose answer went to the predecessor is asked again soon.
    let (never, near) = (Duration::from_secs(10), Duration::from_millis(3));
    let kicks = |told| {
        let sent = sent_knowing(Before::GaveBack, never, told);
        sent.iter().find(|(_, step)| *step == "kick").map(|(at, _)| *at).unwrap()
    };
    assert!(kicks(Some(near)) < 60 && kicks(None) >= 100);
}

/// Else an answer of that one's, just when the hub answers, has the hub answer it.
#[test]
fn the_second_handshake_waits_until_the_predecessor_is_silent_and_its_last_answers_are_in() {
    for round_trip in [1, 30, 100, 280, 500] {
        let length = Duration::from_millis(round_trip);
        let sent = sent_knowing(Before::Other, length, Some(length));
        let handshakes: Vec<_> = sent.iter().filter(|(_, step)| *step == "set-peer").map(|(at, _)| *at).collect();
        let silent = 2 * u128::from(round_trip);
        assert_eq!(handshakes.len(), 2, "{round_trip} ms: {handshakes:?}");
        assert!((silent + 30..silent + 90).contains(&handshakes[1]), "{round_trip} ms: {handshakes:?}");
    }
}

#[test]
fn the_second_handshake_is_given_the_time_that_the_first_took() {
    for round_trip in [100, 280, 500] {
        let sent = sent_at(Before::Other, Duration::from_millis(round_trip));
        let second = sent.iter().rposition(|(_, step)| *step == "set-peer").unwrap();
        assert!(second > 0 && sent[..second].iter().any(|(_, step)| *step == "probe"), "{sent:?}");
        let kicks = sent[second..].iter().filter(|(_, step)| *step == "kick").count();
        assert_eq!(kicks, 0, "at a round trip of {round_trip} ms: {sent:?}");
    }
}

#[test]
fn an_unbroken_tenure_keeps_its_session_whatever_a_hand_makes_of_the_count() {
    let mut controller = holder();
    controller.handle(tenure(0, 9000, 7, true), at(1000));
    assert_eq!(steps(&mut controller, at(1000)), ["ArmFence"]);
}

/// The one before answers on until it hears the hub speak to another: its last answers, half a round trip on their way,
/// would have the hub until our next packet.
#[test]
fn a_successor_to_a_lease_that_was_given_back_is_heard_often_after_one_handshake() {
    let heard = sent(Before::GaveBack);
    assert_eq!(heard.iter().filter(|(_, step)| *step == "set-peer").count(), 1, "{heard:?}");
    let spoken: Vec<_> = heard.iter().map(|(at, _)| *at).filter(|at| *at >= 10 && *at <= 1500).collect();
    assert!(spoken.len() > 20 && spoken.windows(2).all(|pair| pair[1] - pair[0] <= 60), "{spoken:?}");
}
