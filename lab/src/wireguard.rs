//! A WireGuard link in a namespace, by the kernel or by wireguard-go: never by wirevip.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::clock::until;
use crate::netns::Netns;
use crate::processes::{Process, Processes};
use crate::tunnels::TunnelSpec;

/// Which WireGuard carries a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WireguardKind {
    /// The kernel's.
    Kernel,
    /// `wireguard-go`.
    WireguardGo,
}

impl WireguardKind {
    /// The kernel's if it has one, else wireguard-go.
    pub fn available(netns: &Netns) -> Result<Self> {
        if netns.sh("ip link add probe type wireguard").is_ok() {
            netns.sh("ip link del probe")?;
            return Ok(WireguardKind::Kernel);
        }
        match Command::new("wireguard-go").arg("--version").output() {
            Ok(_) => Ok(WireguardKind::WireguardGo),
            Err(_) => bail!("no WireGuard for the hub: this kernel has none; install `wireguard-go`"),
        }
    }
}

impl std::fmt::Display for WireguardKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            WireguardKind::Kernel => "the kernel's WireGuard",
            WireguardKind::WireguardGo => "wireguard-go",
        })
    }
}

/// One link, up to its keys and peer; addresses and routes are its maker's.
pub struct Wireguard {
    netns: Netns,
    link: &'static str,
    process: Option<Process>,
}

impl Wireguard {
    /// Makes the link with this configuration (`wg setconf`).
    pub fn start(
        netns: &Netns,
        link: &'static str,
        kind: WireguardKind,
        config: &str,
        processes: &Processes,
    ) -> Result<Self> {
        let process = match kind {
            WireguardKind::Kernel => {
                netns.sh(&format!("ip link add {link} type wireguard"))?;
                None
            }
            WireguardKind::WireguardGo => Some(start_wireguard_go(netns, link, processes)?),
        };
        let wireguard = Self { netns: netns.clone(), link, process };
        if wireguard.process.is_some() {
            wireguard.wait_socket()?;
        }
        let configured = || wireguard.wg(&["setconf", link, "/dev/stdin"], Some(config)).map(Some);
        until("WireGuard's configuration", Duration::from_secs(5), configured)?;
        Ok(wireguard)
    }

    /// Another program with a tunnel's own key, as kube-vip would be that was not stopped: up, and calling the hub.
    pub fn rival(netns: &Netns, tunnel: &TunnelSpec, processes: &Processes) -> Result<Self> {
        let TunnelSpec { private_key, peer_public_key, preshared_key, endpoint, .. } = tunnel;
        let preshared = preshared_key.as_ref().map(|key| format!("PresharedKey = {key}\n")).unwrap_or_default();
        let config = format!(
            "[Interface]\nPrivateKey = {private_key}\n[Peer]\nPublicKey = {peer_public_key}\n{preshared}\
             Endpoint = {endpoint}\nAllowedIPs = 0.0.0.0/0\nPersistentKeepalive = 5\n"
        );
        let rival = Self::start(netns, "rival", WireguardKind::available(netns)?, &config, processes)?;
        netns.ip(&["link set rival up"])?;
        Ok(rival)
    }

    /// Has its peer ever answered it?
    pub fn shook_hands(&self) -> Result<bool> {
        let told = self.wg(&["show", self.link, "latest-handshakes"], None)?;
        Ok(told.split_whitespace().nth(1).context("it has no peer")? != "0")
    }

    /// Waits until wireguard-go listens on its control socket: `wg` takes one that is bound, but does not listen yet, for
    /// a dead process's and deletes it, and wireguard-go ends.
    fn wait_socket(&self) -> Result<()> {
        const SO_ACCEPTCON: &str = "00010000";
        let name = format!("/{}.sock", self.link);
        until("wireguard-go's control socket", Duration::from_secs(10), || {
            let sockets = self.netns.sh("cat /proc/net/unix")?;
            let listens = |line: &str| line.ends_with(&name) && line.split_whitespace().nth(3) == Some(SO_ACCEPTCON);
            Ok(sockets.lines().any(listens).then_some(()))
        })
    }

    /// Ends it as a power cut does.
    pub fn power_off(&mut self) -> Result<()> {
        match self.process.take() {
            Some(process) => process.sigkill(),
            None => self.netns.sh(&format!("ip link del {}", self.link)).map(drop),
        }
    }

    /// Runs `wg` with these words.
    pub fn wg(&self, words: &[&str], input: Option<&str>) -> Result<String> {
        let mut command = match &self.process {
            None => self.netns.command("wg"),
            Some(process) => {
                process.expect_running()?;
                let mut command = Command::new("nsenter");
                // `wg` finds wireguard-go by its socket in that process's own /run. Its root is that of the mounts only where
                // nobody changed it (chroot, as in the virtual machine).
                command
                    .arg(format!("--net={}", self.netns.path()))
                    .arg(format!("--mount=/proc/{}/ns/mnt", process.id()))
                    .arg(format!("--root=/proc/{}/root", process.id()));
                command.args(["--", "wg"]);
                command
            }
        };
        command.args(words);
        self.netns.finish(command, &format!("wg {}", words.join(" ")), input)
    }
}

fn start_wireguard_go(netns: &Netns, link: &str, processes: &Processes) -> Result<Process> {
    // A /run of its own, so that many links can have one name; `exec` keeps the process id.
    let script = format!("mount -t tmpfs wg /run && mkdir /run/wireguard && exec wireguard-go -f {link}");
    let mut command = netns.command("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
    command.env("LOG_LEVEL", "error").env("WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD", "1");
    processes.start(link, command)
}
