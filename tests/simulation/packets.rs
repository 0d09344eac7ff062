//! The checker's part about messages: who only answers says nothing unasked, and the hub stays with a successor. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::checker::{Kind, Objection, objection};
use crate::clock::JIFFY;
use crate::kernel::{HANGS, Trouble};
use crate::record::{Event, History, Hub, Kernel, Said, Voice, What};
use crate::weather::Act;

/// So long after the hub was heard it may be answered, and so long after it spoke to another it may not.
const HEARD: Duration = Duration::from_secs(60);
const FOREIGN: Duration = Duration::from_secs(2);
/// So long a predecessor may have the hub once its successor has shaken hands; and a round trip.
const PULLED_BACK: Duration = Duration::from_millis(300);

pub fn check(history: &History) -> Vec<Objection> {
    [unasked(history), pulled_back(history)].concat()
}

fn unasked(history: &History) -> Vec<Objection> {
    let mut found = vec![];
    let mut kernels: BTreeMap<usize, Kernel> = BTreeMap::new();
    for Event { at, what } in &history.events {
        let (pod, said, heard, foreign) = match what {
            What::Kernel { pod, state } => {
                kernels.insert(*pod, *state);
                continue;
            }
            What::Left { pod, said, heard, foreign } => (*pod, *said, *heard, *foreign),
            _ => continue,
        };
        let voice = kernels.get(&pod).map_or(Voice::Silent, |kernel| kernel.voice(*at));
        let rate = history.rates[pod].kernel;
        let (lately, silenced) = (HEARD.div_f64(rate) + JIFFY, FOREIGN.div_f64(rate) - JIFFY);
        let wrong = match (voice, said) {
            (Voice::Free, _) => None,
            (Voice::Silent, _) => Some("its fence is closed"),
            (Voice::Answers, Said::Call) => Some("it begins"),
            // A keepalive looks like any other data, and no length lets a message pass or not (`fence`).
            (Voice::Answers, Said::Response | Said::Keepalive | Said::Data) => {
                if heard.is_none_or(|heard| heard + lately < *at) {
                    Some("the hub was not heard of late")
                } else if foreign.is_some_and(|foreign| *at < foreign + silenced) {
                    Some("the hub has just spoken to another")
                } else {
                    None
                }
            }
        };
        if let Some(why) = wrong {
            found.push(objection(*at, Kind::Unasked, format!("pod {pod} says {said:?}, and {why}")));
        }
    }
    found
}

/// What a bystander knows at one moment.
#[derive(Default)]
struct Scene {
    kernels: BTreeMap<usize, Kernel>,
    hub: Hub,
    hub_away: bool,
    /// Processes that stand still, are dead or end.
    dead: BTreeMap<usize, bool>,
    /// Until when kernels are in trouble: what hangs when it ends takes its time, and what comes after waits for it.
    troubled: BTreeMap<usize, Duration>,
    frozen: BTreeMap<usize, bool>,
}

impl Scene {
    fn enter(&mut self, at: Duration, what: &What) {
        match what {
            What::Kernel { pod, state } => _ = self.kernels.insert(*pod, *state),
            What::Hub(hub) => self.hub = *hub,
            What::Started { pod, .. } => {
                self.dead.insert(*pod, false);
                self.frozen.insert(*pod, false);
            }
            What::Befell(Act::Kill(pod) | Act::Terminate(pod)) => _ = self.dead.insert(*pod, true),
            What::Befell(Act::Freeze(pod)) => _ = self.frozen.insert(*pod, true),
            What::Befell(Act::Thaw(pod)) => _ = self.frozen.insert(*pod, false),
            What::Befell(Act::Kernel(pod, trouble)) => {
                let over = if *trouble == Trouble::default() { at + HANGS.end } else { Duration::MAX };
                self.troubled.insert(*pod, over);
            }
            What::Befell(Act::Hub(answers)) => self.hub_away = !answers,
            What::Phase(_) => {
                (self.hub_away, self.frozen) = Default::default();
                self.troubled.values_mut().for_each(|over| *over = (*over).min(at + HANGS.end));
            }
            _ => {}
        }
    }

    /// Who has the hub in another's session, and whose, until when at most, if that other can help itself.
    fn pulled_back(&self, at: Duration) -> Option<(usize, usize, Duration)> {
        let Hub { endpoint: Some(old), session: Some(successor) } = self.hub else { return None };
        let kernel = self.kernels.get(&successor)?;
        let is = |of: &BTreeMap<usize, bool>| of.get(&successor).copied().unwrap_or_default();
        let able = !self.hub_away && !is(&self.dead) && !is(&self.frozen);
        let able = able && self.troubled.get(&successor).is_none_or(|over| *over <= at);
        let speaks = kernel.voice(at) == Voice::Free && kernel.link.is_some_and(|link| link.answered);
        let rises = self.kernels.get(&old).is_some_and(|kernel| kernel.voice(at) == Voice::Free);
        let until = kernel.changes().unwrap_or(Duration::MAX);
        (old != successor && able && speaks && !rises).then_some((old, successor, until))
    }
}

fn pulled_back(history: &History) -> Vec<Objection> {
    let mut found = vec![];
    let mut scene = Scene::default();
    let mut since: Option<(Duration, usize, usize, Duration)> = None;
    for Event { at, what } in &history.events {
        if let Some((from, old, successor, until)) = since
            && from + PULLED_BACK + history.round_trip < (*at).min(until)
        {
            let words = format!("pod {old} has the hub back for {:?}, and pod {successor} leads", *at - from);
            found.push(objection(from, Kind::PulledBack, words));
            since = None;
        }
        scene.enter(*at, what);
        since = match (scene.pulled_back(*at), since) {
            (Some((old, successor, until)), Some((from, before, other, _))) if (before, other) == (old, successor) => {
                Some((from, old, successor, until))
            }
            (Some((old, successor, until)), _) => Some((*at, old, successor, until)),
            (None, _) => None,
        };
    }
    found
}
