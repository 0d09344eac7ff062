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
    /// Tunnels of the last document with faults, told or not.
    faulty: BTreeSet<TunnelName>,
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
        let Document { tunnels, mut faults, mut faulty, lines } = document;
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
        // Of names that can be no tunnel's, being too many, a hostile document may have any number.
        faulty.retain(|name| good.contains_key(name) || lines.contains_key(name));
        *self = Self { good, faults, faulty, readable };
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
        let told = self.faults.iter().filter_map(|fault| fault.tunnel.as_deref());
        let faulty: BTreeSet<&str> = told.chain(self.faulty.iter().map(TunnelName::as_str)).collect();
        let served = self.good.keys().map(TunnelName::as_str);
        let known: BTreeSet<&str> = served.chain(faulty.iter().copied()).collect();
        known.into_iter().map(|name| (name.to_owned(), self.readable && !faulty.contains(name))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::parse;

    /// A sound tunnel with keys of its own, made from its name.
    fn tunnel(name: &str, vip: &str, more: &str) -> String {
        use base64::Engine;
        let key = |salt: u8| {
            let mut bytes = [salt; 32];
            bytes[..name.len()].copy_from_slice(name.as_bytes());
            base64::engine::general_purpose::STANDARD.encode(bytes)
        };
        let (private, peer) = (key(1), key(2));
        format!("{name}: {{vip: {vip}, privateKey: {private}, peerPublicKey: {peer}, peerEndpoint: 'hub:1'{more}}}\n")
    }

    fn names(names: &[TunnelName]) -> Vec<&str> {
        names.iter().map(TunnelName::as_str).collect()
    }

    /// Name, VIP and port of each tunnel to serve.
    fn served(settings: &Settings) -> Vec<String> {
        settings.tunnels().map(|tunnel| format!("{} {} {}", tunnel.name, tunnel.vip, tunnel.listen_port)).collect()
    }

    fn started(document: &str) -> Settings {
        let mut settings = Settings::default();
        let change = settings.apply(parse(document.as_bytes()));
        assert_eq!((settings.faults(), change.is_empty()), (&[][..], false));
        settings
    }

    fn two() -> String {
        tunnel("a", "10.0.0.1", "") + &tunnel("b", "10.0.0.2", "")
    }

    #[test]
    fn a_sound_document_adds_changes_and_removes() {
        let mut settings = started(&two());
        let next = tunnel("c", "10.0.0.3", ", listenPort: 1") + &tunnel("b", "10.0.0.2", ", mtu: 1400");
        let change = settings.apply(parse(next.as_bytes()));
        assert_eq!(names(&change.added), ["c"]);
        assert_eq!(names(&change.changed), ["b"]);
        assert_eq!(names(&change.removed), ["a"]);
        assert!(settings.apply(parse(next.as_bytes())).is_empty());
    }

    #[test]
    fn a_public_address_is_served_as_kubernetes_takes_it_and_a_hub_as_it_is_written() {
        let long = "A2345678.".repeat(28);
        for (written, taken) in [
            ("Shop.Example.ORG.", Some("shop.example.org")),
            ("shop", Some("shop")),
            ("2001:DB8::1", Some("2001:db8::1")),
            ("my_shop.example.org", None),
            // 253 characters beside the dot, and one more.
            (&format!("{long}x."), Some(&*format!("{long}x").to_lowercase())),
            (&format!("{long}xy"), None),
        ] {
            let document = tunnel("a", "10.0.0.1", &format!(", publicAddress: '{written}'"));
            let tunnels = parse(document.as_bytes()).tunnels;
            let public = tunnels.first().and_then(|tunnel| tunnel.public_address.as_ref());
            assert_eq!(public.map(ToString::to_string).as_deref(), taken, "{written}");
        }
        let document = tunnel("a", "10.0.0.1", "").replace("hub:1", "My_Hub.Example.org.:1");
        let tunnels = parse(document.as_bytes()).tunnels;
        assert_eq!(tunnels.first().map(|tunnel| tunnel.endpoint.to_string()).as_deref(), Some("My_Hub.Example.org.:1"));
    }

    #[test]
    fn a_faulty_tunnel_keeps_its_last_good_settings_and_another_is_applied() {
        let mut settings = started(&two());
        let next = tunnel("a", "10.0.0.9", ", mtu: 1") + &tunnel("b", "10.0.0.3", "");
        let change = settings.apply(parse(next.as_bytes()));
        assert_eq!((names(&change.changed), change.faults_changed), (vec!["b"], true));
        assert_eq!(served(&settings), ["a 10.0.0.1 51820", "b 10.0.0.3 51821"]);
        assert_eq!(settings.valid(), BTreeMap::from([("a".to_owned(), false), ("b".to_owned(), true)]));
    }

    #[test]
    fn a_missing_tunnel_stays_while_the_document_has_a_fault() {
        let mut settings = started(&two());
        settings.apply(parse(format!("{}x: {{}}\n", tunnel("a", "10.0.0.1", "")).as_bytes()));
        assert_eq!(served(&settings), ["a 10.0.0.1 51820", "b 10.0.0.2 51821"]);
        let valid = [("a", true), ("b", true), ("x", false)].map(|(name, valid)| (name.to_owned(), valid));
        assert_eq!(settings.valid(), BTreeMap::from(valid));
        let change = settings.apply(parse(tunnel("a", "10.0.0.1", "").as_bytes()));
        assert_eq!((names(&change.removed), change.faults_changed), (vec!["b"], true));
    }

    #[test]
    fn a_document_that_cannot_be_read_takes_nothing_down_and_makes_every_tunnel_invalid() {
        for document in [parse(b"- a"), parse(b""), parse(b"{}"), Document::absent()] {
            let mut settings = started(&two());
            assert!(settings.apply(document).is_empty());
            let valid = [("a", false), ("b", false)].map(|(name, valid)| (name.to_owned(), valid));
            assert_eq!(settings.valid(), BTreeMap::from(valid));
            assert!(settings.is_configured());
        }
    }

    #[test]
    fn a_newcomer_waits_for_what_a_kept_tunnel_has() {
        let mut settings = started(&tunnel("a", "10.0.0.1", ""));
        // `a` is renamed to `b` in a document whose other tunnel is faulty, so `a` is only missing.
        let renamed = tunnel("b", "10.0.0.1", ", listenPort: 7");
        let change = settings.apply(parse(format!("bad: {{}}\n{renamed}").as_bytes()));
        assert!(change.is_empty());
        let waiting = settings.faults().iter().find(|fault| fault.tunnel.as_deref() == Some("b"));
        let waiting = waiting.map(|fault| (fault.line, fault.key.as_deref(), fault.message.as_str()));
        let message = "`a` keeps its last good settings, and with them this VIP 10.0.0.1";
        assert_eq!(waiting, Some((2, Some("vip"), message)));
        assert_eq!(settings.valid().get("b"), Some(&false));
        // With the fault gone, both halves of the rename happen at once.
        let change = settings.apply(parse(renamed.as_bytes()));
        assert_eq!((names(&change.added), names(&change.removed)), (vec!["b"], vec!["a"]));
    }

    #[test]
    fn a_change_that_waits_may_make_another_wait() {
        let mut settings = started(&(two() + &tunnel("c", "10.0.0.3", "")));
        // Each takes the VIP of the one before, and the first is faulty: none can move.
        let next = tunnel("a", "10.0.0.9", ", mtu: 1") + &tunnel("b", "10.0.0.1", "") + &tunnel("c", "10.0.0.2", "");
        assert!(settings.apply(parse(next.as_bytes())).is_empty());
        assert_eq!(settings.faults().len(), 3);
    }

    #[test]
    fn two_sound_tunnels_may_swap_what_they_have_beside_a_faulty_one() {
        let mut settings = started(&two());
        let next = tunnel("a", "10.0.0.2", "") + &tunnel("b", "10.0.0.1", "") + "x: {}\n";
        assert_eq!(names(&settings.apply(parse(next.as_bytes())).changed), ["a", "b"]);
        assert_eq!(settings.faults().len(), 1);
    }

    #[test]
    fn a_default_port_that_moves_into_a_kept_tunnels_port_waits() {
        let mut settings = started(&two());
        // `b` moves to the first place and would get 51820, which faulty `a` still has.
        settings.apply(parse((tunnel("b", "10.0.0.2", "") + "a: {}\n").as_bytes()));
        assert_eq!(served(&settings), ["a 10.0.0.1 51820", "b 10.0.0.2 51821"]);
        assert_eq!(settings.faults().len(), 2);
    }

    #[test]
    fn a_tunnel_may_be_called_like_the_fence_of_another() {
        // `ruleset::unambiguous` keeps their tables apart.
        started(&(two() + &tunnel("a_fence", "10.0.0.3", "")));
        // And beside one that is kept.
        let mut settings = started(&two());
        let next = "bad: {}\n".to_owned() + &tunnel("a_fence", "10.0.0.3", ", listenPort: 7");
        assert_eq!(names(&settings.apply(parse(next.as_bytes())).added), ["a_fence"]);
        assert_eq!(served(&settings), ["a 10.0.0.1 51820", "a_fence 10.0.0.3 7", "b 10.0.0.2 51821"]);
    }

    #[test]
    fn a_tunnel_whose_faults_are_too_many_to_tell_is_invalid_all_the_same() {
        let mut settings = started(&two());
        let many: String = (0..1500).map(|number| format!(", k{number}: x")).collect();
        let next = tunnel("a", "10.0.0.1", &many) + &tunnel("b", "10.0.0.2", ", mtu: 1") + "c: {}\n";
        assert!(settings.apply(parse(next.as_bytes())).is_empty());
        assert_eq!(settings.faults().len(), 1001);
        let valid = ["a", "b", "c"].map(|name| (name.to_owned(), false));
        assert_eq!(settings.valid(), BTreeMap::from(valid));
        // And sound again with the next document.
        settings.apply(parse(two().as_bytes()));
        assert_eq!(settings.valid(), BTreeMap::from(["a", "b"].map(|name| (name.to_owned(), true))));
    }
}
