use std::time::Duration;

use kube::core::Status;

use super::*;
use crate::clock::TokioClock;

fn told(reason: Reason, note: &str, at: i64) -> Told {
    let regarding = Regarding::Secret { uid: None };
    Told { regarding, reason, note: note.to_owned(), at: Timestamp::from_second(1_750_000_000 + at).unwrap() }
}

#[test]
fn the_same_event_again_is_counted_and_written_once_a_minute() {
    let mut ledger = Ledger::default();
    let enter = |ledger: &mut Ledger, at| ledger.enter(&told(Reason::NoBackends, "a", at));
    assert_eq!(enter(&mut ledger, 0), Some(Write::Create));
    ledger.created(&told(Reason::NoBackends, "a", 0), "n".to_owned());
    for at in 1..60 {
        assert_eq!(enter(&mut ledger, at), None);
    }
    assert_eq!(enter(&mut ledger, 60), Some(Write::Repeat { name: "n".to_owned(), count: 61 }));
    assert_eq!(enter(&mut ledger, 61), None);
    assert_eq!(enter(&mut ledger, 3600), Some(Write::Create), "the API has forgotten it by then");
}

#[test]
fn notes_that_differ_each_time_do_not_flood_either() {
    let mut ledger = Ledger::default();
    let mut written = 0;
    for at in 0..600 {
        let told = told(Reason::InvalidConfiguration, &at.to_string(), at);
        if ledger.enter(&told) == Some(Write::Create) {
            ledger.created(&told, at.to_string());
            written += 1;
        }
    }
    assert_eq!(written, 29, "ten at once, then one each half minute");
    assert_eq!(ledger.enter(&told(Reason::TunnelUp, "up", 600)), Some(Write::Create), "other reasons are free");
}

#[test]
fn a_wall_clock_set_back_stops_nothing() {
    let mut ledger = Ledger::default();
    assert_eq!(ledger.enter(&told(Reason::TunnelUp, "a", 1000)), Some(Write::Create));
    assert_eq!(ledger.enter(&told(Reason::TunnelUp, "b", 0)), Some(Write::Create));
}

fn reporter() -> Reporter {
    Reporter {
        namespace: "wirevip".to_owned(),
        pod_name: "p".repeat(250),
        pod_uid: "pu".to_owned(),
        secret_name: "wireguard".to_owned(),
    }
}

#[test]
fn an_event_refers_to_its_object_and_fits_the_apis_limits() {
    let service = Regarding::Service { name: ObjectName::new("shop", "web"), uid: "su".to_owned() };
    let cases = [
        (Regarding::Pod, "Pod", "wirevip"),
        (Regarding::Secret { uid: None }, "Secret", "wirevip"),
        (service, "Service", "shop"),
    ];
    for (regarding, kind, namespace) in cases {
        let told = Told { regarding, note: "ä".repeat(1000), ..told(Reason::PortConflict, "", 0) };
        let event = reporter().event(&told);
        let object = event.regarding.unwrap();
        assert_eq!(object.kind.as_deref(), Some(kind));
        assert_eq!(
            (object.namespace.as_deref(), event.metadata.namespace.as_deref()),
            (Some(namespace), Some(namespace))
        );
        assert_eq!(object.uid.is_none(), kind == "Secret");
        assert!(event.note.unwrap().len() <= 1024);
        assert!(event.reporting_instance.unwrap().len() <= 128);
        assert!(event.metadata.name.unwrap().len() <= 253);
        assert_eq!((event.reason.as_deref(), event.type_.as_deref()), (Some("PortConflict"), Some("Warning")));
    }
}

#[derive(Clone, Default)]
struct Fake(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    answers: VecDeque<Option<u16>>,
    written: Vec<String>,
}

impl Fake {
    fn answer(&self, what: String) -> Result<(), CallError> {
        let mut state = self.0.lock().unwrap();
        match state.answers.pop_front() {
            None => {
                state.written.push(what);
                Ok(())
            }
            Some(None) => Err(CallError::Timeout(Duration::from_secs(3))),
            Some(Some(code)) => {
                let status = Status { code, ..Status::failure("no", "No") };
                Err(CallError::Failed(kube::Error::Api(status.boxed())))
            }
        }
    }

