//! What happened in one history, as a bystander with true time and sight of every kernel would write it down. Nothing in
//! it is what a daemon says of itself: `checker` judges by what left, what was asked and what was written.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use wirevip::clock::{Clock, TokioClock};
use wirevip::election::{Params, Record};

use crate::clock::Rates;
use crate::weather::Act;

/// All of one history.
#[derive(Clone, PartialEq, Debug)]
pub struct History {
    pub seed: u64,
    /// `--hold`.
    pub hold: bool,
    /// The longest that a message to the hub and its answer take.
    pub round_trip: Duration,
    pub params: Params,
    /// By pod.
    pub rates: Vec<Rates>,
    pub events: Vec<Event>,
}

/// `at`: true time since the history began.
#[derive(Clone, PartialEq, Debug)]
pub struct Event {
    pub at: Duration,
    pub what: What,
}

#[derive(Clone, PartialEq, Debug)]
pub enum What {
    /// Something befell the world.
    Befell(Act),
    /// What comes from here on.
    Phase(Phase),
    /// A process began; under this identity.
    Started { pod: usize, identity: String },
    /// A process that was told to end did so, all done; or it was cut short after 3 s.
    Ended { pod: usize, in_time: bool },
    /// The pod sent this, to be written.
    Sent { pod: usize, record: Record },
    /// The API server wrote this, by this pod's request or by hand. `None`: the Lease is gone.
    Wrote { by: Option<usize>, record: Option<Record> },
    /// From now on the pod's kernel holds this.
    Kernel { pod: usize, state: Kernel },
    /// From now on the hub sends so.
    Hub(Hub),
    /// A message left a pod whose fence was not open. `heard`: when the hub last sent something for a session of this
    /// pod's, or called; `foreign`: when it last sent something for another's while the fence was not open.
    Left { pod: usize, said: Said, heard: Option<Duration>, foreign: Option<Duration> },
}

/// Where the hub sends, by pod.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Hub {
    /// From whom it had its last authentic message.
    pub endpoint: Option<usize>,
    /// Whose session it sends in.
    pub session: Option<usize>,
}

/// What a pod said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Said {
    /// Began a handshake.
    Call,
    /// Answered the hub's.
    Response,
    Keepalive,
    Data,
}

/// The parts of a history.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// All faults are over, every pod runs: somebody has to lead, and to go on.
    Calm,
    /// An outsider takes something of the leader's.
    Robbed,
    /// The leader of the calm is killed.
    Killed,
    /// The leader of the time is told to end.
    HandOver,
    /// All are told to end.
    Stop,
    /// That is all.
    End,
}

/// What of the tunnel is in a pod's kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Kernel {
    pub link: Option<Link>,
    pub fence: Fence,
    /// The forwards table is there and as written.
    pub forwards: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Link {
    /// When the peer was put in afresh; `None`: it has none, and can send nothing.
    pub session: Option<Duration>,
    /// The hub answered its handshake.
    pub answered: bool,
    /// Up, with all addresses, routes and rules.
    pub whole: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Fence {
    #[default]
    Absent,
    Closed,
    /// Answers may leave.
    Hold,
    /// Open until then, by true time; what comes after is hold, or closed.
    Lead {
        until: Duration,
        then_hold: bool,
    },
}

/// What a pod's kernel would let out, were there something to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Voice {
    Silent,
    /// What answers the hub, and nothing unasked.
    Answers,
    /// Whatever WireGuard wants to send, also unasked: handshakes, keepalives.
    Free,
}

impl Kernel {
    /// The voice at this time, if nothing changes until then.
    pub fn voice(&self, at: Duration) -> Voice {
        let speaks = self.link.is_some_and(|link| link.session.is_some());
        match self.fence {
            _ if !speaks => Voice::Silent,
            Fence::Absent => Voice::Free,
            Fence::Lead { until, .. } if at < until => Voice::Free,
            Fence::Hold | Fence::Lead { then_hold: true, .. } => Voice::Answers,
            Fence::Closed | Fence::Lead { then_hold: false, .. } => Voice::Silent,
        }
    }

    /// When the voice changes by itself.
    pub fn changes(&self) -> Option<Duration> {
        match self.fence {
            Fence::Lead { until, .. } => Some(until),
            Fence::Absent | Fence::Closed | Fence::Hold => None,
        }
    }

