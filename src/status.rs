//! What happened, told: the report behind `/status`, and the Events that a change is worth. Pure.
//!
//! A tunnel's actor publishes a [`Snapshot`] after every step; everything said about the tunnel is derived from it,
//! so that logs, Events, metrics and `/status` cannot disagree (I7).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::clock::Moment;
use crate::controller::State;
use crate::election::Leadership;
use crate::election::Standing;
use crate::secret::{Fault, Tunnel};
use crate::services::{Forwards, Protocol};
use crate::tunnel::Backend;

pub mod board;
pub mod events;
pub mod ingress;
mod narrator;
pub mod publish;

pub use narrator::{NO_HANDSHAKE_AFTER, Narrator, Notice, no_handshake_causes};

/// One tunnel at one moment, as its actor knows it.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Settings in force.
    pub settings: Arc<Tunnel>,
    /// Who leads.
    pub leadership: Leadership,
    /// What the controller does.
    pub state: State,
    /// Tunnel up, hub answered, table applied.
    pub serves: bool,
    /// When the last handshake of the present peer was completed.
    pub handshake: Option<Moment>,
    /// When the present peer was given to the link.
    pub peer_since: Option<Moment>,
    /// Bytes received and sent, over all links of this process's life.
    pub traffic: (u64, u64),
    /// What the kernel forwards.
    pub forwards: Option<Arc<Forwards>>,
    /// The last failure, while it lasts.
    pub failure: Option<String>,
    /// What the campaign has seen of the Lease.
    pub standing: Standing,
    /// Packets that the fence held back, over this process's life.
    pub fenced_packets: u64,
    /// Packets of sessions that are not ours, over this process's life.
    pub foreign_packets: u64,
}

impl Snapshot {
    /// A standby that knows nothing yet.
    pub fn standby(settings: Arc<Tunnel>) -> Self {
        Self {
            settings,
            leadership: Leadership::Following { holder: None },
            state: State::Standby,
            serves: false,
            handshake: None,
            peer_since: None,
            traffic: (0, 0),
            forwards: None,
            failure: None,
            standing: Standing::default(),
            fenced_packets: 0,
            foreign_packets: 0,
        }
    }

    /// Does this pod hold the Lease, and its tenure last?
    pub fn leads(&self, now: Moment) -> bool {
        matches!(&self.leadership, Leadership::Leading(tenure) if tenure.until > now)
    }

    /// Does the tunnel answer on without a tenure?
    pub fn holds(&self) -> bool {
        self.state == State::Holding
    }

    /// What is left of the tenure; `None` for a standby.
    pub fn tenure_left(&self, now: Moment) -> Option<Duration> {
        match &self.leadership {
            Leadership::Leading(tenure) if tenure.until > now => Some(tenure.until.since(now)),
            _ => None,
        }
    }
}

/// `/status`: this pod, everything `wirevip status` prints of it.
#[derive(Clone, Debug, Serialize)]
pub struct PodReport {
    /// Pod name.
    pub pod: String,
    /// Node name.
    pub node: String,
    /// Version of wirevip.
    pub version: &'static str,
    /// Every tunnel of the Secret, by name.
    pub tunnels: Vec<TunnelReport>,
    /// Faults of the Secret as a whole; each tunnel that is there has them among its own.
    pub faults: Vec<String>,
}

/// One tunnel in [`PodReport`]. Seconds are numbers or null.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TunnelReport {
    /// Tunnel name.
    pub name: String,
    /// The VIP; null while the tunnel never had sound settings.
    pub vip: Option<String>,
    /// `standby`, `rising`, `leading`, `holding`, `falling` or `invalid`.
    pub state: &'static str,
    /// Identity that holds the Lease; null while unknown or released.
    pub holder: Option<String>,
    /// What is left of this pod's tenure.
    pub tenure_seconds: Option<f64>,
    /// What carries, or would carry, the packets.
    pub backend: Backend,
    /// Age of the last handshake.
    pub handshake_age_seconds: Option<f64>,
    /// What the kernel forwards now.
    pub forwards: Vec<ForwardReport>,
    /// Faults of the settings and of bringing the tunnel up.
    pub faults: Vec<String>,
}

/// One forward in [`TunnelReport`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ForwardReport {
    /// `namespace/name`; `control-plane` for the API server.
    pub service: String,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// Port on the VIP.
    pub port: u16,
    /// `address:port` of each backend.
    pub backends: Vec<String>,
}

