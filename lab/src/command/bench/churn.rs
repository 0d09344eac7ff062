//! One endpoint changes among 1,000 Services with 10 backends each: when does the client see it?

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result};
use lab::api::Resource;
use lab::client::Proto;
use lab::clock::until;
use lab::objects::{self, Condition};
use lab::{World, WorldSpec};

use super::super::screen::Screen;
use super::{WITHIN, line};

const SERVICES: u16 = 1000;
const RUNS: usize = 30;

/// Makes the Services, then moves one of them to and fro.
pub fn measure(spec: WorldSpec, screen: &Screen) -> Result<()> {
    let world = World::start(spec.nodes(1))?;
    let done = play(&world, screen);
    let logs = world.logs();
    world.finish()?;
    done.context(logs)
}

fn play(world: &World, screen: &Screen) -> Result<()> {
    let backends: Vec<(Ipv4Addr, Condition)> =
        (0..10).map(|last| (Ipv4Addr::new(10, 20, 0, 100 + last), Condition::Ready)).collect();
    for number in 0..SERVICES {
        let service = objects::service(&format!("s{number}"), "wg0", &[objects::port(Proto::Tcp, 10_000 + number, 80)]);
        world.kube.apply(Resource::Service, service.clone())?;
        world.endpoints(&service, &backends)?;
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
    Ok(())
}
