//! The driver, on one server, under paused time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use wirevip::clock::{Clock, TokioClock};
use wirevip::election::testing::{Fate, LeaseClient, LeaseServer, Way, Weather};
use wirevip::election::{Campaign, Elector, Leadership, Params, Record};

use crate::world::{Candidate, SECOND, Skewed, Witness, ms, until};

fn candidate(server: &LeaseServer, name: &str) -> Candidate {
    Candidate::simple(server, &Witness::default(), name)
}

fn slow_to_fall(server: &LeaseServer, name: &str, falls_in: Duration) -> Candidate {
    let client = server.client(name, 1);
    Candidate::start(client, &Witness::default(), name, Skewed::honest(), Params::default(), falls_in)
}

/// A campaign whose controller is the test itself.
fn bare(client: &LeaseClient, name: &str, params: Params) -> Campaign {
    let elector = Elector::new(params, name).unwrap();
    Campaign::spawn(client.clone(), TokioClock::new(), elector, StdRng::seed_from_u64(1))
}

fn leads(campaign: &Campaign) -> bool {
    matches!(*campaign.leadership().borrow(), Leadership::Leading(_))
}

fn holder(server: &LeaseServer) -> String {
    server.record().map(|r| r.holder).unwrap_or_default()
}

fn calls_of(server: &LeaseServer, name: &str) -> Vec<&'static str> {
    server.calls().iter().filter(|c| c.client == name).map(|c| c.verb).collect()
}

fn nobody(seconds: i32) -> Record {
    Record { holder: "nobody".to_owned(), duration_seconds: seconds, ..Record::default() }
}

/// a leads and has just renewed, b stands by.
async fn a_leads_b_stands_by(server: &LeaseServer) -> (Candidate, Candidate) {
    let a = candidate(server, "a");
    until("a leads", SECOND, || a.leads()).await;
    let b = candidate(server, "b");
    tokio::time::sleep(3 * SECOND).await;
    let so_far = server.changes();
    until("a renews", 2 * SECOND, || server.changes() > so_far).await;
    (a, b)
}

#[tokio::test(start_paused = true)]
async fn a_standby_makes_no_request_and_a_leader_at_most_one_write_a_second() {
    let server = LeaseServer::new();
    let (a, b) = a_leads_b_stands_by(&server).await;
    let before = (calls_of(&server, "a").len(), calls_of(&server, "b").len());
    tokio::time::sleep(60 * SECOND).await;
    assert!(a.leads() && !b.leads());
    assert_eq!(calls_of(&server, "b").len(), before.1, "the standby polled");
    let writes = calls_of(&server, "a").len() - before.0;
    assert!((58..=60).contains(&writes), "{writes}");
    assert_eq!(a.campaign.standing().borrow().transitions, Some(0));
    assert_eq!(b.campaign.standing().borrow().holder.as_deref(), Some("a"));
}

#[tokio::test(start_paused = true)]
async fn nothing_begins_before_the_controller_says_quiet_and_eligible() {
    let server = LeaseServer::new();
    let campaign = bare(&server.client("a", 1), "a", Params::default());
    tokio::time::sleep(10 * SECOND).await;
    campaign.gate().eligible(true);
    tokio::time::sleep(10 * SECOND).await;
    assert_eq!(server.calls(), []);
    campaign.gate().quiet();
    until("it leads", SECOND, || leads(&campaign)).await;
}

#[tokio::test(start_paused = true)]
async fn a_release_hands_over_at_once_but_only_when_the_tunnel_is_down() {
    let server = LeaseServer::new();
    let a = slow_to_fall(&server, "a", ms(300));
    until("a leads", SECOND, || a.leads()).await;
    let b = candidate(&server, "b");
    tokio::time::sleep(2 * SECOND).await;
    a.campaign.gate().step_down();
    let took = until("b leads", SECOND, || {
        assert!(!a.tunnel.up() || holder(&server) == "a", "released while up");
        b.leads()
    })
    .await;
    assert!(took >= ms(300) && took < ms(310), "{took:?}");
    // What was read while the tunnel fell needs no second reading; the other takes what its watch showed.
    let calls: Vec<_> = server.calls().into_iter().rev().take(3).map(|c| (c.client, c.verb)).collect();
    let expected = [("b", "update"), ("a", "update"), ("a", "get")].map(|(c, v)| (c.to_owned(), v));
    assert_eq!(calls, expected);
}

