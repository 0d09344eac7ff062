//! The fault matrix: every fault of `lab::faults` alone, and random pairs of them, on real processes. After each, within
//! 12 s of its end, the client is served; the referee is content; when the pods are then stopped, nothing is left in
//! their network, and no key stands in any log.
//!
//! `WIREVIP_FAULT="the hub"` plays only those single faults whose name has this text, `WIREVIP_FAULT_HOLD=false` all single
//! ones without hold. Pairs come from a seed that is printed: `WIREVIP_FAULT_SEED=… WIREVIP_FAULT_PAIRS=1` plays that of a failure again.

mod trial;

use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use lab::faults::{Fault, Pair, pair};
use lab::{World, play_unstarted};

use self::trial::{Trial, Trials};

/// Worlds at once: mostly they wait.
const LANES: usize = 2;

/// Pairs in a run, every other one without hold, unless `WIREVIP_FAULT_PAIRS` says otherwise.
const PAIRS: u64 = 8;

#[test]
#[ignore = "needs root"]
fn a_leader_that_is_killed_frozen_or_starved_is_survived() -> Result<()> {
    each(Fault::PROCESSES)
}

#[test]
#[ignore = "needs root"]
fn a_node_that_is_cut_off_is_survived() -> Result<()> {
    each(Fault::NODE)
}

#[test]
#[ignore = "needs root"]
fn a_clock_that_is_set_a_suspend_and_a_kernel_without_buffers_are_survived() -> Result<()> {
    each(Fault::MACHINE)
}

#[test]
#[ignore = "needs root"]
fn an_api_server_that_fails_is_survived() -> Result<()> {
    each(Fault::API)
}

#[test]
#[ignore = "needs root"]
fn a_lease_a_secret_and_endpoints_that_others_meddle_with_are_survived() -> Result<()> {
    each(Fault::OBJECTS)
}

#[test]
#[ignore = "needs root"]
fn a_hub_that_fails_and_a_bad_way_there_are_survived() -> Result<()> {
    each(Fault::HUB)
}

#[test]
#[ignore = "needs root"]
fn what_an_outsider_takes_away_is_survived() -> Result<()> {
    each(Fault::OUTSIDER)
}

#[test]
#[ignore = "needs root"]
fn random_pairs_of_faults_are_survived() -> Result<()> {
    let number =
        |name: &str| std::env::var(name).ok().map(|text| text.parse().with_context(|| format!("{name}={text}")));
    let seed = number("WIREVIP_FAULT_SEED").unwrap_or_else(|| Ok(u64::from(rand::random::<u32>())))?;
    let count = number("WIREVIP_FAULT_PAIRS").unwrap_or(Ok(PAIRS))?;
    eprintln!("{count} pairs from WIREVIP_FAULT_SEED={seed}");
    let trials = (seed..seed + count).map(|seed| {
        let pair = pair(seed);
        let name = format!("{pair} (WIREVIP_FAULT_SEED={seed} WIREVIP_FAULT_PAIRS=1)");
        let Pair { first, second, after } = pair;
        Trial { name, hold: seed % 2 == 0, first, second: Some((second, after)) }
    });
    let (with, without): (Vec<_>, Vec<_>) = trials.partition(|trial| trial.hold);
    survived([with, without].into_iter().filter(|trials| !trials.is_empty()).collect())
}

fn each(faults: &[Fault]) -> Result<()> {
    let wanted = std::env::var("WIREVIP_FAULT").unwrap_or_default();
    let hold = std::env::var("WIREVIP_FAULT_HOLD").map_or(Ok(true), |text| text.parse())?;
    let trial = |fault: &Fault| Trial { name: fault.to_string(), hold, first: *fault, second: None };
    survived(vec![faults.iter().map(trial).filter(|trial| trial.name.contains(&wanted)).collect()])
}

/// Plays queues of trials, a few worlds at a time, each world for many of one queue: a new one only after a failure.
fn survived(queues: Vec<Vec<Trial>>) -> Result<()> {
    let queues: Vec<_> = queues.into_iter().map(|trials| Mutex::new(trials.into_iter())).collect();
    let failures = Mutex::new(Vec::new());
    let lane = |queue: &Mutex<std::vec::IntoIter<Trial>>| {
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
        let mut coming = next();
        while let Some(trial) = &coming {
            let (mut last, spec) = (trial.name.clone(), trial::spec(trial.hold));
            let play_on = |world: &mut World| {
                let trials = Trials::begin(world)?;
                while let Some(trial) = coming.take() {
                    last.clone_from(&trial.name);
                    trials.play(world, &trial)?;
                    coming = next();
                }
                Ok(())
            };
            if let Err(error) = play_unstarted(spec, play_on) {
                eprintln!("NOT SURVIVED: {last}: {error:#}");
                failures.lock().unwrap_or_else(PoisonError::into_inner).push(last);
                coming = next();
            }
        }
    };
    std::thread::scope(|scope| {
        for queue in queues.iter().cycle().take(LANES) {
            scope.spawn(|| lane(queue));
        }
    });
    let failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    ensure!(failures.is_empty(), "not survived:\n{}", failures.join("\n"));
    Ok(())
}
