//! One setting: a node of the tree in, its value or what is wrong with it out.
//!
//! What must hold: a message quotes a value only through [`shown`], and a value under a key that holds key material
//! never.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ipnet::{IpNet, Ipv4Net};
use zeroize::Zeroizing;

use super::yaml::{Kind, Node, Scalar, Value};

/// What is wrong with a value, and what would be right.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Wrong {
    /// Where, if not at the key.
    pub(super) line: Option<usize>,
    pub(super) message: String,
    pub(super) fix: String,
}

impl Wrong {
    pub(super) fn new(message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { line: None, message: message.into(), fix: fix.into() }
    }
}

pub(super) type Checked<T> = Result<T, Wrong>;

/// A piece of the document as a message may show it: short, in quotes, and nothing that could be (part of) a key.
pub(super) fn shown(text: &str) -> String {
    if is_harmless(text) { format!("`{text}`") } else { format!("a text of {} characters", text.chars().count()) }
}

/// No control characters, not long, and nothing in it that looks like base64 or hex of a key.
pub(super) fn is_harmless(text: &str) -> bool {
    text.chars().count() <= 80
        && !text.chars().any(char::is_control)
        && ![text, &unescaped(text)].into_iter().any(has_key_material)
}

/// A key may be broken up by spaces, quotes or whatever it was pasted with: only what stands between the parts of
/// addresses and host names ends a run, and all else that is of no key is passed over.
fn has_key_material(text: &str) -> bool {
    text.split(['.', ':']).any(|run| {
        let run = || run.bytes().filter(|b| b.is_ascii_alphanumeric() || b"+/=_-".contains(b));
        let (upper, lower) = (run().any(|b| b.is_ascii_uppercase()), run().any(|b| b.is_ascii_lowercase()));
        run().count() >= 32 || (run().count() >= 20 && upper && lower)
    })
}

/// Each `%XX` as the character that it stands for, as in a URL.
fn unescaped(text: &str) -> Zeroizing<String> {
    let mut parts = text.split('%');
    let mut plain = Zeroizing::new(String::with_capacity(text.len()));
    plain.push_str(parts.next().unwrap_or_default());
    for part in parts {
        match part.split_at_checked(2).map(|(code, rest)| (u8::from_str_radix(code, 16), rest)) {
            Some((Ok(code), rest)) => {
                plain.push(char::from(code));
                plain.push_str(rest);
            }
            _ => plain.push_str(part),
        }
    }
    plain
}

/// The scalar as text. Fails on a list, a map, nothing, or what YAML takes for a number or a truth value.
pub(super) fn string<'a>(node: &'a Node, example: &str) -> Checked<&'a str> {
    let scalar = scalar(node, example)?;
    let what = match scalar.kind() {
        Kind::Text => return Ok(&scalar.text),
        Kind::Null => return Err(Wrong::new("it has no value", format!("write {example}"))),
        Kind::Bool(_) => "a truth value to YAML",
        Kind::Integer(_) | Kind::Float => "a number to YAML",
    };
    Err(Wrong::new(format!("{} is {what}, not text", shown(&scalar.text)), format!("write {example}")))
}

fn scalar<'a>(node: &'a Node, example: &str) -> Checked<&'a Scalar> {
    let what = match &node.value {
        Value::Scalar(scalar) => return Ok(scalar),
        Value::List(_) => "it is a list",
        Value::Map(_) => "it is a map",
        Value::Tagged => "it has a tag (!…) that is not supported",
    };
    Err(Wrong::new(what, format!("write {example}")))
}

/// `true` or `false`, by YAML 1.2: `yes`, `on` and quoted values are text.
pub(super) fn boolean(node: &Node) -> Checked<bool> {
    let fix = "write true or false, without quotes";
    let scalar = scalar(node, "true or false")?;
    match scalar.kind() {
        Kind::Bool(value) => Ok(value),
        Kind::Null => Err(Wrong::new("it has no value", fix)),
        _ => Err(Wrong::new(format!("{} is no truth value", shown(&scalar.text)), fix)),
    }
}

/// A whole number within bounds.
pub(super) fn number(node: &Node, least: u16, most: u16) -> Checked<u16> {
    let fix = format!("write a number from {least} to {most}");
    let scalar = scalar(node, &format!("a number from {least} to {most}"))?;
    match scalar.kind() {
        Kind::Integer(value) => value
            .and_then(|value| u16::try_from(value).ok())
            .filter(|value| (least..=most).contains(value))
            .ok_or_else(|| Wrong::new(format!("{} is out of range", shown(&scalar.text)), fix)),
        Kind::Null => Err(Wrong::new("it has no value", fix)),
        Kind::Text if scalar.text.parse::<u16>().is_ok() => Err(Wrong::new(
            format!("{} is text, since it is quoted", shown(&scalar.text)),
            format!("{fix}, without quotes"),
        )),
        _ => Err(Wrong::new(format!("{} is no whole number", shown(&scalar.text)), fix)),
    }
}

