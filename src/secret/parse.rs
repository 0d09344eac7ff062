//! The document of tunnels: bytes in, sound tunnels and every fault at once out.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use x25519_dalek::{PublicKey as X25519Public, StaticSecret};
use zeroize::Zeroizing;

use super::host::{self, is_subdomain};
use super::value::{self, Wrong, is_harmless, shown};
use super::yaml::{self, Entry, Kind, Node, Style, Trouble, Value};
use super::{Document, Endpoint, Fault, Host, PublicKey, SecretKey, Tunnel, TunnelName, clash, suggest};

/// Kubernetes takes no larger Secret.
const MOST_BYTES: usize = 1 << 20;

/// Each tunnel of a pod has a number from 1 to 255 for its marks and routing table.
const MOST_TUNNELS: usize = 255;

/// Nobody reads more, and a hostile document shall not fill the memory with messages.
const MOST_FAULTS: usize = 1000;

/// The `listenPort` of the first tunnel that names none.
const FIRST_PORT: u16 = 51820;

/// Reads the document under the key `tunnels`. A document that cannot be read as a whole gives no tunnel and faults
/// without a tunnel; else each tunnel is either among the sound ones or has at least one fault.
pub fn parse(document: &[u8]) -> Document {
    parse_after(0, document)
}

/// The same for a document inside a file, with `before` lines of it before the document.
pub(super) fn parse_after(before: usize, document: &[u8]) -> Document {
    match read(before, document) {
        Ok(entries) => tunnels(&entries),
        Err(Trouble { line, message, fix }) => {
            Document { faults: vec![Fault { line, tunnel: None, key: None, message, fix }], ..Document::default() }
        }
    }
}

fn trouble(line: usize, message: &str, fix: &str) -> Trouble {
    Trouble { line, message: message.to_owned(), fix: fix.to_owned() }
}

/// The entries of the one map that the document is.
fn read(before: usize, document: &[u8]) -> Result<Vec<Entry>, Trouble> {
    const FIX: &str = "write a map of tunnels, each a name with its settings below";
    if document.len() > MOST_BYTES {
        return Err(trouble(before + 1, "the document is larger than 1 MiB", FIX));
    }
    let documents = yaml::text(document)
        .map_err(|trouble| Trouble { line: before + trouble.line, ..trouble })
        .and_then(|text| yaml::read(text, before))?;
    let root = match documents.as_slice() {
        [] => return Err(trouble(before + 1, "the document is empty", FIX)),
        [root] => root,
        [_, second, ..] => {
            return Err(trouble(second.line, "a second YAML document begins here", "keep all tunnels in one document"));
        }
    };
    let what = match &root.value {
        Value::Map(entries) if entries.is_empty() => "the map is empty: there is no tunnel in it",
        Value::Map(_) => {
            let (entries, doubled) = merged(root)?;
            return doubled.into_iter().next().map_or(Ok(entries), Err);
        }
        Value::List(_) => "this is a list, not a map of tunnels",
        Value::Tagged => "this has a tag (!…) that is not supported",
        Value::Scalar(scalar) if scalar.kind() == Kind::Null => "the document is empty",
        Value::Scalar(_) => "this is one text, not a map of tunnels",
    };
    Err(trouble(root.line, what, FIX))
}

/// A map's entries, with what its merge keys (`<<`) bring in behind its own; its own win, then the earlier. Beside them
/// what is said of each merge key that is not the first of its map.
fn merged(node: &Node) -> Result<(Vec<Entry>, Vec<Trouble>), Trouble> {
    let mut doubled = BTreeMap::new();
    let entries = merge(node, &mut doubled)?;
    Ok((entries, doubled.into_values().collect()))
}

