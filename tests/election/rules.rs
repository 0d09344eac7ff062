//! The rules that client-go has no test for, and those that are ours alone, against the pure elector.

use std::io;
use std::time::Duration;

use jiff::SignedDuration;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use wirevip::election::{Elector, Outcome, Params, Record, Request, StoreError, Verdict};

use crate::tables::{HOURS, NOW, Server, baz, lease, rec, ten, wall};
use crate::world::{SECOND, ms};

fn at(version: u64, record: &Record) -> Lease {
    let mut lease = lease(record);
    lease.metadata.resource_version = Some(version.to_string());
    lease
}

fn away() -> StoreError {
    StoreError::Other { verb: "get", cause: io::Error::other("away").into() }
}

fn leading() -> (Elector, Server) {
    let mut elector = baz();
    let mut server = Server::default();
    assert_eq!(server.attempt(&mut elector, NOW), Outcome::Won);
    server.get = Some(lease(server.written.last().unwrap()));
    (elector, server)
}

#[test]
fn a_released_lease_is_free_whenever_it_was_seen() {
    let mut elector = baz();
    elector.sight(NOW, wall(), lease(&rec("bing", 10)));
    elector.sight(NOW, wall(), lease(&rec("", 1)));
    let mut server = Server { get: Some(lease(&rec("", 1))), ..Server::default() };
    assert_eq!(server.attempt(&mut elector, NOW), Outcome::Won);
    assert_eq!(server.calls, ["update"], "what the watch showed needs no get");
}

#[test]
fn a_release_that_somebody_else_took_first_is_found_out_by_the_get() {
    let mut elector = baz();
    elector.sight(NOW, wall(), lease(&rec("", 1)));
    let mut server = Server { get: Some(lease(&rec("bing", 10))), conflicts: 1, ..Server::default() };
    assert_eq!(server.attempt(&mut elector, NOW), Outcome::Held);
    assert_eq!((server.calls.as_slice(), elector.holder()), (["update", "get"].as_slice(), Some("bing")));
}

#[test]
fn the_holder_may_renew_a_lease_that_ran_out_as_long_as_nobody_wrote_it() {
    let (mut elector, mut server) = leading();
    let late = NOW + HOURS;
    assert!(elector.lapse(late));
    assert_eq!(server.attempt(&mut elector, late), Outcome::Won);
    assert_eq!(server.calls, ["get", "create", "get", "update"]);
    assert_eq!(elector.tenure().unwrap().since, late, "a tenure that lapsed is not prolonged");
    assert_eq!(elector.tenure().unwrap().transitions, 0);
}

#[test]
fn after_a_restart_the_same_identity_renews_at_once_and_another_waits() {
    let held = Record { acquired: Some(wall()), renewed: Some(wall()), transitions: 7, ..rec("baz", 10) };
    let mut server = Server { get: Some(lease(&held)), ..Server::default() };
    let mut same = baz();
    assert_eq!(server.attempt(&mut same, NOW), Outcome::Won);
    assert_eq!((server.written[0].transitions, server.written[0].acquired), (7, held.acquired));
    let mut another = Elector::new(ten(), "baz-of-another-pod").unwrap();
    assert_eq!(server.attempt(&mut another, NOW), Outcome::Held);
}

#[test]
fn each_change_of_holder_counts_once_and_nothing_else_does() {
    for (held, seen_before, expected) in
        [(rec("bing", 10), true, 5), (rec("", 1), false, 5), (rec("", 0), false, 5), (rec("baz", 10), false, 4)]
    {
        let held = Record { transitions: 4, ..held };
        let mut elector = baz();
        if seen_before {
            elector.sight(NOW - HOURS, wall(), lease(&held));
        }
        let mut server = Server { get: Some(lease(&held)), ..Server::default() };
        assert_eq!(server.attempt(&mut elector, NOW), Outcome::Won, "{held:?}");
        assert_eq!(elector.tenure().unwrap().transitions, expected, "{held:?}");
        assert_eq!(server.attempt(&mut elector, NOW + SECOND), Outcome::Won);
        assert_eq!(server.written.last().unwrap().transitions, expected, "a renewal counted");
        server.get = Some(lease(server.written.last().unwrap()));
        assert_eq!(server.release(&mut elector, NOW + SECOND), Outcome::Released);
        assert_eq!(server.written.last().unwrap().transitions, expected, "a release counted");
    }
}

