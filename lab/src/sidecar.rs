//! One sidecar pod: the real binary as a process of its own, held to what its container would have.
//!
//! The pod's network namespace outlives the process, as a pod's sandbox outlives its container. Mounts are the
//! process's own: a read-only root and `/proc/sys`, a `/run` with its kubeconfig and `resolv.conf`. Of all
//! capabilities only NET_ADMIN is left, and no exec brings one back.

use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::client::Client;
use crate::clock::{now, paced, until};
use crate::netns::Netns;
use crate::plan;
use crate::processes::{Process, Processes};
use crate::shim::{self, Shim};

/// Namespace in which the sidecars, their Secret and their Leases live.
pub const NAMESPACE: &str = "wirevip";

/// How long its HTTP port may take for an answer, on a machine with other work.
const PATIENCE: Duration = Duration::from_secs(10);

const CONTAINER: &str = r#"
set -e
resolv=$(readlink -f /etc/resolv.conf || echo /etc/resolv.conf)
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
mount -t tmpfs -o mode=755 pod /run
mkdir -p /run/wireguard /run/lab "$(dirname "$resolv")"
printf '%s' "$LAB_KUBECONFIG" > /run/lab/kubeconfig
printf 'nameserver %s\noptions timeout:1\n' "$LAB_NAMESERVER" > /run/lab/resolv.conf
[ -e "$resolv" ] || : > "$resolv"
mount --bind /run/lab/resolv.conf "$resolv"
eval "$LAB_PRELUDE"
capabilities=-all$LAB_CAPABILITIES
if [ -n "${LAB_SHIM_PAGE-}" ]; then
    exec 9<>"$LAB_SHIM_PAGE"
    export LAB_SHIM=9 LD_PRELOAD="$LAB_SHIM_LIBRARY"
fi
unset LAB_KUBECONFIG LAB_NAMESERVER LAB_PRELUDE LAB_CAPABILITIES LAB_SHIM_PAGE LAB_SHIM_LIBRARY
export KUBECONFIG=/run/lab/kubeconfig
mount -o remount,bind,ro / || true
exec setpriv --no-new-privs --inh-caps="$capabilities" --bounding-set="$capabilities" -- "$@"
"#;

/// The sidecar of one node.
pub struct Sidecar {
    /// The node's number, from 1.
    pub node: u8,
    /// The pod's namespace.
    pub netns: Netns,
    /// The pod's name.
    pub pod: String,
    /// The pod's uid.
    pub uid: String,
    /// The program.
    pub bin: PathBuf,
    /// Its arguments, from `run` on.
    pub args: Vec<String>,
    /// More environment.
    pub env: Vec<(String, String)>,
    /// What its `KUBECONFIG` holds.
    pub kubeconfig: String,
    /// Shell commands that run in its mounts before it, e.g. to take a device away.
    pub prelude: String,
    /// What is left of root's capabilities, each as `,+name`.
    pub capabilities: String,
    /// What stands between it and the kernel.
    pub shim: Option<Shim>,
    outside: Client,
    processes: Arc<Processes>,
    process: Option<Process>,
}

impl Sidecar {
    /// A sidecar that is not started yet. `outside`: its node, from where its HTTP port is asked.
    pub fn new(node: u8, netns: &Netns, outside: &Netns, bin: PathBuf, processes: &Arc<Processes>) -> Self {
        let random = u128::from_ne_bytes(rand::random());
        Self {
            node,
            netns: netns.clone(),
            pod: format!("wirevip-n{node}"),
            uid: format!(
                "{:08x}-{:04x}-4000-8000-{:012x}",
                random >> 96,
                (random >> 80) & 0xffff,
                random & 0xffff_ffff_ffff
            ),
            bin,
            args: vec!["run".into()],
            env: Vec::new(),
            kubeconfig: String::new(),
            prelude: String::new(),
            capabilities: ",+net_admin".into(),
            shim: None,
            outside: Client::new(outside).patient(paced(PATIENCE)),
            processes: Arc::clone(processes),
            process: None,
        }
    }

    /// What it writes into a Lease that it holds.
    pub fn identity(&self) -> String {
        format!("{}_{}", self.pod, self.uid)
    }

