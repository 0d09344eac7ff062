//! Programs of others that some tests need: kube-apiserver, etcd, client-go's elector.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Where a program is: the directories named by the environment, then what `lab/kube/build.sh` built, then PATH.
pub fn asset(name: &str) -> Result<String> {
    let named = ["WIREVIP_KUBE_ASSETS", "KUBEBUILDER_ASSETS"];
    let mut places: Vec<PathBuf> = named.iter().filter_map(std::env::var_os).map(PathBuf::from).collect();
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian's etcd 3.4 on PATH is too old; what was built here is known to be right.
    places.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/kube"));
    places.extend(std::env::split_paths(&path));
    let file = places.iter().map(|place| place.join(name)).find(|file| file.is_file());
    file.map(|file| file.display().to_string()).with_context(|| {
        format!("no {name} found; run `lab/kube/build.sh target/kube`, or name its directory in WIREVIP_KUBE_ASSETS")
    })
}