#[test]
fn a_leader_makes_its_deleted_lease_again_and_leads_on() {
    let mut elector = baz();
    let held = Record { acquired: Some(wall()), transitions: 3, ..rec("baz", 10) };
    let mut server = Server { get: Some(lease(&held)), ..Server::default() };
    assert_eq!(server.attempt(&mut elector, NOW), Outcome::Won);
    server.get = None;
    let request = elector.next(NOW + SECOND, wall());
    assert!(matches!(request, Request::Replace(..)));
    let verdict = elector.answer(NOW + SECOND, wall(), Err(&StoreError::NotFound));
    assert_eq!(verdict, Verdict::Continue(Request::Get));
    assert_eq!(server.converse(&mut elector, NOW + SECOND, Request::Get), Outcome::Won);
    let made = server.written.last().unwrap();
    assert_eq!((made.transitions, made.acquired), (3, held.acquired));
    assert_eq!(elector.tenure().unwrap().since, NOW);
}

#[test]
fn a_holder_that_vanishes_without_releasing_counts_for_one_more_term() {
    let seen = NOW + 9 * SECOND;
    for (now_there, free) in [
        (None, seen + 10 * SECOND),
        (Some(rec("", 0)), seen + 10 * SECOND),
        (Some(rec("", 10)), seen + 10 * SECOND),
        // A write of our own whose answer was lost, or a hand: to be told apart by the time that it had to wait.
        (Some(rec("baz", 10)), NOW + 10 * SECOND),
    ] {
        let mut elector = baz();
        elector.sight(NOW, wall(), lease(&rec("bing", 10)));
        let mut server = Server { get: now_there.as_ref().map(lease), ..Server::default() };
        assert_eq!(server.attempt(&mut elector, seen), Outcome::Held, "{now_there:?}");
        // A Lease that is not there at all may be made again by its leader meanwhile.
        let looks = if now_there.is_none() { seen + elector.params().retry } else { free };
        assert_eq!(elector.due(), looks, "{now_there:?}");
        assert_eq!(server.attempt(&mut elector, free - ms(1)), Outcome::Held, "{now_there:?}");
        assert_eq!(server.attempt(&mut elector, free), Outcome::Won, "{now_there:?}");
    }
}

/// Between two looks of a candidate without a watch it may have had a holder, who is still there.
#[test]
fn each_hand_on_a_lease_without_a_holder_costs_a_candidate_one_more_term() {
    let emptied = |version| Some(at(version, &rec("", 0)));
    for (first, then) in [(None, emptied(2)), (emptied(2), emptied(4)), (emptied(2), None)] {
        let mut elector = baz();
        elector.sight(NOW, wall(), at(1, &rec("bing", 10)));
        let mut server = Server { get: first.clone(), ..Server::default() };
        assert_eq!(server.attempt(&mut elector, NOW + SECOND), Outcome::Held);
        let found = NOW + 11 * SECOND;
        let mut unchanged = elector.clone();
        assert_eq!(server.attempt(&mut unchanged, found), Outcome::Won, "{first:?}");
        server.get = then.clone();
        assert_eq!(server.attempt(&mut elector, found), Outcome::Held, "{then:?}");
        assert_eq!(server.attempt(&mut elector, found + 10 * SECOND - ms(1)), Outcome::Held, "{then:?}");
        assert_eq!(server.attempt(&mut elector, found + 10 * SECOND), Outcome::Won, "{then:?}");
    }
}

