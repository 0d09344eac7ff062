//! Time, as every stage sees it: a [`Moment`] for deciding, a wall-clock timestamp only for what is written to the API.
//!
//! Moments count CLOCK_BOOTTIME, which goes on while the machine sleeps: a pod that wakes from a suspend must find
//! its tenure over. Pure cores take a `Moment` as an argument; drivers ask a [`Clock`], and sleep by it, so that the
//! simulation can give each pod a clock that runs at a rate of its own.

use std::ops::{Add, Sub};
use std::os::fd::OwnedFd;
use std::time::Duration;
use std::{fmt, io};

use futures::future::{BoxFuture, FutureExt};
use jiff::Timestamp;
use nix::sys::timerfd::{self, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A point on this machine's boot-time clock. Comparable only within one boot of one machine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(Duration);

impl Moment {
    /// The moment `since_boot` after the clock's zero.
    pub const fn new(since_boot: Duration) -> Self {
        Self(since_boot)
    }

    /// Time since the clock's zero.
    pub const fn since_boot(self) -> Duration {
        self.0
    }

    /// Time from `earlier` to `self`; zero if `earlier` is later.
    pub fn since(self, earlier: Moment) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Moment {
    type Output = Moment;

    fn add(self, span: Duration) -> Moment {
        Moment(self.0.saturating_add(span))
    }
}

impl Sub<Duration> for Moment {
    type Output = Moment;

    fn sub(self, span: Duration) -> Moment {
        Moment(self.0.saturating_sub(span))
    }
}

impl fmt::Debug for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "@{:?}", self.0)
    }
}

/// Where drivers read the time.
pub trait Clock: Send + Sync + 'static {
    /// The present moment.
    fn now(&self) -> Moment;

    /// The wall clock, for what is written to the API and nothing else.
    fn wall(&self) -> Timestamp;

    /// Ends when `span` has passed.
    fn sleep(&self, span: Duration) -> BoxFuture<'static, ()> {
        tokio::time::sleep(span).boxed()
    }
}

/// What comes of `work`; `None` if `span` passes by this clock before that.
pub async fn within<T>(clock: &(impl Clock + ?Sized), span: Duration, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        done = work => Some(done),
        () = clock.sleep(span) => None,
    }
}

/// CLOCK_BOOTTIME and the system's wall clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct BootClock;

impl Clock for BootClock {
    fn now(&self) -> Moment {
        // clock_gettime fails only for a clock the kernel does not know; CLOCK_BOOTTIME is there since Linux 2.6.39.
        nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)
            .map(|t| Moment(Duration::from(t)))
            .unwrap_or_default()
    }

    fn wall(&self) -> Timestamp {
        Timestamp::now()
    }

    /// By a timer of the same clock. Tokio's stand still while the machine is suspended, so one that was to end a tenure
    /// would let it go on afterwards for as long as it had left.
    fn sleep(&self, span: Duration) -> BoxFuture<'static, ()> {
        async move {
            let end = BootClock.now() + span;
            if let Ok(timer) = boot_timer(span)
                && timer.readable().await.is_ok()
            {
                return;
            }
            // Out of file descriptors; better late than never.
            tokio::time::sleep(end.since(BootClock.now())).await;
        }
        .boxed()
    }
}

/// Readable once `span` has passed by CLOCK_BOOTTIME.
#[expect(
    deprecated,
    reason = "its successor is unsafe, for the sake of descriptors that end early; one that is owned does not"
)]
fn boot_timer(span: Duration) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
    let timer = TimerFd::new(timerfd::ClockId::CLOCK_BOOTTIME, flags)?;
    // Zero would switch it off.
    let span = span.max(Duration::from_nanos(1));
    timer.set(Expiration::OneShot(span.into()), TimerSetTimeFlags::empty())?;
    AsyncFd::with_interest(timer.into(), Interest::READABLE)
}

/// Tokio's clock, which tests can pause: moments count from the making of the clock, walls from a fixed date.
#[derive(Clone, Copy, Debug)]
pub struct TokioClock {
    zero: tokio::time::Instant,
}

impl TokioClock {
    /// A clock whose zero is now.
    #[expect(clippy::disallowed_methods, reason = "this is one of the clocks")]
    pub fn new() -> Self {
        Self { zero: tokio::time::Instant::now() }
    }
}

impl Default for TokioClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for TokioClock {
    fn now(&self) -> Moment {
        Moment(self.zero.elapsed())
    }

    fn wall(&self) -> Timestamp {
        const START: Timestamp = Timestamp::constant(1_750_000_000, 0);
        START.checked_add(self.zero.elapsed()).unwrap_or(START)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_sleep_by_the_boot_clock_takes_as_long_as_it_was_told() {
        for span in [Duration::ZERO, Duration::from_millis(30)] {
            let began = BootClock.now();
            BootClock.sleep(span).await;
            let slept = BootClock.now().since(began);
            assert!(slept >= span && slept < span + Duration::from_secs(10), "{slept:?} instead of {span:?}");
        }
    }
}