    fn written(&self) -> Vec<String> {
        self.0.lock().unwrap().written.clone()
    }

    fn start(&self) -> Events {
        Events::spawn(self.clone(), reporter(), Arc::new(TokioClock::new()), Metrics::new())
    }
}

impl EventStore for Fake {
    async fn create(&self, event: &Event) -> Result<(), CallError> {
        self.answer(event.note.clone().unwrap())
    }

    async fn repeat(&self, _: &str, _: &str, count: i32, _: Timestamp) -> Result<(), CallError> {
        self.answer(format!("x{count}"))
    }
}

#[tokio::test(start_paused = true)]
async fn what_happened_while_the_api_was_away_is_told_when_it_is_back() {
    let fake = Fake::default();
    fake.0.lock().unwrap().answers = VecDeque::from(vec![None; 20]);
    let events = fake.start();
    events.tell(Regarding::Pod, Reason::FenceClosed, "first");
    events.tell(Regarding::Pod, Reason::TunnelUp, "second");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(fake.written(), ["first", "second"]);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_the_api_refuses_holds_no_other_up() {
    for code in [403, 404, 422, 500] {
        let fake = Fake::default();
        fake.0.lock().unwrap().answers =
            VecDeque::from(vec![Some(code); if [403, 500].contains(&code) { 6 } else { 1 }]);
        let events = fake.start();
        events.tell(Regarding::Pod, Reason::TunnelUp, "refused");
        events.tell(Regarding::Pod, Reason::TunnelUp, "taken");
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(fake.written(), ["taken"], "{code}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_that_an_api_server_without_its_rights_refused_is_told_when_it_has_them() {
    let fake = Fake::default();
    fake.0.lock().unwrap().answers = [vec![None; 20], vec![Some(403); 3]].concat().into();
    fake.start().tell(Regarding::Pod, Reason::Holding, "held");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(fake.written(), ["held"]);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_the_api_forgot_is_made_anew() {
    let fake = Fake::default();
    let events = fake.start();
    events.tell(Regarding::Pod, Reason::NoHandshake, "n");
    tokio::time::sleep(Duration::from_secs(61)).await;
    fake.0.lock().unwrap().answers.push_back(Some(404));
    events.tell(Regarding::Pod, Reason::NoHandshake, "n");
    tokio::time::sleep(Duration::from_secs(61)).await;
    events.tell(Regarding::Pod, Reason::NoHandshake, "n");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(fake.written(), ["n", "n", "x2"]);
}

#[tokio::test(start_paused = true)]
async fn a_takeover_with_many_services_drops_nothing_but_that_they_are_forwarded() {
    let fake = Fake::default();
    let events = fake.start();
    events.tell(Regarding::Pod, Reason::TunnelUp, "up");
    let about = |name: &str| Regarding::Service { name: ObjectName::new("shop", name), uid: name.to_owned() };
    events.tell(about("a"), Reason::PortConflict, "conflict");
    for n in 0..QUEUE + 50 {
        events.tell(about(&n.to_string()), Reason::Forwarded, "forwarded");
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    let written = fake.written();
    assert_eq!((written.len(), &written[..2]), (QUEUE, &["up".to_owned(), "conflict".to_owned()][..]));
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_drops_the_oldest_and_counts_it() {
    let fake = Fake::default();
    fake.0.lock().unwrap().answers = VecDeque::from(vec![None; 5]);
    let events = fake.start();
    for n in 0..QUEUE + 3 {
        let uid = n.to_string();
        let name = ObjectName::new("shop", &uid);
        events.tell(Regarding::Service { name, uid: uid.clone() }, Reason::Forwarded, uid);
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    let written = fake.written();
    assert_eq!((written.len(), written.first().map(String::as_str)), (QUEUE, Some("3")));
    assert!(events.metrics.encode().contains("wirevip_errors_total{stage=\"events\"} 3"));
}