/// Others may have had it since, and one of them may speak.
#[test]
fn who_finds_its_own_lease_gone_after_its_term_waits_for_a_term_like_any_other() {
    let mut elector = baz();
    let mut server = Server { get: Some(lease(&rec("baz", 10))), ..Server::default() };
    assert_eq!(server.attempt(&mut elector, NOW), Outcome::Won);
    let woken = NOW + 25 * SECOND;
    assert!(elector.lapse(woken));
    for there in [None, Some(rec("", 0))] {
        let mut elector = elector.clone();
        let mut server = Server { get: there.as_ref().map(lease), ..Server::default() };
        assert_eq!(server.attempt(&mut elector, woken), Outcome::Held, "{there:?}");
        assert_eq!(server.attempt(&mut elector, woken + 10 * SECOND - ms(1)), Outcome::Held, "{there:?}");
        assert_eq!(server.attempt(&mut elector, woken + 10 * SECOND), Outcome::Won, "{there:?}");
    }
    // Given back by whoever had it: free.
    let mut released = elector.clone();
    let mut server = Server { get: Some(lease(&rec("", 1))), ..Server::default() };
    assert_eq!(server.attempt(&mut released, woken), Outcome::Won);
    // Nor does it help not to have been able to look meanwhile.
    let request = elector.next(NOW + 11 * SECOND, wall());
    let unseen = StoreError::TimedOut(SECOND);
    assert_eq!(request, Request::Get);
    assert_eq!(elector.answer(NOW + 12 * SECOND, wall(), Err(&unseen)), Verdict::Done(Outcome::Failed));
    assert_eq!(Server::default().attempt(&mut elector, woken), Outcome::Held);
}

/// By it a session is known to be of an earlier tenure.
#[test]
fn a_number_of_transitions_never_comes_again_though_the_lease_forgets_it() {
    let mut elector = baz();
    let mut server = Server { get: Some(lease(&Record { transitions: 7, ..rec("", 1) })), ..Server::default() };
    assert_eq!(server.attempt(&mut elector, NOW), Outcome::Won);
    assert_eq!(server.written.last().unwrap().transitions, 8);
    let taken = lease(&Record { transitions: 9, ..rec("bing", 10) });
    elector.sight(NOW + SECOND, wall(), taken);
    for there in [None, Some(rec("", 0))] {
        let mut elector = elector.clone();
        elector.sight(NOW + 2 * SECOND, wall(), lease(&rec("", 0)));
        let mut server = Server { get: there.as_ref().map(lease), ..Server::default() };
        let mut now = NOW + 30 * SECOND;
        if there.is_none() {
            assert_eq!(server.attempt(&mut elector, now), Outcome::Held);
            now = now + 10 * SECOND;
        }
        assert_eq!(server.attempt(&mut elector, now), Outcome::Won, "{there:?}");
        assert_eq!(server.written.last().unwrap().transitions, 10, "{there:?}");
    }
}

#[test]
fn a_short_record_written_over_a_holder_does_not_shorten_its_term() {
    let mut elector = baz();
    elector.sight(NOW, wall(), lease(&rec("bing", 10)));
    for holder in ["nobody", "bing"] {
        let mut elector = elector.clone();
        elector.sight(NOW + SECOND, wall(), lease(&rec(holder, 2)));
        let mut server = Server { get: Some(lease(&rec(holder, 2))), ..Server::default() };
        assert_eq!(server.attempt(&mut elector, NOW + 4 * SECOND), Outcome::Held, "{holder}");
        assert_eq!(server.attempt(&mut elector, NOW + 11 * SECOND), Outcome::Won, "{holder}");
    }
}

#[test]
fn each_field_may_be_missing_alone() {
    let full = Record { acquired: Some(wall()), renewed: Some(wall()), transitions: 4, ..rec("bing", 10) };
    let spec = full.spec();
    let without = |strip: fn(&mut LeaseSpec)| {
        let mut spec = spec.clone();
        strip(&mut spec);
        Record::from(&spec)
    };
    assert_eq!(without(|s| s.holder_identity = None), Record { holder: String::new(), ..full.clone() });
    assert_eq!(without(|s| s.lease_duration_seconds = None), Record { duration_seconds: 0, ..full.clone() });
    assert_eq!(without(|s| s.acquire_time = None), Record { acquired: None, ..full.clone() });
    assert_eq!(without(|s| s.renew_time = None), Record { renewed: None, ..full.clone() });
    assert_eq!(without(|s| s.lease_transitions = None), Record { transitions: 0, ..full.clone() });
    assert_eq!(rec("bing", -1).duration(), Duration::ZERO);
}