/// 32 bytes in base64, as `wg` writes them: 44 characters, the last one `=`.
pub(super) fn key(node: &Node) -> Checked<Zeroizing<[u8; 32]>> {
    let fix = "give 32 bytes in base64, 44 characters, as `wg genkey`, `wg pubkey` or `wg genpsk` print them";
    let wrong = |message: &str| Wrong::new(message, fix);
    let scalar = scalar(node, "32 bytes in base64")?;
    match scalar.kind() {
        Kind::Text => {}
        Kind::Null => return Err(wrong("it has no value")),
        _ => return Err(wrong("it is no base64 of 32 bytes")),
    }
    let text = scalar.text.as_str();
    if text.contains(char::is_whitespace) {
        return Err(wrong("there is white space in it"));
    }
    let Ok(bytes) = STANDARD.decode(text).map(Zeroizing::new) else {
        return Err(wrong(if text.contains(['-', '_']) {
            "it is no base64: `-` and `_` belong to the URL-safe alphabet"
        } else if text.len() == 43 {
            "it is no base64: the closing `=` is missing"
        } else {
            "it is no base64"
        }));
    };
    let Ok(key) = <[u8; 32]>::try_from(bytes.as_slice()).map(Zeroizing::new) else {
        return Err(wrong(&format!("it is {} bytes long, not 32", bytes.len())));
    };
    if *key == [0; 32] {
        return Err(wrong("the key is all zero"));
    }
    Ok(key)
}

/// An address, an address/prefix, or a list of one.
pub(super) fn vip(node: &Node) -> Result<Ipv4Addr, Vec<Wrong>> {
    const EXAMPLE: &str = "one IPv4 address, such as 10.99.0.1";
    let Value::List(items) = &node.value else { return one_vip(node).map_err(|wrong| vec![wrong]) };
    let mut wrongs = Vec::new();
    let mut vips = Vec::new();
    for item in items {
        match one_vip(item) {
            Ok(vip) => vips.push(vip),
            Err(wrong) => wrongs.push(Wrong { line: Some(item.line), ..wrong }),
        }
    }
    match vips.as_slice() {
        _ if !wrongs.is_empty() => Err(wrongs),
        [vip] => Ok(*vip),
        [] => Err(vec![Wrong::new("the list is empty", format!("write {EXAMPLE}"))]),
        _ => Err(vec![Wrong::new(
            format!("{} IPv4 addresses, and a tunnel has one", vips.len()),
            "keep one, and make a tunnel of its own for each other",
        )]),
    }
}

fn one_vip(node: &Node) -> Checked<Ipv4Addr> {
    const FIX: &str = "write one IPv4 address, such as 10.99.0.1";
    let text = string(node, "one IPv4 address, such as 10.99.0.1")?;
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let address = match address.parse() {
        Ok(IpAddr::V4(address)) => address,
        Ok(IpAddr::V6(_)) => {
            return Err(Wrong::new(format!("{} is IPv6, and IPv6 VIPs are not supported yet", shown(text)), FIX));
        }
        Err(_) => return Err(Wrong::new(format!("{} is no IP address", shown(text)), FIX)),
    };
    if let Some(why) = unusable_v4(address) {
        return Err(Wrong::new(format!("{} is no usable VIP: it is {why}", shown(text)), FIX));
    }
    let Some(prefix) = prefix else { return Ok(address) };
    let Some(net) = decimal(prefix).and_then(|prefix| Ipv4Net::new(address, prefix).ok()) else {
        return Err(Wrong::new(
            format!("{} has no sound prefix", shown(text)),
            format!("write {address} alone, or with a prefix from /0 to /32"),
        ));
    };
    // A /31 and a /32 have neither network nor broadcast address (RFC 3021).
    if net.prefix_len() < 31 {
        for (end, what) in [(net.network(), "network"), (net.broadcast(), "broadcast")] {
            if address == end {
                let message = format!("{} is no usable VIP: it is the {what} address of {}", shown(text), net.trunc());
                return Err(Wrong::new(message, "write the address of a host, or leave the prefix out"));
            }
        }
    }
    Ok(address)
}

