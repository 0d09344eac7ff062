//! The last good settings: what this pod serves, however the Secret changes.
//!
//! What must hold: no document with a fault takes a tunnel down; two tunnels in here never clash, so a newcomer that
//! wants what a kept tunnel has waits, as a fault of its own. A deleted Secret is no document: nothing is applied.

use std::collections::{BTreeMap, BTreeSet};

use super::{Document, Fault, Tunnel, TunnelName, clash};

/// The tunnels to serve and what is wrong with the Secret that they come from.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Settings {
    good: BTreeMap<TunnelName, Tunnel>,
    faults: Vec<Fault>,
    readable: bool,
}

/// What a document changed. Names only: the settings are in [`Settings::get`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Change {
    /// To be served from now on.
    pub added: Vec<TunnelName>,
    /// Served already, with other settings from now on.
    pub changed: Vec<TunnelName>,
    /// To be served no more; take these down before the others go up, they may want the same port.
    pub removed: Vec<TunnelName>,
    /// Do the faults differ from those of the last document?
    pub faults_changed: bool,
}

impl Change {
    /// Did no tunnel change?
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.changed.is_empty() && self.removed.is_empty()
    }
}

impl Settings {
    /// Takes a document over as far as it is sound, and tells what that changed.
    pub fn apply(&mut self, document: Document) -> Change {
        let readable = document.is_readable();
        let Document { tunnels, mut faults, lines } = document;
        let mut good: BTreeMap<TunnelName, Tunnel> =
            tunnels.into_iter().map(|tunnel| (tunnel.name.clone(), tunnel)).collect();
        if !faults.is_empty() {
            for (name, tunnel) in &self.good {
                good.entry(name.clone()).or_insert_with(|| tunnel.clone());
            }
            faults.extend(self.send_back_newcomers(&mut good, &lines));
            faults.sort_by_key(|fault| fault.line);
        }
        let change = Change {
            added: good.keys().filter(|name| !self.good.contains_key(name)).cloned().collect(),
            changed: good
                .iter()
                .filter(|(name, tunnel)| self.good.get(name).is_some_and(|before| before != *tunnel))
                .map(|(name, _)| name.clone())
                .collect(),
            removed: self.good.keys().filter(|name| !good.contains_key(name)).cloned().collect(),
            faults_changed: faults != self.faults,
        };
        *self = Self { good, faults, readable };
        change
    }

    /// Each tunnel of `good` that differs from what runs and clashes with one that runs unchanged goes back to what
    /// runs, or out. That makes one more unchanged tunnel, so it is done until nothing clashes; at the latest all run
    /// unchanged, and those never clash.
    fn send_back_newcomers(
        &self,
        good: &mut BTreeMap<TunnelName, Tunnel>,
        lines: &BTreeMap<TunnelName, usize>,
    ) -> Vec<Fault> {
        let mut waiting = Vec::new();
        loop {
            let is_new = |tunnel: &&Tunnel| self.good.get(&tunnel.name) != Some(tunnel);
            let found = good.values().filter(is_new).find_map(|new| {
                let kept = good.values().filter(|tunnel| tunnel.name != new.name && !is_new(tunnel));
                kept.filter_map(|kept| Some((kept, clash::between(new, kept)?)))
                    .map(|(kept, (key, what))| (new.name.clone(), kept.name.clone(), key, what))
                    .next()
            });
            let Some((name, kept, key, what)) = found else { return waiting };
            waiting.push(Fault {
                line: lines.get(&name).copied().unwrap_or(1),
                tunnel: Some(name.to_string()),
                key: key.map(str::to_owned),
                message: format!("`{kept}` keeps its last good settings, and with them this {what}"),
                fix: format!("correct the other faults, and this tunnel no longer waits for `{kept}`"),
            });
            match self.good.get(&name) {
                Some(running) => good.insert(name, running.clone()),
                None => good.remove(&name),
            };
        }
    }

    /// The tunnels to serve, by name.
    pub fn tunnels(&self) -> impl Iterator<Item = &Tunnel> {
        self.good.values()
    }

    /// The settings of one tunnel to serve.
    pub fn get(&self, name: &TunnelName) -> Option<&Tunnel> {
        self.good.get(name)
    }

    /// What is wrong with the last document, waiting tunnels included, by line.
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }

    /// Has there been a configuration to serve? (`/readyz`)
    pub fn is_configured(&self) -> bool {
        !self.good.is_empty()
    }

    /// `wirevip_config_valid`: for each tunnel that is served or at fault, are the last document's settings of it sound?
    pub fn valid(&self) -> BTreeMap<String, bool> {
        let faulty: BTreeSet<&str> = self.faults.iter().filter_map(|fault| fault.tunnel.as_deref()).collect();
        let served = self.good.keys().map(TunnelName::as_str);
        let known: BTreeSet<&str> = served.chain(faulty.iter().copied()).collect();
        known.into_iter().map(|name| (name.to_owned(), self.readable && !faulty.contains(name))).collect()
    }
}