#[tokio::test(start_paused = true)]
async fn who_steps_down_leaves_others_a_head_start_and_comes_back_if_there_is_none() {
    let server = LeaseServer::new();
    let a = candidate(&server, "a");
    until("a leads", SECOND, || a.leads()).await;
    a.campaign.gate().step_down();
    until("a is down", SECOND, || !a.leads()).await;
    until("it is released", SECOND, || holder(&server).is_empty()).await;
    let took = until("a leads again", 10 * SECOND, || a.leads()).await;
    assert!(took >= ms(1_990) && took < ms(2_010), "{took:?}");
    assert_eq!(server.record().unwrap().transitions, 1);
}

#[tokio::test(start_paused = true)]
async fn who_is_not_eligible_any_more_gives_way_until_it_is() {
    let server = LeaseServer::new();
    let (a, b) = a_leads_b_stands_by(&server).await;
    a.campaign.gate().eligible(false);
    until("b leads", ms(10), || b.leads()).await;
    b.campaign.gate().eligible(false);
    tokio::time::sleep(20 * SECOND).await;
    assert!(!a.leads() && !b.leads());
    let before = server.calls().len();
    tokio::time::sleep(20 * SECOND).await;
    assert_eq!(server.calls().len(), before, "asked though it may not lead");
    a.campaign.gate().eligible(true);
    until("a leads", ms(10), || a.leads()).await;
}

