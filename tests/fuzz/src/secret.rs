//! The Secret: any bytes under its key `tunnels`, or in a file for `wirevip check`.

use serde_json::{Map, Value, json};
use wirevip::secret::{Document, Fault, Settings, Tunnel, manifest, parse};

use crate::swift;

/// What stands in the place of these words before the document is read. No fuzzer finds a key by itself.
const KEYS: [(&str, &str); 4] = [
    ("KEY1", "kJ8Yw3zTQm5rVb0sHd2fLx7uPa9eGi6oNcKvXyRtB1A="),
    ("KEY2", "uZ4nWq1hSj8cEo3pMf6xTb9kLd0vGr5aIyYtXeUiO2Q="),
    ("KEY3", "sD7gHk2lZx9cVb4nMq1wEr6tYu3iOp8aQfJhGtRyW0E="),
    ("KEY4", "pL9oKi8uJm7yHn6tGb5rFv4eDc3wSx2qAz1QWsEdR0U="),
];

/// As many faults as are told, and one that counts the rest.
const MOST_FAULTS: usize = 1001;

/// Panics where one of these does not hold: it takes less than a second; every fault has a line of the document and one
/// line of text; no key is told; what is sound is read back the same; and it is the same within a manifest.
pub fn holds(input: &[u8]) {
    let text = filled(input);
    let document = swift("parse", || parse(&text));
    faults_are_told_well(&document.faults, &text);
    let checked = manifest::check(&text);
    let again = parse(&text);
    assert_eq!(document, again, "the same text again");

    let mut settings = Settings::default();
    let change = settings.apply(document.clone());
    assert!(document.faults.is_empty() || change.removed.is_empty());
    let told = format!("{document:?} {checked:?} {change:?} {settings:?} {}", json!(document.faults));
    for (_, key) in KEYS {
        let piece = (0..=key.len() - 12).map(|at| &key[at..at + 12]).find(|piece| told.contains(piece));
        assert_eq!(piece, None, "a key is told in {told}");
    }

    if !document.is_readable() {
        assert_eq!(document.tunnels, vec![], "a document that cannot be read has tunnels");
    }
    is_read_back(&document.tunnels);
    is_the_same_in_a_manifest(&text, &document);
    // One in 64, by its content: what takes more than its share of time for its length.
    if text.len() > 8 && text.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)).is_multiple_of(64) {
        let long = text.repeat((32 << 10) / text.len());
        swift("parse of the same many times over", || parse(&long));
    }
}

fn filled(input: &[u8]) -> Vec<u8> {
    let mut text = input.to_vec();
    for (word, key) in KEYS {
        while let Some(at) = text.windows(word.len()).position(|part| part == word.as_bytes()) {
            text.splice(at..at + word.len(), key.bytes());
        }
    }
    text
}

fn faults_are_told_well(faults: &[Fault], text: &[u8]) {
    assert!(faults.len() <= MOST_FAULTS, "{} faults", faults.len());
    // YAML knows three kinds of line breaks; one more line may be the end.
    let lines = text.iter().filter(|byte| matches!(byte, b'\n' | b'\r')).count() + 2;
    for fault in faults {
        let Fault { line, tunnel, key, message, fix } = fault;
        assert!((1..=lines).contains(line), "line {line} of {lines}: {fault:?}");
        for part in [Some(message), Some(fix), tunnel.as_ref(), key.as_ref()].into_iter().flatten() {
            assert!(!part.is_empty() && part.chars().count() < 1000, "{fault:?}");
            assert!(!part.chars().any(char::is_control), "{fault:?}");
        }
    }
    assert!(faults.is_sorted_by_key(|fault| fault.line), "{faults:?}");
}

/// Written as JSON, which is YAML too, sound tunnels are the same tunnels.
fn is_read_back(tunnels: &[Tunnel]) {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let mut map = Map::new();
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
        let mut entry = json!({
            "vip": vip,
            "privateKey": STANDARD.encode(private_key.expose()),
            "peerPublicKey": STANDARD.encode(peer_public_key.0),
            "peerEndpoint": endpoint.to_string(),
            "allowedIPs": allowed_ips.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "listenPort": listen_port,
            "persistentKeepalive": persistent_keepalive,
            "controlPlane": control_plane,
        });
        let more = [
            ("presharedKey", preshared_key.as_ref().map(|key| json!(STANDARD.encode(key.expose())))),
            ("mtu", mtu.map(|mtu| json!(mtu))),
            ("publicAddress", public_address.as_ref().map(|host| json!(host.to_string()))),
        ];
        for (key, value) in more {
            if let Some(value) = value {
                entry[key] = value;
            }
        }
        map.insert(name.to_string(), entry);
    }
    if !map.is_empty() {
        let Document { tunnels: mut read, faults, faulty: _, lines: _ } =
            parse(Value::Object(map).to_string().as_bytes());
        assert_eq!(faults, vec![], "of what was sound");
        let mut tunnels = tunnels.to_vec();
        for all in [&mut read, &mut tunnels] {
            all.sort_by(|a, b| a.name.cmp(&b.name));
        }
        assert_eq!(read, tunnels, "read back");
    }
}

/// Under `stringData` and, in base64, under `data` of a manifest there are the same tunnels and as many faults.
fn is_the_same_in_a_manifest(text: &[u8], document: &Document) {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let data = Some(json!({"kind": "Secret", "data": {"tunnels": STANDARD.encode(text)}}));
    let plain = std::str::from_utf8(text).ok().map(|text| json!({"kind": "Secret", "stringData": {"tunnels": text}}));
    for manifest in [data, plain].into_iter().flatten() {
        let checked = manifest::check(manifest.to_string().as_bytes());
        assert_eq!(checked.tunnels, document.tunnels, "in {manifest}");
        assert_eq!(checked.faults.len(), document.faults.len(), "{:?} in {manifest}", checked.faults);
    }
}
