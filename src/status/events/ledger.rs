//! Which Events are written, and which only counted. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::{Reason, Regarding, Told};

/// The same Event again is written no more often than this.
const AGAIN: Duration = Duration::from_secs(60);
/// The API keeps an Event for an hour by default; before that is over a new one is due.
const LIFE: Duration = Duration::from_secs(50 * 60);
/// So many different Events of one reason about one object at once …
const BURST: u32 = 10;
/// … and one more after each such time.
const REFILL: Duration = Duration::from_secs(30);

/// What is to be written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Write {
    /// A new Event.
    Create,
    /// The Event of this name happened so often now.
    Repeat { name: String, count: i32 },
}

/// What was written so far.
#[derive(Default)]
pub(super) struct Ledger {
    known: BTreeMap<(Regarding, Reason, String), Known>,
    buckets: BTreeMap<(Regarding, Reason), Bucket>,
}

struct Known {
    name: String,
    since: Timestamp,
    written: Timestamp,
    count: i32,
}

struct Bucket {
    left: u32,
    filled: Timestamp,
}

impl Ledger {
    /// What to write of this; `None`: nothing, it is too much.
    pub(super) fn enter(&mut self, told: &Told) -> Option<Write> {
        let Told { regarding, reason, note, at } = told;
        self.known.retain(|_, known| since(known.since, *at) < LIFE);
        self.buckets.retain(|_, bucket| since(bucket.filled, *at) < REFILL * BURST);
        if let Some(known) = self.known.get_mut(&(regarding.clone(), *reason, note.clone())) {
            known.count = known.count.saturating_add(1);
            if since(known.written, *at) < AGAIN {
                return None;
            }
            known.written = *at;
            return Some(Write::Repeat { name: known.name.clone(), count: known.count });
        }
        let fresh = Bucket { left: BURST, filled: *at };
        let bucket = self.buckets.entry((regarding.clone(), *reason)).or_insert(fresh);
        let earned = since(bucket.filled, *at).as_secs() / REFILL.as_secs();
        if earned > 0 {
            bucket.left = bucket.left.saturating_add(u32::try_from(earned).unwrap_or(BURST)).min(BURST);
            bucket.filled = *at;
        }
        bucket.left = bucket.left.checked_sub(1)?;
        Some(Write::Create)
    }

    /// A new Event was written under this name.
    pub(super) fn created(&mut self, told: &Told, name: String) {
        let Told { regarding, reason, note, at } = told;
        let key = (regarding.clone(), *reason, note.clone());
        self.known.insert(key, Known { name, since: *at, written: *at, count: 1 });
    }
}

/// Time between; zero if the wall clock was set back.
fn since(earlier: Timestamp, later: Timestamp) -> Duration {
    Duration::try_from(later.duration_since(earlier)).unwrap_or_default()
}
