//! Says what is wrong with a history, from the history alone. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::clock::JIFFY;
use crate::kernel::Trouble;
use crate::packets;
use crate::record::{Event, Fence, History, Kernel, Phase, Voice, What};
use crate::weather::Act;

/// When all faults are over, somebody serves within this: a dead holder's term by the slowest clock, the term that a
/// candidate waits for who was not told who held it last, and the attempts in between.
pub const LEADS_WITHIN: Duration = Duration::from_millis(13_000);
/// A killed leader is replaced within this: a lease by the slowest clock, a retry period if the successor's wall clock
/// is behind, and the attempt that follows.
pub const TAKEN_OVER_WITHIN: Duration = Duration::from_millis(6500);
/// A leader that is told to end is replaced within this: a retry period if the successor's wall clock is behind.
const HANDED_OVER_WITHIN: Duration = Duration::from_millis(1500);
/// Who leads again after another has its session made afresh within this, whatever the kernel's steps take, if they succeed.
const SETTLES_WITHIN: Duration = Duration::from_millis(5000);
/// Told to end, a process has done so within this (contract: SIGTERM).
const ENDS_WITHIN: Duration = Duration::from_millis(3000);
/// What an outsider deletes is back within this (contract: 2 s, a lost link 5 s).
pub const BACK_WITHIN: Duration = Duration::from_millis(5000);

/// Which promise is broken.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// I1: two pods could send unasked at once.
    TwoSpeakers,
    /// I1: the fence would stay open beyond what the Lease's holder was granted.
    ArmedTooLong,
    /// I1: a peer without a fence, and no outsider took it.
    Unfenced,
    /// I2: the Lease was given back by a pod that could still send unasked.
    SpokeOnRelease,
    /// I3: something was left in the kernel.
    LeftBehind,
    /// Election: a Lease was taken before its holder's term was over.
    Stolen,
    /// Election: `leaseTransitions` does not count changes of holder.
    Miscounted,
    /// A pod went on with a session although another spoke in between: the hub may know nothing of it any more.
    OldSession,
    /// Nobody served in time once all was well.
    Nobody,
    /// A leader was silent though nothing was wrong.
    Hole,
    /// I4: what an outsider took did not come back in time.
    NotBack,
    /// Who may hold fell silent although nobody else was there.
    NotHeld,
    /// I1: who may only answer spoke unasked, or to a hub that had just spoken to another.
    Unasked,
    /// A predecessor had the hub although its successor was there.
    PulledBack,
    /// SIGTERM was not over in time.
    Lingers,
}

/// One broken promise.
#[derive(Clone, PartialEq, Debug)]
pub struct Objection {
    pub at: Duration,
    pub kind: Kind,
    pub words: String,
}

impl fmt::Display for Objection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>11.6} s  {:?}: {}", self.at.as_secs_f64(), self.kind, self.words)
    }
}

/// All that is wrong, in the order of time.
pub fn check(history: &History) -> Vec<Objection> {
    let spans = spans(history);
    let mut objections = [
        two_speakers(&spans),
        old_sessions(history, &spans),
        fences(history),
        leases(history),
        ends(history),
        calm(history, &spans),
        held(history, &spans),
        packets::check(history),
    ]
    .concat();
    objections.sort_by_key(|objection| objection.at);
    objections
}

/// What is more where the hub is far: a handshake, and kicks of it that came too early.
pub fn far(round_trip: Duration) -> Duration {
    4 * round_trip
}

pub fn objection(at: Duration, kind: Kind, words: String) -> Objection {
    Objection { at, kind, words }
}

/// A time in which what a pod's kernel held stayed the same, or changed in no way that matters here.
#[derive(Clone, Copy, Debug)]
struct Span {
    pod: usize,
    from: Duration,
    to: Duration,
    session: Duration,
    serves: bool,
}

