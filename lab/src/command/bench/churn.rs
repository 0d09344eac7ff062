//! Endpoints change among 1,000 Services with 10 backends each: one at a time, and a hundred a second. When does the
//! client see it, and what does it cost the leader?

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result};
use lab::api::Resource;
use lab::client::Proto;
use lab::clock::{now, pause, until};
use lab::objects::{self, Condition};
use lab::takeover::milliseconds;
use lab::{World, WorldSpec};
use serde_json::Value;

use super::super::screen::Screen;
use super::idle::{memory, processor};
use super::{WITHIN, line, within};

const SERVICES: u16 = 1000;
const RUNS: usize = 30;
/// A storm: so many changes, one every so often.
const CHANGES: u16 = 1000;
const EVERY: Duration = Duration::from_millis(10);

/// Makes the Services, then moves one of them to and fro.
pub fn measure(spec: WorldSpec, screen: &Screen) -> Result<()> {
    within(spec.nodes(1), |world| play(world, screen))
}

fn play(world: &World, screen: &Screen) -> Result<()> {
    let backends: Vec<(Ipv4Addr, Condition)> =
        (0..10).map(|last| (Ipv4Addr::new(10, 20, 0, 100 + last), Condition::Ready)).collect();
    let services: Vec<Value> = (0..SERVICES)
        .map(|number| objects::service(&format!("s{number}"), "wg0", &[objects::port(Proto::Tcp, 10_000 + number, 80)]))
        .collect();
    for service in &services {
        world.kube.apply(Resource::Service, service.clone())?;
        world.endpoints(service, &backends)?;
    }
    let leader = world.sidecar(world.wait_leader(0, None, WITHIN)?)?;
    let forwards = || leader.metric("wirevip_forwards", r#"{tunnel="wg0"}"#);
    until("all Services forwarded", WITHIN, || Ok(forwards()?.filter(|n| *n >= f64::from(SERVICES))))?;
    let web = world.kube.get(Resource::Service, "default", "web")?;
    let sum = || {
        Ok::<_, anyhow::Error>((
            leader.metric("wirevip_ruleset_apply_seconds_sum", "")?.unwrap_or(0.0),
            leader.metric("wirevip_ruleset_apply_seconds_count", "")?.unwrap_or(0.0),
        ))
    };
    let client = world.client.patient(Duration::from_millis(50));
    let before = sum()?;
    let mut seen = Vec::new();
    for run in 0..RUNS {
        let backend = world.backends.get(run % 2).context("two backends are needed")?;
        let changed = world.endpoints(&web, &[(backend.address, Condition::Ready)])?;
        let name = Some(backend.name.as_str());
        let asked = client.until(Proto::Udp, world.web(), WITHIN, |answer| answer.name() == name)?;
        seen.push(asked.saturating_duration_since(changed));
    }
    let after = sum()?;
    screen.tell(&line("one endpoint among 1,000 × 10: to the client", &seen));
    let applied = (after.0 - before.0) / (after.1 - before.1).max(1.0);
    screen.tell(&format!(
        "    of that in the kernel, on average: {:.1} ms ({} changes)",
        applied * 1000.0,
        after.1 - before.1
    ));
    screen.tell(&format!("    the leader's memory: {:.1} MB", memory(leader.process()?.id())?));

    let (before, used, began) = (sum()?, processor(leader.process()?.id())?, now());
    for (number, service) in (0..CHANGES).zip(services.iter().cycle()) {
        let gone = usize::from(number) % backends.len();
        let left: Vec<_> = backends.iter().enumerate().filter(|(at, _)| *at != gone).map(|(_, b)| *b).collect();
        world.endpoints(service, &left)?;
        pause((EVERY * u32::from(number + 1)).saturating_sub(began.elapsed()))?;
    }
    let (took, used) = (began.elapsed().as_secs_f64(), processor(leader.process()?.id())? - used);
    let backend = world.backends.first().context("a backend is needed")?;
    let changed = world.endpoints(&web, &[(backend.address, Condition::Ready)])?;
    let asked = client.until(Proto::Udp, world.web(), WITHIN, |answer| answer.name() == Some(&backend.name))?;
    let after = sum()?;
    screen.tell(&format!(
        "{CHANGES} changes in {took:.1} s: {:.0} % of a core; written {} times, {:.1} ms on average; one more at the \
         client after {:.1} ms",
        used / took * 100.0,
        after.1 - before.1,
        (after.0 - before.0) / (after.1 - before.1).max(1.0) * 1000.0,
        milliseconds(asked.saturating_duration_since(changed))
    ));
    Ok(())
}
