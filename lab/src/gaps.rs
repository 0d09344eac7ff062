//! What a client saw: from probes sent and answered to the silences between answers. Pure.
//!
//! A *gap* is the time between two answers that follow each other at the client: it counts what was lost and what
//! came late alike. With a probe every 5 ms an undisturbed path shows gaps of about 5 ms.

use std::time::{Duration, Instant};

/// One probe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sample {
    /// When it left.
    pub sent: Instant,
    /// When its answer came; `None`: never.
    pub answered: Option<Instant>,
}

/// A silence at the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gap {
    /// The last answer before it (or the start of the time looked at).
    pub from: Instant,
    /// The first answer after it (or the end of the time looked at: then it may go on).
    pub to: Instant,
    /// Is `to` an answer, or only the end of the record?
    pub ended: bool,
}

impl Gap {
    /// How long it lasted.
    pub fn length(&self) -> Duration {
        self.to.duration_since(self.from)
    }
}

/// Every silence that touches `from..to`, in order of time. The first starts at the last answer at or before `from`
/// (else at `from`), the last ends at the first answer at or after `to` (else at `to`, and has not ended).
pub fn silences(samples: &[Sample], from: Instant, to: Instant) -> Vec<Gap> {
    let mut answers: Vec<Instant> = samples.iter().filter_map(|sample| sample.answered).collect();
    answers.sort_unstable();
    let before = answers.iter().rev().find(|at| **at <= from).copied().unwrap_or(from);
    let mut gaps = Vec::new();
    let mut last = before;
    for at in answers.into_iter().filter(|at| *at > before) {
        gaps.push(Gap { from: last, to: at, ended: true });
        last = at;
        if at >= to {
            return gaps;
        }
    }
    gaps.push(Gap { from: last, to: to.max(last), ended: false });
    gaps
}

/// The longest silence that touches `from..to`.
pub fn longest(samples: &[Sample], from: Instant, to: Instant) -> Gap {
    silences(samples, from, to).into_iter().max_by_key(Gap::length).unwrap_or(Gap { from, to, ended: false })
}

/// Neighbouring probes of one who never waits leave so far apart only where the machine does not let him run.
const ASLEEP: Duration = Duration::from_millis(50);

/// When the prober itself was put aside: from the last probe before it to the first after it.
fn sleeps(samples: &[Sample]) -> Vec<(Instant, Instant)> {
    let neighbours = samples.windows(2).map(|two| (two[0].sent, two[1].sent));
    neighbours.filter(|(last, next)| next.saturating_duration_since(*last) > ASLEEP).collect()
}

/// How much of `from..to` these sleeps take.
fn slept(sleeps: &[(Instant, Instant)], from: Instant, to: Instant) -> Duration {
    let within = |(last, next): &(Instant, Instant)| (*next).min(to).saturating_duration_since((*last).max(from));
    sleeps.iter().map(within).sum()
}

/// For how much of `from..to` the machine did not let the prober run; of probes that never wait for an answer, in the
/// order in which they left.
pub fn asleep(samples: &[Sample], from: Instant, to: Instant) -> Duration {
    slept(&sleeps(samples), from, to)
}

/// The longest silence that touches `from..to`, where time does not count in which the prober itself did not ask
/// ([`asleep`]): a machine with other work makes no silence longer.
pub fn longest_awake(samples: &[Sample], from: Instant, to: Instant) -> Duration {
    let sleeps = sleeps(samples);
    let awake = |gap: Gap| gap.length().saturating_sub(slept(&sleeps, gap.from, gap.to));
    silences(samples, from, to).into_iter().map(awake).max().unwrap_or_default()
}

/// How many probes that left within `from..to` got no answer.
pub fn lost(samples: &[Sample], from: Instant, to: Instant) -> usize {
    samples.iter().filter(|sample| (from..to).contains(&sample.sent) && sample.answered.is_none()).count()
}

/// p50, p90, p99 and max of a set of measurements (nearest rank); `None` of none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Distribution {
    /// How many measurements.
    pub count: usize,
    /// Half are at most this.
    pub p50: Duration,
    /// Nine of ten are at most this.
    pub p90: Duration,
    /// All but one in a hundred are at most this.
    pub p99: Duration,
    /// All are at most this.
    pub max: Duration,
}

