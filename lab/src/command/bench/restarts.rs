//! A container is killed and restarted in place, as a kubelet does: how long clients go without answers. In user space the
//! tunnel dies with the process; the kernel's WireGuard goes on in hold, and the new process takes it over.

use std::time::Duration;

use anyhow::Result;
use lab::clock::{now, until};
use lab::probe::{Probe, ProbeKind};
use lab::{World, WorldSpec};

use super::super::screen::Screen;
use super::{Extent, WITHIN, line, within};

/// Between the end of the one process and the start of the other.
const PAUSE: Duration = Duration::from_millis(20);

/// Restarts the only pod so many times, so that nobody else takes the tunnel.
pub fn measure(spec: &WorldSpec, extent: Extent, screen: &Screen) -> Result<()> {
    within(spec.clone().nodes(1), |world| restarts(world, extent.runs(), screen))
}

fn restarts(world: &mut World, runs: u32, screen: &Screen) -> Result<()> {
    let (mut gaps, mut leads) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        let probe = Probe::start(&world.topology.client, world.web(), ProbeKind::UdpFlow)?;
        probe.steady_since(now(), 100, WITHIN)?;
        let leader = world.wait_leader(0, None, WITHIN)?;
        let event = now();
        let started = world.sidecar_mut(leader)?.restart_in_place(PAUSE)?;
        let sidecar = world.sidecar(leader)?;
        let leading = until(&format!("{} to lead again", sidecar.pod), WITHIN, || {
            Ok((sidecar.status()?["tunnels"][0]["state"] == "leading").then(now))
        })?;
        probe.steady_since(leading, 100, WITHIN)?;
        gaps.push(probe.gap_since(event).length());
        leads.push(leading.duration_since(started));
    }
    screen.tell(&line("restarted in place: gap, UDP", &gaps));
    screen.tell(&line("    from the start until it leads", &leads));
    Ok(())
}