#[test]
fn what_is_written_has_every_field_and_six_digits_of_a_second() {
    let (mut elector, mut server) = leading();
    let json = |record: &Record| serde_json::to_value(record.spec()).unwrap();
    assert_eq!(
        json(&server.written[0]),
        serde_json::json!({
            "holderIdentity": "baz", "leaseDurationSeconds": 10, "leaseTransitions": 0,
            "acquireTime": "2025-06-15T15:06:40.000000Z", "renewTime": "2025-06-15T15:06:40.000000Z",
        })
    );
    assert_eq!(server.release(&mut elector, NOW), Outcome::Released);
    assert_eq!(
        json(server.written.last().unwrap()),
        serde_json::json!({
            "holderIdentity": "", "leaseDurationSeconds": 1, "leaseTransitions": 0,
            "acquireTime": "2025-06-15T15:06:40.000000Z", "renewTime": "2025-06-15T15:06:40.000000Z",
        })
    );
    let mut elector = baz();
    let Request::Get = elector.next(NOW, wall()) else { panic!("no get") };
    let finer = wall() + SignedDuration::from_nanos(123_456_789);
    let verdict = elector.answer(NOW, finer, Err(&StoreError::NotFound));
    let Verdict::Continue(Request::Create(record)) = verdict else { panic!("{verdict:?}") };
    assert_eq!(json(&record)["renewTime"], "2025-06-15T15:06:40.123456Z");
    assert_eq!(Record::from(&record.spec()), record, "what comes back must equal what was sent");
}

#[test]
fn a_preferred_holder_is_cleared_by_writing() {
    let mut elector = baz();
    let held =
        Record { preferred_holder: "bing".to_owned(), strategy: "OldestEmulationVersion".to_owned(), ..rec("", 0) };
    let mut server = Server { get: Some(lease(&held)), ..Server::default() };
    assert_eq!(server.attempt(&mut elector, NOW), Outcome::Won);
    assert_eq!(server.written[0].spec().preferred_holder, None);
}

#[test]
fn a_change_of_labels_is_no_sign_of_life_and_survives_our_writes() {
    let mut elector = baz();
    elector.sight(NOW, wall(), at(1, &rec("bing", 10)));
    let mut labelled = at(2, &rec("bing", 10));
    labelled.metadata.labels = Some([("team".to_owned(), "net".to_owned())].into());
    assert!(!elector.sight(NOW + 5 * SECOND, wall(), labelled.clone()));
    let mut server = Server { get: Some(labelled.clone()), ..Server::default() };
    let request = elector.next(NOW + 10 * SECOND, wall());
    let answer = server.answer(request);
    let verdict = elector.answer(NOW + 10 * SECOND, wall(), answer.as_ref().map(Lease::clone));
    let Verdict::Continue(Request::Replace(last, _)) = verdict else { panic!("{verdict:?}") };
    assert_eq!(last.metadata, labelled.metadata);
}

#[test]
fn collided_candidates_spread_over_one_to_two_point_two_retry_periods() {
    let params = Params::default();
    let mut rng = StdRng::seed_from_u64(1);
    let draws: Vec<Duration> = (0..1000).map(|_| params.spread(rng.random())).collect();
    assert!(draws.iter().all(|d| (ms(1000)..ms(2200)).contains(d)));
    assert!(draws.iter().any(|d| *d < ms(1050)) && draws.iter().any(|d| *d > ms(2150)));
}

#[test]
fn a_tenure_counts_from_before_the_request_and_ends_a_margin_early() {
    let mut elector = baz();
    let Request::Get = elector.next(NOW, wall()) else { panic!("no get") };
    let sent = NOW + ms(300);
    elector.answer(sent, wall(), Err(&StoreError::NotFound));
    let verdict = elector.answer(NOW + ms(900), wall(), Ok(lease(&rec("baz", 10))));
    assert_eq!(verdict, Verdict::Done(Outcome::Won));
    let tenure = elector.tenure().unwrap();
    assert_eq!(tenure.until, sent + 10 * SECOND - ms(500));
    assert!(!elector.lapse(tenure.until - ms(1)));
    assert!(elector.lapse(tenure.until));
    assert_eq!(elector.tenure(), None);
}

