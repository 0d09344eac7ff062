//! The API server: any answers to the requests for Services, EndpointSlices, the Secret and the Lease.
//!
//! A script is answers in their order, each begun by a line `services 200`, `endpointslices 200`, `secrets 200` or
//! `leases 200` with the status code; the lines below are the body. What is asked beyond the script hangs.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::Full;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Client;
use kube::client::Body;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::time::Instant;
use wirevip::clock::{Clock, Moment};
use wirevip::election::lease::KubeLease;
use wirevip::election::{Campaign, Elector, Leadership, Params};
use wirevip::secret;
use wirevip::services::watch::{self, Inputs};

/// Who we are to the Lease.
const IDENTITY: &str = "wirevip-x_u1";

/// So long, on a clock that jumps ahead whenever nothing is under way, a script is played.
const PLAYED: Duration = Duration::from_secs(60);

/// Panics where one of these does not hold: no task ends; what is known of the cluster has each name once; and nobody
/// leads to whom the API did not give the Lease.
pub fn holds(input: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(played(Script::read(input)));
}

async fn played(script: Script) {
    let script = Arc::new(Mutex::new(script));
    let server = script.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let answer = server.lock().expect("no panic").answer(&request);
        async move {
            match answer {
                Some(answer) => Ok::<_, Infallible>(answer),
                None => std::future::pending().await,
            }
        }
    });
    let client = Client::new(service, "wirevip");
    let (inputs, mut tasks) = watch::spawn(&client, None);
    let document = secret::watch::spawn(client.clone(), "wirevip", "wireguard");
    let elector = Elector::new(Params::default(), IDENTITY).expect("the default times are sound");
    let lease = KubeLease::new(client, "wirevip", "wirevip-wg0");
    let campaign = Campaign::spawn(lease, Ticking(now()), elector, StdRng::seed_from_u64(1));
    let (gate, mut leadership) = (campaign.gate(), campaign.leadership());
    gate.quiet();
    gate.eligible(true);
    let end = now() + PLAYED;
    while let Ok(changed) = tokio::time::timeout_at(end, leadership.changed()).await {
        changed.expect("the campaign ended");
        if let Leadership::Leading(tenure) = *leadership.borrow_and_update() {
            assert!(script.lock().expect("no panic").given, "leads by nobody's leave: {tenure:?}");
        } else {
            gate.quiet();
        }
    }
    assert!(tasks.try_join_next().is_none(), "a watch ended");
    assert!(document.has_changed().is_ok(), "the watch of the Secret ended");
    let Inputs { services, slices, control_plane } = &**inputs.borrow();
    assert!(services.iter().flatten().is_sorted_by(|a, b| a.name < b.name));
    assert!(slices.iter().chain(control_plane).flatten().is_sorted_by(|a, b| a.name < b.name));
}

#[expect(clippy::disallowed_methods, reason = "tokio's own clock, which jumps here")]
fn now() -> Instant {
    Instant::now()
}

/// Tokio's clock, since the given instant.
struct Ticking(Instant);

impl Clock for Ticking {
    fn now(&self) -> Moment {
        Moment::new(Duration::from_secs(1000) + (now() - self.0))
    }

    fn wall(&self) -> jiff::Timestamp {
        jiff::Timestamp::UNIX_EPOCH + self.now().since_boot()
    }
}

/// What the server still has to say.
#[derive(Default)]
struct Script {
    answers: BTreeMap<&'static str, VecDeque<(u16, String)>>,
    /// A write was confirmed with a Lease that names us.
    given: bool,
}

impl Script {
    fn read(input: &[u8]) -> Self {
        let mut script = Self::default();
        let mut current: Option<&mut String> = None;
        for line in String::from_utf8_lossy(input).lines() {
            if let Some((resource, status)) = head(line) {
                let answers = script.answers.entry(resource).or_default();
                answers.push_back((status, String::new()));
                current = answers.back_mut().map(|(_, body)| body);
            } else if let Some(body) = &mut current {
                body.push_str(line);
                body.push('\n');
            }
        }
        script
    }

    fn answer(&mut self, request: &Request<Body>) -> Option<Response<Full<Bytes>>> {
        let resource = resource(request.uri().path())?;
        let (status, body) = self.answers.get_mut(resource)?.pop_front()?;
        if matches!(*request.method(), Method::PUT | Method::POST)
            && (200..300).contains(&status)
            && let Ok(Lease { spec: Some(spec), .. }) = serde_json::from_str(&body)
        {
            self.given |= spec.holder_identity.as_deref() == Some(IDENTITY);
        }
        let answer = Response::builder().status(status).header("content-type", "application/json");
        answer.body(Full::new(Bytes::from(body))).ok()
    }
}

fn resource(word: &str) -> Option<&'static str> {
    ["services", "endpointslices", "secrets", "leases"].into_iter().find(|resource| {
        let mut parts = word.split('/');
        parts.any(|part| part == *resource)
    })
}

/// `services 200`
fn head(line: &str) -> Option<(&'static str, u16)> {
    let (word, status) = line.split_once(' ')?;
    Some((resource(word)?, status.trim().parse().ok().filter(|status| (200..600).contains(status))?))
}
