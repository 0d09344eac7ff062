//! Many tunnels over five pods, and 1,000 Services with 10 backends each: how long until all serve, what a pod costs
//! then, who leads how much, and 10,000 changes of endpoints.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result};
use lab::api::Resource;
use lab::client::Proto;
use lab::clock::{now, until};
use lab::objects::{self, Condition};
use lab::{World, WorldSpec};
use serde_json::Value;

use super::super::screen::Screen;
use super::idle;

const PODS: u8 = 5;
const SERVICES: u16 = 1000;
const CHANGES: usize = 10_000;
const LONG: Duration = Duration::from_secs(300);

/// Lays the world, starts the pods, and looks.
pub fn measure(spec: &WorldSpec, tunnels: u8, screen: &Screen) -> Result<()> {
    let mut world = World::lay(spec.clone().nodes(PODS).tunnels(tunnels))?;
    let measured = play(&mut world, screen);
    let logs = world.logs();
    world.finish()?;
    measured.context(logs)
}

fn play(world: &mut World, screen: &Screen) -> Result<()> {
    let backends: Vec<(Ipv4Addr, Condition)> =
        (0..10).map(|last| (Ipv4Addr::new(10, 20, 0, 100 + last), Condition::Ready)).collect();
    let names = world.spec.tunnels.iter().map(|tunnel| tunnel.name.clone()).collect::<Vec<_>>();
    let mut services: Vec<Value> = Vec::new();
    for (number, tunnel) in (0..SERVICES).zip(names.iter().cycle()) {
        let port = objects::port(Proto::Tcp, 10_000 + number, 80);
        let service = objects::service(&format!("s{number}"), tunnel, &[port]);
        world.kube.apply(Resource::Service, service.clone())?;
        world.endpoints(&service, &backends)?;
        services.push(service);
    }
    let started = now();
    let since = || format!("{:.1} s after the start", started.elapsed().as_secs_f64());
    world.start_sidecars()?;
    (0..names.len()).try_for_each(|index| world.wait_leader(index, None, LONG).map(drop))?;
    screen.tell(&format!("{} tunnels have leaders {}", names.len(), since()));
    world.wait_serving(LONG)?;
    screen.tell(&format!("the client was answered through each {}", since()));
    until("all Services forwarded", LONG, || {
        let mut forwards = 0.0;
        for (index, name) in names.iter().enumerate() {
            // Under load the leader may be another by now.
            let leader = world.sidecar(world.wait_leader(index, None, LONG)?)?;
            let label = format!(r#"{{tunnel="{name}"}}"#);
            forwards += leader.metric("wirevip_forwards", &label)?.unwrap_or(0.0);
        }
        anyhow::ensure!(forwards >= f64::from(SERVICES), "{forwards} are");
        Ok(Some(()))
    })?;
    screen.tell(&format!("{SERVICES} Services were forwarded {}", since()));
    let mut led: BTreeMap<u8, usize> = (1..=PODS).map(|node| (node, 0)).collect();
    for index in 0..names.len() {
        *led.entry(world.wait_leader(index, None, LONG)?).or_default() += 1;
    }
    let changes = (0..names.len()).map(|index| Ok(world.lease(index)?.map_or(0, |lease| lease.transitions)));
    let changes: i64 = changes.sum::<Result<i64>>()?;
    screen.tell(&format!("{changes} changes of leader until then"));
    let requests = world.api.requests();
    let of_pods = requests.iter().filter(|request| world.sidecars.iter().any(|sidecar| sidecar.pod == request.user));
    let asked: Vec<_> = idle::by_verb(of_pods).map(|(verb, resource, n)| format!("{n} {verb} {resource}")).collect();
    screen.tell(&format!("API requests of all pods until then: {}", asked.join(", ")));
    let leads = |node| format!("with {} of {} tunnels", led.get(&node).unwrap_or(&0), names.len());
    idle::look(world, leads, screen)?;
    change(world, &services, &backends, screen)
}

/// Changes endpoints as fast as the API server takes it, then one more, until the client sees that.
fn change(world: &World, services: &[Value], backends: &[(Ipv4Addr, Condition)], screen: &Screen) -> Result<()> {
    let ids = world.sidecars.iter().map(|s| Ok(s.process()?.id())).collect::<Result<Vec<_>>>()?;
    let used = || ids.iter().map(|id| idle::processor(*id)).sum::<Result<f64>>();
    let (before, began) = (used()?, now());
    for (number, service) in (0..CHANGES).zip(services.iter().cycle()) {
        // Every round leaves out another one, so each write is a change.
        let gone = number / services.len() % backends.len();
        let left: Vec<_> = backends.iter().enumerate().filter(|(at, _)| *at != gone).map(|(_, b)| *b).collect();
        world.endpoints(service, &left)?;
    }
    let written = began.elapsed().as_secs_f64();
    let web = world.kube.get(Resource::Service, "default", "web")?;
    let backend = world.backends.first().context("a backend is needed")?;
    world.endpoints(&web, &[(backend.address, Condition::Ready)])?;
    world.client.until(Proto::Udp, world.web(), LONG, |answer| answer.name() == Some(&backend.name))?;
    let seen = began.elapsed().as_secs_f64();
    let memory = ids.iter().map(|id| idle::memory(*id)).collect::<Result<Vec<_>>>()?;
    screen.tell(&format!(
        "{CHANGES} changes of endpoints written in {written:.1} s, one more at the client after {seen:.1} s; all pods \
         together {:.1} s of processor time, each at most {:.1} MB",
        used()? - before,
        memory.iter().fold(0.0_f64, |most, mb| most.max(*mb))
    ));
    Ok(())
}