#[tokio::test(start_paused = true)]
async fn a_dead_leader_is_replaced_one_lease_after_its_last_renewal() {
    let server = LeaseServer::new();
    let (a, b) = a_leads_b_stands_by(&server).await;
    a.kill();
    let took = until("b leads", 10 * SECOND, || b.leads()).await;
    assert!(took >= ms(4_998) && took < ms(5_010), "{took:?}");
    let takeover = b.campaign.standing().borrow().takeover.unwrap();
    let detect = takeover.detected.since(takeover.silent_since);
    assert!(detect >= ms(5_000) && detect < ms(5_010), "{detect:?}");
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_the_same_identity_leads_at_once() {
    let server = LeaseServer::new();
    let (a, b) = a_leads_b_stands_by(&server).await;
    let (_, tunnel) = a.kill();
    tokio::time::sleep(SECOND).await;
    tunnel.down();
    let a = candidate(&server, "a");
    until("a leads", ms(10), || a.leads()).await;
    assert_eq!(server.record().unwrap().transitions, 0);
    assert!(!b.leads());
}

#[tokio::test(start_paused = true)]
async fn a_leader_cut_off_is_silent_before_another_leads_and_stands_by_when_it_is_back() {
    for way in [Way::Silent, Way::Refused] {
        let server = LeaseServer::new();
        let (a, b) = a_leads_b_stands_by(&server).await;
        a.client.way(way);
        let took = until("a stops", 6 * SECOND, || !a.leads()).await;
        assert!(took >= ms(4_740) && took < ms(4_760), "{way:?}: to the end of the tenure, {took:?}");
        assert_eq!(*a.campaign.leadership().borrow(), Leadership::Following { holder: None });
        until("b leads", SECOND, || b.leads()).await;
        a.client.way(Way::Open);
        tokio::time::sleep(20 * SECOND).await;
        assert!(b.leads() && !a.leads());
        assert_eq!(*a.campaign.leadership().borrow(), Leadership::Following { holder: Some("b".to_owned()) });
    }
}

#[tokio::test(start_paused = true)]
async fn after_an_outage_of_the_whole_api_the_same_leader_is_back_in_time() {
    for way in [Way::Silent, Way::Refused] {
        for outage in [ms(400), ms(4_000), ms(4_900), 6 * SECOND, ms(61_300), ms(600_700)] {
            let server = LeaseServer::new();
            let (a, b) = a_leads_b_stands_by(&server).await;
            a.client.way(way);
            b.client.way(way);
            tokio::time::sleep(outage).await;
            a.client.way(Way::Open);
            b.client.way(Way::Open);
            until(&format!("a leads, {way:?} {outage:?}"), 3 * SECOND, || a.leads()).await;
            tokio::time::sleep(20 * SECOND).await;
            assert!(a.leads() && !b.leads(), "{way:?} {outage:?}");
            assert_eq!(server.record().unwrap().transitions, 0, "{way:?} {outage:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_loss_is_followed_by_nothing_until_the_tunnel_is_quiet() {
    let server = LeaseServer::new();
    let client = server.client("a", 1);
    let campaign = bare(&client, "a", Params::default());
    let gate = campaign.gate();
    gate.quiet();
    gate.eligible(true);
    until("it leads", SECOND, || leads(&campaign)).await;
    assert!(gate.speak());
    server.write(nobody(1));
    until("it lost", ms(2), || !leads(&campaign)).await;
    assert!(!gate.speak(), "may speak without a tenure");
    let before = server.calls().len();
    tokio::time::sleep(20 * SECOND).await;
    assert_eq!(server.calls().len(), before);
    gate.quiet();
    until("it leads again", ms(10), || leads(&campaign)).await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_not_released_while_the_tunnel_may_speak() {
    let server = LeaseServer::new();
    let campaign = bare(&server.client("a", 1), "a", Params::default());
    let gate = campaign.gate();
    gate.quiet();
    gate.eligible(true);
    until("it leads", SECOND, || leads(&campaign)).await;
    assert!(gate.speak());
    let clock = TokioClock::new();
    campaign.resign();
    campaign.resigned(3 * SECOND).await;
    assert!(clock.now().since_boot() >= 3 * SECOND);
    tokio::time::sleep(SECOND).await;
    assert_eq!(holder(&server), "a", "it runs out");
}

#[tokio::test(start_paused = true)]
async fn who_resigns_releases_and_ends_at_once() {
    let server = LeaseServer::new();
    let (a, b) = a_leads_b_stands_by(&server).await;
    let mut leadership = a.campaign.leadership();
    assert!(a.resign(ms(2)).await);
    assert!(matches!(*leadership.borrow_and_update(), Leadership::Following { .. }));
    until("b leads", ms(5), || b.leads()).await;
    let c = candidate(&server, "c");
    tokio::time::sleep(SECOND).await;
    let before = calls_of(&server, "c").len();
    c.resign(ms(2)).await;
    assert_eq!(calls_of(&server, "c").len(), before, "a standby has nothing to release");
    assert!(b.leads());
}

#[tokio::test(start_paused = true)]
async fn who_is_dropped_leads_no_more_and_releases_nothing() {
    let server = LeaseServer::new();
    let campaign = bare(&server.client("a", 1), "a", Params::default());
    campaign.gate().quiet();
    campaign.gate().eligible(true);
    until("it leads", SECOND, || leads(&campaign)).await;
    let leadership = campaign.leadership();
    drop(campaign);
    until("the last word is not leading", ms(5), || matches!(*leadership.borrow(), Leadership::Following { .. })).await;
    assert_eq!(holder(&server), "a");
}

#[tokio::test(start_paused = true)]
async fn a_lease_deleted_or_emptied_under_its_leader_is_taken_back_at_once_and_by_nobody_else() {
    for emptied in [None, Some(Record::default())] {
        let server = LeaseServer::new();
        let (a, b) = a_leads_b_stands_by(&server).await;
        let Leadership::Leading(before) = *a.campaign.leadership().borrow() else { panic!("a leads") };
        match &emptied {
            None => server.edit(|_| None),
            Some(record) => server.write(record.clone()),
        }
        until("a has it back", ms(10), || holder(&server) == "a").await;
        tokio::time::sleep(20 * SECOND).await;
        let Leadership::Leading(after) = *a.campaign.leadership().borrow() else { panic!("a leads") };
        assert_eq!(before.since, after.since, "the tenure broke");
        assert!(!b.leads());
    }
}

#[tokio::test(start_paused = true)]
async fn another_holder_by_hand_ends_leading_at_once_and_is_respected() {
    let server = LeaseServer::new();
    let (a, b) = a_leads_b_stands_by(&server).await;
    // In the middle of a renewal that hangs.
    a.client.script(|_| Fate::Swallowed);
    tokio::time::sleep(ms(1_100)).await;
    server.write(nobody(7));
    until("a is silent", ms(2), || !a.leads() && !a.tunnel.up()).await;
    let took = until("somebody leads again", 10 * SECOND, || a.leads() || b.leads()).await;
    assert!(took >= ms(6_990), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn calls_go_the_fast_way_while_nobody_interferes() {
    let params = Params { lease: 15 * SECOND, renew_deadline: 2 * SECOND, retry: SECOND };
    for (conflict_at, expected) in [
        (None, ["get", "create", "update", "update"].as_slice()),
        (Some(2), ["get", "create", "update", "update", "get", "update", "update"].as_slice()),
    ] {
        let server = LeaseServer::new();
        let client = server.client("a", 1);
        let mut updates = 0;
        client.script(move |verb| {
            updates += usize::from(verb == "update");
            if verb == "update" && Some(updates) == conflict_at { Fate::Conflict } else { Fate::Answered }
        });
        let campaign = bare(&client, "a", params);
        campaign.gate().quiet();
        campaign.gate().eligible(true);
        until("enough calls", 10 * SECOND, || server.calls().len() >= expected.len()).await;
        assert_eq!(calls_of(&server, "a"), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn an_update_that_hangs_is_given_up_for_the_release() {
    let params = Params { lease: 15 * SECOND, renew_deadline: 2 * SECOND, retry: SECOND };
    let server = LeaseServer::new();
    let client = server.client("a", 1);
    let updates = Arc::new(AtomicUsize::new(0));
    let count = updates.clone();
    client.script(move |verb| match (verb, count.fetch_add(usize::from(verb == "update"), Ordering::Relaxed)) {
        ("update", 0 | 2) => Fate::Failed,
        ("update", 3) => Fate::Swallowed,
        _ => Fate::Answered,
    });
    let campaign = bare(&client, "a", params);
    campaign.gate().quiet();
    campaign.gate().eligible(true);
    until("update 4", 20 * SECOND, || updates.load(Ordering::Relaxed) == 4).await;
    campaign.resign();
    campaign.resigned(SECOND).await;
    let expected = ["get", "create", "update", "get", "update", "update", "get", "update", "get", "update"];
    assert_eq!(calls_of(&server, "a"), expected);
    assert_eq!(holder(&server), "");
}

#[tokio::test(start_paused = true)]
async fn a_get_that_hangs_is_given_up_for_the_release() {
    let params = Params { lease: 15 * SECOND, renew_deadline: 2 * SECOND, retry: SECOND };
    let server = LeaseServer::new();
    let client = server.client("a", 1);
    let gets = Arc::new(AtomicUsize::new(0));
    let (count, mut odd) = (gets.clone(), true);
    client.script(move |verb| match verb {
        "get" if count.fetch_add(1, Ordering::Relaxed) == 3 => Fate::Swallowed,
        "update" if count.load(Ordering::Relaxed) < 4 => {
            odd = !odd;
            if odd { Fate::Answered } else { Fate::Failed }
        }
        _ => Fate::Answered,
    });
    let campaign = bare(&client, "a", params);
    campaign.gate().quiet();
    campaign.gate().eligible(true);
    until("get 4", 30 * SECOND, || gets.load(Ordering::Relaxed) == 4).await;
    campaign.resign();
    campaign.resigned(SECOND).await;
    assert_eq!(holder(&server), "");
}

#[tokio::test(start_paused = true)]
async fn a_lease_won_by_a_write_whose_answer_was_lost_is_given_back_too() {
    let server = LeaseServer::new();
    let client = server.client("a", 1);
    client.script(|verb| if verb == "create" { Fate::Stuck } else { Fate::Answered });
    let campaign = bare(&client, "a", Params::default());
    campaign.gate().quiet();
    campaign.gate().eligible(true);
    until("it landed", SECOND, || holder(&server) == "a").await;
    assert!(!leads(&campaign));
    campaign.resign();
    campaign.resigned(SECOND).await;
    assert_eq!(holder(&server), "");
}

#[tokio::test(start_paused = true)]
async fn what_rbac_forbids_is_told_and_tried_again_within_a_second() {
    let server = LeaseServer::new();
    let client = server.client("a", 1);
    client.script(|verb| if verb == "create" { Fate::Forbidden } else { Fate::Answered });
    let campaign = bare(&client, "a", Params::default());
    campaign.gate().quiet();
    campaign.gate().eligible(true);
    tokio::time::sleep(10 * SECOND).await;
    let trouble = campaign.standing().borrow().trouble.clone().unwrap();
    assert!(trouble.contains("not allowed to create the Lease") && trouble.contains("ServiceAccount"), "{trouble}");
    let calls = server.calls().len();
    assert!((20..=24).contains(&calls), "{calls}");
    client.script(|_| Fate::Answered);
    until("it leads", ms(1_010), || leads(&campaign)).await;
    assert_eq!(campaign.standing().borrow().trouble, None);
}

#[tokio::test(start_paused = true)]
async fn trouble_with_writing_lasts_though_reading_works_and_ends_when_another_holds_the_lease() {
    let server = LeaseServer::new();
    let client = server.client("a", 1);
    client.script(|verb| if verb == "get" { Fate::Answered } else { Fate::Failed });
    client.weather(Weather { latency: ms(1)..ms(2), ..Weather::default() });
    let campaign = bare(&client, "a", Params::default());
    campaign.gate().quiet();
    campaign.gate().eligible(true);
    let mut standing = campaign.standing();
    let troubled = async |standing: &mut tokio::sync::watch::Receiver<_>, such| {
        standing.wait_for(|now: &wirevip::election::Standing| now.trouble.is_some() == such).await.map(drop).unwrap();
    };
    troubled(&mut standing, true).await;
    assert!(tokio::time::timeout(10 * SECOND, troubled(&mut standing, false)).await.is_err(), "told as over");
    server.write(nobody(5));
    tokio::time::timeout(SECOND, troubled(&mut standing, false)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_standby_whose_watch_went_silent_watches_anew() {
    let server = LeaseServer::new();
    let (a, b) = a_leads_b_stands_by(&server).await;
    b.client.deafen();
    tokio::time::sleep(20 * SECOND).await;
    a.campaign.gate().step_down();
    until("b leads", ms(10), || b.leads()).await;
}

#[tokio::test(start_paused = true)]
async fn of_many_that_see_one_release_one_leads_and_the_others_learn_it() {
    let server = LeaseServer::new();
    let a = candidate(&server, "a");
    until("a leads", SECOND, || a.leads()).await;
    let others: Vec<Candidate> = ["b", "c", "d", "e"].iter().map(|name| candidate(&server, name)).collect();
    for other in &others {
        other.client.weather(Weather { latency: ms(1)..ms(3), ..Weather::default() });
    }
    tokio::time::sleep(3 * SECOND).await;
    assert!(a.resign(SECOND).await);
    until("one leads", ms(20), || others.iter().any(Candidate::leads)).await;
    tokio::time::sleep(ms(100)).await;
    assert_eq!(others.iter().filter(|c| c.leads()).count(), 1);
    let leader = others.iter().find(|c| c.leads()).unwrap().name.clone();
    for other in &others {
        assert_eq!(other.campaign.standing().borrow().holder, Some(leader.clone()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_candidate_whose_clock_is_behind_lets_another_go_first_and_goes_if_there_is_none() {
    let server = LeaseServer::new();
    let witness = Witness::default();
    let honest = Skewed::honest();
    let start = |name: &str, wall_off| {
        let clock = Skewed { wall_off, ..honest.clone() };
        Candidate::start(server.client(name, 1), &witness, name, clock, Params::default(), Duration::ZERO)
    };
    let a = start("a", 0);
    until("the first leads", SECOND, || a.leads()).await;
    let behind = start("behind", -3);
    // It has seen renewals, and so how far it is behind.
    tokio::time::sleep(3 * SECOND).await;
    let right = start("right", 0);
    // Farther from the API, so that it would come too late in a race.
    right.client.weather(Weather { latency: ms(100)..ms(110), ..Weather::default() });
    tokio::time::sleep(3 * SECOND).await;
    assert!(a.resign(SECOND).await);
    until("the one with the right clock leads", SECOND, || right.leads()).await;
    // A crash: both see the same end of the Lease.
    drop(right.kill());
    let died = honest.base.now();
    until("the one that is behind leads for want of another", 8 * SECOND, || behind.leads()).await;
    let waited = honest.base.now().since(died);
    assert!(waited >= 5 * SECOND, "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn what_a_leader_knows_of_the_hubs_round_trip_is_told_to_whoever_follows() {
    let server = LeaseServer::new();
    let (a, b) = a_leads_b_stands_by(&server).await;
    let told = |candidate: &Candidate| candidate.campaign.standing().borrow().round_trip;
    assert_eq!((told(&a), told(&b)), (None, None));
    a.campaign.gate().round_trip(Some(ms(104)));
    until("a standby reads it", 2 * SECOND, || told(&b) == Some(ms(104))).await;
    assert!(a.resign(SECOND).await);
    until("the standby leads", SECOND, || b.leads()).await;
    tokio::time::sleep(3 * SECOND).await;
    assert_eq!(told(&b), Some(ms(104)), "its own renewals, which know nothing, leave it");
    b.campaign.gate().round_trip(Some(ms(280)));
    until("it tells what it knows", 2 * SECOND, || told(&b) == Some(ms(280))).await;
}
