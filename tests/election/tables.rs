//! client-go's own test cases (`tools/leaderelection/leaderelection_test.go` and `leaselock_test.go` at 32ce75a7d) as
//! tables, against the pure elector. Left out: coordinated election, events, the health adaptor (a leader whose lease
//! is over stops by itself here).

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use wirevip::clock::Moment;
use wirevip::election::{Elector, Outcome, Params, ParamsError, Record, Request, StoreError, Verdict};

use crate::world::{SECOND, ms};

pub const NOW: Moment = Moment::new(Duration::from_secs(10_000_000));
pub const HOURS: Duration = Duration::from_secs(3_600_000);

pub fn wall() -> Timestamp {
    Timestamp::from_second(1_750_000_000).unwrap()
}

pub fn ten() -> Params {
    Params { lease: 10 * SECOND, renew_deadline: 5 * SECOND, retry: 2 * SECOND }
}

pub fn baz() -> Elector {
    Elector::new(ten(), "baz").unwrap()
}

pub fn rec(holder: &str, duration_seconds: i32) -> Record {
    Record { holder: holder.to_owned(), duration_seconds, ..Record::default() }
}

pub fn lease(record: &Record) -> Lease {
    Lease { spec: Some(record.spec()), ..Lease::default() }
}

/// A server whose answers are scripted by verb, and that counts.
#[derive(Default)]
pub struct Server {
    pub get: Option<Lease>,
    pub conflicts: usize,
    pub calls: Vec<&'static str>,
    pub written: Vec<Record>,
}

impl Server {
    pub fn answer(&mut self, request: Request) -> Result<Lease, StoreError> {
        let (verb, answer) = match request {
            Request::Get => ("get", self.get.clone().ok_or(StoreError::NotFound)),
            Request::Create(record) => {
                self.written.push(record.clone());
                ("create", Ok(lease(&record)))
            }
            Request::Replace(..) if self.conflicts > 0 => {
                self.conflicts -= 1;
                ("update", Err(StoreError::Conflict))
            }
            Request::Replace(last, record) => {
                self.written.push(record.clone());
                ("update", Ok(Lease { spec: Some(record.spec()), ..*last }))
            }
        };
        self.calls.push(verb);
        answer
    }

    /// Goes on from `request` until the attempt is over.
    pub fn converse(&mut self, elector: &mut Elector, now: Moment, mut request: Request) -> Outcome {
        loop {
            let answer = self.answer(request);
            match elector.answer(now, wall(), answer.as_ref().map(Lease::clone)) {
                Verdict::Continue(next) => request = next,
                Verdict::Done(outcome) => return outcome,
            }
        }
    }

    pub fn attempt(&mut self, elector: &mut Elector, now: Moment) -> Outcome {
        let request = elector.next(now, wall());
        self.converse(elector, now, request)
    }

    pub fn release(&mut self, elector: &mut Elector, now: Moment) -> Outcome {
        let request = elector.release();
        self.converse(elector, now, request)
    }
}

struct Row {
    name: &'static str,
    get: Option<Lease>,
    seeded: Option<(Record, Moment)>,
    retry_after: Option<Duration>,
    won: bool,
    transitions: i32,
    holder: &'static str,
    calls: &'static [&'static str],
}

#[test]
fn an_attempt_takes_or_renews_as_client_go_does() {
    let row = |name, get, won, transitions, holder, calls| Row {
        name,
        get,
        seeded: None,
        retry_after: None,
        won,
        transitions,
        holder,
        calls,
    };
    let rows = [
        row("no object", None, true, 0, "baz", &["get", "create"]),
        row(
            "an empty spec",
            Some(Lease { spec: Some(LeaseSpec::default()), ..Lease::default() }),
            true,
            1,
            "baz",
            &["get", "update"],
        ),
        row("no spec", Some(Lease::default()), true, 1, "baz", &["get", "update"]),
        Row {
            retry_after: Some(3 * SECOND),
            ..row(
                "led, by the record's own duration",
                Some(lease(&rec("bing", 3))),
                true,
                1,
                "baz",
                &["get", "get", "update"],
            )
        },
        row("unled", Some(lease(&rec("", 0))), true, 1, "baz", &["get", "update"]),
        Row {
            seeded: Some((rec("bing", 0), NOW - HOURS)),
            ..row("led, long unseen", Some(lease(&rec("bing", 0))), true, 1, "baz", &["get", "update"])
        },
        Row {
            seeded: Some((rec("", 0), NOW + HOURS)),
            ..row("unled, just seen", Some(lease(&rec("", 0))), true, 1, "baz", &["get", "update"])
        },
        row("led, first seen now", Some(lease(&rec("bing", 10))), false, 0, "bing", &["get"]),
        Row {
            seeded: Some((rec("bing", 10), NOW + HOURS)),
            ..row("led, just seen", Some(lease(&rec("bing", 10))), false, 0, "bing", &["get"])
        },
        row("ours, of an earlier life", Some(lease(&rec("baz", 0))), true, 0, "baz", &["get", "update"]),
        Row {
            seeded: Some((rec("baz", 0), NOW + HOURS)),
            ..row("ours, object at hand", Some(lease(&rec("baz", 0))), true, 0, "baz", &["update"])
        },
    ];
    for row in rows {
        let name = row.name;
        let mut elector = baz();
        if let Some((record, seen)) = row.seeded {
            elector.sight(seen, wall(), lease(&record));
        }
        let mut server = Server { get: row.get, ..Server::default() };
        let mut outcome = server.attempt(&mut elector, NOW);
        if let Some(after) = row.retry_after {
            assert_eq!(outcome, Outcome::Held, "{name}");
            outcome = server.attempt(&mut elector, NOW + after);
        }
        assert_eq!(outcome, if row.won { Outcome::Won } else { Outcome::Held }, "{name}");
        assert_eq!(elector.tenure().is_some(), row.won, "{name}");
        assert_eq!(elector.record().unwrap().transitions, row.transitions, "{name}");
        assert_eq!(elector.holder(), Some(row.holder), "{name}");
        assert_eq!(server.calls, row.calls, "{name}");
    }
}

