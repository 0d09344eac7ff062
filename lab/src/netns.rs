//! Network namespaces that vanish with the lab: held by a descriptor, not named in `/run/netns`.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace. Lives as long as a clone of this value, or a process in it.
#[derive(Clone, Debug)]
pub struct Netns {
    labels: Arc<Labels>,
    file: Arc<File>,
}

#[derive(Debug)]
struct Labels {
    name: String,
    mark: String,
}

impl Netns {
    /// Makes an empty namespace with `lo` up; `name` is for messages only.
    pub fn new(name: &str) -> Result<Self> {
        // unshare changes the calling thread alone, so a thread of its own leaves everybody else where they are.
        let file = on_own_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)
                .context("cannot make a network namespace; run as root or inside `unshare -rn`")?;
            File::open("/proc/thread-self/ns/net").context("cannot open the new namespace")
        })?;
        let mark = format!("lab-{:016x}", rand::random::<u64>());
        let labels = Labels { name: name.to_owned(), mark };
        let netns = Self { labels: Arc::new(labels), file: Arc::new(file) };
        netns.ip(&["link set lo up", &format!("link set lo alias {}", netns.mark())])?;
        // IPv6 addresses are there at once, not after a second of looking for doubles. Without IPv6 there is none.
        let _ = netns.sysctls(&[("net/ipv6/conf/default/accept_dad", "0"), ("net/ipv6/conf/all/accept_dad", "0")]);
        Ok(netns)
    }

    /// One that is there already under this path, e.g. `/run/netns/<name>`; its `lo` is left alone.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("no namespace {}", path.display()))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { labels: Arc::new(Labels { mark: name.clone(), name }), file: Arc::new(file) })
    }

    /// Its name, for people.
    pub fn name(&self) -> &str {
        &self.labels.name
    }

    /// Its number, as in the link `/proc/<pid>/ns/net`.
    pub fn inode(&self) -> Result<u64> {
        Ok(self.file.metadata()?.ino())
    }

    /// The alias of its `lo`, unlike that of any other namespace: the kernel gives a number away again at once.
    pub fn mark(&self) -> &str {
        &self.labels.mark
    }

    /// Does this link of `/proc` (`…/ns/net`, `…/fd/7`) lead to the namespace with this mark?
    pub(crate) fn is_marked(link: &Path, mark: &str) -> bool {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", link.display())).args(["--", "ip", "-o", "link", "show", "lo"]);
        // A holder that is gone by now holds nothing.
        command.output().is_ok_and(|said| String::from_utf8_lossy(&said.stdout).contains(mark))
    }

    /// Runs `work` on a thread of its own inside the namespace and waits for it. Sockets made there stay there.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        on_own_thread(|| {
            self.enter()?;
            work()
        })
    }

    /// Moves the calling thread into the namespace, for good.
    pub fn enter(&self) -> Result<()> {
        setns(&*self.file, CloneFlags::CLONE_NEWNET).with_context(|| format!("cannot enter namespace {}", self.name()))
    }

    /// A path under which other processes find the namespace while this value lives (`nsenter --net=…`).
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// A command that runs inside the namespace. Its process id is that of `program` itself: `nsenter` only execs.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path())).arg("--").arg(program);
        command
    }

    /// Runs a command line of words without quoting, e.g. `ip link set lo up`; its output is the error's text.
    pub fn sh(&self, words: &str) -> Result<String> {
        let mut words_iter = words.split_whitespace();
        let program = words_iter.next().context("an empty command line")?;
        let mut command = self.command(program);
        command.args(words_iter);
        self.finish(command, words, None)
    }

    /// Runs several `ip` commands (without the word `ip`) in one process: a world of them comes up in a second.
    pub fn ip<S: AsRef<str>>(&self, commands: &[S]) -> Result<()> {
        let batch = commands.iter().map(AsRef::as_ref).collect::<Vec<_>>().join("\n");
        let mut command = self.command("ip");
        command.args(["-batch", "-"]);
        self.finish(command, &format!("ip -batch:\n{batch}\n"), Some(&batch)).map(drop)
    }

    /// Applies nftables commands in one transaction.
    pub fn nft(&self, rules: &str) -> Result<()> {
        let mut command = self.command("nft");
        command.args(["-f", "-"]);
        self.finish(command, &format!("nft -f:\n{rules}\n"), Some(rules)).map(drop)
    }

    /// Writes a sysctl of this namespace, e.g. `net/ipv4/ip_forward`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.sysctls(&[(key, value)])
    }

    /// Writes several sysctls of this namespace.
    pub fn sysctls(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (key, value) in settings {
                fs::write(format!("/proc/sys/{key}"), value)
                    .with_context(|| format!("cannot set {key} in {}", self.name()))?;
            }
            Ok(())
        })
    }

    /// Lays a cable: `here` in this namespace, `there` in `other`, both up, with this MTU.
    pub fn cable(&self, here: &str, other: &Netns, there: &str, mtu: u32) -> Result<()> {
        self.ip(&[
            format!("link add {here} mtu {mtu} type veth peer name {there} mtu {mtu} netns {}", other.path()),
            format!("link set {here} up"),
        ])?;
        other.ip(&[format!("link set {there} up")])
    }

    /// Runs a command to its end, feeding it `input`; an error tells `what` it was and what it said.
    pub(crate) fn finish(&self, mut command: Command, what: &str, input: Option<&str>) -> Result<String> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot start `nsenter`; install util-linux")?;
        if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
            stdin.write_all(input.as_bytes())?;
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(anyhow!("in {}: `{what}` failed ({}): {}", self.name(), output.status, said.trim()));
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

    #[test]
    #[ignore = "needs root or a user namespace"]
    fn a_cable_joins_two_namespaces() -> Result<()> {
        let (a, b) = (Netns::new("a")?, Netns::new("b")?);
        a.cable("eth0", &b, "eth0", 1500)?;
        a.ip(&["addr add 192.0.2.1/24 dev eth0"])?;
        b.ip(&["addr add 192.0.2.2/24 dev eth0"])?;
        a.sh("ping -c 1 -W 2 192.0.2.2").map(drop)
    }
}