/// The same; `doubled` is by line, since an anchor may be merged time and again.
fn merge(node: &Node, doubled: &mut BTreeMap<usize, Trouble>) -> Result<Vec<Entry>, Trouble> {
    const FIX: &str = "write `<<: *anchor` with the anchor of a map";
    let Value::Map(own) = &node.value else { return Err(trouble(node.line, "only a map can be merged (<<)", FIX)) };
    let is_merge = |key: &Node| matches!(&key.value, Value::Scalar(s) if s.style == Style::Plain && *s.text == "<<");
    let mut entries: Vec<Entry> = own.iter().filter(|(key, _)| !is_merge(key)).cloned().collect();
    let mut known: BTreeSet<String> = entries.iter().filter_map(|(key, _)| name_of(key)).collect();
    let mut first = None;
    for (key, source) in own.iter().filter(|(key, _)| is_merge(key)) {
        if let Some(first) = first {
            let message = format!("`<<` is given twice, first in line {first}");
            let fix = "merge several maps with one: `<<: [*first, *second]`";
            doubled.insert(key.line, trouble(key.line, &message, fix));
        }
        first.get_or_insert(key.line);
        let sources: Vec<&Node> = match &source.value {
            Value::List(items) => items.iter().map(Rc::as_ref).collect(),
            _ => vec![source],
        };
        for source in sources {
            let mut brought = merge(source, doubled)?;
            brought.retain(|(key, _)| name_of(key).is_none_or(|name| !known.contains(&name)));
            known.extend(brought.iter().filter_map(|(key, _)| name_of(key)));
            entries.append(&mut brought);
        }
    }
    Ok(entries)
}

/// A key that is text, or a number or a truth value, which are text as well.
fn name_of(key: &Node) -> Option<String> {
    match &key.value {
        Value::Scalar(scalar) if scalar.kind() != Kind::Null => Some(scalar.text.to_string()),
        _ => None,
    }
}

/// Faults so far, and what they belong to.
#[derive(Default)]
pub(super) struct Report {
    faults: Vec<Fault>,
    /// Faults beyond [`MOST_FAULTS`].
    untold: usize,
    faulty: BTreeSet<String>,
}

impl Report {
    /// Notes a fault of the tunnel called `name` in the document.
    pub(super) fn fault(&mut self, line: usize, name: &str, key: Option<&str>, wrong: Wrong) {
        self.faulty.insert(name.to_owned());
        if self.faults.len() >= MOST_FAULTS {
            self.untold += 1;
            return;
        }
        let tunnel = match name {
            "" => "(no name)",
            name if is_harmless(name) => name,
            _ => "(name not shown)",
        }
        .to_owned();
        self.faults.push(Fault {
            line: wrong.line.unwrap_or(line),
            tunnel: Some(tunnel),
            key: key.map(str::to_owned),
            message: wrong.message,
            fix: wrong.fix,
        });
    }
}

/// A value and the line of its key.
pub(super) type At<T> = Option<(T, usize)>;

/// A tunnel as far as it could be read.
pub(super) struct Draft {
    pub(super) line: usize,
    /// Empty if its key is none: see `named`.
    pub(super) name: String,
    /// Is the key a name? What is none can be no other's double.
    pub(super) named: bool,
    pub(super) vip: At<std::net::Ipv4Addr>,
    pub(super) private_key: At<Zeroizing<[u8; 32]>>,
    pub(super) peer_public_key: At<Zeroizing<[u8; 32]>>,
    pub(super) listen_port: At<u16>,
    /// Nobody wrote it: it follows from the position.
    pub(super) default_port: bool,
    endpoint: At<Endpoint>,
    allowed_ips: At<Vec<ipnet::IpNet>>,
    preshared_key: At<Zeroizing<[u8; 32]>>,
    persistent_keepalive: At<u16>,
    mtu: At<u16>,
    control_plane: At<bool>,
    public_address: At<Host>,
}

impl Draft {
    fn new(line: usize, name: Option<String>) -> Self {
        Self {
            line,
            named: name.is_some(),
            name: name.unwrap_or_default(),
            vip: None,
            private_key: None,
            peer_public_key: None,
            listen_port: None,
            default_port: false,
            endpoint: None,
            allowed_ips: None,
            preshared_key: None,
            persistent_keepalive: None,
            mtu: None,
            control_plane: None,
            public_address: None,
        }
    }

    /// The public half of our key.
    pub(super) fn public_key(&self) -> Option<[u8; 32]> {
        let (key, _) = self.private_key.as_ref()?;
        Some(X25519Public::from(&StaticSecret::from(**key)).to_bytes())
    }

    fn into_tunnel(self) -> Option<Tunnel> {
        let everything = || vec![ipnet::Ipv4Net::default().into(), ipnet::Ipv6Net::default().into()];
        Some(Tunnel {
            name: TunnelName::new(&self.name)?,
            vip: self.vip?.0,
            private_key: SecretKey::new(*self.private_key?.0),
            peer_public_key: PublicKey(*self.peer_public_key?.0),
            preshared_key: self.preshared_key.map(|(key, _)| SecretKey::new(*key)),
            endpoint: self.endpoint?.0,
            allowed_ips: self.allowed_ips.map_or_else(everything, |(nets, _)| nets),
            listen_port: self.listen_port?.0,
            persistent_keepalive: self.persistent_keepalive.map_or(5, |(seconds, _)| seconds),
            mtu: self.mtu.map(|(mtu, _)| mtu),
            control_plane: self.control_plane.is_none_or(|(on, _)| on),
            public_address: self.public_address.map(|(host, _)| host),
        })
    }
}