#[test]
fn an_answer_that_comes_after_the_tenure_is_over_prolongs_nothing() {
    let (mut elector, mut server) = leading();
    let request = elector.next(NOW + SECOND, wall());
    let answer = server.answer(request);
    let verdict = elector.answer(NOW + HOURS, wall(), answer.as_ref().map(Lease::clone));
    assert_eq!((verdict, elector.tenure()), (Verdict::Done(Outcome::Failed), None));
    // The same for a first one, which no tenure bounds.
    let mut elector = baz();
    elector.next(NOW, wall());
    elector.answer(NOW, wall(), Err(&StoreError::NotFound));
    let verdict = elector.answer(NOW + HOURS, wall(), Ok(lease(&rec("baz", 10))));
    assert_eq!((verdict, elector.tenure()), (Verdict::Done(Outcome::Failed), None));
}

#[test]
fn the_walls_of_others_are_never_asked() {
    for off in [-HOURS.as_secs().cast_signed(), 0, HOURS.as_secs().cast_signed()] {
        let renewed = Some(wall() + SignedDuration::from_secs(off));
        let mut elector = baz();
        let held = Record { renewed, acquired: renewed, ..rec("bing", 10) };
        let mut server = Server { get: Some(lease(&held)), ..Server::default() };
        assert_eq!(server.attempt(&mut elector, NOW), Outcome::Held, "{off}");
        assert_eq!(server.attempt(&mut elector, NOW + ms(9_999)), Outcome::Held, "{off}");
        assert_eq!(server.attempt(&mut elector, NOW + ms(10_000)), Outcome::Won, "{off}");
    }
}

#[test]
fn another_holder_or_a_foreign_release_ends_the_tenure_at_once() {
    for record in [rec("bing", 10), rec("bing", 0), rec("", 1)] {
        let (mut elector, _) = leading();
        assert!(elector.sight(NOW + SECOND, wall(), lease(&record)));
        assert_eq!(elector.tenure(), None, "by the watch: {record:?}");
        let (mut elector, mut server) = leading();
        server.get = Some(lease(&record));
        server.conflicts = 1;
        assert_eq!(server.attempt(&mut elector, NOW + SECOND), Outcome::Held, "by the get: {record:?}");
        assert_eq!(elector.tenure(), None, "by the get: {record:?}");
    }
}

#[test]
fn a_lease_that_lost_its_holder_is_taken_again_by_its_leader_without_a_break() {
    let (mut elector, mut server) = leading();
    elector.sight(NOW + SECOND, wall(), lease(&rec("", 0)));
    assert_eq!(elector.tenure().unwrap().since, NOW);
    server.get = Some(lease(&rec("", 0)));
    assert_eq!(server.attempt(&mut elector, NOW + SECOND), Outcome::Won);
    assert_eq!(elector.tenure().unwrap().since, NOW);
}

#[test]
fn a_leader_takes_its_lease_again_however_often_a_hand_empties_it() {
    let (mut elector, mut server) = leading();
    for (version, emptied) in [(101, rec("", 0)), (102, rec("", 10)), (103, rec("", 10))] {
        elector.sight(NOW + SECOND, wall(), at(version, &emptied));
    }
    server.get = Some(lease(&rec("", 0)));
    assert_eq!(server.attempt(&mut elector, NOW + SECOND), Outcome::Won);
    assert_eq!(elector.tenure().unwrap().since, NOW);
}

#[test]
fn what_a_watch_shows_late_is_no_news() {
    let mut elector = baz();
    elector.sight(NOW, wall(), at(99, &rec("", 1)));
    let Request::Replace(_, record) = elector.next(NOW, wall()) else { panic!("no update") };
    elector.answer(NOW, wall(), Ok(at(100, &record)));
    assert!(!elector.sight(NOW, wall(), at(98, &rec("bing", 10))));
    assert!(!elector.sight(NOW, wall(), at(99, &rec("", 1))));
    assert!(elector.tenure().is_some());
    assert!(elector.sight(NOW, wall(), at(101, &rec("bing", 10))));
    assert!(elector.tenure().is_none());
}