/// All times in which pods could send unasked.
fn spans(history: &History) -> Vec<Span> {
    let mut states: BTreeMap<usize, Vec<(Duration, Kernel)>> = BTreeMap::new();
    for Event { at, what } in &history.events {
        if let What::Kernel { pod, state } = what {
            states.entry(*pod).or_default().push((*at, *state));
        }
    }
    let end = history.events.last().map_or(Duration::ZERO, |event| event.at);
    let mut spans = vec![];
    for (pod, states) in states {
        for (place, (from, state)) in states.iter().enumerate() {
            let next = states.get(place + 1).map_or(end, |(at, _)| *at);
            let to = state.changes().map_or(next, |change| change.min(next));
            let session = state.link.and_then(|link| link.session);
            if let (Voice::Free, Some(session)) = (state.voice(*from), session)
                && *from < to
            {
                spans.push(Span { pod, from: *from, to, session, serves: state.serves() });
            }
        }
    }
    spans.sort_by_key(|span| span.from);
    spans
}

fn two_speakers(spans: &[Span]) -> Vec<Objection> {
    let mut found = vec![];
    for (place, one) in spans.iter().enumerate() {
        for other in spans[place + 1..].iter().take_while(|other| other.from < one.to) {
            if other.pod != one.pod {
                let both = one.to.min(other.to) - other.from;
                let words = format!("pods {} and {} could both send unasked, for {both:?}", one.pod, other.pod);
                found.push(objection(other.from, Kind::TwoSpeakers, words));
            }
        }
    }
    found
}

fn old_sessions(history: &History, spans: &[Span]) -> Vec<Objection> {
    let mut found = vec![];
    for (place, span) in spans.iter().enumerate() {
        let between = spans[..place].iter().find(|other| other.pod != span.pod && span.session < other.from);
        let again = between.and_then(|other| {
            spans.iter().find(|at| at.pod == span.pod && at.session == span.session && other.from < at.from)
        });
        // Its successor's fence opens before its own session is made afresh.
        let settles = again.map_or(span.to, |again| obeyed_from(history, span.pod, again.from) + SETTLES_WITHIN);
        if let Some(other) = between
            && settles < span.to
        {
            let words = format!(
                "pod {} goes on with its session of {:?}, although pod {} spoke from {:?} on",
                span.pod, span.session, other.pod, other.from
            );
            found.push(objection(span.from, Kind::OldSession, words));
        }
    }
    found
}

/// The first moment from `since` on at which no step in the pod's kernel fails by chance: none is bound to be taken before.
fn obeyed_from(history: &History, pod: usize, since: Duration) -> Duration {
    let mut fails = false;
    for Event { at, what } in &history.events {
        if *at > since && !fails {
            break;
        }
        match what {
            What::Befell(Act::Kernel(of, trouble)) if *of == pod => fails = trouble.failed + trouble.hung > 0.0,
            What::Phase(Phase::Calm) => fails = false,
            _ => continue,
        }
        if *at > since && !fails {
            return *at;
        }
    }
    if fails { Duration::MAX / 2 } else { since }
}

/// Every opening of a fence is covered by a write of the Lease, and every peer by a fence.
fn fences(history: &History) -> Vec<Objection> {
    let mut found = vec![];
    let (lease, margin) = (history.params.lease, history.params.margin());
    let mut sent: Vec<(Duration, usize, _)> = vec![];
    let mut granted: BTreeMap<usize, Duration> = BTreeMap::new();
    let mut taken: BTreeMap<usize, bool> = BTreeMap::new();
    for Event { at, what } in &history.events {
        match what {
            What::Sent { pod, record } => sent.push((*at, *pod, record)),
            What::Wrote { by: Some(pod), record: Some(record) } if !record.holder.is_empty() => {
                let asked = sent.iter().rev().find(|(_, by, asked)| by == pod && *asked == record);
                let Some((asked, ..)) = asked else { continue };
                // The longer of the two: what is left is reckoned by one clock, and counted by the other.
                let slowest = history.rates[*pod].process.min(history.rates[*pod].kernel);
                let until = *asked + (lease - margin).div_f64(slowest) + 2 * JIFFY;
                let grant = granted.entry(*pod).or_default();
                *grant = until.max(*grant);
            }
            What::Befell(Act::TableLost { pod, forwards: false }) => {
                taken.insert(*pod, true);
            }
            What::Kernel { pod, state } => {
                if state.fence != Fence::Absent {
                    taken.insert(*pod, false);
                }
                let outsider = taken.get(pod).copied().unwrap_or_default();
                if state.fence == Fence::Absent && state.voice(*at) == Voice::Free && !outsider {
                    found.push(objection(*at, Kind::Unfenced, format!("pod {pod} has a peer and no fence")));
                }
                let granted = granted.get(pod).copied().unwrap_or_default();
                if let Fence::Lead { until, .. } = state.fence
                    && granted < until
                {
                    let words = format!("pod {pod} opens its fence until {until:?}, granted was {granted:?}");
                    found.push(objection(*at, Kind::ArmedTooLong, words));
                }
            }
            _ => {}
        }
    }
    found
}

