//! Network namespaces that vanish with the lab: held by a descriptor, never named in `/run/netns`.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace. Lives as long as a clone of this value, or a process in it.
#[derive(Clone, Debug)]
pub struct Netns {
    name: Arc<str>,
    file: Arc<File>,
}

impl Netns {
    /// Makes an empty namespace; `name` is for messages only.
    pub fn new(name: &str) -> Result<Self> {
        // unshare changes the calling thread alone, so a thread of its own leaves everybody else where they are.
        let file = on_own_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)
                .context("cannot make a network namespace; run as root or inside `unshare -rn`")?;
            File::open("/proc/thread-self/ns/net").context("cannot open the new namespace")
        })?;
        Ok(Self { name: name.into(), file: Arc::new(file) })
    }

    /// Its name, for people.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` on a thread of its own inside the namespace and waits for it. Sockets made there stay there.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        on_own_thread(|| {
            setns(&*self.file, CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("cannot enter namespace {}", self.name))?;
            work()
        })
    }

    /// A path under which other processes find the namespace while this value lives (`nsenter --net=…`).
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// A command that runs inside the namespace. Its process id is that of `program` itself: `nsenter` only execs.
    pub fn command(&self, program: &str) -> std::process::Command {
        let mut command = std::process::Command::new("nsenter");
        command.arg(format!("--net={}", self.path())).arg("--").arg(program);
        command
    }

    /// Runs a command line of words without quoting, e.g. `ip link set lo up`; its output is the error's text.
    pub fn sh(&self, words: &str) -> Result<String> {
        let mut words_iter = words.split_whitespace();
        let program = words_iter.next().context("an empty command line")?;
        let output = self.command(program).args(words_iter).output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(anyhow!("in {}: `{words}` failed ({}): {}", self.name, output.status, said.trim()));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

fn on_own_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| scope.spawn(work).join()).unwrap_or_else(|_| Err(anyhow!("a namespace thread panicked")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs root or a user namespace"]
    fn two_namespaces_do_not_see_each_other() -> Result<()> {
        let (a, b) = (Netns::new("a")?, Netns::new("b")?);
        a.sh("ip link add left type veth peer name right")?;
        assert!(a.sh("ip link show left").is_ok());
        assert!(b.sh("ip link show left").is_err());
        Ok(())
    }
}
