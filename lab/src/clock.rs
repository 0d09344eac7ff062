//! The lab's clock: monotonic moments, and how a wall-clock stamp (of the kernel, of a Lease) becomes one.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, anyhow};

/// Now.
#[expect(clippy::disallowed_methods, reason = "the lab measures from outside; this is its only clock")]
pub fn now() -> Instant {
    Instant::now()
}

/// Now, by the wall clock.
#[expect(clippy::disallowed_methods, reason = "the lab measures from outside; this is its only clock")]
pub fn wall() -> SystemTime {
    SystemTime::now()
}

/// Both clocks are read within this time of each other, if the machine lets us.
const TOGETHER: Duration = Duration::from_micros(50);

/// The moment at which the wall clock showed `stamp`, if it was not set since.
pub fn moment_of(stamp: SystemTime) -> Instant {
    // A thread that is put aside between two clocks would make packets and Leases earlier than they were.
    let read = || {
        let (now, wall) = (now(), wall());
        (now, wall, now.elapsed())
    };
    let mut best = read();
    for _ in 0..10 {
        if best.2 <= TOGETHER {
            break;
        }
        let again = read();
        best = if again.2 < best.2 { again } else { best };
    }
    let (now, wall, _) = best;
    match wall.duration_since(stamp) {
        Ok(ago) => now.checked_sub(ago).unwrap_or(now),
        Err(ahead) => now + ahead.duration(),
    }
}

/// Ctrl-C: seen by everybody who waits.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Makes every wait in this process end with an error, now and from now on.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Was [`interrupt`] called?
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Names how many times slower than a usual machine this one is: `WIREVIP_PACE=10` for one that is emulated.
const PACE: &str = "WIREVIP_PACE";

/// What should take `length` at most, on this machine: for deadlines, not for what a promise says.
pub fn paced(length: Duration) -> Duration {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    length * *FACTOR.get_or_init(|| factor(std::env::var(PACE).ok().as_deref()))
}

fn factor(told: Option<&str>) -> u32 {
    told.and_then(|text| text.parse().ok()).unwrap_or(1).max(1)
}

/// Lets `length` pass.
pub fn pause(length: Duration) -> Result<()> {
    let end = now() + length;
    while now() < end {
        if interrupted() {
            return Err(anyhow!("interrupted"));
        }
        std::thread::sleep(Duration::from_millis(20).min(end.saturating_duration_since(now())));
    }
    Ok(())
}

/// Asks every 2 ms until there is an answer; after `within` ([`paced`]) an error that says what was waited for and the last refusal.
pub fn until<T>(what: &str, within: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let within = paced(within);
    let deadline = now() + within;
    loop {
        let refusal = match ask() {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => None,
            Err(refusal) => Some(refusal),
        };
        if interrupted() {
            return Err(anyhow!("interrupted"));
        }
        if now() >= deadline {
            let why = refusal.map(|e| format!(": {e:#}")).unwrap_or_default();
            return Err(anyhow!("waited {within:?} in vain for {what}{why}"));
        }
        std::thread::sleep(paced(Duration::from_millis(2)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_that_is_no_number_or_none_is_the_usual_one() {
        assert_eq!([None, Some("10"), Some("0"), Some("fast")].map(factor), [1, 10, 1, 1]);
    }
}
