use std::sync::Mutex;
use std::time::Duration;

use kube::core::Status;

use super::super::ingress::Role;
use super::*;
use crate::services::objects::{Service, Slim};

/// An API server with one Service `shop/web`, whose watch is moved on by hand.
#[derive(Clone)]
struct Fake {
    state: Arc<Mutex<State>>,
    inputs: Arc<watch::Sender<Arc<Inputs>>>,
}

#[derive(Default)]
struct State {
    version: u64,
    ingress: Vec<Ingress>,
    patches: usize,
    answers_with: Option<u16>,
    /// Drops `ipMode`, as servers before 1.29 do.
    old: bool,
}

impl Fake {
    fn new() -> Self {
        let state = State { version: 1, ..State::default() };
        let fake = Self {
            state: Arc::new(Mutex::new(state)),
            inputs: Arc::new(watch::channel(Arc::new(Inputs::default())).0),
        };
        fake.watch();
        fake
    }

    /// The watch delivers what there is now.
    fn watch(&self) {
        let service = {
            let state = self.state.lock().unwrap();
            let object = json!({
                "metadata": {"name": "web", "namespace": "shop", "resourceVersion": state.version.to_string()},
                "spec": {"type": "LoadBalancer"},
                "status": {"loadBalancer": {"ingress": state.ingress}},
            });
            Service::slim(&serde_json::from_value(object).unwrap()).unwrap()
        };
        let services = Some(vec![Arc::new(service)]);
        self.inputs.send_replace(Arc::new(Inputs { services, ..Inputs::default() }));
    }

    fn publisher(&self) -> Publisher {
        Publisher::spawn(self.clone(), self.inputs.subscribe())
    }

    fn addresses(&self) -> Vec<String> {
        self.state.lock().unwrap().ingress.iter().filter_map(|e| e.ip.clone()).collect()
    }

    fn patches(&self) -> usize {
        self.state.lock().unwrap().patches
    }
}

impl StatusStore for Fake {
    async fn patch(&self, _: &ObjectName, patch: Value) -> Result<String, CallError> {
        let mut state = self.state.lock().unwrap();
        state.patches += 1;
        let code = match state.answers_with {
            None if patch["metadata"]["resourceVersion"].as_str() != Some(&state.version.to_string()) => Some(409),
            answer => answer,
        };
        if let Some(code) = code {
            let status = Status { code, ..Status::failure("no", "No") };
            return Err(CallError::Failed(kube::Error::Api(status.boxed())));
        }
        let mut ingress: Vec<Ingress> =
            serde_json::from_value(patch["status"]["loadBalancer"]["ingress"].clone()).unwrap();
        if state.old {
            ingress.iter_mut().for_each(|entry| entry.ip_mode = None);
        }
        if ingress != state.ingress {
            state.ingress = ingress;
            state.version += 1;
        }
        Ok(state.version.to_string())
    }
}

fn wg0() -> TunnelName {
    TunnelName::new("wg0").unwrap()
}

fn publication(role: Role, claims: bool) -> Publication {
    let services = if claims { BTreeSet::from([ObjectName::new("shop", "web")]) } else { BTreeSet::new() };
    publishing(role, services)
}

fn publishing(role: Role, services: BTreeSet<ObjectName>) -> Publication {
    let services = Arc::new(services);
    Publication {
        role,
        vip: [10, 9, 0, 2].into(),
        public_address: None,
        services: Arc::clone(&services),
        forwarded: services,
    }
}