fn tunnels(entries: &[Entry]) -> Document {
    let mut report = Report::default();
    let mut drafts: Vec<Draft> = Vec::new();
    for (position, (key, settings)) in entries.iter().enumerate() {
        let name = name_of(key);
        check_name(&mut report, key);
        if position >= MOST_TUNNELS {
            let wrong = Wrong::new(format!("this is tunnel {}", position + 1), format!("keep at most {MOST_TUNNELS}"));
            report.fault(key.line, &name.unwrap_or_default(), None, wrong);
            continue;
        }
        let mut draft = draft(&mut report, key.line, name, settings);
        if draft.listen_port.is_none() && draft.default_port {
            draft.listen_port = u16::try_from(position)
                .ok()
                .and_then(|position| FIRST_PORT.checked_add(position))
                .map(|port| (port, key.line));
        }
        drafts.push(draft);
    }
    clash::check(&mut report, &drafts);
    let Report { mut faults, untold, faulty } = report;
    faults.sort_by_key(|fault| fault.line);
    if let Some(last) = faults.last().filter(|_| untold > 0) {
        let message = format!("{untold} more faults are not shown");
        faults.push(Fault { key: None, message, fix: "correct those above first".to_owned(), ..last.clone() });
    }
    let lines = drafts.iter().filter_map(|draft| Some((TunnelName::new(&draft.name)?, draft.line))).collect();
    let sound = drafts.into_iter().filter(|draft| !faulty.contains(&draft.name));
    let tunnels = sound.filter_map(Draft::into_tunnel).collect();
    Document { tunnels, faults, faulty: faulty.iter().filter_map(|name| TunnelName::new(name)).collect(), lines }
}

fn check_name(report: &mut Report, key: &Node) {
    const FIX: &str = "name the tunnel with 1 to 15 of a-z A-Z 0-9 . _ -";
    let no_name = |message: &str| Wrong::new(message, FIX);
    let name = match &key.value {
        Value::Scalar(scalar) if scalar.kind() == Kind::Null => {
            let message = format!("{} means no value to YAML, so it is no name", shown(&scalar.text));
            let fix = format!("{FIX}, in quotes if YAML takes it for something else");
            return report.fault(key.line, "", None, Wrong::new(message, fix));
        }
        Value::Scalar(scalar) => scalar.text.as_str(),
        Value::List(_) => return report.fault(key.line, "", None, no_name("the name is a list, not text")),
        Value::Map(_) => return report.fault(key.line, "", None, no_name("the name is a map, not text")),
        Value::Tagged => {
            return report.fault(key.line, "", None, no_name("the name has a tag (!…) that is not supported"));
        }
    };
    let message = if TunnelName::new(name).is_none() {
        format!("{} cannot be an interface's name", shown(name))
    } else if matches!(name, "all" | "default") {
        // net/ipv4/devinet.c, sysctl_dev_name_is_allowed: the kernel keeps these two for itself.
        format!("the kernel refuses an interface called `{name}`")
    } else if TunnelName::new(name).is_some_and(|name| !is_subdomain(&name.lease())) {
        let fix = "begin and end the name, and each part between dots, with a letter or digit";
        let message = format!("the Lease of {} would have a name that Kubernetes refuses", shown(name));
        return report.fault(key.line, name, None, Wrong::new(message, fix));
    } else {
        return;
    };
    report.fault(key.line, name, None, Wrong::new(message, FIX));
}

