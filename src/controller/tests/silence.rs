//! A hub that does not answer, or not at once.

use super::*;

#[test]
fn an_unanswered_handshake_is_kicked_at_250_ms_and_then_at_growing_waits() {
    let mut controller = standby();
    controller.handle(leading(at(60_000)), at(0));
    let (mut now, mut kicks) = (at(0), vec![]);
    while now < at(20_000) {
        match controller.next(now) {
            Next::Do(step) => {
                if matches!(step, Step::Kick(_)) {
                    kicks.push(now.since_boot().as_millis());
                }
                controller.done(&step, outcome(&step, false), now);
            }
            Next::WaitUntil(then) => now = then,
            Next::Finished => panic!("not asked to stop"),
        }
    }
    assert_eq!(kicks[..4], [250, 650, 1290, 2314]);
    let last: Vec<_> = kicks.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(last.ends_with(&[5000]), "no wait grows beyond 5 s: {last:?}");
}

#[test]
fn a_handshake_completes_at_any_round_trip_time_up_to_half_a_second() {
    for (round_trip, within) in [(1, 10), (100, 110), (280, 540), (500, 1160)] {
        let mut controller = standby();
        controller.handle(leading(at(60_000)), at(0));
        let (mut now, mut sent) = (at(0), None);
        // A fresh peer forgets the handshake before it: only the last one's answer counts.
        while !controller.serves(now) {
            match controller.next(now) {
                Next::Do(step) => {
                    if matches!(step, Step::SetPeer(_) | Step::Kick(_)) {
                        sent = Some(now);
                    }
                    let answered = sent.is_some_and(|sent| now.since(sent) >= Duration::from_millis(round_trip));
                    controller.done(&step, outcome(&step, answered), now);
                }
                Next::WaitUntil(then) => now = then,
                Next::Finished => panic!("not asked to stop"),
            }
            assert!(now <= at(within), "no handshake within {within} ms at {round_trip} ms");
        }
    }
}

/// To a reading: so many bytes, in a session since 10 ms.
fn counted(step: &Step, received: u64, now: Moment) -> Outcome {
    match step {
        Step::Inspect => Outcome::Stats(LinkStats { handshake_age: Some(now.since(at(10))), received, sent: 0 }),
        other => outcome(other, true),
    }
}

/// Runs a leader whose hub stops answering at `silent_from`; gives the time at which the peer is made fresh.
fn fresh_peer_after(silent_from: Moment, answers_probes: bool) -> Moment {
    let mut controller = leader();
    let (mut now, mut received) = (at(10), 92);
    controller.handle(leading(at(600_000)), now);
    loop {
        match controller.next(now) {
            Next::Do(Step::SetPeer(_)) => return now,
            Next::Do(step) => {
                let alive = now < silent_from;
                let keepalive = !answers_probes && now.since_boot().as_secs() % 10 == 0;
                if alive && ((answers_probes && matches!(step, Step::Probe(_))) || (keepalive && step == Step::Inspect))
                {
                    received += 32;
                }
                controller.done(&step, counted(&step, received, now), now);
            }
            Next::WaitUntil(then) => now = then,
            Next::Finished => panic!("not asked to stop"),
        }
        assert!(now < at(120_000), "the silence was never noticed");
    }
}

#[test]
fn a_hub_that_answers_probes_and_falls_silent_gets_a_fresh_peer_within_seven_seconds() {
    let fresh = fresh_peer_after(at(30_000), true);
    assert!(fresh > at(33_000) && fresh <= at(37_000), "{fresh:?}");
}

#[test]
fn a_hub_that_never_answered_probes_gets_longer() {
    let fresh = fresh_peer_after(at(30_500), false);
    // Its last keepalive came at 20.9 s.
    assert!(fresh > at(35_000) && fresh <= at(37_000), "{fresh:?}");
}

