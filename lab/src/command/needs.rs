//! What the lab needs of a machine, and how it does without root.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use lab::netns::Netns;
use lab::wireguard::WireguardKind;

/// Programs, and the Debian packages that have them.
const PROGRAMS: [(&str, &str); 7] = [
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
    ("setpriv", "util-linux"),
    ("mount", "mount"),
    ("wg", "wireguard-tools"),
];

/// Without root: runs the same command line inside a user namespace in which we are root, and passes on how it ended.
pub fn become_root() -> Result<Option<ExitCode>> {
    if nix::unistd::geteuid().is_root() {
        return Ok(None);
    }
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    // With --kill-child all of it ends when this process does. No PID namespace: a world makes its own, and so the ids
    // that `lab up` tells are good outside.
    let status = Command::new("unshare")
        .args([
            "--user",
            "--map-root-user",
            "--net",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "--",
        ])
        .arg(program)
        .args(std::env::args_os().skip(1))
        .status()
        .context("cannot start `unshare`; install util-linux, or run as root")?;
    let code = status.code().or_else(|| status.signal().map(|number| 128 + number)).unwrap_or(1);
    Ok(Some(ExitCode::from(u8::try_from(code).unwrap_or(1))))
}

/// Names everything that is missing at once.
pub fn check() -> Result<()> {
    let mut missing = Vec::new();
    for (program, package) in PROGRAMS {
        if !found(program) {
            missing.push(format!("`{program}`: install {package}"));
        }
    }
    if !missing.is_empty() {
        bail!("this machine lacks\n  {}", missing.join("\n  "));
    }
    let netns = Netns::new("check")?;
    if let Err(error) = WireguardKind::available(&netns) {
        missing.push(format!("{error:#}"));
    }
    if std::fs::File::options().read(true).write(true).open("/dev/net/tun").is_err() {
        missing.push("/dev/net/tun cannot be opened: load the module `tun`, or run as root".to_owned());
    }
    let nat = "table ip check { chain nat { type nat hook postrouting priority 100; masquerade; }; }";
    if let Err(error) = netns.nft(nat) {
        missing.push(format!("nftables with NAT: {error:#}"));
    }
    if missing.is_empty() { Ok(()) } else { bail!("this machine lacks\n  {}", missing.join("\n  ")) }
}

fn found(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin"].map(Path::new).map(Path::to_path_buf);
    std::env::split_paths(&path).chain(usual).any(|directory| directory.join(program).exists())
}