/// Who wrote the Lease had the right to, and was silent when it gave it back.
fn leases(history: &History) -> Vec<Objection> {
    let mut found = vec![];
    let mut kernels: BTreeMap<usize, Kernel> = BTreeMap::new();
    let (mut last, mut highest) = (None, 0);
    for Event { at, what } in &history.events {
        match what {
            What::Kernel { pod, state } => {
                kernels.insert(*pod, *state);
            }
            What::Wrote { by, record } => {
                let most = highest;
                highest = record.as_ref().map_or(most, |record| most.max(record.transitions));
                let before = std::mem::replace(&mut last, record.as_ref().map(|record| (*at, record)));
                let (Some(pod), Some(record)) = (by, record) else { continue };
                let voice = kernels.get(pod).map_or(Voice::Silent, |kernel| kernel.voice(*at));
                if record.is_release() && voice == Voice::Free {
                    let words = format!("pod {pod} gave the Lease back and could still send unasked");
                    found.push(objection(*at, Kind::SpokeOnRelease, words));
                }
                let Some((since, old)) = before else { continue };
                let mine = old.holder.starts_with(&format!("pod-{pod}_"));
                let changed = old.holder != record.holder && !record.holder.is_empty();
                // Somebody may have set the number back; who remembers more goes on from there.
                let counted = match changed {
                    true => old.transitions < record.transitions && record.transitions <= most + 1,
                    false => record.transitions == old.transitions,
                };
                if !counted {
                    let words = format!("pod {pod} wrote {} transitions after {}", record.transitions, old.transitions);
                    found.push(objection(*at, Kind::Miscounted, words));
                }
                let by_its_clock = (*at - since).mul_f64(history.rates[*pod].process);
                // A nanosecond is what the arithmetic may lose.
                if !old.holder.is_empty() && !mine && by_its_clock + Duration::from_micros(1) < old.duration() {
                    let words = format!(
                        "pod {pod} took the Lease {by_its_clock:?} by its own clock after {} had it written for {:?}",
                        old.holder,
                        old.duration()
                    );
                    found.push(objection(*at, Kind::Stolen, words));
                }
            }
            _ => {}
        }
    }
    found
}

/// Who ended as told left nothing; in the end everybody did.
fn ends(history: &History) -> Vec<Objection> {
    let mut found = vec![];
    let mut kernels: BTreeMap<usize, Kernel> = BTreeMap::new();
    let mut stop = None;
    let mut running: BTreeMap<usize, Duration> = BTreeMap::new();
    for Event { at, what } in &history.events {
        match what {
            What::Kernel { pod, state } => {
                kernels.insert(*pod, *state);
            }
            What::Started { pod, .. } => {
                running.insert(*pod, *at);
            }
            What::Ended { pod, in_time } => {
                running.remove(pod);
                let kernel = kernels.get(pod).copied().unwrap_or_default();
                if *in_time && !kernel.is_clean() {
                    found.push(objection(*at, Kind::LeftBehind, format!("pod {pod} left: {kernel}")));
                }
                if stop.is_some_and(|stop| !in_time || *at > stop + ENDS_WITHIN) {
                    found.push(objection(*at, Kind::Lingers, format!("pod {pod} did not end in time")));
                }
            }
            What::Phase(Phase::Stop) => stop = Some(*at),
            What::Phase(Phase::End) => {
                found.extend(running.keys().map(|pod| objection(*at, Kind::Lingers, format!("pod {pod} runs on"))));
            }
            _ => {}
        }
    }
    found
}