/// Reads one tunnel's settings.
fn draft(report: &mut Report, line: usize, name: Option<String>, settings: &Node) -> Draft {
    const FIX: &str = "write its settings below its name: vip, privateKey, peerPublicKey and peerEndpoint at least";
    let mut draft = Draft::new(line, name);
    let entries = match &settings.value {
        Value::Map(entries) if entries.is_empty() => Err("the tunnel has no settings"),
        Value::Map(_) => Ok(merged(settings)),
        Value::List(_) => Err("the tunnel is a list, not a map of settings"),
        Value::Tagged => Err("the tunnel has a tag (!…) that is not supported"),
        Value::Scalar(scalar) if scalar.kind() == Kind::Null => Err("the tunnel has no settings"),
        Value::Scalar(_) => Err("the tunnel is a single value, not a map of settings"),
    };
    let (entries, doubled) = match entries {
        Ok(Ok(read)) => read,
        Ok(Err(Trouble { line: at, message, fix })) => {
            report.fault(at, &draft.name, Some("<<"), Wrong::new(message, fix));
            return draft;
        }
        Err(message) => {
            report.fault(line, &draft.name, None, Wrong::new(message, FIX));
            return draft;
        }
    };
    for Trouble { line: at, message, fix } in doubled {
        report.fault(at, &draft.name, Some("<<"), Wrong::new(message, fix));
    }
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for (key, node) in &entries {
        let Some(text) = name_of(key) else {
            report.fault(key.line, &draft.name, None, Wrong::new("this is no key", "use the documented keys"));
            continue;
        };
        if let Some(first) = seen.get(&text) {
            let message = format!("the key is given twice, first in line {first}");
            report.fault(key.line, &draft.name, Some(&label(&text)), Wrong::new(message, "keep one of the two"));
        } else {
            seen.insert(text.clone(), key.line);
        }
        if let Err(wrongs) = setting(&mut draft, &text, key.line, node) {
            for wrong in wrongs {
                report.fault(key.line, &draft.name, Some(&label(&text)), wrong);
            }
        }
    }
    let given = |key: &str| seen.contains_key(key);
    for (key, example) in [
        ("vip", "the address inside the tunnel that the hub forwards to"),
        ("privateKey", "what `wg genkey` prints"),
        ("peerPublicKey", "the hub's public key"),
        ("peerEndpoint", "host:port of the hub"),
    ] {
        if !given(key) {
            report.fault(
                line,
                &draft.name,
                Some(key),
                Wrong::new("the key is missing", format!("add `{key}:` with {example}")),
            );
        }
    }
    draft.default_port = !given("listenPort");
    check_own_key(report, &draft);
    draft
}

/// A key of the document as a fault names it.
fn label(key: &str) -> String {
    if is_harmless(key) { key.to_owned() } else { "(key not shown)".to_owned() }
}

/// Reads one setting into the draft; the first of two with one key stays.
fn setting(draft: &mut Draft, key: &str, line: usize, node: &Node) -> Result<(), Vec<Wrong>> {
    fn keep<T>(slot: &mut At<T>, line: usize, value: Result<T, Wrong>) -> Result<(), Vec<Wrong>> {
        let value = value.map_err(|wrong| vec![wrong])?;
        slot.get_or_insert((value, line));
        Ok(())
    }
    match key {
        "vip" => {
            let vip = value::vip(node)?;
            keep(&mut draft.vip, line, Ok(vip))
        }
        "allowedIPs" => {
            let nets = value::allowed_ips(node)?;
            keep(&mut draft.allowed_ips, line, Ok(nets))
        }
        "privateKey" => keep(&mut draft.private_key, line, value::key(node)),
        "peerPublicKey" => keep(&mut draft.peer_public_key, line, value::key(node)),
        "presharedKey" => keep(&mut draft.preshared_key, line, value::key(node)),
        "peerEndpoint" => keep(&mut draft.endpoint, line, host::endpoint(node)),
        "listenPort" => keep(&mut draft.listen_port, line, value::number(node, 1, u16::MAX)),
        "persistentKeepalive" => keep(&mut draft.persistent_keepalive, line, value::number(node, 0, u16::MAX)),
        "mtu" => keep(&mut draft.mtu, line, value::number(node, 1280, 9000)),
        "controlPlane" => keep(&mut draft.control_plane, line, value::boolean(node)),
        "publicAddress" => keep(&mut draft.public_address, line, host::public_address(node)),
        _ => Err(vec![suggest::unknown(key)]),
    }
}

/// A tunnel whose peer is itself: the most usual mix-up of keys.
fn check_own_key(report: &mut Report, draft: &Draft) {
    let (Some((private, _)), Some((peer, line))) = (&draft.private_key, &draft.peer_public_key) else { return };
    let message = if draft.public_key() == Some(**peer) {
        "this is the tunnel's own public key, not the hub's"
    } else if private == peer {
        "this is the same text as privateKey"
    } else {
        return;
    };
    let wrong = Wrong::new(message, "give the public key of the hub, as `wg show` prints it there");
    report.fault(*line, &draft.name, Some("peerPublicKey"), wrong);
}
