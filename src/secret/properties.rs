//! What must hold of any document: nothing panics, no key is told, and what is rendered is read back.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ipnet::{IpNet, Ipv4Net};
use proptest::collection::vec;
use proptest::prelude::*;

use super::{Document, Endpoint, Host, PublicKey, SecretKey, Settings, Tunnel, TunnelName, manifest, parse};

fn render(tunnels: &[Tunnel]) -> String {
    use std::fmt::Write;
    let base64 = |bytes: &[u8; 32]| STANDARD.encode(bytes);
    let mut text = String::new();
    for tunnel in tunnels {
        let Tunnel {
            name,
            vip,
            private_key,
            peer_public_key,
            preshared_key,
            endpoint,
            allowed_ips,
            listen_port,
            persistent_keepalive,
            mtu,
            control_plane,
            public_address,
        } = tunnel;
        writeln!(text, "'{name}':\n  vip: {vip}\n  privateKey: {}", base64(private_key.expose())).unwrap();
        writeln!(text, "  peerPublicKey: {}\n  peerEndpoint: '{endpoint}'", base64(&peer_public_key.0)).unwrap();
        writeln!(text, "  allowedIPs:").unwrap();
        for net in allowed_ips {
            writeln!(text, "  - '{net}'").unwrap();
        }
        writeln!(text, "  listenPort: {listen_port}\n  persistentKeepalive: {persistent_keepalive}").unwrap();
        writeln!(text, "  controlPlane: {control_plane}").unwrap();
        if let Some(key) = preshared_key {
            writeln!(text, "  presharedKey: {}", base64(key.expose())).unwrap();
        }
        if let Some(mtu) = mtu {
            writeln!(text, "  mtu: {mtu}").unwrap();
        }
        if let Some(host) = public_address {
            writeln!(text, "  publicAddress: '{host}'").unwrap();
        }
    }
    text
}

fn key() -> impl Strategy<Value = [u8; 32]> {
    any::<[u8; 32]>().prop_filter("not zero", |key| *key != [0; 32])
}

fn host() -> impl Strategy<Value = Host> {
    prop_oneof![
        any::<[u8; 3]>().prop_map(|[b, c, d]| Host::Address([10, b, c, d].into())),
        any::<u32>().prop_map(|low| Host::Address(std::net::Ipv6Addr::from(0xfd_u128 << 120 | u128::from(low)).into())),
        "[a-z][a-z0-9-]{0,10}[a-z0-9](\\.[a-z]{2,5}){0,2}".prop_map(Host::Name),
    ]
}

/// Sound tunnels that do not clash: what must differ is made from the position.
fn tunnels() -> impl Strategy<Value = Vec<Tunnel>> {
    let nets = vec((any::<u32>(), 0u8..=32), 1..4).prop_map(|nets| {
        nets.into_iter().map(|(bits, prefix)| IpNet::V4(Ipv4Net::new(bits.into(), prefix).unwrap().trunc())).collect()
    });
    let one = (
        "[a-zA-Z][a-zA-Z0-9._-]{0,6}[a-zA-Z0-9]",
        (key(), key(), proptest::option::of(key())),
        (host(), 1u16..),
        nets,
        any::<u16>(),
        proptest::option::of(1280u16..=9000),
        any::<bool>(),
        proptest::option::of(host()),
    );
    vec(one, 1..5).prop_map(|drafts| {
        let tunnels = drafts.into_iter().enumerate().map(|(position, draft)| {
            let (name, (private, peer, psk), (host, port), allowed_ips, keepalive, mtu, control_plane, public) = draft;
            Tunnel {
                name: TunnelName::new(&format!("{}{position}", name.replace(['.', '_', '-'], ""))).unwrap(),
                vip: [10, 99, position as u8, 1].into(),
                private_key: SecretKey::new(private),
                peer_public_key: PublicKey(peer),
                preshared_key: psk.map(SecretKey::new),
                endpoint: Endpoint { host, port },
                allowed_ips,
                listen_port: 40000 + position as u16,
                persistent_keepalive: keepalive,
                mtu,
                control_plane,
                public_address: public,
            }
        });
        tunnels.collect()
    })
}

/// Everything that could be shown of what was read.
fn told(bytes: &[u8]) -> String {
    let document = parse(bytes);
    let mut settings = Settings::default();
    let change = settings.apply(document.clone());
    format!("{document:?} {:?} {change:?} {settings:?} {:?}", manifest::check(bytes), settings.valid())
}

/// Each run of 12 characters of a key; shorter ones turn up by chance in any long message.
fn leaks<'a>(told: &str, key: &'a str) -> Option<&'a str> {
    (0..=key.len() - 12).map(|start| &key[start..start + 12]).find(|piece| told.contains(piece))
}

/// A change to a text that keeps most of it.
#[derive(Clone, Debug)]
enum Edit {
    Delete(prop::sample::Index, usize),
    Insert(prop::sample::Index, String),
    Swap(prop::sample::Index, prop::sample::Index),
    Copy(prop::sample::Index, prop::sample::Index),
}

fn edit() -> impl Strategy<Value = Edit> {
    let index = || any::<prop::sample::Index>();
    let snippets =
        "[ \t\n:#&*!|>'\"%@`{}\\[\\],?-]{1,3}|<<: |---\n|: |null|!!int |&a |\\*a|\u{1}|\r\n|[a-zA-Z0-9]{1,4}";
    prop_oneof![
        (index(), 1usize..40).prop_map(|(at, length)| Edit::Delete(at, length)),
        (index(), snippets).prop_map(|(at, text)| Edit::Insert(at, text)),
        (index(), index()).prop_map(|(a, b)| Edit::Swap(a, b)),
        (index(), index()).prop_map(|(a, b)| Edit::Copy(a, b)),
    ]
}

