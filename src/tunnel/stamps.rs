//! What handshakes are stamped with in user space. In the kernel's WireGuard it is the wall clock and nothing else.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use gotatun::noise::handshake::StampClock;
use jiff::Timestamp;

use crate::clock::{BootClock, Clock};

/// One key's stamps: the wall clock, but always later than the last, and than what others may have stamped. So neither a
/// clock that is behind nor one that is set back makes the hub refuse a handshake. Once the wall clock is past them, it
/// alone counts again.
#[derive(Debug)]
pub struct Stamps<C = BootClock> {
    clock: C,
    /// The last stamp, or the last that another may have used: since the Unix epoch.
    last: Mutex<Duration>,
}

impl<C: Clock> Stamps<C> {
    /// Stamps by this clock's wall.
    pub fn new(clock: C) -> Self {
        Self { clock, last: Mutex::default() }
    }

    /// From now on they are later than `latest` too.
    pub fn begin_after(&self, latest: Timestamp) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = since_epoch(latest).max(*last);
    }
}

impl<C: Clock + std::fmt::Debug> StampClock for Stamps<C> {
    fn stamp(&self) -> Duration {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = since_epoch(self.clock.wall()).max(*last + Duration::from_nanos(1));
        *last
    }
}

/// Zero for a time before it.
fn since_epoch(time: Timestamp) -> Duration {
    Duration::try_from(time.as_duration()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use crate::clock::Moment;

    /// A wall clock that is set by hand.
    #[derive(Clone, Debug, Default)]
    struct ByHand(Arc<Mutex<Timestamp>>);

    impl ByHand {
        fn set(&self, seconds: i64) {
            *self.0.lock().unwrap() = Timestamp::from_second(seconds).unwrap();
        }
    }

    impl Clock for ByHand {
        fn now(&self) -> Moment {
            Moment::default()
        }

        fn wall(&self) -> Timestamp {
            *self.0.lock().unwrap()
        }
    }

    #[test]
    fn stamps_are_the_wall_clock_but_never_go_back_and_begin_after_anothers() {
        let wall = ByHand::default();
        let stamps = Stamps::new(wall.clone());
        wall.set(100);
        assert_eq!(stamps.stamp(), Duration::from_secs(100));
        assert_eq!(stamps.stamp(), Duration::new(100, 1), "the same instant again");
        wall.set(40);
        assert_eq!(stamps.stamp(), Duration::new(100, 2), "set back");
        stamps.begin_after(Timestamp::from_second(160).unwrap());
        assert_eq!(stamps.stamp(), Duration::new(160, 1), "another has stamped 160");
        stamps.begin_after(Timestamp::from_second(50).unwrap());
        assert_eq!(stamps.stamp(), Duration::new(160, 2), "what another stamped before that is no matter");
        wall.set(161);
        assert_eq!(stamps.stamp(), Duration::from_secs(161), "the wall clock has caught up");
    }
}
