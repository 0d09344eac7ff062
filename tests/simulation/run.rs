//! Runs histories, as many at once as there are processors, and tells what came of them.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::checker::{self, Kind, Objection};
use crate::mutants::Mutant;
use crate::record::{Event, History, What};
use crate::weather::Plan;
use crate::world;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("WIREVIP_… must be a number"))
}

/// Figures over many histories.
#[derive(Default)]
struct Figures {
    histories: u64,
    acts: usize,
    events: usize,
    writes: usize,
    time: Duration,
}

impl Figures {
    fn add(&mut self, history: &History) {
        let count = |of: fn(&Event) -> bool| history.events.iter().filter(|event| of(event)).count();
        self.histories += 1;
        self.events += history.events.len();
        self.acts += count(|event| matches!(event.what, What::Befell(_)));
        self.writes += count(|event| matches!(event.what, What::Wrote { .. }));
        self.time += world::length(history);
    }
}

pub fn judge(seed: u64, mutant: Mutant) -> (History, Vec<Objection>) {
    let history = world::live(&Plan::draw(seed), mutant);
    let objections = checker::check(&history);
    (history, objections)
}

fn told(objections: &[Objection]) -> String {
    objections.iter().map(|objection| format!("{objection}\n")).collect()
}

/// The history with the fewest acts that still draws the first objection, and how to see it again.
fn explained(seed: u64, kind: Kind) -> String {
    let plan = world::shrink(&Plan::draw(seed), |plan| {
        checker::check(&world::live(plan, Mutant::None)).iter().any(|objection| objection.kind == kind)
    });
    let history = world::live(&plan, Mutant::None);
    let objections = told(&checker::check(&history));
    format!("{history}{objections}replay: WIREVIP_SEED={seed} WIREVIP_HISTORIES=1 cargo test --test simulation never")
}

#[test]
fn never_is_a_promise_broken_in_random_histories() {
    let histories = number("WIREVIP_HISTORIES").unwrap_or(500);
    let first = number("WIREVIP_SEED").unwrap_or(1);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (next, stop) = (AtomicU64::new(first), AtomicBool::new(false));
    let figures = Mutex::new(Figures::default());
    let failed: Mutex<BTreeMap<u64, Vec<Objection>>> = Mutex::default();
    let worker = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + histories || stop.load(Ordering::Relaxed) {
                return;
            }
            let (history, objections) = judge(seed, Mutant::None);
            figures.lock().unwrap().add(&history);
            if !objections.is_empty() {
                let mut failed = failed.lock().unwrap();
                failed.insert(seed, objections);
                stop.store(failed.len() >= 20, Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(worker);
        }
    });
    let Figures { histories, acts, events, writes, time } = figures.into_inner().unwrap();
    eprintln!(
        "{histories} histories, {} h of true time, {:.1} acts, {:.1} events and {:.1} writes of the Lease each",
        time.as_secs() / 3600,
        acts as f64 / histories as f64,
        events as f64 / histories as f64,
        writes as f64 / histories as f64,
    );
    let failed = failed.into_inner().unwrap();
    for (seed, objections) in &failed {
        eprintln!("history {seed}:\n{}", told(objections));
    }
    if let Some((seed, objections)) = failed.first_key_value() {
        panic!("{} histories break a promise, the first:\n{}", failed.len(), explained(*seed, objections[0].kind));
    }
}

#[test]
fn the_same_seed_gives_the_same_history() {
    for seed in 1..20 {
        let (one, other) = (judge(seed, Mutant::None).0, judge(seed, Mutant::None).0);
        assert_eq!(one, other, "history {seed}");
    }
}
