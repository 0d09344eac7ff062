//! What was read, put together: who leads each tunnel, what it forwards, and what does not fit. Pure.
//!
//! Reports are read leniently: another version of wirevip may have written them, and a missing field is no reason to
//! hide the others.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::read::Seen;
use super::services;
use crate::secret::TunnelName;

/// How a Lease of ours begins.
const LEASE_PREFIX: &str = "wirevip-";

/// Everything there is to tell; `-o json` prints it as it is.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Picture {
    /// Where was looked.
    pub(super) namespace: String,
    /// By name.
    pub(super) tunnels: Vec<Tunnel>,
    /// In the order of the API.
    pub(super) pods: Vec<Pod>,
    /// Those of tunnels.
    pub(super) leases: Vec<Lease>,
    /// Services that ask for a tunnel, or carry the address of one.
    pub(super) services: Vec<services::Row>,
    /// What does not fit, and what could not be read.
    pub(super) problems: Vec<Problem>,
}

/// A tunnel that a pod or a Lease knows.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Tunnel {
    pub(super) name: String,
    pub(super) vip: Option<String>,
    /// The leader's; `standby` or `invalid` if there is none; `unknown` if nobody could be asked.
    pub(super) state: String,
    /// The pod that leads; where it could not be asked, the one that the Lease names.
    pub(super) leader: Option<Place>,
    /// Identity that the Lease names.
    pub(super) holder: Option<String>,
    /// The pods that say they speak on the tunnel, the Lease's holder first. More than one is a problem.
    pub(super) leaders: Vec<Leading>,
    pub(super) faults: Vec<Fault>,
}

/// A pod on its node.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Place {
    pub(super) pod: String,
    pub(super) node: String,
}

/// What a leader says of a tunnel.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Leading {
    pub(super) pod: String,
    pub(super) node: String,
    pub(super) state: String,
    pub(super) tenure_seconds: Option<f64>,
    pub(super) handshake_age_seconds: Option<f64>,
    pub(super) backend: Option<String>,
    pub(super) forwards: Vec<Forward>,
}

/// One port of a VIP.
#[derive(Debug, Serialize)]
pub(super) struct Forward {
    pub(super) service: String,
    pub(super) protocol: String,
    pub(super) port: u64,
    pub(super) backends: Vec<String>,
}

/// A fault, and the pods that tell of it.
#[derive(Debug, Serialize)]
pub(super) struct Fault {
    pub(super) message: String,
    pub(super) pods: Vec<String>,
    /// Every pod that answered and knows the tunnel tells of it.
    pub(super) everywhere: bool,
}

/// A pod of wirevip.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Pod {
    pub(super) name: String,
    pub(super) node: String,
    pub(super) phase: String,
    pub(super) version: Option<String>,
    /// Tunnels that it leads.
    pub(super) leads: Vec<String>,
    /// Its `/status`, verbatim; null if it could not be read.
    pub(super) report: Option<Value>,
}

/// A Lease of a tunnel.
#[derive(Debug, Serialize)]
pub(super) struct Lease {
    pub(super) name: String,
    /// Verbatim.
    pub(super) spec: Value,
}

/// Something to look at.
#[derive(Debug, Serialize)]
pub(super) struct Problem {
    /// `tunnel wg0`, `pod wirevip-a`, `Leases`, …
    pub(super) about: String,
    pub(super) message: String,
    /// It could not be read, so this picture may be incomplete.
    pub(super) unread: bool,
}

/// One tunnel in one pod's report.
struct Said<'a> {
    pod: &'a super::read::Pod,
    tunnel: &'a Value,
}

impl Said<'_> {
    fn state(&self) -> &str {
        self.tunnel["state"].as_str().unwrap_or("unknown")
    }

    /// It may speak for so long.
    fn tenure(&self) -> Option<f64> {
        self.tunnel["tenureSeconds"].as_f64().filter(|left| *left > 0.0)
    }

    fn speaks(&self) -> bool {
        matches!(self.state(), "rising" | "leading" | "holding" | "falling") || self.tenure().is_some()
    }

    fn identity(&self) -> String {
        format!("{}_{}", self.pod.name, self.pod.uid)
    }

    fn leading(&self) -> Leading {
        Leading {
            pod: self.pod.name.clone(),
            node: self.pod.node.clone(),
            state: self.state().to_owned(),
            tenure_seconds: self.tenure(),
            handshake_age_seconds: self.tunnel["handshakeAgeSeconds"].as_f64(),
            backend: text(&self.tunnel["backend"]),
            forwards: self.tunnel["forwards"].as_array().into_iter().flatten().map(forward).collect(),
        }
    }
}

fn forward(said: &Value) -> Forward {
    Forward {
        service: text(&said["service"]).unwrap_or_default(),
        protocol: text(&said["protocol"]).unwrap_or_default(),
        port: said["port"].as_u64().unwrap_or_default(),
        backends: said["backends"].as_array().into_iter().flatten().filter_map(text).collect(),
    }
}

