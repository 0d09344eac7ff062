//! A [`Picture`] as text for a terminal. Pure.

use std::fmt::Write;

use super::picture::{Forward, Picture, Tunnel};

/// Backends told of each forward; `-o json` has all.
const BACKENDS: usize = 3;
/// Where there is nothing to tell.
const NONE: &str = "-";

/// The whole output, with its final newline.
pub(super) fn text(picture: &Picture) -> String {
    let Picture { namespace: _, tunnels, pods, leases: _, services, problems } = picture;
    let mut out = String::new();
    let rows = tunnels.iter().flat_map(tunnel_rows).collect();
    let head = ["TUNNEL", "VIP", "STATE", "LEADER", "TENURE", "HANDSHAKE", "FORWARDS", "FAULTS"];
    table(&mut out, head, rows);
    let forwards = tunnels.iter().flat_map(forward_rows).collect();
    table(&mut out, ["TUNNEL", "PORT", "FORWARDS TO", "BACKENDS"], forwards);
    let services = services.iter().map(|service| {
        let note = service.notes.join("; ");
        [service.service.clone(), service.tunnels.join(", "), service.addresses.join(", "), note]
    });
    table(&mut out, ["SERVICE", "TUNNEL", "ADDRESS", "NOTE"], services.collect());
    let pods = pods.iter().map(|pod| {
        let version = pod.version.clone().unwrap_or_default();
        [pod.name.clone(), pod.node.clone(), pod.phase.clone(), version, pod.leads.join(", ")]
    });
    table(&mut out, ["POD", "NODE", "PHASE", "VERSION", "LEADS"], pods.collect());
    let faults = tunnels.iter().flat_map(|tunnel| {
        tunnel.faults.iter().map(move |fault| match fault.everywhere {
            true => format!("{}: {}", tunnel.name, fault.message),
            false => format!("{} (on {}): {}", tunnel.name, fault.pods.join(", "), fault.message),
        })
    });
    lines(&mut out, "FAULTS", faults.collect());
    let told = |unread| problems.iter().filter(move |problem| problem.unread == unread);
    let line = |problem: &super::picture::Problem| format!("{}: {}", problem.about, problem.message);
    lines(&mut out, "PROBLEMS", told(false).map(line).collect());
    lines(&mut out, "NOT READ", told(true).map(line).collect());
    out
}

/// One row for each pod that speaks on the tunnel, or one that says that nobody does.
fn tunnel_rows(tunnel: &Tunnel) -> Vec<[String; 8]> {
    let vip = tunnel.vip.clone().unwrap_or_default();
    let faults = count(tunnel.faults.len());
    if tunnel.leaders.is_empty() {
        let holder = tunnel.leader.as_ref().map(|leader| format!("{}/{}", leader.pod, leader.node)).unwrap_or_default();
        let state = tunnel.state.clone();
        return vec![[tunnel.name.clone(), vip, state, holder, String::new(), String::new(), String::new(), faults]];
    }
    let row = |leading: &super::picture::Leading| {
        [
            tunnel.name.clone(),
            vip.clone(),
            leading.state.clone(),
            format!("{}/{}", leading.pod, leading.node),
            leading.tenure_seconds.map(|left| format!("{left:.1}s")).unwrap_or_default(),
            leading.handshake_age_seconds.map(age).unwrap_or_default(),
            leading.forwards.len().to_string(),
            faults.clone(),
        ]
    };
    tunnel.leaders.iter().map(row).collect()
}

fn forward_rows(tunnel: &Tunnel) -> Vec<[String; 4]> {
    let Some(leading) = tunnel.leaders.first() else { return vec![] };
    let row = |forward: &Forward| {
        let Forward { service, protocol, port, backends } = forward;
        let mut told = backends.iter().take(BACKENDS).cloned().collect::<Vec<_>>().join(", ");
        if let Some(more) = backends.len().checked_sub(BACKENDS).filter(|more| *more > 0) {
            // Writing to a String cannot fail.
            let _ = write!(told, " and {more} more");
        }
        if backends.is_empty() {
            told = "none: clients are refused".to_owned();
        }
        [tunnel.name.clone(), format!("{port}/{protocol}"), service.clone(), told]
    };
    leading.forwards.iter().map(row).collect()
}

fn count(number: usize) -> String {
    if number == 0 { String::new() } else { number.to_string() }
}

/// `31s`, `5m10s`, `2h3m`.
fn age(seconds: f64) -> String {
    // A negative or absurd age saturates; it is told, not judged.
    let whole = seconds.max(0.0) as u64;
    match whole {
        0..120 => format!("{whole}s"),
        120..7200 => format!("{}m{}s", whole / 60, whole % 60),
        _ => format!("{}h{}m", whole / 3600, whole / 60 % 60),
    }
}

/// Appends columns under their heads, a blank line before unless it is the first; nothing if there are no rows.
fn table<const N: usize>(out: &mut String, head: [&str; N], rows: Vec<[String; N]>) {
    if rows.is_empty() {
        return;
    }
    let shown = |cell: &str| if cell.is_empty() { NONE.to_owned() } else { plain(cell) };
    let mut all = vec![head.map(str::to_owned)];
    all.extend(rows.iter().map(|row| row.each_ref().map(|cell| shown(cell))));
    let mut widths = [0; N];
    for row in &all {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    separate(out);
    for row in &all {
        let line: String = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}  ")).collect();
        out.push_str(line.trim_end());
        out.push('\n');
    }
}

/// Appends a head and indented lines.
fn lines(out: &mut String, head: &str, lines: Vec<String>) {
    if lines.is_empty() {
        return;
    }
    separate(out);
    out.push_str(head);
    out.push('\n');
    for line in lines {
        out.push_str("  ");
        out.push_str(&plain(&line));
        out.push('\n');
    }
}

fn separate(out: &mut String) {
    if !out.is_empty() {
        out.push('\n');
    }
}

/// What a pod or the API sends reaches a terminal: without control characters.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