impl Distribution {
    /// Of these measurements, in any order.
    pub fn of(measured: &[Duration]) -> Option<Self> {
        let mut sorted = measured.to_vec();
        sorted.sort_unstable();
        let max = *sorted.last()?;
        let rank =
            |percent: usize| sorted.get((sorted.len() * percent).div_ceil(100).max(1) - 1).copied().unwrap_or(max);
        Some(Self { count: sorted.len(), p50: rank(50), p90: rank(90), p99: rank(99), max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    /// Probes at 0, 5, 10, … ms, answered 1 ms later unless lost.
    fn record(zero: Instant, count: u64, lost: std::ops::Range<u64>) -> Vec<Sample> {
        (0..count)
            .map(|n| {
                let sent = zero + MS(5 * n);
                Sample { sent, answered: (!lost.contains(&n)).then_some(sent + MS(1)) }
            })
            .collect()
    }

    #[test]
    fn an_undisturbed_path_shows_the_probe_interval() {
        let zero = crate::clock::now();
        let samples = record(zero, 100, 0..0);
        assert_eq!(longest(&samples, zero + MS(100), zero + MS(300)).length(), MS(5));
        assert_eq!(lost(&samples, zero, zero + MS(500)), 0);
    }

    #[test]
    fn a_gap_runs_from_the_last_answer_to_the_next() {
        let zero = crate::clock::now();
        let samples = record(zero, 100, 40..60);
        let gap = longest(&samples, zero + MS(150), zero + MS(400));
        assert_eq!((gap.from, gap.to, gap.ended), (zero + MS(196), zero + MS(301), true));
        assert_eq!(lost(&samples, zero, zero + MS(500)), 20);
    }

    #[test]
    fn a_gap_is_seen_whole_even_if_the_window_starts_within_it() {
        let zero = crate::clock::now();
        let samples = record(zero, 100, 40..60);
        assert_eq!(longest(&samples, zero + MS(250), zero + MS(260)).length(), MS(105));
    }

    #[test]
    fn a_silence_without_end_says_so() {
        let zero = crate::clock::now();
        let samples = record(zero, 100, 40..100);
        let gap = longest(&samples, zero, zero + MS(500));
        assert_eq!((gap.from, gap.to, gap.ended), (zero + MS(196), zero + MS(500), false));
    }

    #[test]
    fn answers_that_come_late_are_a_gap_too() {
        let zero = crate::clock::now();
        let mut samples = record(zero, 100, 0..0);
        for sample in &mut samples[40..60] {
            sample.answered = Some(zero + MS(302));
        }
        assert_eq!(longest(&samples, zero, zero + MS(490)).length(), MS(105));
        assert_eq!(lost(&samples, zero, zero + MS(500)), 0);
    }

    #[test]
    fn no_answer_at_all_is_one_gap_over_the_whole_window() {
        let zero = crate::clock::now();
        assert_eq!(longest(&[], zero, zero + MS(9)).length(), MS(9));
    }

    /// From the probe at `from` ms on all is `by` ms later, as on a machine that stood still.
    fn stall(samples: &mut [Sample], from: usize, by: u64) {
        for sample in &mut samples[from / 5..] {
            sample.sent += MS(by);
            sample.answered = sample.answered.map(|at| at + MS(by));
        }
    }

    #[test]
    fn a_machine_that_stood_still_makes_no_silence_longer() {
        let zero = crate::clock::now();
        let mut samples = record(zero, 100, 0..0);
        stall(&mut samples, 250, 3000);
        assert_eq!(longest(&samples, zero, zero + MS(3490)).length(), MS(3005));
        assert_eq!(longest_awake(&samples, zero, zero + MS(3490)), MS(5));
        assert_eq!(asleep(&samples, zero, zero + MS(3490)), MS(3005));
        assert_eq!(asleep(&samples, zero + MS(1000), zero + MS(2000)), MS(1000));
        // Within a silence only the stall itself is taken off.
        let mut samples = record(zero, 100, 40..60);
        stall(&mut samples, 250, 3000);
        assert_eq!(longest_awake(&samples, zero, zero + MS(3490)), MS(100));
    }

    #[test]
    fn a_silent_tunnel_counts_in_full_beside_a_longer_stall() {
        let zero = crate::clock::now();
        let mut samples = record(zero, 1000, 400..600);
        assert_eq!(longest_awake(&samples, zero, zero + MS(4990)), MS(1005));
        stall(&mut samples, 1000, 2000);
        assert_eq!(longest_awake(&samples, zero, zero + MS(6990)), MS(1005));
        assert_eq!(longest_awake(&record(zero, 1000, 400..1000), zero, zero + MS(4996)), MS(3000), "without an end");
    }

    #[test]
    fn distributions_take_the_nearest_rank() {
        let measured: Vec<Duration> = (1..=30).rev().map(MS).collect();
        let d = Distribution::of(&measured).unwrap();
        assert_eq!((d.count, d.p50, d.p90, d.p99, d.max), (30, MS(15), MS(27), MS(30), MS(30)));
        assert_eq!(Distribution::of(&[MS(7)]).map(|d| (d.p50, d.max)), Some((MS(7), MS(7))));
        assert_eq!(Distribution::of(&[]), None);
    }
}
