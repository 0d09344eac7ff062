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
    let enter = enter()?;
    for netns in world.topology.all() {
        screen.tell(&format!("  {:<10} {enter} --net={}", netns.name(), netns.path()));
    }
    let control = world.topology.control.path();
    screen.tell(&format!(
        "\nThe API:    {enter} --net={control} kubectl --kubeconfig={} get leases -A",
        kubeconfig.display()
    ));
    let (client, web) = (world.topology.client.path(), world.web());
    let ask = format!("bash -c 'exec 3<>/dev/tcp/{}/{} && echo who >&3 && head -n 1 <&3'", web.ip(), web.port());
    screen.tell(&format!("The client: {enter} --net={client} {ask}"));
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

/// How another terminal enters: a user namespace of ours comes first.
fn enter() -> Result<String> {
    let map = std::fs::read_to_string("/proc/self/uid_map")?;
    let whole = map.split_whitespace().eq(["0", "0", "4294967295"]);
    let id = std::process::id();
    Ok(if whole { "nsenter".into() } else { format!("nsenter --user=/proc/{id}/ns/user --preserve-credentials") })
}
