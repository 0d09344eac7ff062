//! The driver, on one server, under paused time.

use std::time::Duration;

use wirevip::clock::TokioClock;
use wirevip::election::Params;
use wirevip::election::testing::{LeaseServer, Way};

use crate::world::{Candidate, SECOND, ms, until};

fn candidate(server: &LeaseServer, name: &str, seed: u64) -> Candidate<TokioClock> {
    Candidate::start(server, name, TokioClock::new(), Params::default(), Duration::ZERO, seed)
}

#[tokio::test(start_paused = true)]
async fn the_first_of_two_candidates_leads_and_renews_while_the_other_makes_no_request() {
    let server = LeaseServer::new();
    let a = candidate(&server, "a", 1);
    until("a leads", SECOND, || a.leads()).await;
    let b = candidate(&server, "b", 2);
    tokio::time::sleep(SECOND).await;
    let before = server.calls().iter().filter(|c| c.client == "b").count();
    tokio::time::sleep(60 * SECOND).await;
    let calls = server.calls();
    assert!(a.leads() && !b.leads());
    assert_eq!(calls.iter().filter(|c| c.client == "b").count(), before, "the standby polled");
    assert!(calls.iter().filter(|c| c.client == "a").count() <= 64, "more than one write a second");
    assert_eq!(a.tunnel.tenures.load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_release_hands_over_at_once_and_only_when_the_tunnel_is_down() {
    let server = LeaseServer::new();
    let a = Candidate::start(&server, "a", TokioClock::new(), Params::default(), ms(300), 1);
    until("a leads", SECOND, || a.leads()).await;
    let b = candidate(&server, "b", 2);
    tokio::time::sleep(2 * SECOND).await;
    a.campaign.step_down();
    let took = until("b leads", SECOND, || {
        assert!(!(a.up() && b.up()));
        b.leads()
    })
    .await;
    assert!(took >= ms(300) && took < ms(310), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_dead_leader_is_replaced_one_lease_after_its_last_renewal() {
    let server = LeaseServer::new();
    let a = candidate(&server, "a", 1);
    until("a leads", SECOND, || a.leads()).await;
    let b = candidate(&server, "b", 2);
    tokio::time::sleep(2 * SECOND).await;
    let renewals = server.changes();
    until("a renews", 2 * SECOND, || server.changes() > renewals).await;
    a.kill();
    let took = until("b leads", 10 * SECOND, || b.leads()).await;
    assert!(took >= ms(4999) && took < ms(5010), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_leader_cut_off_is_silent_before_another_leads_and_stands_by_when_it_is_back() {
    let server = LeaseServer::new();
    let a = candidate(&server, "a", 1);
    until("a leads", SECOND, || a.leads()).await;
    let b = candidate(&server, "b", 2);
    tokio::time::sleep(2 * SECOND).await;
    a.client.way(Way::Silent);
    until("b leads", 6 * SECOND, || {
        assert!(!(a.leads() && b.leads()));
        b.leads()
    })
    .await;
    a.client.way(Way::Open);
    tokio::time::sleep(20 * SECOND).await;
    assert!(b.leads() && !a.leads());
}
