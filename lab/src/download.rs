//! A download without an end: shows whether one TCP connection lives through what happens meanwhile.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use crate::client::Client;
use crate::clock::until;

/// More than any test will ever read.
const ENDLESS: u64 = 1 << 50;

/// Between two reads of a download that leaves the machine to the others.
const TRICKLE: Duration = Duration::from_millis(10);

/// One running download from a [`crate::backend::Backend`]. Stops with its value.
pub struct Download {
    received: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Download {
    /// Starts to read; returns when the first bytes are there. It breaks off when nothing comes for `client.patience`.
    pub fn start(client: &Client, target: SocketAddrV4) -> Result<Self> {
        // A trickle shows as much as a flood.
        Self::run(client, target, TRICKLE)
    }

    /// The same as fast as the tunnel gives it.
    pub fn flood(client: &Client, target: SocketAddrV4) -> Result<Self> {
        Self::run(client, target, Duration::ZERO)
    }

    fn run(client: &Client, target: SocketAddrV4, pause: Duration) -> Result<Self> {
        let mut stream = client.open(target)?;
        stream.write_all(format!("get {ENDLESS}\n").as_bytes())?;
        let (received, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, flag) = (Arc::clone(&received), Arc::clone(&stop));
        let thread = thread::Builder::new().name("download".into()).spawn(move || {
            let mut buffer = vec![0; 65_536];
            while !flag.load(Ordering::Relaxed) {
                match stream.read(&mut buffer) {
                    Ok(0) => return Err(anyhow!("the other end closed the download")),
                    Ok(length) => drop(count.fetch_add(length as u64, Ordering::Relaxed)),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error).context("the download broke off"),
                }
                thread::sleep(pause);
            }
            Ok(())
        })?;
        let download = Self { received, stop, thread: Some(thread) };
        download.goes_on(1, client.patience)?;
        Ok(download)
    }

    /// Waits until this many more bytes have come, over the same connection.
    pub fn goes_on(&self, bytes: u64, within: Duration) -> Result<()> {
        let before = self.received.load(Ordering::Relaxed);
        until(&format!("{bytes} more bytes of a download"), within, || {
            anyhow::ensure!(self.thread.as_ref().is_some_and(|thread| !thread.is_finished()), "it has ended");
            Ok((self.received.load(Ordering::Relaxed) >= before + bytes).then_some(()))
        })
    }

    /// Stops it, and tells whether and why it had ended by itself.
    pub fn finish(mut self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| anyhow!("the download's thread panicked"))??;
        }
        Ok(self.received.load(Ordering::Relaxed))
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