/// What is said of a tunnel at `now`. `snapshot` is `None` for one that never had sound settings.
pub fn report(
    name: &str,
    snapshot: Option<&Snapshot>,
    faults: &[Fault],
    identity: &str,
    backend: Backend,
    now: Moment,
) -> TunnelReport {
    let mut told: Vec<String> = faults.iter().map(told).collect();
    let Some(snapshot) = snapshot else {
        return TunnelReport {
            name: name.to_owned(),
            vip: None,
            state: "invalid",
            holder: None,
            tenure_seconds: None,
            backend,
            handshake_age_seconds: None,
            forwards: vec![],
            faults: told,
        };
    };
    told.extend(snapshot.failure.clone());
    let holder = match &snapshot.leadership {
        Leadership::Leading(_) => Some(identity.to_owned()),
        Leadership::Following { holder } => holder.clone().filter(|holder| !holder.is_empty()),
    };
    TunnelReport {
        name: name.to_owned(),
        vip: Some(snapshot.settings.vip.to_string()),
        state: match snapshot.state {
            State::Standby => "standby",
            State::Rising => "rising",
            State::Leading => "leading",
            State::Holding => "holding",
            State::Falling => "falling",
        },
        holder,
        tenure_seconds: snapshot.tenure_left(now).map(|left| left.as_secs_f64()),
        backend,
        handshake_age_seconds: snapshot.handshake.map(|done| now.since(done).as_secs_f64()),
        forwards: snapshot.forwards.as_deref().map(forward_reports).unwrap_or_default(),
        faults: told,
    }
}

fn forward_reports(forwards: &Forwards) -> Vec<ForwardReport> {
    forwards
        .iter()
        .map(|(at, forward)| ForwardReport {
            service: forward.owner.to_string(),
            protocol: at.protocol,
            port: at.port,
            backends: forward.backends.iter().map(ToString::to_string).collect(),
        })
        .collect()
}

/// A fault in one line, for people.
pub fn told(fault: &Fault) -> String {
    let Fault { line, tunnel: _, key, message, fix } = fault;
    let key = key.as_deref().map(|key| format!("{key}: ")).unwrap_or_default();
    format!("line {line}: {key}{message}; {fix}")
}

/// Faults of the settings, by tunnel name; the empty name holds those of the document as a whole.
pub type FaultsByTunnel = BTreeMap<String, Vec<Fault>>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::election::Tenure;
    use crate::secret::{Endpoint, Host};

    pub(super) fn at(seconds: u64) -> Moment {
        Moment::new(Duration::from_secs(seconds))
    }

    pub(super) fn snapshot() -> Snapshot {
        let endpoint = Endpoint { host: Host::Name("hub.example".into()), port: 51820 };
        Snapshot::standby(Arc::new(Tunnel { endpoint, ..crate::tunnel::testing::settings("wg0") }))
    }

    pub(super) fn leading(until: u64, handshake: Option<u64>) -> Snapshot {
        Snapshot {
            leadership: Leadership::Leading(Tenure {
                since: at(1),
                until: at(until),
                transitions: 1,
                before: crate::election::Before::Nobody,
            }),
            state: if handshake.is_some() { State::Leading } else { State::Rising },
            serves: handshake.is_some(),
            handshake: handshake.map(at),
            peer_since: Some(at(1)),
            ..snapshot()
        }
    }

    #[test]
    fn a_report_of_a_standby_names_the_holder_and_leaves_what_is_not_measured_null() {
        let mut standby = snapshot();
        standby.leadership = Leadership::Following { holder: Some("wirevip-b_2".into()) };
        let told = serde_json::to_value(report("wg0", Some(&standby), &[], "wirevip-a_1", Backend::Kernel, at(9)));
        assert_eq!(
            told.unwrap(),
            serde_json::json!({
                "name": "wg0", "vip": "10.77.0.2", "state": "standby", "holder": "wirevip-b_2",
                "tenureSeconds": null, "backend": "kernel", "handshakeAgeSeconds": null, "forwards": [], "faults": []
            })
        );
    }

    #[test]
    fn a_report_of_a_leader_counts_from_the_time_it_is_asked_at() {
        let told = report("wg0", Some(&leading(12, Some(2))), &[], "wirevip-a_1", Backend::Userspace, at(9));
        assert_eq!((told.tenure_seconds, told.handshake_age_seconds), (Some(3.0), Some(7.0)));
        assert_eq!((told.state, told.holder.as_deref()), ("leading", Some("wirevip-a_1")));
    }

    #[test]
    fn a_tunnel_that_never_was_sound_is_invalid_with_its_faults() {
        let fault = Fault {
            line: 3,
            tunnel: Some("wg1".into()),
            key: Some("vip".into()),
            message: "\"x\" is no address".into(),
            fix: "give an IPv4 address".into(),
        };
        let told = report("wg1", None, &[fault], "wirevip-a_1", Backend::Kernel, at(9));
        assert_eq!((told.state, told.vip), ("invalid", None));
        assert_eq!(told.faults, ["line 3: vip: \"x\" is no address; give an IPv4 address"]);
    }
}
