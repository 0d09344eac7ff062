//! What must hold of whatever comes from outside: of any Secret, of any Services and EndpointSlices, of any answer of
//! an API server. Each module's `holds` takes bytes and panics where it does not.
//!
//! `cargo test` asks it of the examples in `corpus/`; the fuzzers (`make fuzz`) ask it of what they make of them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "all functions here are parts of tests")]

pub mod api;
pub mod secret;
pub mod services;

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// The time that this thread has used. A busy machine does not count.
fn used() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("Linux has had this clock since 2.6.12").into()
}

/// What `work` gives, which must take less than a second.
fn swift<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let start = used();
    let made = work();
    let took = used() - start;
    assert!(took < Duration::from_secs(1), "{what} took {took:?}");
    made
}
