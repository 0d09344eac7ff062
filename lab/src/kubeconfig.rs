//! A kubeconfig as a file, for programs that take no other: readable by its owner alone, gone with its value.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The file. Dropping it removes it.
#[derive(Debug)]
pub struct KubeconfigFile(PathBuf);

impl KubeconfigFile {
    /// Writes `kubeconfig` into a new file in the system's temporary directory.
    pub fn new(kubeconfig: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("wirevip-kubeconfig-{:016x}", rand::random::<u64>()));
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        let written = Self(path);
        file.write_all(kubeconfig.as_bytes())?;
        Ok(written)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for KubeconfigFile {
    fn drop(&mut self) {
        // What cannot be removed now goes with the next boot.
        let _ = fs::remove_file(&self.0);
    }
}