/// A string, or several in one line.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Array(all) if !all.is_empty() => Some(all.iter().filter_map(text).collect::<Vec<_>>().join(", ")),
        _ => None,
    }
}

impl Picture {
    /// Puts together what was read until `now`, by this machine's clock.
    pub(super) fn of(seen: Seen, now: Timestamp) -> Self {
        let Seen { namespace, selector, pods, leases, services: found } = seen;
        let mut problems = Problems::default();
        let pods_known = pods.is_ok();
        let pods = pods.unwrap_or_else(|why| problems.unread("pods", why));
        let leases = leases.unwrap_or_else(|why| problems.unread("Leases", why));
        let found = found.unwrap_or_else(|why| problems.unread("Services", why));
        let leases: BTreeMap<String, Value> = leases.into_iter().filter_map(lease).collect();
        if pods_known && pods.is_empty() {
            let message = format!("none in namespace {namespace} has label {selector}; give --namespace or --selector");
            problems.found("pods", message);
        }
        let mut said: BTreeMap<&str, Vec<Said<'_>>> = BTreeMap::new();
        let mut unreadable = BTreeSet::new();
        for pod in &pods {
            let told = match &pod.report {
                Ok(report) => match report["tunnels"].as_array() {
                    Some(tunnels) => Ok((report, tunnels)),
                    None => Err("its /status names no tunnels: is it wirevip?"),
                },
                Err(why) => Err(why.as_str()),
            };
            match told {
                Ok((report, told)) => {
                    if told.is_empty() {
                        // What is wrong with a document that cannot be read; else each tunnel tells of it.
                        unreadable.extend(report["faults"].as_array().into_iter().flatten().filter_map(text));
                    }
                    for tunnel in told {
                        said.entry(tunnel["name"].as_str().unwrap_or("?")).or_default().push(Said { pod, tunnel });
                    }
                }
                Err(why) => problems.unread(&format!("pod {}", pod.name), why.to_owned()),
            }
        }
        for fault in unreadable {
            problems.found("the Secret", fault);
        }
        let all_heard = pods_known && pods.iter().all(|pod| pod.report.is_ok());
        let look = Look { pods: pods_known.then_some(&pods), all_heard, now };
        let mut orphans: BTreeSet<&String> = leases.keys().collect();
        let mut tunnels = Vec::new();
        for (name, said) in &said {
            let lease = TunnelName::new(name).and_then(|name| leases.get_key_value(&name.lease()));
            if let Some((lease, _)) = lease {
                orphans.remove(lease);
            }
            tunnels.push(tunnel(name, said, lease.map(|(_, spec)| spec), &look, &mut problems));
        }
        for lease in orphans {
            let name = lease.strip_prefix(LEASE_PREFIX).unwrap_or(lease);
            if all_heard && !pods.is_empty() {
                let message = "no pod knows a tunnel of this Lease; if it was removed, delete the Lease".to_owned();
                problems.found(&format!("Lease {lease}"), message);
            }
            tunnels.push(tunnel(name, &[], leases.get(lease), &look, &mut problems));
        }
        tunnels.sort_by(|a, b| a.name.cmp(&b.name));
        let pods: Vec<Pod> = pods.into_iter().map(|pod| told_pod(pod, &tunnels)).collect();
        versions(&pods, &mut problems);
        let services = services::rows(&found, &tunnels);
        let leases = leases.into_iter().map(|(name, spec)| Lease { name, spec }).collect();
        Picture { namespace, tunnels, pods, leases, services, problems: problems.0 }
    }
}

/// What else a tunnel is judged by.
struct Look<'a> {
    /// `None`: they could not be listed.
    pods: Option<&'a Vec<super::read::Pod>>,
    /// Every pod answered.
    all_heard: bool,
    now: Timestamp,
}

#[derive(Default)]
struct Problems(Vec<Problem>);

impl Problems {
    fn found(&mut self, about: &str, message: String) {
        self.0.push(Problem { about: about.to_owned(), message, unread: false });
    }

    /// Stands for what could not be read.
    fn unread<T: Default>(&mut self, about: &str, message: String) -> T {
        self.0.push(Problem { about: about.to_owned(), message, unread: true });
        T::default()
    }
}

/// Name and `spec` of a Lease, if it is a tunnel's.
fn lease(mut lease: Value) -> Option<(String, Value)> {
    let name = lease.pointer("/metadata/name")?.as_str()?.to_owned();
    name.starts_with(LEASE_PREFIX).then(|| (name, lease["spec"].take()))
}