/// Lets the task run until it waits.
async fn idle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_serving_leader_writes_and_removes() {
    let fake = Fake::new();
    let publisher = fake.publisher();
    publisher.set(&wg0(), publication(Role::Serving, true));
    publisher.settled(&wg0()).await;
    assert_eq!(fake.addresses(), ["10.9.0.2"]);
    fake.watch();
    publisher.set(&wg0(), publication(Role::Serving, false));
    publisher.settled(&wg0()).await;
    assert_eq!(fake.addresses(), [""; 0]);
    assert_eq!(fake.patches(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_standby_writes_nothing() {
    let fake = Fake::new();
    let publisher = fake.publisher();
    publisher.set(&wg0(), publication(Role::Standby, true));
    publisher.settled(&wg0()).await;
    assert_eq!(fake.patches(), 0);
}

#[tokio::test(start_paused = true)]
async fn after_a_conflict_the_next_object_is_waited_for() {
    let fake = Fake::new();
    let publisher = fake.publisher();
    fake.state.lock().unwrap().version = 2;
    fake.state.lock().unwrap().ingress = vec![Ingress { ip: Some("192.0.2.1".to_owned()), ..Ingress::default() }];
    publisher.set(&wg0(), publication(Role::Serving, true));
    idle().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(fake.patches(), 1, "no second try at a version that is known to be old");
    fake.watch();
    publisher.settled(&wg0()).await;
    assert_eq!(fake.addresses(), ["192.0.2.1", "10.9.0.2"], "the other writer's entry is kept");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_drops_the_mode_is_not_asked_again_and_again() {
    let fake = Fake::new();
    fake.state.lock().unwrap().old = true;
    let publisher = fake.publisher();
    publisher.set(&wg0(), publication(Role::Serving, true));
    for _ in 0..5 {
        idle().await;
        fake.watch();
    }
    publisher.settled(&wg0()).await;
    assert_eq!(fake.addresses(), ["10.9.0.2"]);
    assert!(fake.patches() <= 2, "{} patches", fake.patches());
    publisher.set(&wg0(), publication(Role::Serving, false));
    publisher.settled(&wg0()).await;
    assert_eq!(fake.addresses(), [""; 0], "what was written in vain keeps nothing from being removed");
}

#[tokio::test(start_paused = true)]
async fn an_api_that_is_away_is_asked_until_it_is_back_but_not_in_a_storm() {
    let fake = Fake::new();
    fake.state.lock().unwrap().answers_with = Some(503);
    let publisher = fake.publisher();
    publisher.set(&wg0(), publication(Role::Serving, true));
    for _ in 0..600 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        fake.watch();
    }
    assert!((30..120).contains(&fake.patches()), "{} patches in a minute", fake.patches());
    fake.state.lock().unwrap().answers_with = None;
    tokio::time::timeout(Duration::from_secs(3), publisher.settled(&wg0())).await.expect("written within 3 s");
    assert_eq!(fake.addresses(), ["10.9.0.2"]);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_settled_before_the_services_are_known() {
    let fake = Fake::new();
    fake.inputs.send_replace(Arc::new(Inputs::default()));
    let publisher = fake.publisher();
    publisher.set(&wg0(), publication(Role::Serving, false));
    assert!(tokio::time::timeout(Duration::from_secs(5), publisher.settled(&wg0())).await.is_err());
    fake.watch();
    publisher.settled(&wg0()).await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_settled_while_what_was_written_has_not_been_seen() {
    let fake = Fake::new();
    let publisher = fake.publisher();
    publisher.set(&wg0(), publication(Role::Serving, true));
    publisher.settled(&wg0()).await;
    // The watch lags behind: by what it showed last there is no entry to remove.
    publisher.set(&wg0(), publication(Role::Serving, false));
    assert!(tokio::time::timeout(Duration::from_secs(1), publisher.settled(&wg0())).await.is_err());
    fake.watch();
    publisher.settled(&wg0()).await;
    assert_eq!(fake.addresses(), [""; 0]);
}

/// Takes every status but those of the Services in namespace `strict`, as an admission webhook may.
#[derive(Clone, Default)]
struct Webhook {
    asked: Arc<Mutex<Vec<String>>>,
    lenient: Arc<Mutex<bool>>,
}

impl StatusStore for Webhook {
    async fn patch(&self, name: &ObjectName, _: Value) -> Result<String, CallError> {
        self.asked.lock().unwrap().push(name.to_string());
        if name.namespace == "strict" && !*self.lenient.lock().unwrap() {
            let status = Status { code: 403, ..Status::failure("denied by a webhook", "Forbidden") };
            return Err(CallError::Failed(kube::Error::Api(status.boxed())));
        }
        Ok("2".to_owned())
    }
}

#[tokio::test(start_paused = true)]
async fn services_whose_status_is_refused_keep_no_other_and_not_each_other_waiting() {
    let names = [("strict", "a"), ("strict", "b"), ("web", "c"), ("web", "d")];
    let names = names.map(|(namespace, name)| ObjectName::new(namespace, name));
    let service = |name: &ObjectName| {
        let object = json!({
            "metadata": {"name": name.name, "namespace": name.namespace, "resourceVersion": "1"},
            "spec": {"type": "LoadBalancer"},
        });
        Arc::new(Service::slim(&serde_json::from_value(object).unwrap()).unwrap())
    };
    let inputs = Inputs { services: Some(names.iter().map(service).collect()), ..Inputs::default() };
    let (_inputs, receiver) = watch::channel(Arc::new(inputs));
    let webhook = Webhook::default();
    let publisher = Publisher::spawn(webhook.clone(), receiver);
    publisher.set(&wg0(), publishing(Role::Serving, names.into_iter().collect()));
    idle().await;
    assert_eq!(*webhook.asked.lock().unwrap(), ["strict/a", "strict/b", "web/c", "web/d"], "each in the first round");
    tokio::time::sleep(Duration::from_secs(10)).await;
    let asked = webhook.asked.lock().unwrap().split_off(4);
    assert!(asked.chunks(2).all(|pair| pair[0] == "strict/a"), "by turns: {asked:?}");
    assert!((8..30).contains(&asked.len()), "one a round: {asked:?}");
    *webhook.lenient.lock().unwrap() = true;
    tokio::time::timeout(Duration::from_secs(2), publisher.settled(&wg0())).await.expect("both once they are taken");
}
