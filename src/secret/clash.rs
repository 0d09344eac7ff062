//! Faults between tunnels: what two of them cannot both have. The later one in the document is at fault.

use std::collections::BTreeMap;

use super::parse::{Draft, Report};
use super::value::{Wrong, shown};
use super::{Tunnel, TunnelName};

/// Notes every clash. Defaults count, and so do tunnels that have other faults.
pub(super) fn check(report: &mut Report, drafts: &[Draft]) {
    let mut names = BTreeMap::new();
    let mut leases = BTreeMap::new();
    let mut vips = BTreeMap::new();
    let mut ports = BTreeMap::new();
    let mut keys = BTreeMap::new();
    for draft in drafts {
        let Draft { line, name, .. } = draft;
        if draft.named
            && let Some(first) = names.insert(name.as_str(), *line)
        {
            let message = format!("a tunnel of this name stands in line {first} already");
            report.fault(*line, name, None, Wrong::new(message, "give each tunnel a name of its own"));
            // A copy clashes in everything; to say so once is enough.
            names.insert(name, first);
            continue;
        }
        let of = |first: &Draft| match first.named {
            true => format!("{} (line {})", shown(&first.name), first.line),
            false => format!("the tunnel in line {}", first.line),
        };
        if let Some(sound) = TunnelName::new(name) {
            let first = *leases.entry(sound.lease()).or_insert(draft);
            if !std::ptr::eq(first, draft) {
                let message = format!("its Lease would be the same as that of {}: {}", of(first), sound.lease());
                let fix = "choose a name that differs in more than case, `_` and `-`";
                report.fault(*line, name, None, Wrong::new(message, fix));
            }
        }
        if let Some((vip, at)) = draft.vip {
            let first = *vips.entry(vip).or_insert(draft);
            if !std::ptr::eq(first, draft) {
                let wrong =
                    Wrong::new(format!("{vip} is also the VIP of {}", of(first)), "give each tunnel its own VIP");
                report.fault(at, name, Some("vip"), wrong);
            }
        }
        if let Some((port, at)) = draft.listen_port {
            let first = *ports.entry(port).or_insert(draft);
            if !std::ptr::eq(first, draft) {
                let whose = |draft: &Draft| if draft.default_port { "default" } else { "listenPort" };
                let message = match draft.default_port {
                    false => format!("{port} is also the {} of {}", whose(first), of(first)),
                    true => format!("its default {port} is also the {} of {}", whose(first), of(first)),
                };
                report.fault(at, name, Some("listenPort"), Wrong::new(message, "give each tunnel its own listenPort"));
            }
        }
        if let (Some(public), Some((peer, _)), Some((_, at))) =
            (draft.public_key(), &draft.peer_public_key, &draft.private_key)
        {
            let first = *keys.entry((public, **peer)).or_insert(draft);
            if !std::ptr::eq(first, draft) {
                let message =
                    format!("{} has the same key towards the same peer: they would fight for the hub", of(first));
                report.fault(
                    *at,
                    name,
                    Some("privateKey"),
                    Wrong::new(message, "give each tunnel a key pair of its own"),
                );
            }
        }
    }
}

/// What tunnel `new` cannot have while `kept` runs: the key at fault and what clashes. Both are sound.
pub(super) fn between(new: &Tunnel, kept: &Tunnel) -> Option<(Option<&'static str>, String)> {
    if new.name.lease() == kept.name.lease() {
        Some((None, format!("Lease {}", new.name.lease())))
    } else if new.vip == kept.vip {
        Some((Some("vip"), format!("VIP {}", new.vip)))
    } else if new.listen_port == kept.listen_port {
        Some((Some("listenPort"), format!("listenPort {}", new.listen_port)))
    } else if new.private_key == kept.private_key && new.peer_public_key == kept.peer_public_key {
        Some((Some("privateKey"), "key towards the same peer".to_owned()))
    } else {
        None
    }
}
