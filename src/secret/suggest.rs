//! Did you mean …: the keys there are, for a key that there is not.

use super::value::Wrong;

/// The keys of a tunnel, as in contract.md, "Secret".
const KEYS: [&str; 11] = [
    "vip",
    "privateKey",
    "peerPublicKey",
    "peerEndpoint",
    "allowedIPs",
    "listenPort",
    "presharedKey",
    "persistentKeepalive",
    "mtu",
    "controlPlane",
    "publicAddress",
];

/// What people write who come from `wg-quick` or other charts.
const MEANT: [(&str, &str); 9] = [
    ("address", "vip"),
    ("addresses", "vip"),
    ("endpoint", "peerEndpoint"),
    ("publickey", "peerPublicKey"),
    ("peerkey", "peerPublicKey"),
    ("psk", "presharedKey"),
    ("keepalive", "persistentKeepalive"),
    ("port", "listenPort"),
    ("exposeapiserver", "controlPlane"),
];

/// What to say of a key that there is not.
pub(super) fn unknown(key: &str) -> Wrong {
    let lower = key.to_ascii_lowercase().replace(['-', '_', ' '], "");
    let by_habit = MEANT.iter().find(|(habit, _)| *habit == lower).map(|(_, meant)| *meant);
    let nearest = KEYS.iter().map(|known| (distance(&lower, &known.to_ascii_lowercase()), *known)).min();
    let meant = by_habit.or(nearest.filter(|(steps, known)| *steps <= 1 + known.len() / 5).map(|(_, known)| known));
    match meant {
        Some(meant) => Wrong::new("there is no such key", format!("did you mean `{meant}`?")),
        None => Wrong::new("there is no such key", format!("use one of {}", KEYS.join(", "))),
    }
}

/// Edits (insert, delete, replace, swap neighbours) from `a` to `b`. A text that is far too long is far away.
fn distance(a: &str, b: &str) -> usize {
    if a.len() > 40 {
        return usize::MAX;
    }
    let mut before = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.bytes().enumerate() {
            let replaced = above[j] + usize::from(x != y);
            let edited = replaced.min(above[j + 1] + 1).min(row[j] + 1);
            let swapped = i > 0 && j > 0 && a.as_bytes()[i - 1] == y && b.as_bytes()[j - 1] == x;
            row.push(if swapped { edited.min(before[j - 1] + 1) } else { edited });
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_the_key_that_was_meant_and_another_word_finds_none() {
        for (written, meant) in [
            ("VIP", "vip"),
            ("vpi", "vip"),
            ("private_key", "privateKey"),
            ("peerPublickKey", "peerPublicKey"),
            ("preshredKey", "presharedKey"),
            ("PersistentKeepAlive", "persistentKeepalive"),
            ("allowed-ips", "allowedIPs"),
            ("publicKey", "peerPublicKey"),
            ("Endpoint", "peerEndpoint"),
            ("controlplane", "controlPlane"),
        ] {
            assert_eq!(unknown(written).fix, format!("did you mean `{meant}`?"), "{written}");
        }
        for written in ["dns", "table", "", "hold", "x"] {
            assert!(unknown(written).fix.starts_with("use one of vip, "), "{written}");
        }
    }
}
