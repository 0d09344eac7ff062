//! Every process of a world, in a PID namespace of its own: when the lab ends, in whatever way, so do they.
//!
//! A thread that lives as long as the world starts them all. The first is the namespace's init, which gets SIGKILL
//! when that thread ends (PR_SET_PDEATHSIG looks at the parent's thread, hence one thread for all), and the kernel
//! ends a PID namespace with its init: on drop, panic, Ctrl-C and SIGKILL alike.

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::clock::until;

struct Request {
    command: Command,
    reply: SyncSender<std::io::Result<Child>>,
}

/// The processes of one world. Dropping it ends them all.
pub struct Processes {
    requests: Sender<Request>,
    init: Mutex<Child>,
    started: Mutex<Vec<Process>>,
}

impl Processes {
    /// Makes the PID namespace and its init.
    pub fn new() -> Result<Self> {
        let (requests, inbox) = channel::<Request>();
        let (first, made) = sync_channel(1);
        thread::Builder::new().name("processes".into()).spawn(move || {
            let init = start_init();
            let alive = init.is_ok();
            let heard = first.send(init).is_ok();
            while let (true, Ok(mut request)) = (alive && heard, inbox.recv()) {
                // The asker may have given up; then the world is going down and takes the child with it.
                let _ = request.reply.send(request.command.spawn());
            }
        })?;
        let init = made.recv().context("the thread that starts processes is gone")??;
        Ok(Self { requests, init: Mutex::new(init), started: Mutex::default() })
    }

    /// Starts a command; what it prints is kept in memory.
    pub fn start(&self, name: &str, mut command: Command) -> Result<Process> {
        let (mut output, writer) = std::io::pipe()?;
        command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
        let (reply, answer) = sync_channel(1);
        self.requests
            .send(Request { command, reply })
            .map_err(|_| anyhow!("the thread that starts processes is gone"))?;
        let child = answer
            .recv()
            .context("the thread that starts processes is gone")?
            .with_context(|| format!("cannot start {name}; are util-linux and iproute2 installed?"))?;
        let log = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&log);
        thread::Builder::new().name(format!("log of {name}")).spawn(move || {
            let mut buffer = [0; 8192];
            while let Ok(count @ 1..) = output.read(&mut buffer) {
                locked(&sink).extend_from_slice(&buffer[..count]);
            }
        })?;
        let pid = i32::try_from(child.id()).context("a process id beyond i32")?;
        // Nobody has reaped it yet, so the id is its own.
        let born = start_time(pid).with_context(|| format!("{name} has no start time"))?;
        let child = Arc::new(Mutex::new(child));
        let process = Process { name: name.into(), pid: Pid::from_raw(pid), born, child, log };
        locked(&self.started).push(process.clone());
        Ok(process)
    }

    /// All that was ever printed here.
    pub fn logs(&self) -> String {
        locked(&self.started).iter().map(|process| process.log() + "\n").collect()
    }

    /// The ids of all that were ever started here, and when each started ([`start_time`]).
    pub fn births(&self) -> Vec<(i32, u64)> {
        locked(&self.started).iter().map(|process| (process.id(), process.born)).collect()
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        let mut init = locked(&self.init);
        let _ = init.kill();
        // A PID namespace's init stays until its last zombie is reaped, and those here are our children: they go first.
        for process in locked(&self.started).iter() {
            let mut child = locked(&process.child);
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = init.wait();
    }
}

fn start_init() -> Result<Child> {
    unshare(CloneFlags::CLONE_NEWPID)
        .context("cannot make a PID namespace; run as root or without root through `lab`")?;
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--", "sleep", "infinity"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context("cannot start `setpriv`; install util-linux")
}

/// One process of a world.
#[derive(Clone)]
pub struct Process {
    name: Arc<str>,
    pid: Pid,
    born: u64,
    child: Arc<Mutex<Child>>,
    log: Arc<Mutex<Vec<u8>>>,
}