#[test]
fn a_spec_survives_the_way_through_a_record() {
    let spec = LeaseSpec {
        holder_identity: Some("foo".to_owned()),
        lease_duration_seconds: Some(10),
        acquire_time: Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(wall())),
        renew_time: Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(wall())),
        lease_transitions: Some(1),
        ..LeaseSpec::default()
    };
    let record = Record::from(&spec);
    assert_eq!(record.spec(), spec);
    assert_eq!(Record::from(&record.spec()), record);
}

#[test]
fn a_release_gets_first_then_clears_the_holder_and_keeps_the_transitions() {
    let mut elector = baz();
    let mut server = Server { get: Some(lease(&rec("baz", 0))), ..Server::default() };
    assert_eq!(server.attempt(&mut elector, NOW), Outcome::Won);
    assert_eq!(elector.holder(), Some("baz"));
    assert_eq!(server.release(&mut elector, NOW), Outcome::Released);
    assert_eq!(server.calls, ["get", "update", "get", "update"]);
    let last = server.written.last().unwrap();
    assert_eq!((last.holder.as_str(), last.duration_seconds, last.transitions), ("", 1, 0));
    assert_eq!((last.acquired, last.renewed), (Some(wall()), Some(wall())));
    assert_eq!((elector.holder(), elector.tenure()), (Some(""), None));
}

#[test]
fn a_release_that_meets_a_conflict_starts_again_from_the_get() {
    let mut elector = baz();
    let mut server = Server { get: Some(lease(&rec("baz", 10))), conflicts: 1, ..Server::default() };
    assert_eq!(server.release(&mut elector, NOW), Outcome::Released);
    assert_eq!(server.calls, ["get", "update", "get", "update"]);
}

#[test]
fn times_that_cannot_work_are_refused() {
    let with = |lease: u64, renew_deadline: u64, retry: u64| {
        Params { lease: ms(lease), renew_deadline: ms(renew_deadline), retry: ms(retry) }.check()
    };
    assert!(with(5_000, 3_000, 1_000).is_ok(), "our own defaults");
    assert!(with(15_000, 10_000, 2_000).is_ok(), "client-go's defaults");
    assert!(with(15_000, 2_000, 1_000).is_ok(), "client-go's test");
    for (times, fault) in [
        ((0, 3_000, 1_000), "Zero"),
        ((5_000, 0, 1_000), "Zero"),
        ((5_000, 3_000, 0), "Zero"),
        ((500, 300, 100), "Fraction"),
        ((5_500, 3_000, 1_000), "Fraction"),
        ((3_000, 3_000, 1_000), "DeadlineTooLong"),
        ((5_000, 1_200, 1_000), "RetryTooLong"),
        ((11_000, 10_000, 8_000), "NoTimeLeft"),
        ((5_000, 3_000, 1_750), "NoTimeLeft"),
        ((40_000, 37_000, 1_000), "NoTimeLeft"),
    ] {
        let error = with(times.0, times.1, times.2).unwrap_err();
        assert!(format!("{error:?}").starts_with(fault), "{times:?}: {error:?}");
    }
    assert!(with(5_000, 3_000, 1_749).is_ok(), "just enough");
    assert_eq!(Elector::new(Params::default(), "").unwrap_err(), ParamsError::NoIdentity);
    assert_eq!(Params::default().margin(), ms(250));
    assert_eq!(Params { lease: 15 * SECOND, ..Params::default() }.margin(), ms(750));
}
