//! What was said at a world's hubs and asked of its API server, and what the referee says of it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail, ensure};

use super::World;
use crate::api::Request;
use crate::record::{Entry, Record, What};
use crate::referee::{self, Judgement};

/// Do sidecars hold if they are not told?
const HOLD: bool = true;

/// The status code of what RBAC refuses.
const FORBIDDEN: u16 = 403;

/// Names the directory in which each world leaves its record.
const RECORDS: &str = "WIREVIP_RECORDS";

impl World {
    /// What was said at the hubs so far, and who wrote the Leases.
    pub fn record(&self) -> Result<Record> {
        let mut record = Record { hold: holds(&self.spec.args), detour: self.detour, entries: Vec::new() };
        for (hub, tunnel) in self.hubs.iter().zip(0..) {
            record.entries.extend(hub.packets().iter().map(|packet| packet.entry(tunnel, self.began)));
            record.entries.extend(self.lease_writes(tunnel)?.into_iter().map(|(at, user)| {
                let pod = self.sidecars.iter().find(|sidecar| sidecar.pod == user);
                let what = What::Lease(pod.map(|sidecar| sidecar.node));
                Entry { at: at.saturating_duration_since(self.began), tunnel, what }
            }));
        }
        record.sort();
        Ok(record)
    }

    /// The referee's word on it, whoever was allowed to speak.
    pub fn judgement(&self) -> Result<Judgement> {
        Ok(referee::judge(&self.record()?))
    }

    /// An error if two were heard who may not be. The record is kept where `WIREVIP_RECORDS` says, and after an error in
    /// any case.
    pub fn judge(&self) -> Result<()> {
        let record = self.record()?;
        let judgement = referee::judge(&record);
        let faults = match self.spec.stranger {
            Some(_) => judgement.faults_among_pods(),
            None => judgement.faults(),
        };
        let directory = std::env::var_os(RECORDS).map(PathBuf::from);
        if faults.is_empty() {
            return directory.map_or(Ok(()), |directory| keep(&record, &directory).map(drop));
        }
        let kept = keep(&record, &directory.unwrap_or_else(std::env::temp_dir))?;
        bail!(
            "the referee:\n{}\n{}to be read again with `lab referee {}`",
            faults.join("\n"),
            judgement.story(),
            kept.display()
        )
    }
}

impl World {
    /// An error if pods asked for something that the API server refused as often as they asked: the chart's rights do not
    /// cover it. Once may be: an API server that has just started does not know the roles yet.
    pub fn expect_nothing_forbidden(&self) -> Result<()> {
        let requests = self.api.requests();
        let ours = |request: &&Request| self.sidecars.iter().any(|sidecar| sidecar.pod == request.user);
        let asked = |answered: fn(u16) -> bool| -> BTreeSet<_> {
            let found = requests.iter().filter(ours).filter(|request| answered(request.code));
            found.map(|request| (request.verb.as_str(), request.resource.as_str())).collect()
        };
        let (forbidden, granted) = (asked(|code| code == FORBIDDEN), asked(|code| (200..300).contains(&code)));
        let forbidden: Vec<_> = forbidden.difference(&granted).collect();
        let on_purpose = self.spec.forbidden.is_some();
        ensure!(on_purpose || forbidden.is_empty(), "the API server never let the pods do this: {forbidden:?}");
        Ok(())
    }
}

/// The last word counts.
fn holds(args: &[String]) -> bool {
    let told = args.iter().rev().find_map(|arg| match arg.strip_prefix("--hold")? {
        "" => Some(true),
        value => value.strip_prefix('=')?.parse().ok(),
    });
    told.unwrap_or(HOLD)
}

fn keep(record: &Record, directory: &Path) -> Result<PathBuf> {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = directory.join(format!("wirevip-{}-{number}.record", std::process::id()));
    std::fs::write(&path, record.to_text()).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_on_holding_counts() {
        let holds = |args: &[&str]| holds(&args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>());
        assert_eq!(holds(&[]), HOLD);
        assert!(holds(&["--hold"]) && holds(&["--hold=false", "--hold=true"]));
        assert!(!holds(&["--hold=true", "--hold=false"]));
    }
}