/// Its data were restored from a backup, and what was known of the Lease never was.
#[test]
fn a_lease_that_a_read_finds_older_than_before_the_question_is_followed_after_a_term() {
    let other = Record { transitions: 3, ..rec("bing", 10) };
    let mut elector = baz();
    elector.sight(NOW, wall(), at(1000, &Record { transitions: 7, ..rec("bang", 10) }));
    let read = NOW + 11 * SECOND;
    assert_eq!(elector.next(read, wall()), Request::Get);
    assert_eq!(elector.answer(read, wall(), Ok(at(500, &other))), Verdict::Done(Outcome::Held));
    assert_eq!(elector.holder(), Some("bing"));
    assert_eq!(elector.next(read + 9 * SECOND, wall()), Request::Get);
    assert_eq!(elector.answer(read + 9 * SECOND, wall(), Ok(at(500, &other))), Verdict::Done(Outcome::Held));
    assert_eq!(elector.next(read + 10 * SECOND, wall()), Request::Get);
    let verdict = elector.answer(read + 10 * SECOND, wall(), Ok(at(500, &other)));
    let Verdict::Continue(Request::Replace(last, record)) = verdict else { panic!("{verdict:?}") };
    assert_eq!(last.metadata.resource_version.as_deref(), Some("500"));
    assert_eq!((record.holder.as_str(), record.transitions), ("baz", 8));

    // A leader that finds its own earlier Lease leads on; one that finds another's is silent, and waits like the others.
    for (found, outcome) in [(rec("baz", 10), Outcome::Won), (rec("bing", 10), Outcome::Held)] {
        let mut server = Server::default();
        let mut elector = baz();
        elector.sight(NOW, wall(), at(999, &rec("", 1)));
        assert_eq!(server.attempt(&mut elector, NOW), Outcome::Won);
        elector.sight(NOW, wall(), at(1000, server.written.last().unwrap()));
        assert!(matches!(elector.next(NOW + SECOND, wall()), Request::Replace(..)));
        let verdict = elector.answer(NOW + SECOND, wall(), Err(&StoreError::Conflict));
        assert_eq!(verdict, Verdict::Continue(Request::Get));
        let mut server = Server { get: Some(at(500, &found)), ..Server::default() };
        assert_eq!(server.converse(&mut elector, NOW + SECOND, Request::Get), outcome, "{found:?}");
        assert_eq!(elector.tenure().is_some(), outcome == Outcome::Won);
    }
}

/// An answer that a watch has overtaken is no sign of that.
#[test]
fn a_read_that_was_overtaken_by_the_watch_is_no_news() {
    let mut elector = baz();
    elector.sight(NOW, wall(), at(100, &rec("bing", 10)));
    assert_eq!(elector.next(NOW + 11 * SECOND, wall()), Request::Get);
    elector.sight(NOW + 11 * SECOND, wall(), at(102, &rec("bang", 10)));
    elector.answer(NOW + 11 * SECOND, wall(), Ok(at(101, &rec("", 1))));
    assert_eq!(elector.holder(), Some("bang"));
}

#[test]
fn only_our_own_lease_is_given_back() {
    let (mut elector, mut server) = leading();
    server.get = Some(lease(&rec("other", 10)));
    let before = server.written.len();
    assert_eq!(server.release(&mut elector, NOW + HOURS), Outcome::NotOurs);
    assert_eq!(server.written.len(), before, "the successor's Lease was cleared");
    server.get = None;
    assert_eq!(server.release(&mut elector, NOW + HOURS), Outcome::NotOurs);
}