fn edited(text: &str, edits: &[Edit]) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for edit in edits {
        match edit {
            Edit::Delete(at, length) => {
                let line = at.index(lines.len());
                let kept: String = lines[line].chars().skip(*length).collect();
                lines[line] = kept;
            }
            Edit::Insert(at, text) => {
                let line = at.index(lines.len());
                let middle = lines[line].chars().count() / 2;
                let byte = lines[line].char_indices().nth(middle).map_or(0, |(byte, _)| byte);
                lines[line].insert_str(byte, text);
            }
            Edit::Swap(a, b) => {
                let count = lines.len();
                lines.swap(a.index(count), b.index(count));
            }
            Edit::Copy(a, b) => {
                let copy = lines[a.index(lines.len())].clone();
                lines.insert(b.index(lines.len()), copy);
            }
        }
    }
    lines.join("\n")
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..400)) {
        told(&bytes);
    }

    #[test]
    fn arbitrary_text_like_yaml_never_panics(text in "([ \ta-c0-9:#&*!|>'\"%{}\\[\\],?\n-]|<<: |: |\n  ){0,120}") {
        told(text.as_bytes());
    }

    #[test]
    fn what_is_rendered_is_read_back(tunnels in tunnels()) {
        let Document { tunnels: read, faults, faulty: _, lines: _ } = parse(render(&tunnels).as_bytes());
        prop_assert_eq!(faults, vec![]);
        prop_assert_eq!(read, tunnels);
    }

    #[test]
    fn no_piece_of_a_key_is_ever_told(tunnels in tunnels(), edits in vec(edit(), 0..6)) {
        let told = told(edited(&render(&tunnels), &edits).as_bytes());
        for tunnel in &tunnels {
            let mut keys = vec![*tunnel.private_key.expose(), tunnel.peer_public_key.0];
            keys.extend(tunnel.preshared_key.iter().map(|key| *key.expose()));
            for key in keys {
                let key = STANDARD.encode(key);
                prop_assert_eq!(leaks(&told, &key), None, "in {}", told);
            }
        }
    }

    #[test]
    fn a_key_in_any_wrong_place_is_not_told(
        key in key(), place in 0usize..8, tunnels in tunnels(), url_safe in any::<bool>(), hex in any::<bool>(),
        breaks in vec(any::<prop::sample::Index>(), 0..4), between in "[ \u{a0}|;%]|  |%20|%0A|%2B|\\\\n",
    ) {
        let whole: String = match (url_safe, hex) {
            (_, true) => key.iter().map(|byte| format!("{byte:02x}")).collect(),
            (true, _) => base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(key),
            _ => STANDARD.encode(key),
        };
        let mut key = whole.clone();
        for at in breaks {
            key.insert_str(at.index(key.len()) / 4 * 4, &between);
        }
        let good = render(&tunnels);
        let bad = match place {
            0 => format!("{key}:\n  vip: 10.0.0.1\n{good}"),
            1 => format!("x:\n  {key}: 10.0.0.1\n{good}"),
            2 => format!("x:\n  vip: {key}\n{good}"),
            3 => format!("x:\n  allowedIPs: [{key}, '{key}/8']\n{good}"),
            4 => format!("x:\n  peerEndpoint: {key}:51820\n{good}"),
            5 => format!("x:\n  publicAddress: '{key}!'\n  listenPort: {key}\n  controlPlane: {key}\n{good}"),
            6 => key.clone(),
            _ => format!("kind: {key}\ndata: {key}\n"),
        };
        let told = told(bad.as_bytes());
        prop_assert_eq!(leaks(&told, &whole), None, "in {}", told);
    }

    #[test]
    fn every_tunnel_is_sound_or_told_of(tunnels in tunnels(), edits in vec(edit(), 0..6)) {
        let document = parse(edited(&render(&tunnels), &edits).as_bytes());
        if document.is_readable() {
            for name in document.lines.keys() {
                let sound = document.tunnels.iter().filter(|tunnel| tunnel.name == *name).count();
                let told = document.faults.iter().any(|fault| fault.tunnel.as_deref() == Some(name.as_str()));
                prop_assert_eq!(sound, usize::from(!told), "{}: {:?}", name, document);
                prop_assert_eq!(document.faulty.contains(name), told, "{}: {:?}", name, document);
            }
        } else {
            prop_assert_eq!(document.tunnels, vec![]);
        }
    }

    #[test]
    fn settings_never_clash_and_faults_take_nothing_down(
        tunnels in tunnels(), rounds in vec(vec(edit(), 0..4), 1..6),
    ) {
        let good = render(&tunnels);
        let mut settings = Settings::default();
        for edits in rounds {
            let before: Vec<TunnelName> = settings.tunnels().map(|tunnel| tunnel.name.clone()).collect();
            let document = parse(edited(&good, &edits).as_bytes());
            let faulty = !document.faults.is_empty();
            let change = settings.apply(document);
            prop_assert!(!faulty || before.iter().all(|name| settings.get(name).is_some()));
            prop_assert!(!faulty || change.removed.is_empty());
            let all: Vec<&Tunnel> = settings.tunnels().collect();
            for (position, a) in all.iter().enumerate() {
                for b in &all[position + 1..] {
                    prop_assert_eq!(super::clash::between(a, b), None);
                }
            }
        }
    }
}
