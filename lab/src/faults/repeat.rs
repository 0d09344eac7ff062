//! Something that is done again and again while a fault lasts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Result;

use crate::clock::now;

/// Ends with its value.
pub struct Repeat {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Repeat {
    /// Does `work` with the numbers from 0, one each `period`, or as often as it can. What fails is done again in its
    /// turn: another fault may stand in its way.
    pub fn every(period: Duration, mut work: impl FnMut(usize) -> Result<()> + Send + 'static) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = thread::Builder::new().name("fault".into()).spawn(move || {
            let mut due = now();
            for number in 0.. {
                if flag.load(Ordering::Relaxed) {
                    return;
                }
                let _ = work(number);
                due = (due + period).max(now());
                thread::sleep(due.saturating_duration_since(now()));
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Repeat {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