    /// Starts the process, or starts it again in the same pod, as a container is restarted. When that was.
    pub fn start(&mut self) -> Result<Instant> {
        if let Some(process) = &self.process {
            anyhow::ensure!(process.exit()?.is_some(), "{} is running already", self.pod);
        }
        let mut command = self.netns.command("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", CONTAINER, &self.pod]);
        command.arg(&self.bin).args(&self.args);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("POD_NAMESPACE", NAMESPACE).env("POD_NAME", &self.pod).env("POD_UID", &self.uid);
        command.env("NODE_NAME", format!("node{}", self.node)).envs(self.env.iter().map(|(k, v)| (k, v)));
        command.env("LAB_KUBECONFIG", &self.kubeconfig).env("LAB_NAMESERVER", plan::API.to_string());
        command.env("LAB_PRELUDE", &self.prelude).env("LAB_CAPABILITIES", &self.capabilities);
        if let Some(shim) = &self.shim {
            command.env("LAB_SHIM_PAGE", shim.path()).env("LAB_SHIM_LIBRARY", shim::LIBRARY);
        }
        let at = now();
        self.process = Some(self.processes.start(&self.pod, command)?);
        Ok(at)
    }

    /// What stands between it and its kernel.
    pub fn shim(&self) -> Result<&Shim> {
        self.shim.as_ref().with_context(|| format!("nothing stands between {} and its kernel", self.pod))
    }

    /// The process, if it was ever started.
    pub fn process(&self) -> Result<&Process> {
        self.process.as_ref().with_context(|| format!("{} was never started", self.pod))
    }

    /// Does it run?
    pub fn running(&self) -> Result<bool> {
        Ok(match &self.process {
            Some(process) => process.exit()?.is_none(),
            None => false,
        })
    }

    /// All that its present or last process logged.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }

    /// Asks it to stop; does not wait. When that was.
    pub fn sigterm(&self) -> Result<Instant> {
        self.send(Signal::SIGTERM)
    }

    /// Kills it and waits for its end. When the signal left.
    pub fn sigkill(&self) -> Result<Instant> {
        let at = now();
        self.process()?.sigkill()?;
        Ok(at)
    }

    /// SIGSTOP.
    pub fn freeze(&self) -> Result<Instant> {
        self.send(Signal::SIGSTOP)
    }

    /// SIGCONT.
    pub fn thaw(&self) -> Result<Instant> {
        self.send(Signal::SIGCONT)
    }

    /// SIGKILL and start in the same pod with the same identity, `pause` apart.
    pub fn restart_in_place(&mut self, pause: Duration) -> Result<Instant> {
        self.sigkill()?;
        std::thread::sleep(pause);
        self.start()
    }

    /// Waits for its end; how it ended.
    pub fn wait_exit(&self, within: Duration) -> Result<ExitStatus> {
        self.process()?.wait_exit(within)
    }

    /// SIGTERM, wait, and insist on exit code 0 in time.
    pub fn stop(&self, within: Duration) -> Result<()> {
        self.sigterm()?;
        let status = self.wait_exit(within)?;
        anyhow::ensure!(status.success(), "{} ended with {status}; its log:\n{}", self.pod, self.log());
        Ok(())
    }

    /// A GET to its HTTP port from its node, as a kubelet or Prometheus would.
    pub fn http_get(&self, path: &str) -> Result<(u16, String)> {
        self.outside.http_get(SocketAddrV4::new(plan::sidecar(self.node), plan::HTTP_PORT), path)
    }

    /// Waits until `/readyz` says 200; an error has its log.
    pub fn wait_ready(&self, within: Duration) -> Result<()> {
        until(&format!("{} to be ready", self.pod), within, || {
            self.process()?.expect_running()?;
            Ok((self.http_get("/readyz")?.0 == 200).then_some(()))
        })
        .with_context(|| format!("log of {}:\n{}", self.pod, self.log()))
    }

    /// Its `/status`.
    pub fn status(&self) -> Result<serde_json::Value> {
        let (code, body) = self.http_get("/status")?;
        anyhow::ensure!(code == 200, "/status of {} says {code}: {body}", self.pod);
        serde_json::from_str(&body).with_context(|| format!("/status of {} is no JSON: {body}", self.pod))
    }

    /// The value of a metric; `labels` as written, e.g. `{tunnel="wg0"}`, or empty. `None`: not exported.
    pub fn metric(&self, name: &str, labels: &str) -> Result<Option<f64>> {
        let (code, body) = self.http_get("/metrics")?;
        anyhow::ensure!(code == 200, "/metrics of {} says {code}", self.pod);
        let wanted = format!("{name}{labels} ");
        Ok(body.lines().find_map(|line| line.strip_prefix(&wanted)?.split(' ').next()?.parse().ok()))
    }

    /// What is in the pod's network: links, addresses, rules, routes, tables, marked conntrack entries, a line each.
    /// Compare with [`Sidecar::traces`] from before it ran: nothing may be left (I3). Per-interface settings of the
    /// pod's NIC are not among them: whether it forwarded before cannot be known after a crash.
    pub fn traces(&self) -> Result<Vec<String>> {
        let mut traces = Vec::new();
        for (what, words) in [
            ("link", "ip -o -d link show"),
            ("address", "ip -o addr show"),
            ("rule", "ip rule show"),
            ("rule6", "ip -6 rule show"),
            ("route", "ip route show table all"),
            ("route6", "ip -6 route show table all"),
            ("nft", "nft list ruleset"),
        ] {
            let text = self.netns.sh(words)?;
            traces.extend(text.lines().map(|line| format!("{what}: {}", stable(line))));
        }
        // conntrack(8) fails on a kernel without its netlink family; then there is nothing to list either.
        let flows = self.netns.sh("conntrack -L -o extended").unwrap_or_default();
        let marked = flows.lines().filter(|line| line.contains("mark=") && !line.contains("mark=0 "));
        traces.extend(marked.map(|line| format!("flow: {}", line.trim())));
        traces.sort_unstable();
        Ok(traces)
    }

    fn send(&self, signal: Signal) -> Result<Instant> {
        let at = now();
        self.process()?.signal(signal)?;
        Ok(at)
    }
}

/// A line without what changes by itself: lifetimes and counters.
fn stable(line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let mut kept = Vec::new();
    let mut skip = false;
    for word in words {
        if skip {
            skip = false;
        } else if matches!(word, "expires" | "valid_lft" | "preferred_lft" | "packets" | "bytes") {
            skip = true;
        } else {
            kept.push(word.trim_end_matches('\\'));
        }
    }
    kept.join(" ")
}
