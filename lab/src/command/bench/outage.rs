//! The API server is away, and clients go on: a steady flow, answers that take their time, a request every two minutes
//! through a NAT that forgets, and forwards that change while only the Lease cannot be written.

use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use lab::api::faults::{Fault, Target};
use lab::client::Proto;
use lab::clock::{now, pause, until};
use lab::objects::Condition;
use lab::probe::{Probe, ProbeKind};
use lab::takeover::milliseconds;
use lab::{World, WorldSpec};

use super::super::screen::Screen;
use super::{WITHIN, line, within};

/// A request through the NAT that forgets comes so often.
const SELDOM: Duration = Duration::from_secs(120);
const NAT_FORGETS: u32 = 30;
/// So long an answer may take, in turns.
const ANSWERS_TAKE: [u64; 5] = [100, 500, 2000, 5000, 10_000];
const CHANGES: u32 = 100;
/// The Service whose endpoints change, beside `web`.
const MOVING: &str = "moving";
const MOVING_PORT: u16 = 9090;

/// Plays the three outages, each in a world of its own.
pub fn measure(spec: &WorldSpec, length: Duration, screen: &Screen) -> Result<()> {
    screen.tell(&format!("the API server is away for {} s:", length.as_secs()));
    within(spec.clone(), |world| steady(world, length, screen))?;
    let forgetful = WorldSpec { nat_forgets: Some(NAT_FORGETS), ..spec.clone() };
    within(forgetful, |world| seldom(world, length, screen))?;
    within(spec.clone(), |world| moving(world, length, screen))
}

/// Waits until the pod of `node` is in this state by its own word.
fn becomes(world: &World, node: u8, state: &str) -> Result<Instant> {
    let sidecar = world.sidecar(node)?;
    until(&format!("{} to be {state}", sidecar.pod), WITHIN, || {
        Ok((sidecar.status()?["tunnels"][0]["state"] == state).then(now))
    })
}

/// A flow that was steady before, through an outage and a few seconds beyond it.
struct Flow {
    probe: Probe,
    leader: u8,
    event: Instant,
}

impl Flow {
    fn start(world: &World) -> Result<Self> {
        let probe = Probe::start(&world.topology.client, world.web(), ProbeKind::UdpFlow)?;
        probe.steady_since(now(), 100, WITHIN)?;
        Ok(Self { probe, leader: world.wait_leader(0, None, WITHIN)?, event: now() })
    }

    /// The API server is back: waits until the same pod leads, and tells what the flow lost.
    fn end(&self, world: &World, screen: &Screen) -> Result<()> {
        let back = now();
        let again = becomes(world, self.leader, "leading")?;
        pause(Duration::from_secs(3))?;
        let asked = self.probe.samples().iter().filter(|sample| sample.sent >= self.event).count();
        screen.tell(&format!(
            "    steady flow: {} of {asked} lost, longest silence {:.1} ms; leads on {:.1} s after the return",
            self.probe.lost_since(self.event),
            milliseconds(self.probe.gap_since(self.event).length()),
            again.saturating_duration_since(back).as_secs_f64()
        ));
        Ok(())
    }
}

fn steady(world: &mut World, length: Duration, screen: &Screen) -> Result<()> {
    let flow = Flow::start(world)?;
    world.api.stop()?;
    becomes(world, flow.leader, "holding")?;
    let end = flow.event + length;
    let (client, web) = (world.client.clone(), world.web());
    // Five clients side by side, each with an answer of another length.
    let ask = |wait: Duration| {
        let (mut asked, mut answered) = (0, 0);
        while now() + wait < end {
            asked += 1;
            answered += u32::from(client.wait_for(web, wait)?);
            pause(Duration::from_millis(100))?;
        }
        Ok::<_, anyhow::Error>((wait, asked, answered))
    };
    let asked = thread::scope(|scope| {
        let ask = &ask;
        let clients = ANSWERS_TAKE.map(|wait| scope.spawn(move || ask(Duration::from_millis(wait))));
        clients.map(|client| client.join().unwrap_or_else(|_| Err(anyhow!("a client panicked"))))
    });
    pause(end.saturating_duration_since(now()))?;
    world.api.resume()?;
    flow.end(world, screen)?;
    for result in asked {
        let (wait, asked, answered) = result?;
        screen.tell(&format!("    answers that take {:.1} s: {answered} of {asked} came", wait.as_secs_f64()));
    }
    Ok(())
}

fn seldom(world: &mut World, length: Duration, screen: &Screen) -> Result<()> {
    let leader = world.wait_leader(0, None, WITHIN)?;
    world.api.stop()?;
    let began = now();
    let (every, client) = (SELDOM.min(length), world.client.patient(WITHIN));
    let mut took = Vec::new();
    let mut asked = 0;
    while every * (asked + 1) <= length {
        asked += 1;
        pause((every * asked).saturating_sub(began.elapsed()))?;
        let sent = now();
        if client.who(Proto::Udp, world.web())?.name().is_some() {
            took.push(sent.elapsed());
        }
    }
    world.api.resume()?;
    becomes(world, leader, "leading")?;
    screen.tell(&format!(
        "    a request every {} s, NAT forgets after {NAT_FORGETS} s: {} of {asked} answered",
        every.as_secs(),
        took.len()
    ));
    screen.tell(&line("    until its answer", &took));
    Ok(())
}

/// All of the API server works but writes of the Lease.
fn moving(world: &mut World, length: Duration, screen: &Screen) -> Result<()> {
    let service = world.serve(MOVING, MOVING_PORT)?;
    let target = world.hubs.first().context("no hub")?.public(MOVING_PORT);
    world.client.until(Proto::Udp, target, WITHIN, |answer| answer.name().is_some())?;
    let flow = Flow::start(world)?;
    let writes = ["create", "update", "patch"].map(|verb| Target::any().verb(verb).resource("leases"));
    let faults = world.api.faults()?.clone();
    let refused = writes.map(|target| faults.add(target, Fault::Refuse(503)));
    becomes(world, flow.leader, "holding")?;
    let client = world.client.patient(Duration::from_millis(50));
    let began = now();
    let rest = length.saturating_sub(began.saturating_duration_since(flow.event));
    let mut seen = Vec::new();
    for number in 0..CHANGES {
        let backend = world.backends.get(number as usize % 2).context("two backends are needed")?;
        let only: [(Ipv4Addr, Condition); 1] = [(backend.address, Condition::Ready)];
        let changed = world.endpoints(&service, &only)?;
        let name = Some(backend.name.as_str());
        let asked = client.until(Proto::Udp, target, WITHIN, |answer| answer.name() == name)?;
        seen.push(asked.saturating_duration_since(changed));
        pause((rest / CHANGES * (number + 1)).saturating_sub(began.elapsed()))?;
    }
    becomes(world, flow.leader, "holding").context("nobody led meanwhile")?;
    for id in refused {
        faults.remove(id);
    }
    screen.tell(&format!("only the Lease cannot be written, for {} s:", flow.event.elapsed().as_secs()));
    flow.end(world, screen)?;
    screen.tell(&line(&format!("    each of {CHANGES} changes of the forwards: to the client"), &seen));
    Ok(())
}