/// Runs a leader whose hub answers each handshake, and says no more; gives when the peer was made fresh.
fn fresh_peers_of_a_mute_hub() -> Vec<Moment> {
    let mut controller = leader();
    let (mut now, mut set, mut received, mut fresh) = (at(10), at(10), 92, vec![]);
    controller.handle(leading(at(600_000)), now);
    while now < at(60_000) {
        match controller.next(now) {
            Next::Do(step) => {
                if let Step::SetPeer(_) = step {
                    fresh.push(now);
                    (set, received) = (now, received + 92);
                }
                let stats = LinkStats { handshake_age: Some(now.since(set)), received, sent: 0 };
                let outcome = if step == Step::Inspect { Outcome::Stats(stats) } else { outcome(&step, true) };
                controller.done(&step, outcome, now);
            }
            Next::WaitUntil(then) => now = then,
            Next::Finished => panic!("not asked to stop"),
        }
    }
    fresh
}

/// It may be going on in a session that the peer before this one began with it, and hear ours.
#[test]
fn a_session_in_which_nothing_ever_came_is_replaced_soon_but_only_once_in_a_row() {
    let [first, second, third, ..] = fresh_peers_of_a_mute_hub()[..] else { panic!("three at least") };
    assert!(first <= at(4_000), "{first:?}");
    assert!((15..=18).contains(&second.since(first).as_secs()), "{second:?}");
    assert!((15..=18).contains(&third.since(second).as_secs()), "{third:?}");
}

#[test]
fn a_hub_whose_answers_get_lost_now_and_then_is_not_taken_for_silent() {
    let mut controller = leader();
    let (mut now, mut received, mut probes, mut lost) = (at(10), 92, 0, 0);
    controller.handle(leading(at(600_000)), now);
    while now < at(300_000) {
        match controller.next(now) {
            Next::Do(step) => {
                if let Step::Probe(_) = step {
                    probes += 1;
                    // Once the hub is known to answer, four in a row are lost, over and over.
                    if probes > 5 && probes % 5 != 0 {
                        lost += 1;
                    } else {
                        received += 32;
                    }
                }
                assert!(!matches!(step, Step::SetPeer(_)), "a fresh peer at {now:?}");
                controller.done(&step, counted(&step, received, now), now);
            }
            Next::WaitUntil(then) => now = then,
            Next::Finished => panic!("not asked to stop"),
        }
    }
    assert!(lost > 100, "only {lost} were lost");
}

/// Renews for ever; the hub answers from `answers_from` on. Gives the moment at which the pod gives way, if it does.
fn gives_way(began: Moment, answers_until: Moment) -> Option<Moment> {
    let mut controller = standby();
    let mut now = began;
    while now < began + Duration::from_secs(120) {
        let tenure =
            Tenure { since: began, until: now + Duration::from_secs(5), transitions: 1, before: Before::Nobody };
        controller.handle(Event::Leadership(Leadership::Leading(tenure)), now);
        match controller.next(now) {
            Next::Do(Step::StepDown) => return Some(now),
            Next::Do(step) => {
                let answered = now < answers_until;
                let stats = LinkStats {
                    handshake_age: answered.then_some(Duration::ZERO),
                    received: now.min(answers_until).since_boot().as_millis() as u64,
                    sent: 0,
                };
                let outcome = if step == Step::Inspect { Outcome::Stats(stats) } else { outcome(&step, false) };
                controller.done(&step, outcome, now);
            }
            Next::WaitUntil(then) => now = then.min(now + Duration::from_millis(500)),
            Next::Finished => panic!("not asked to stop"),
        }
    }
    None
}

#[test]
fn a_leader_without_an_answer_gives_way_but_not_before_half_a_minute() {
    assert_eq!(gives_way(at(0), at(600_000)), None);
    let deaf_from_the_start = gives_way(at(0), at(0)).unwrap();
    assert!((at(30_000)..at(31_000)).contains(&deaf_from_the_start), "{deaf_from_the_start:?}");
    // 5 or 15 s until the session is given up, and 10 s in which no new one comes.
    let deaf_later = gives_way(at(0), at(60_000)).unwrap();
    assert!((at(70_000)..at(90_000)).contains(&deaf_later), "{deaf_later:?}");
}
