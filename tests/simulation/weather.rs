//! What befalls a world: drawn from a seed before it begins, as plain data.
//!
//! Each history enables some kinds of trouble and leaves the others out (swarm testing): a fault that another one hides
//! shows in the histories without that one.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use wirevip::election::testing::{Way, Weather};

use crate::clock::Rates;
use crate::kernel::Trouble;
use crate::wire::Road;

/// Something that happens.
#[derive(Clone, PartialEq, Debug)]
pub enum Act {
    /// SIGKILL.
    Kill(usize),
    /// The kubelet starts the container again, in the same pod.
    Start(usize),
    /// SIGTERM.
    Terminate(usize),
    /// The pod is deleted with its network namespace, and another takes its place.
    Replace(usize),
    /// SIGSTOP, or no processor for it.
    Freeze(usize),
    /// SIGCONT.
    Thaw(usize),
    /// The way to the API server opens or closes.
    Way(usize, Way),
    /// The API server goes away or comes back, for all.
    Api(Way),
    /// How requests fare.
    Weather(usize, Weather),
    /// The watch's connection dies, and nobody says so.
    Deafen(usize),
    /// The watch is ended (410 Gone) and begins anew.
    Gone(usize),
    /// Somebody deletes the Lease.
    LeaseDeleted,
    /// Somebody empties its spec.
    LeaseEmptied,
    /// Somebody writes another holder into it.
    LeaseGiven(&'static str),
    /// Somebody labels it.
    LeaseLabelled,
    /// The hub answers, or does not.
    Hub(bool),
    /// How kernel steps fare.
    Kernel(usize, Trouble),
    /// An outsider deletes the link.
    LinkLost(usize),
    /// An outsider deletes a table: the forwards', else the fence's.
    TableLost { pod: usize, forwards: bool },
    /// An outsider sets the link down.
    LinkDown(usize),
    /// The wall clock is set, by so many microseconds.
    WallStep(usize, i64),
    /// Services change: so many forwards from now on.
    Forwards(u16),
    /// The Secret changes.
    Settings { keepalive: u16, port: u16 },
}

/// One history to come.
#[derive(Clone, PartialEq, Debug)]
pub struct Plan {
    pub seed: u64,
    /// `--hold`.
    pub hold: bool,
    /// By pod: its clocks, when it booted, and how far its wall clock is off.
    pub pods: Vec<(Rates, Duration, i64)>,
    pub road: Road,
    /// What happens, each after this pause.
    pub acts: Vec<(Duration, Act)>,
}

/// What kinds of trouble a history may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Processes,
    Frozen,
    Cut,
    Requests,
    Watches,
    Hands,
    Hub,
    Kernel,
    Outsider,
    Clocks,
    Changes,
}

const KINDS: [Kind; 11] = [
    Kind::Processes,
    Kind::Frozen,
    Kind::Cut,
    Kind::Requests,
    Kind::Watches,
    Kind::Hands,
    Kind::Hub,
    Kind::Kernel,
    Kind::Outsider,
    Kind::Clocks,
    Kind::Changes,
];

impl Plan {
    pub fn draw(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let count = rng.random_range(2..=5);
        let pods = Rates::draw(&mut rng, count)
            .into_iter()
            .map(|rates| (rates, ms(rng.random_range(0..1_000_000_000)), rng.random_range(-90..=90)))
            .collect();
        let mut kinds: Vec<Kind> = KINDS.into_iter().filter(|_| rng.random_bool(0.45)).collect();
        if kinds.contains(&Kind::Hands) {
            // Who starts with no memory finds what hands made of the Lease, and has to believe it: to delete a Lease is
            // an order to such a candidate to take over (docs/simulation.md).
            kinds.retain(|kind| *kind != Kind::Processes);
        }
        if kinds.is_empty() {
            kinds.push(Kind::Frozen);
        }
        let mut acts = vec![];
        // Hands touch what everybody has seen.
        let mut pause = Some(ms(rng.random_range(0..8000)));
        for _ in 0..rng.random_range(4..24) {
            let kind = *kinds.choose(&mut rng).unwrap();
            for act in draw(kind, count, &mut rng) {
                let next = pause.take().unwrap_or_else(|| ms(pause_after(&mut rng)));
                acts.push((next, act));
            }
        }
        let hold = rng.random_bool(0.7);
        Self { seed, hold, pods, road: road(&mut rng), acts }
    }
}

