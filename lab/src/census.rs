//! Is anything of a world left on the machine?

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::clock::now;
use crate::netns::Netns;
use crate::processes::start_time;

/// The namespaces and processes of a world.
#[derive(Clone, Debug)]
pub struct Census {
    /// Network namespaces: number, name and mark.
    pub namespaces: BTreeMap<u64, (String, String)>,
    /// Processes: id and start time, as an id alone is given to another when its process is gone.
    pub processes: Vec<(i32, u64)>,
}

impl Census {
    /// What of it still exists, a line each. Namespaces are anonymous, so one exists only while a process or a
    /// descriptor holds it.
    pub fn leftovers(&self) -> Result<Vec<String>> {
        let mut left = Vec::new();
        for (id, started) in &self.processes {
            if start_time(*id) == Some(*started) {
                let command = fs::read_to_string(format!("/proc/{id}/cmdline")).unwrap_or_default();
                left.push(format!("process {id}: {}", command.replace('\0', " ")));
            }
        }
        for process in fs::read_dir("/proc")?.flatten() {
            let is_process = process.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit());
            if !is_process {
                continue;
            }
            let mut links = vec![process.path().join("ns/net")];
            // Processes end while we look, and others' may not be readable: neither holds anything of ours.
            let open = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
            links.extend(open.map(|entry| entry.path()));
            for link in links {
                let Ok(target) = fs::read_link(&link) else { continue };
                let number = target.to_str().and_then(|t| t.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok());
                // The number may be another world's by now.
                if let Some((name, mark)) = number.and_then(|number: u64| self.namespaces.get(&number))
                    && Netns::is_marked(&link, mark)
                {
                    left.push(format!("namespace {name}, held by {}", link.display()));
                }
            }
        }
        Ok(left)
    }

    /// Waits until nothing is left.
    pub fn expect_gone(&self, within: Duration) -> Result<()> {
        // Not `clock::until`: this is asked after Ctrl-C, too.
        let deadline = now() + within;
        loop {
            let left = self.leftovers()?;
            if left.is_empty() {
                return Ok(());
            }
            if now() >= deadline {
                bail!("a world has ended, and {within:?} later there is still:\n{}", left.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    #[ignore = "needs root or a user namespace"]
    fn a_namespace_or_process_that_is_there_is_told_and_another_with_its_number_is_not() -> Result<()> {
        let netns = Netns::new("held")?;
        let census = |mark: &str| -> Result<Census> {
            let namespaces = [(netns.inode()?, (netns.name().to_owned(), mark.to_owned()))].into();
            Ok(Census { namespaces, processes: vec![] })
        };
        assert!(census(netns.mark())?.leftovers()?[0].starts_with("namespace held, held by /proc/"));
        let own = i32::try_from(std::process::id())?;
        let started = start_time(own).context("no start time")?;
        for (started, left) in [(started, 1), (started + 1, 0)] {
            let census = Census { namespaces: BTreeMap::new(), processes: vec![(own, started)] };
            assert_eq!(census.leftovers()?.len(), left, "{census:?}");
        }
        assert_eq!(census("lab-of-another-world")?.leftovers()?, Vec::<String>::new());
        Ok(())
    }
}