impl Process {
    /// Its id, as this machine (not the world's PID namespace) counts.
    pub fn id(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Its name, for people.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All that it printed so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&locked(&self.log)).into_owned()
    }

    /// Sends a signal; nothing happens if it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        // Under the lock nobody reaps it, so the id is still its own.
        let mut child = locked(&self.child);
        match child.try_wait()? {
            Some(_) => Ok(()),
            None => kill(self.pid, signal).with_context(|| format!("cannot send {signal} to {}", self.name)),
        }
    }

    /// How it ended; `None` while it runs.
    pub fn exit(&self) -> Result<Option<ExitStatus>> {
        Ok(locked(&self.child).try_wait()?)
    }

    /// Does it stand still, by SIGSTOP?
    pub fn stopped(&self) -> bool {
        stat(self.id()).is_some_and(|rest| rest.starts_with('T'))
    }

    /// Waits for its end.
    pub fn wait_exit(&self, within: Duration) -> Result<ExitStatus> {
        until(&format!("the end of {}", self.name), within, || self.exit())
            .with_context(|| format!("log of {}:\n{}", self.name, self.log()))
    }

    /// Ends it at once and waits.
    pub fn sigkill(&self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.wait_exit(Duration::from_secs(5)).map(drop)
    }

    /// An error with its log if it has ended by itself.
    pub fn expect_running(&self) -> Result<()> {
        match self.exit()? {
            None => Ok(()),
            Some(status) => {
                let how = status.signal().map_or_else(|| status.to_string(), |number| format!("signal {number}"));
                Err(anyhow!("{} has ended ({how}); its log:\n{}", self.name, self.log()))
            }
        }
    }
}

/// What follows `pid (comm) ` in a process's `stat`, if it is there: a comm may hold anything but is the last in
/// parentheses (proc(5)).
fn stat(id: i32) -> Option<String> {
    Some(std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?.rsplit_once(") ")?.1.to_owned())
}

/// When the process that has this id now was started, in the kernel's ticks; `None`: there is none.
pub fn start_time(id: i32) -> Option<u64> {
    // Field 22, of which two are gone by now.
    stat(id)?.split_whitespace().nth(19)?.parse().ok()
}

/// A poisoned lock holds what a panicking thread left: still the truth about processes.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn alive(id: i32) -> bool {
        Path::new(&format!("/proc/{id}")).exists()
    }

    #[test]
    #[ignore = "needs root or a user namespace"]
    fn what_a_process_prints_is_kept_and_its_end_is_seen() -> Result<()> {
        let processes = Processes::new()?;
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo err >&2; exit 3"]);
        let process = processes.start("talker", command)?;
        assert_eq!(process.wait_exit(Duration::from_secs(5))?.code(), Some(3));
        until("its words", Duration::from_secs(2), || Ok((process.log() == "out\nerr\n").then_some(())))?;
        assert!(process.expect_running().is_err_and(|e| e.to_string().contains("err")));
        Ok(())
    }

    #[test]
    #[ignore = "needs root or a user namespace"]
    fn dropping_a_world_ends_children_and_grandchildren() -> Result<()> {
        let processes = Processes::new()?;
        let mut command = Command::new("sh");
        command.args(["-c", "trap '' TERM; sleep 1000 & echo $!; wait"]);
        let process = processes.start("parent", command)?;
        until("the grandchild", Duration::from_secs(5), || Ok(process.log().contains('\n').then_some(())))?;
        let id = process.id();
        let grandchild = grandchild_of(id)?;
        assert!(alive(id) && alive(grandchild));
        drop((processes, process));
        until("their end", Duration::from_secs(5), || Ok((!alive(id) && !alive(grandchild)).then_some(())))
    }

    fn grandchild_of(id: i32) -> Result<i32> {
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children"))?;
        Ok(children.split_whitespace().next().context("no child")?.parse()?)
    }
}