fn road(rng: &mut StdRng) -> Road {
    Road {
        round_trip: ms(*[2, 10, 30, 100, 280, 500].choose(rng).unwrap()),
        loss: *[0.0, 0.0, 0.01, 0.1].choose(rng).unwrap(),
        beat: ms(rng.random_range(20..100)),
        slow: *[0.0, 0.2].choose(rng).unwrap(),
    }
}

fn pause_after(rng: &mut StdRng) -> u64 {
    match rng.random_range(0..10) {
        0..3 => rng.random_range(0..40),
        3..8 => rng.random_range(0..2500),
        _ => rng.random_range(0..9000),
    }
}

/// One act, or a few that belong together.
fn draw(kind: Kind, pods: usize, rng: &mut StdRng) -> Vec<Act> {
    let pod = rng.random_range(0..pods);
    let act = match kind {
        Kind::Processes => match rng.random_range(0..8) {
            0 | 1 => Act::Kill(pod),
            2 | 3 => return vec![Act::Kill(pod), Act::Start(pod)],
            4 => Act::Terminate(pod),
            5 => Act::Replace(pod),
            _ => Act::Start(pod),
        },
        Kind::Frozen => match rng.random_range(0..3) {
            0 => Act::Freeze(pod),
            1 => Act::Thaw(pod),
            _ => return vec![Act::Freeze(pod), Act::Thaw(pod)],
        },
        Kind::Cut => match rng.random_range(0..6) {
            0 => Act::Way(pod, way(rng)),
            1 => return vec![Act::Way(pod, way(rng)), Act::Way(pod, Way::Open)],
            2 => Act::Api(way(rng)),
            3 => return vec![Act::Api(way(rng)), Act::Api(Way::Open)],
            4 => Act::Api(Way::Open),
            _ => Act::Way(pod, Way::Open),
        },
        Kind::Requests => Act::Weather(pod, requests(rng)),
        Kind::Watches => match rng.random() {
            true => Act::Deafen(pod),
            false => Act::Gone(pod),
        },
        Kind::Hands => match rng.random_range(0..4) {
            0 => Act::LeaseDeleted,
            1 => Act::LeaseEmptied,
            2 => Act::LeaseGiven("nobody"),
            _ => Act::LeaseLabelled,
        },
        Kind::Hub => Act::Hub(rng.random()),
        Kind::Kernel => Act::Kernel(pod, trouble(rng)),
        Kind::Outsider => match rng.random_range(0..4) {
            0 => Act::LinkLost(pod),
            1 => Act::LinkDown(pod),
            n => Act::TableLost { pod, forwards: n == 2 },
        },
        Kind::Clocks => Act::WallStep(pod, rng.random_range(-60_000_000..60_000_000)),
        Kind::Changes => match rng.random_range(0..3) {
            0 => Act::Settings { keepalive: rng.random_range(0..30), port: 51820 + rng.random_range(0..2) },
            _ => Act::Forwards(rng.random_range(0..4)),
        },
    };
    vec![act]
}

fn way(rng: &mut StdRng) -> Way {
    *[Way::Refused, Way::Silent, Way::Mute].choose(rng).unwrap()
}

fn requests(rng: &mut StdRng) -> Weather {
    if rng.random_bool(0.3) {
        return Weather::default();
    }
    let slowest = *[2, 20, 200, 1500].choose(rng).unwrap();
    let mut share = |most: f64| if rng.random() { rng.random_range(0.0..most) } else { 0.0 };
    Weather {
        latency: ms(1)..ms(slowest),
        failed: share(0.5),
        lost: share(0.3),
        late: share(0.1),
        conflict: share(0.2),
        stuck: share(0.2),
    }
}

fn trouble(rng: &mut StdRng) -> Trouble {
    if rng.random_bool(0.3) {
        return Trouble::default();
    }
    let slowest = *[5, 50, 500].choose(rng).unwrap();
    let mut share = |most: f64| if rng.random() { rng.random_range(0.0..most) } else { 0.0 };
    Trouble { takes: ms(0)..ms(slowest), failed: share(1.0), hung: share(0.5), refused: share(0.5), lost: share(0.3) }
}

pub fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}