fn tunnel(name: &str, said: &[Said<'_>], lease: Option<&Value>, look: &Look<'_>, problems: &mut Problems) -> Tunnel {
    let holder = lease.and_then(|spec| spec["holderIdentity"].as_str()).filter(|holder| !holder.is_empty());
    let mut speakers: Vec<&Said<'_>> = said.iter().filter(|said| said.speaks()).collect();
    speakers.sort_by_key(|said| (holder != Some(said.identity().as_str()), said.tenure().is_none()));
    let about = format!("tunnel {name}");
    let entitled: Vec<&str> =
        speakers.iter().filter(|said| said.tenure().is_some()).map(|said| said.pod.name.as_str()).collect();
    if let [_, _, ..] = entitled.as_slice() {
        let message = format!(
            "{} each say that they lead; a hand-over between the two questions looks like this, so look again; if it \
             stays, delete all but the one that the Lease names",
            entitled.join(" and ")
        );
        problems.found(&about, message);
    }
    let mut leader = speakers.first().map(|said| Place { pod: said.pod.name.clone(), node: said.pod.node.clone() });
    let mut state = speakers.first().map(|said| said.state());
    match (holder, look.pods) {
        (Some(holder), Some(pods)) => match pods.iter().find(|pod| holder == format!("{}_{}", pod.name, pod.uid)) {
            None => problems.found(&about, stale(holder, lease, look.now)),
            Some(pod) if pod.report.is_err() && speakers.is_empty() => {
                leader = Some(Place { pod: pod.name.clone(), node: pod.node.clone() });
                state = Some("unknown");
            }
            Some(pod) if speakers.iter().all(|said| said.pod.name != pod.name) && pod.report.is_ok() => {
                let message = format!("its Lease names {}, which does not say that it leads; look again", pod.name);
                problems.found(&about, message);
            }
            Some(_) => {}
        },
        // All said invalid is told by their faults.
        (None, _) if speakers.is_empty() && look.all_heard && said.iter().any(|said| said.state() != "invalid") => {
            problems.found(&about, "nobody leads it; see the pods' logs and Events".to_owned());
        }
        _ => {}
    }
    let state = state.unwrap_or_else(|| match said {
        [] => "unknown",
        [first, ..] => said.iter().map(Said::state).find(|state| *state != "invalid").unwrap_or(first.state()),
    });
    Tunnel {
        name: name.to_owned(),
        vip: speakers.iter().copied().chain(said).find_map(|said| text(&said.tunnel["vip"])),
        state: state.to_owned(),
        leader,
        holder: holder.map(str::to_owned),
        leaders: speakers.iter().map(|said| said.leading()).collect(),
        faults: faults(said),
    }
}

/// What is to be said of a holder that is none of the pods.
fn stale(holder: &str, lease: Option<&Value>, now: Timestamp) -> String {
    let spec = lease.unwrap_or(&Value::Null);
    let renewed = spec["renewTime"].as_str().and_then(|time| time.parse::<Timestamp>().ok());
    let age = renewed.map(|renewed| now.duration_since(renewed).as_secs());
    let since = match age {
        Some(age @ 0..) => format!(", renewed {age} s ago by this machine's clock"),
        _ => String::new(),
    };
    let term = spec["leaseDurationSeconds"].as_i64().map(|term| format!(" of {term} s")).unwrap_or_default();
    format!(
        "its Lease names {holder}, which is none of the pods{since}; another takes over when its term{term} is over, \
         unless something outside --selector renews it"
    )
}

fn faults(said: &[Said<'_>]) -> Vec<Fault> {
    let mut faults: Vec<Fault> = Vec::new();
    for one in said {
        for message in one.tunnel["faults"].as_array().into_iter().flatten().filter_map(text) {
            let pod = one.pod.name.clone();
            match faults.iter_mut().find(|fault| fault.message == message) {
                Some(fault) if fault.pods.contains(&pod) => {}
                Some(fault) => fault.pods.push(pod),
                None => faults.push(Fault { message, pods: vec![pod], everywhere: false }),
            }
        }
    }
    for fault in &mut faults {
        fault.everywhere = fault.pods.len() == said.len();
    }
    faults
}

fn told_pod(pod: super::read::Pod, tunnels: &[Tunnel]) -> Pod {
    let super::read::Pod { name, uid: _, node, phase, report } = pod;
    let leads = |tunnel: &&Tunnel| tunnel.leaders.iter().any(|leading| leading.pod == name);
    let leads = tunnels.iter().filter(leads).map(|tunnel| tunnel.name.clone()).collect();
    let report = report.ok();
    let version = report.as_ref().and_then(|report| text(&report["version"]));
    Pod { name, node, phase, version, leads, report }
}

fn versions(pods: &[Pod], problems: &mut Problems) {
    let versions: BTreeSet<&str> = pods.iter().filter_map(|pod| pod.version.as_deref()).collect();
    if versions.len() > 1 {
        let versions = versions.into_iter().collect::<Vec<_>>().join(" and ");
        problems.found("pods", format!("they run {versions}; unless an update is under way, finish or undo it"));
    }
}