/// What keeps an address from being some host's (IANA special-purpose registry).
pub(super) fn unusable_v4(address: Ipv4Addr) -> Option<&'static str> {
    match address.octets() {
        [0, ..] => Some("in 0.0.0.0/8, \"this network\""),
        [127, ..] => Some("a loopback address"),
        [255, 255, 255, 255] => Some("the broadcast address"),
        [224..=239, ..] => Some("a multicast address"),
        [240..=255, ..] => Some("in the reserved range 240.0.0.0/4"),
        _ => None,
    }
}

/// A number as people write it: no sign, no leading zero.
pub(super) fn decimal<T: FromStr + fmt::Display>(text: &str) -> Option<T> {
    text.parse::<T>().ok().filter(|number| number.to_string() == text)
}

/// A list of CIDRs.
pub(super) fn allowed_ips(node: &Node) -> Result<Vec<IpNet>, Vec<Wrong>> {
    const EXAMPLE: &str = "a list of CIDRs, such as [10.0.0.0/8]";
    let Value::List(items) = &node.value else {
        let message = match string(node, EXAMPLE) {
            Ok(text) => format!("{} is no list", shown(text)),
            Err(wrong) => wrong.message,
        };
        return Err(vec![Wrong::new(message, format!("write {EXAMPLE}"))]);
    };
    if items.is_empty() {
        let fix = "list CIDRs, or leave the key out to let all addresses in";
        return Err(vec![Wrong::new("the list is empty, so nothing could come through", fix)]);
    }
    let mut wrongs = Vec::new();
    let mut nets = Vec::new();
    for item in items {
        match cidr(item) {
            Ok(net) => nets.push(net),
            Err(wrong) => wrongs.push(Wrong { line: Some(item.line), ..wrong }),
        }
    }
    if wrongs.is_empty() { Ok(nets) } else { Err(wrongs) }
}

fn cidr(node: &Node) -> Checked<IpNet> {
    const EXAMPLE: &str = "a CIDR, such as 10.0.0.0/8";
    let text = string(node, EXAMPLE)?;
    let Some((address, prefix)) = text.split_once('/') else {
        return Err(match text.parse::<IpAddr>() {
            Ok(address) => {
                Wrong::new(format!("{} has no prefix", shown(text)), format!("write {}", IpNet::from(address)))
            }
            Err(_) => Wrong::new(format!("{} is no CIDR", shown(text)), format!("write {EXAMPLE}")),
        });
    };
    let Ok(address) = address.parse::<IpAddr>() else {
        return Err(Wrong::new(format!("{} is no CIDR", shown(text)), format!("write {EXAMPLE}")));
    };
    let most = if address.is_ipv4() { 32 } else { 128 };
    let Some(net) = decimal(prefix).and_then(|prefix| IpNet::new(address, prefix).ok()) else {
        return Err(Wrong::new(
            format!("{} has no sound prefix", shown(text)),
            format!("write a prefix from /0 to /{most}"),
        ));
    };
    if net.trunc() != net {
        return Err(Wrong::new(format!("{} has host bits set", shown(text)), format!("write {}", net.trunc())));
    }
    Ok(net)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_material_is_not_shown_however_it_is_broken_up() {
        for text in [
            "kJ8Yw3zTQm5rVb0sHd2fLx7u",
            "kJ8Yw3zTQm5rVb0sHd2 fLx7uPa9eGi6oNcKvXy",
            "kJ8Yw3 zTQm5r Vb0sHd 2fLx7u",
            "kJ8Yw3zTQm5rVb0sHd2%2BfLx7uPa9eGi6oNcKvXy",
            "kJ8Yw3zTQm5%20rVb0sHd2fLx",
            "%6bj8yw3ztqm5rvb0s%48d2f",
            "kJ8Yw3zTQm5\u{a0}rVb0sHd2fLx",
            "kJ8Yw3zTQm5\u{200b}rVb0sHd2fLx",
            "\"kJ8Yw3zTQm5\" \"rVb0sHd2fLx\"",
            "90a9 18c3 7cd3 426e 6b55 bd2c 1ddd 9f2c",
            "90%a918c37cd3426e6b55bd2c1ddd9f2c0b",
        ] {
            let told = shown(text);
            assert_eq!(told, format!("a text of {} characters", text.chars().count()));
        }
    }

    #[test]
    fn what_people_write_by_mistake_is_shown() {
        for text in [
            "10.99.0.1 ",
            "10.99.0.1 and 10.99.0.2",
            "10.0.0.0/8, 192.168.100.0/24, 172.16.0.0/12",
            "vpn.example.com:51820",
            "https://vpn.example.com:443",
            "[2001:db8:1111:2222:3333:4444:5555:6666]:51820",
            "Hub-A.eu-west-1.Compute.example.com",
            "no key at all",
            "100%",
        ] {
            assert_eq!(shown(text), format!("`{text}`"));
        }
    }
}
