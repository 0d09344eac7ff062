//! Device cgroups (v1), as container runtimes make them: what of `/dev` a process may open, whatever its rights.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::clock::until;

/// Where the hierarchy is mounted.
const DEVICES: &str = "/sys/fs/cgroup/devices";
/// A killed process may take a moment to leave.
const EMPTY: Duration = Duration::from_secs(5);

/// A cgroup that denies one device. Goes with its value, by when all in it must have ended.
pub struct DeviceCgroup {
    path: PathBuf,
}

impl DeviceCgroup {
    /// Denies what a rule names, e.g. `c 10:200 rwm` (Documentation/admin-guide/cgroup-v1/devices.rst).
    pub fn denying(rule: &str) -> Result<Self> {
        let mine = fs::read_to_string("/proc/self/cgroup")?;
        let mine = mine.lines().find_map(|line| line.split_once(":devices:")).context("no cgroup v1 of devices")?;
        let name = format!("lab-{:016x}", rand::random::<u64>());
        let path = Path::new(DEVICES).join(mine.1.trim_start_matches('/')).join(name);
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let cgroup = Self { path };
        fs::write(cgroup.path.join("devices.deny"), rule)?;
        Ok(cgroup)
    }

    /// A shell command that moves the shell, and all that it starts, into it.
    pub fn join(&self) -> String {
        format!("echo $$ > {}/cgroup.procs", self.path.display())
    }
}

impl Drop for DeviceCgroup {
    fn drop(&mut self) {
        let _ = until("an empty cgroup", EMPTY, || Ok(Some(fs::remove_dir(&self.path)?)));
    }
}