/// Once all is well somebody serves, goes on without a hole, and is replaced in time.
fn calm(history: &History, spans: &[Span]) -> Vec<Objection> {
    let phases: Vec<(Duration, Phase)> = history
        .events
        .iter()
        .filter_map(|event| match event.what {
            What::Phase(phase) => Some((event.at, phase)),
            _ => None,
        })
        .collect();
    let mut found = vec![];
    let mut leader = None;
    for pair in phases.windows(2) {
        let [(from, phase), (to, _)] = *pair else { continue };
        let bound = match phase {
            Phase::Calm => LEADS_WITHIN,
            Phase::Robbed => BACK_WITHIN,
            Phase::Killed => TAKEN_OVER_WITHIN,
            Phase::HandOver => HANDED_OVER_WITHIN,
            Phase::Stop | Phase::End => break,
        } + far(history.round_trip);
        let old = leader.filter(|_| matches!(phase, Phase::Killed | Phase::HandOver));
        let serving = |span: &&Span| span.serves && from < span.to && span.from < to && Some(span.pod) != old;
        let Some(last) = spans.iter().filter(serving).rfind(|span| to <= span.to) else {
            let kind = match phase {
                Phase::Robbed => Kind::NotBack,
                _ if spans.iter().any(|span| serving(&span)) => Kind::Hole,
                _ => Kind::Nobody,
            };
            found.push(objection(to, kind, format!("nobody serves at the end of {phase:?}")));
            leader = None;
            continue;
        };
        leader = Some(last.pod);
        let mut since = last.from;
        for span in spans.iter().rev().filter(serving).filter(|span| span.pod == last.pod && span.from < last.from) {
            if since <= span.to {
                since = span.from;
            }
        }
        if since > from + bound {
            let before = spans.iter().filter(serving).any(|span| span.from <= from + bound);
            let kind = if before { Kind::Hole } else { Kind::Nobody };
            let words = format!("pod {} serves without a break only {:?} after {phase:?}", last.pod, since - from);
            found.push(objection(since, kind, words));
        }
    }
    found
}

/// Cut off from the API, and with nothing else that went wrong, a leader that may hold does so until another speaks.
fn held(history: &History, spans: &[Span]) -> Vec<Objection> {
    let mut found = vec![];
    let mut kernels: BTreeMap<usize, Kernel> = BTreeMap::new();
    let mut wrong: BTreeMap<usize, Duration> = BTreeMap::new();
    let mut frozen: BTreeMap<usize, bool> = BTreeMap::new();
    let mut unread: BTreeMap<usize, bool> = BTreeMap::new();
    let lease = history.params.lease;
    for Event { at, what } in &history.events {
        match what {
            What::Befell(Act::Way(..) | Act::Api(_) | Act::Deafen(_) | Act::Gone(_) | Act::WallStep(..)) => {}
            What::Befell(Act::Freeze(pod)) => _ = frozen.insert(*pod, true),
            What::Befell(Act::Thaw(pod)) => _ = frozen.insert(*pod, false),
            What::Befell(Act::Kernel(pod, trouble)) if *trouble != Trouble::default() => {
                wrong.insert(*pod, Duration::MAX);
            }
            What::Befell(_) | What::Phase(_) => {
                for pod in 0..history.rates.len() {
                    let until = wrong.entry(pod).or_default();
                    *until = (*until).max(*at + 2 * lease);
                }
            }
            What::Kernel { pod, state } => {
                let before = kernels.insert(*pod, *state).unwrap_or_default();
                // Who has not seen yet that the hub answered has nothing to hold.
                let news =
                    unread.insert(*pod, frozen.get(pod).copied().unwrap_or_default() && state.link != before.link);
                let Fence::Lead { until, then_hold: true } = before.fence else { continue };
                let other = spans.iter().any(|span| span.pod != *pod && until <= span.from && span.from <= *at);
                let knows = !news.unwrap_or_default();
                let well = wrong.get(pod).is_none_or(|until| until < at) && before.serves() && knows;
                // It lapsed, and the process did something about it.
                let lapsed = *at + Duration::from_millis(50) > until && *at < until + lease;
                if well && lapsed && !other && state.voice(*at) == Voice::Silent {
                    found.push(objection(*at, Kind::NotHeld, format!("pod {pod} falls silent: {state}")));
                }
            }
            _ => {}
        }
    }
    found
}