    /// A client beyond the hub is served, as long as the voice is free.
    pub fn serves(&self) -> bool {
        self.forwards && self.link.is_some_and(|link| link.answered && link.whole)
    }

    pub fn is_clean(&self) -> bool {
        *self == Self::default()
    }
}

/// Writes events down. Clones write to the same history.
#[derive(Clone)]
pub struct Scribe {
    world: TokioClock,
    events: Arc<Mutex<Vec<Event>>>,
}

impl Scribe {
    pub fn new(world: TokioClock) -> Self {
        Self { world, events: Arc::default() }
    }

    pub fn now(&self) -> Duration {
        self.world.now().since_boot()
    }

    pub fn write(&self, what: What) {
        let at = self.now();
        self.events.lock().unwrap().push(Event { at, what });
    }

    pub fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap().clone()
    }
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "history {}: {} pods, lease {:?}, hold {}, round trip {:?}",
            self.seed,
            self.rates.len(),
            self.params.lease,
            self.hold,
            self.round_trip
        )?;
        for (pod, Rates { process, kernel }) in self.rates.iter().enumerate() {
            writeln!(f, "  pod {pod}: clock at {process:.6}, kernel's ticks at {kernel:.6} of true time")?;
        }
        self.events.iter().try_for_each(|event| writeln!(f, "{event}"))
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>11.6} s  ", self.at.as_secs_f64())?;
        match &self.what {
            What::Befell(act) => write!(f, "       {act:?}"),
            What::Phase(phase) => write!(f, "====== {phase:?}"),
            What::Started { pod, identity } => write!(f, "pod {pod}: starts as {identity}"),
            What::Ended { pod, in_time: true } => write!(f, "pod {pod}: ended, as told"),
            What::Ended { pod, in_time: false } => write!(f, "pod {pod}: ended, not all done in time"),
            What::Sent { pod, record } => write!(f, "pod {pod}: asks for {}", words(Some(record))),
            What::Wrote { by: Some(pod), record } => write!(f, "Lease: {} (pod {pod})", words(record.as_ref())),
            What::Wrote { by: None, record } => write!(f, "Lease: {} (by hand)", words(record.as_ref())),
            What::Kernel { pod, state } => write!(f, "pod {pod}: {state}"),
            What::Hub(Hub { endpoint: None, .. }) => write!(f, "hub: knows nobody"),
            What::Hub(Hub { endpoint: Some(pod), session: None }) => {
                write!(f, "hub: sends to pod {pod}, has no session")
            }
            What::Hub(Hub { endpoint: Some(pod), session: Some(of) }) => {
                write!(f, "hub: sends to pod {pod}, in the session of pod {of}")
            }
            What::Left { pod, said, heard, foreign } => {
                write!(f, "pod {pod}: {said:?} leaves, heard at {heard:?}, foreign at {foreign:?}")
            }
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.link {
            None => write!(f, "no link")?,
            Some(Link { session: None, .. }) => write!(f, "link without peer")?,
            Some(Link { session: Some(since), answered, whole }) => {
                let answered = if answered { "answered" } else { "unanswered" };
                let whole = if whole { "" } else { ", not whole" };
                write!(f, "peer of {:.6} s {answered}{whole}", since.as_secs_f64())?;
            }
        }
        match self.fence {
            Fence::Absent => write!(f, ", no fence")?,
            Fence::Closed => write!(f, ", fence closed")?,
            Fence::Hold => write!(f, ", fence holds")?,
            Fence::Lead { until, then_hold } => {
                let then = if then_hold { ", then holds" } else { "" };
                write!(f, ", fence open until {:.6} s{then}", until.as_secs_f64())?;
            }
        }
        write!(f, "{}", if self.forwards { ", forwards" } else { "" })
    }
}

fn words(record: Option<&Record>) -> String {
    match record {
        None => "none".to_owned(),
        Some(record) if record.is_release() => format!("released, transitions {}", record.transitions),
        Some(record) => {
            let Record { holder, duration_seconds, transitions, .. } = record;
            format!("holder {holder:?} for {duration_seconds} s, transitions {transitions}")
        }
    }
}
