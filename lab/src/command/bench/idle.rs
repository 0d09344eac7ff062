//! What a pod costs while nothing happens: memory, processor, API requests.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use lab::World;
use lab::api::Request;
use lab::clock::{now, pause};

use super::super::screen::Screen;

const LOOK: Duration = Duration::from_secs(30);
/// USER_HZ, which is 100 on every Linux.
const TICKS: f64 = 100.0;

/// Looks at a leader and its standbys for half a minute.
pub fn measure(world: &World, screen: &Screen) -> Result<()> {
    let leader = world.wait_leader(0, None, super::WITHIN)?;
    look(world, |node| if node == leader { "leader" } else { "standby" }.to_owned(), screen)
}

/// Looks at every pod for half a minute; `role` is what it is called.
pub(super) fn look(world: &World, role: impl Fn(u8) -> String, screen: &Screen) -> Result<()> {
    // What the last takeover brought (Events, status) passes first.
    pause(Duration::from_secs(5))?;
    let before: Vec<f64> = world.sidecars.iter().map(|s| processor(s.process()?.id())).collect::<Result<_>>()?;
    let (asked, started) = (world.api.requests().len(), now());
    pause(LOOK)?;
    let seconds = started.elapsed().as_secs_f64();
    let requests = world.api.requests();
    for (sidecar, before) in world.sidecars.iter().zip(before) {
        let id = sidecar.process()?.id();
        let role = role(sidecar.node);
        let verbs: Vec<String> = by_verb(requests.iter().skip(asked).filter(|request| request.user == sidecar.pod))
            .map(|(verb, resource, n)| format!("{verb} {resource} {:.2}/s", n as f64 / seconds))
            .collect();
        screen.tell(&format!(
            "idle {role} (node {}): RSS {:.1} MB, {:.2} % of a core, API requests: {}",
            sidecar.node,
            memory(id)?,
            (processor(id)? - before) / seconds * 100.0,
            if verbs.is_empty() { "none".to_owned() } else { verbs.join(", ") }
        ));
    }
    Ok(())
}

/// How many requests there are of each verb and resource.
pub(super) fn by_verb<'a>(
    requests: impl Iterator<Item = &'a Request>,
) -> impl Iterator<Item = (&'a str, &'a str, usize)> {
    let mut verbs: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for request in requests {
        *verbs.entry((&request.verb, &request.resource)).or_default() += 1;
    }
    verbs.into_iter().map(|((verb, resource), n)| (verb, resource, n))
}

/// VmRSS in MB (10^6).
pub(super) fn memory(id: i32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.split_whitespace().next().context("no VmRSS")?.parse()?;
    Ok(kib * 1024.0 / 1e6)
}

/// Seconds of processor time, user and system.
pub(super) fn processor(id: i32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
    // The name in brackets may have blanks in it.
    let rest = stat.rsplit(')').next().context("a strange /proc/…/stat")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|f| f.parse::<f64>().ok()).context("a strange /proc/…/stat");
    Ok((ticks(11)? + ticks(12)?) / TICKS)
}
