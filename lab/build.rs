//! Builds `src/shim/shim.c`, which sidecars of the fault matrix load.

use std::error::Error;
use std::path::PathBuf;
use std::process::Command;

const SOURCE: &str = "src/shim/shim.c";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={SOURCE}");
    println!("cargo::rerun-if-env-changed=CC");
    let library = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo names no OUT_DIR")?).join("shim.so");
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let built = Command::new(&compiler)
        .args(["-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", SOURCE, "-o"])
        .arg(&library)
        .status()
        .map_err(|error| {
            format!("cannot run `{compiler}` ({error}): install gcc and libc6-dev, or name another in CC")
        })?;
    if !built.success() {
        return Err(format!(
            "`{compiler}` could not build {SOURCE} ({built}); are the C library's headers (libc6-dev) there?"
        )
        .into());
    }
    Ok(())
}
