//! The live table: who leads, since when the hub has a handshake, whether the client gets answers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Result;
use lab::World;
use lab::clock::{now, wall};
use lab::probe::Probe;
use lab::sidecar::Sidecar;

use super::screen::Screen;

/// Draws the table over and over while `work` is done.
pub fn during<T>(
    world: &World,
    probes: &[(&str, &Probe)],
    screen: &Screen,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                draw(world, probes, screen);
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        result
    })
}

/// Draws it once.
pub fn draw(world: &World, probes: &[(&str, &Probe)], screen: &Screen) {
    let mut lines = vec![String::new()];
    let mut key = String::new();
    for sidecar in &world.sidecars {
        let (state, more) = describe(sidecar);
        key += &state;
        lines.push(format!("    node {}   {state:<12} {more}", sidecar.node));
    }
    let hub = world.hubs.first().and_then(|hub| hub.peer().ok()).map(|peer| {
        let hears = peer.endpoint.and_then(lab::plan::speaker);
        let age = wall().duration_since(UNIX_EPOCH + Duration::from_secs(peer.latest_handshake)).unwrap_or_default();
        match hears {
            Some(node) if peer.latest_handshake > 0 => {
                (node, format!("hears node {node}, handshake {} s ago", age.as_secs()))
            }
            _ => (0, "hears nobody".to_owned()),
        }
    });
    if let Some((node, text)) = hub {
        key += &format!("hub {node}");
        lines.push(format!("    hub      {text}"));
    }
    for (name, probe) in probes {
        let samples = probe.samples();
        let last = samples.iter().rev().find_map(|sample| sample.answered);
        // A probe that has only just left is not late yet.
        let quiet = last.map_or(Duration::MAX, |at| now().saturating_duration_since(at));
        let text = if quiet < Duration::from_millis(100) {
            "answered".to_owned()
        } else if last.is_none() {
            "no answer yet".to_owned()
        } else {
            format!("NO ANSWER for {:.1} s", quiet.as_secs_f64())
        };
        key += if quiet < Duration::from_millis(100) { "y" } else { "n" };
        lines.push(format!("    client   {name}: {text}"));
    }
    screen.table(lines, key);
}

fn describe(sidecar: &Sidecar) -> (String, String) {
    match sidecar.running() {
        Ok(true) => {}
        Ok(false) => return ("gone".into(), String::new()),
        Err(error) => return ("?".into(), format!("{error:#}")),
    }
    let Ok(status) = sidecar.status() else { return ("silent".into(), String::new()) };
    let Some(tunnel) = status["tunnels"].get(0) else { return ("starting".into(), String::new()) };
    let state = tunnel["state"].as_str().unwrap_or("?").to_owned();
    let seconds =
        |key: &str, text: &str| tunnel[key].as_f64().map(|s| format!("{text} {s:.1} s  ")).unwrap_or_default();
    let more = if state == "standby" {
        String::new()
    } else {
        seconds("tenureSeconds", "tenure") + &seconds("handshakeAgeSeconds", "handshake age")
    };
    (state, more)
}
