//! `lab up`: a world to play in.

use std::time::Duration;

use anyhow::{Context, Result};
use lab::api::User;
use lab::{World, WorldSpec, clock};

use super::screen::Screen;

/// Keeps a world up until Ctrl-C.
pub fn run(spec: WorldSpec) -> Result<()> {
    let screen = Screen::default();
    let world = World::start(spec)?;
    let directory = std::env::temp_dir().join(format!("wirevip-lab-{}", std::process::id()));
    std::fs::create_dir(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let stayed = stay(&world, &directory, &screen);
    std::fs::remove_dir_all(&directory).with_context(|| format!("cannot remove {}", directory.display()))?;
    world.finish()?;
    screen.tell("Everything is gone again.");
    stayed
}

fn stay(world: &World, directory: &std::path::Path, screen: &Screen) -> Result<()> {
    let kubeconfig = directory.join("kubeconfig");
    std::fs::write(&kubeconfig, world.api.kubeconfig(User::Admin))?;
    screen.tell("A world is up until Ctrl-C. Its places, each to be entered from another terminal as the same user:\n");
    let tools = if nix::unistd::getuid().is_root() { "nsenter" } else { "nsenter --preserve-credentials --user" };
    for netns in world.topology.all() {
        screen.tell(&format!("  {:<10} {tools} --net={}", netns.name(), netns.path()));
    }
    let control = world.topology.control.path();
    screen.tell(&format!(
        "\nThe API:    nsenter --net={control} kubectl --kubeconfig={} get leases -A",
        kubeconfig.display()
    ));
    screen.tell(&format!("The client: nsenter --net={} nc {}   (then: who)", world.topology.client.path(), at(world)));
    for sidecar in &world.sidecars {
        screen.tell(&format!(
            "{}: process {}, http://{}:{}/status from its node",
            sidecar.pod,
            sidecar.process()?.id(),
            lab::plan::sidecar(sidecar.node),
            lab::plan::HTTP_PORT
        ));
    }
    while !clock::interrupted() {
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn at(world: &World) -> String {
    let web = world.web();
    format!("{} {}", web.ip(), web.port())
}