#[test]
fn silence_counts_only_as_far_as_it_could_be_read() {
    let mut elector = baz();
    let bing = rec("bing", 10);
    elector.sight(NOW, wall(), lease(&bing));
    let mut server = Server { get: Some(lease(&bing)), ..Server::default() };
    assert_eq!(elector.due(), NOW + 4 * SECOND, "silent for two retry periods: look");
    assert_eq!(server.attempt(&mut elector, NOW + 4 * SECOND), Outcome::Held);
    assert_eq!(elector.due(), NOW + 6 * SECOND);
    // From here on the API is away, for a minute.
    elector.next(NOW + 6 * SECOND, wall());
    assert_eq!(elector.answer(NOW + 6 * SECOND, wall(), Err(&away())), Verdict::Done(Outcome::Failed));
    assert_eq!(elector.holder(), None);
    let back = NOW + 66 * SECOND;
    assert_eq!(server.attempt(&mut elector, back), Outcome::Held, "took it on what it had not read");
    assert_eq!(server.attempt(&mut elector, back + ms(5_999)), Outcome::Held);
    assert_eq!(server.attempt(&mut elector, back + ms(6_000)), Outcome::Won);
}

#[test]
fn an_answer_that_was_lost_leaves_the_lease_perhaps_ours() {
    let mut elector = baz();
    assert!(!elector.may_be_ours());
    elector.next(NOW, wall());
    elector.answer(NOW, wall(), Err(&StoreError::NotFound));
    let lost = elector.answer(NOW, wall(), Err(&StoreError::TimedOut(SECOND)));
    assert_eq!(lost, Verdict::Done(Outcome::Failed));
    assert!(elector.may_be_ours());
    let mut server = Server { get: Some(lease(&rec("bing", 10))), ..Server::default() };
    assert_eq!(server.release(&mut elector, NOW), Outcome::NotOurs);
    assert!(!elector.may_be_ours());
}

#[test]
fn skew_is_measured_at_renewals_of_another_alone() {
    let renewed =
        |holder: &str, ago: i64| Record { renewed: Some(wall() - SignedDuration::from_secs(ago)), ..rec(holder, 10) };
    let mut elector = baz();
    elector.sight(NOW, wall(), lease(&renewed("bing", 100)));
    assert_eq!(elector.clock_skew(), None, "the first sight may be of an old record");
    elector.sight(NOW, wall(), lease(&renewed("bing", 3)));
    assert_eq!(elector.clock_skew(), Some(SignedDuration::from_secs(3)));
    elector.sight(NOW, wall(), lease(&renewed("bing", -2)));
    assert_eq!(elector.clock_skew(), Some(SignedDuration::from_secs(-2)), "ours is behind");
    elector.sight(NOW, wall(), lease(&renewed("baz", 50)));
    elector.sight(NOW, wall(), lease(&renewed("baz", 40)));
    assert_eq!(elector.clock_skew(), Some(SignedDuration::from_secs(-2)));
}

#[test]
fn a_takeover_is_measured_by_phase() {
    let mut elector = baz();
    let mut server = Server { get: Some(lease(&rec("bing", 10))), ..Server::default() };
    elector.sight(NOW, wall(), lease(&rec("bing", 10)));
    let found = NOW + 10 * SECOND;
    let Request::Get = elector.next(found, wall()) else { panic!("no get") };
    let Verdict::Continue(Request::Replace(_, record)) =
        elector.answer(found + ms(5), wall(), Ok(lease(&rec("bing", 10))))
    else {
        panic!("no update")
    };
    elector.answer(found + ms(9), wall(), Ok(lease(&record)));
    let takeover = elector.takeover().unwrap();
    assert_eq!((takeover.silent_since, takeover.detected, takeover.written), (NOW, found, found + ms(9)));
    server.get = Some(lease(&record));
    assert_eq!(server.attempt(&mut elector, found + SECOND), Outcome::Won);
    assert_eq!(elector.takeover(), Some(takeover), "a renewal is no takeover");
}

#[test]
fn who_waits_for_a_deleted_lease_keeps_looking_since_its_holder_may_make_it_again() {
    let mut elector = baz();
    elector.sight(NOW, wall(), lease(&rec("bing", 10)));
    let mut server = Server::default();
    let gone = NOW + SECOND;
    assert_eq!(server.attempt(&mut elector, gone), Outcome::Held, "bing may speak on for a term");
    let retry = elector.params().retry;
    assert_eq!(elector.due(), gone + retry, "with a dead watch nothing but a look tells that it is back");
}
