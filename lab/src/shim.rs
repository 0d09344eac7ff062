//! What nobody can do to a process from outside: its clocks show another time, its netlink sockets have no
//! buffers or are slow.
//!
//! A namespace has no wall clock of its own, and the kernel cannot be told to refuse one process. So a small library
//! (`shim/shim.c`, loaded by LD_PRELOAD) stands between a sidecar and those system calls, and does as a shared page says.
//! The kernel itself knows nothing of it: its own clock, which WireGuard in the kernel stamps by, stays as it is.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::processes::Process;

/// The library, as the build script made it.
pub const LIBRARY: &str = concat!(env!("OUT_DIR"), "/shim.so");

/// What stands in the page, in this order: 8 bytes each.
#[derive(Clone, Copy)]
enum Word {
    Wall,
    Still,
    Sends,
    Answers,
    Refused,
    Slow,
}

/// What the processes of one pod are told, now and after a restart. Clones share it.
#[derive(Clone)]
pub struct Shim {
    page: Arc<File>,
}

impl Shim {
    /// One that tells nothing but the truth, so far.
    pub fn new() -> Result<Self> {
        let page = File::from(memfd_create("shim", MFdFlags::MFD_CLOEXEC).context("cannot make a shared page")?);
        page.set_len(4096)?;
        Ok(Self { page: Arc::new(page) })
    }

    /// Where a process that this one starts finds the page.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.page.as_raw_fd())
    }

    /// An error if a process does not listen to it.
    pub fn expect_loaded(&self, process: &Process) -> Result<()> {
        let maps = format!("/proc/{}/maps", process.id());
        let loaded = std::fs::read_to_string(&maps).with_context(|| format!("cannot read {maps}"))?;
        ensure!(
            loaded.contains(LIBRARY),
            "{} has not loaded {LIBRARY}: a statically linked program cannot; build it for a target with a dynamic C library",
            process.name()
        );
        Ok(())
    }

    /// The wall clock is set forward by so many seconds, or back; 0: right again.
    pub fn set_wall(&self, seconds: i64) -> Result<()> {
        self.write(Word::Wall, seconds * 1_000_000_000)
    }

    /// CLOCK_MONOTONIC stood still for so long, besides all that it did before. The other clocks went on: so it is when a
    /// machine was suspended.
    pub fn stood_still(&self, time: Duration) -> Result<()> {
        let before = self.read(Word::Still)?;
        self.write(Word::Still, before + i64::try_from(time.as_nanos())?)
    }

    /// Of 100 messages to netlink so many are refused, and of 100 that come from it so many bring an error: ENOBUFS.
    pub fn refuse(&self, sends: u8, answers: u8) -> Result<()> {
        self.write(Word::Sends, sends.into())?;
        self.write(Word::Answers, answers.into())
    }

    /// Each message to rtnetlink takes so long: another holds the kernel's lock, which the whole machine shares.
    pub fn slow(&self, time: Duration) -> Result<()> {
        self.write(Word::Slow, i64::try_from(time.as_nanos())?)
    }

    /// How many calls were refused so far.
    pub fn refused(&self) -> Result<i64> {
        self.read(Word::Refused)
    }

    fn write(&self, word: Word, value: i64) -> Result<()> {
        Ok(self.page.write_all_at(&value.to_ne_bytes(), word as u64 * 8)?)
    }

    fn read(&self, word: Word) -> Result<i64> {
        let mut bytes = [0; 8];
        self.page.read_exact_at(&mut bytes, word as u64 * 8)?;
        Ok(i64::from_ne_bytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::process::Command;

    use super::*;

    /// A command under this shim.
    fn under(shim: &Shim, command: &str) -> Command {
        let script = format!("exec 9<>{}; export LD_PRELOAD={LIBRARY} LAB_SHIM=9; exec {command}", shim.path());
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]);
        shell
    }

    #[test]
    fn a_clock_that_is_set_shows_so_and_one_that_is_right_again_too() {
        let shim = Shim::new().unwrap();
        let ahead = || {
            let wall = crate::clock::wall().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
            let told = under(&shim, "date +%s.%N").output().unwrap().stdout;
            String::from_utf8(told).unwrap().trim().parse::<f64>().unwrap() - wall
        };
        for seconds in [0, 3600, -3600, 0] {
            shim.set_wall(seconds).unwrap();
            let off = ahead() - seconds as f64;
            assert!((0.0..60.0).contains(&off), "set by {seconds} s, it is {off} s off");
        }
    }

    #[test]
    fn a_message_to_rtnetlink_takes_as_long_as_it_is_told() {
        let shim = Shim::new().unwrap();
        shim.slow(Duration::from_millis(300)).unwrap();
        let began = crate::clock::now();
        assert!(under(&shim, "ip link show lo").output().unwrap().status.success());
        assert!(began.elapsed() >= Duration::from_millis(300));
    }

    #[test]
    fn a_process_is_told_that_netlink_has_no_buffers_to_ask_and_to_answer() {
        let shim = Shim::new().unwrap();
        for (sends, answers) in [(100, 0), (0, 100)] {
            shim.refuse(0, 0).unwrap();
            let before = shim.refused().unwrap();
            assert!(under(&shim, "ip link show lo").output().unwrap().status.success());
            assert_eq!(shim.refused().unwrap(), before);
            shim.refuse(sends, answers).unwrap();
            // Of a lost answer ip(8) may wait for the next, for ever.
            let mut asking = under(&shim, "ip link show lo").stderr(std::process::Stdio::piped()).spawn().unwrap();
            let mut told = [0; 1024];
            let length = asking.stderr.take().unwrap().read(&mut told).unwrap();
            let _ = asking.kill();
            asking.wait().unwrap();
            let told = String::from_utf8_lossy(&told[..length]);
            assert!(told.contains("No buffer space") && shim.refused().unwrap() > before, "{told}");
        }
    }
}
