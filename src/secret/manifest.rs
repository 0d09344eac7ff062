//! A file as people keep it: a Secret manifest, a list of them, or the bare document of tunnels; every fault at the
//! line of the file out.

use std::rc::Rc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::value::shown;
use super::yaml::{self, Entry, Kind, Node, Scalar, Style, Value};
use super::{Fault, Tunnel, parse};

/// The key of the Secret.
const KEY: &str = "tunnels";

/// What a file says: of all its Secrets, the sound tunnels and every fault.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Checked {
    /// Sound tunnels, in the order of the file.
    pub tunnels: Vec<Tunnel>,
    /// Faults, with lines of the file; where that cannot be, the message says what the line counts in.
    pub faults: Vec<Fault>,
}

impl Checked {
    /// What is said of a file that is larger than `most`, and so is not read.
    pub fn too_large(most: &str) -> Self {
        let mut checked = Self::default();
        let fix = "keep each Secret, of 1 MiB at most, in a file of its own";
        checked.fault(1, None, format!("the file is larger than {most}"), fix);
        checked
    }

    fn fault(&mut self, line: usize, key: Option<String>, message: impl Into<String>, fix: impl Into<String>) {
        self.faults.push(Fault { line, tunnel: None, key, message: message.into(), fix: fix.into() });
    }
}

/// Reads a file: manifests if any of its YAML documents has a `kind` or an `apiVersion`, else a document of tunnels.
pub fn check(file: &[u8]) -> Checked {
    let source = yaml::text(file).unwrap_or_default();
    let documents = yaml::read(source, 0).unwrap_or_default();
    if !documents.iter().any(|document| is_manifest(document)) {
        let super::Document { tunnels, faults, faulty: _, lines: _ } = parse::parse(file);
        return Checked { tunnels, faults };
    }
    let mut checked = Checked::default();
    let mut objects: Vec<&Node> = Vec::new();
    for document in &documents {
        if is_manifest(document) {
            match get(document, "items").map(|items| &items.value) {
                Some(Value::List(items)) => objects.extend(items.iter().map(Rc::as_ref)),
                _ => objects.push(document),
            }
        } else if !is_null(document) {
            let fix = "keep the bare document of tunnels in a file of its own";
            checked.fault(document.line, None, "this document is no manifest", fix);
        }
    }
    let kind = |object: &Node| get(object, "kind").and_then(text).map(|kind| kind.to_string());
    let secrets: Vec<&Node> =
        objects.iter().filter(|object| kind(object).as_deref() == Some("Secret")).copied().collect();
    let with_tunnels: Vec<&Node> = secrets.iter().filter(|secret| !sources(secret).is_empty()).copied().collect();
    for secret in &with_tunnels {
        check_secret(&mut checked, source, secret);
    }
    if with_tunnels.is_empty() {
        let fix = "give a Secret with the map of tunnels under stringData.tunnels";
        match (objects.as_slice(), secrets.as_slice()) {
            ([one], []) => {
                let message = match kind(one) {
                    Some(kind) => format!("this is of kind {}, not a Secret", shown(&kind)),
                    None => "this manifest has no kind".to_owned(),
                };
                checked.fault(one.line, None, message, fix);
            }
            ([one], [_]) => checked.fault(one.line, None, "the Secret has no key `tunnels`", fix),
            _ => checked.fault(
                1,
                None,
                format!("none of these {} objects is a Secret with `tunnels`", objects.len()),
                fix,
            ),
        }
    }
    checked.faults.sort_by_key(|fault| fault.line);
    checked
}

/// `kind` or `apiVersion` with a plain value; below a tunnel of that name there would be a map.
fn is_manifest(document: &Node) -> bool {
    ["kind", "apiVersion"].iter().any(|key| get(document, key).and_then(text).is_some())
}

fn is_null(node: &Node) -> bool {
    matches!(&node.value, Value::Scalar(scalar) if scalar.kind() == Kind::Null)
}

fn text(node: &Node) -> Option<&str> {
    match &node.value {
        Value::Scalar(scalar) if scalar.kind() == Kind::Text => Some(&scalar.text),
        _ => None,
    }
}

/// The entries with this `key`; more than one is a mistake of its own.
fn all<'a>(map: &'a Node, key: &'a str) -> impl Iterator<Item = &'a Entry> {
    let entries = match &map.value {
        Value::Map(entries) => entries.as_slice(),
        _ => &[],
    };
    entries.iter().filter(move |(name, _)| text(name) == Some(key))
}

fn get<'a>(map: &'a Node, key: &'a str) -> Option<&'a Node> {
    all(map, key).next().map(|(_, value)| value.as_ref())
}

/// Where a Secret has `tunnels`. What the API server takes is first: it lets stringData win over data.
fn sources(secret: &Node) -> Vec<(&'static str, &Entry)> {
    ["stringData", "data"]
        .into_iter()
        .flat_map(|part| all(secret, part).flat_map(move |(_, map)| all(map, KEY)).map(move |entry| (part, entry)))
        .collect()
}

fn check_secret(checked: &mut Checked, source: &str, secret: &Node) {
    let sources = sources(secret);
    let Some((part, (name, node))) = sources.first() else { return };
    let key = || Some(format!("{part}.{KEY}"));
    if let Some((_, (_, second))) = sources.iter().skip(1).find(|(other, _)| other == part) {
        return checked.fault(second.line, key(), "the key is given twice", "keep one of the two");
    }
    let Value::Scalar(scalar) = &node.value else {
        let fix = format!("write `{KEY}: |` and the map of tunnels indented below, as one text");
        return checked.fault(node.line, key(), "this is not one text", fix);
    };
    let decoded;
    let document = if *part == "data" {
        // The API server's decoder passes over line breaks and over nothing else (Go, encoding/base64).
        let packed = Zeroizing::new(scalar.text.replace(['\r', '\n'], ""));
        let Ok(bytes) = STANDARD.decode(packed.as_bytes()) else {
            let message = if packed.contains(char::is_whitespace) {
                "there is white space in this base64, which the API server refuses: YAML makes a space of a line's end"
            } else {
                "this is no base64"
            };
            let fix = "write it on one line, as `base64 -w0` prints it, or below `|`; or put the text itself under \
                       stringData";
            return checked.fault(node.line, key(), message, fix);
        };
        decoded = Zeroizing::new(bytes);
        decoded.as_slice()
    } else {
        scalar.text.as_bytes()
    };
    let place = match *part {
        "data" => Place::decoded(secret),
        _ => Place::of(source, name.line, node.line, scalar),
    };
    let before = if let Place::Block(before) = place { before } else { 0 };
    let super::Document { tunnels, faults, faulty: _, lines: _ } = parse::parse_after(before, document);
    checked.tunnels.extend(tunnels);
    checked.faults.extend(faults.into_iter().map(|fault| place.locate(fault)));
}

/// How a line of the document becomes a line of the file.
enum Place {
    /// Each line is a line of the file, behind so many others.
    Block(usize),
    /// All of it stands in this line of the file (JSON, quotes), or begins there and has fewer lines than the file.
    Within(usize),
    /// There is no such line in the file.
    Decoded(String),
}

impl Place {
    /// Of a text under stringData: `key` and `line` are where its key stands and where it begins itself.
    fn of(source: &str, key: usize, line: usize, scalar: &Scalar) -> Self {
        let block = matches!(scalar.style, Style::Literal | Style::Folded);
        if block && scalar.text.trim_matches([' ', '\n']).is_empty() {
            // It begins where the next thing does.
            return Place::Block(key.saturating_sub(1));
        }
        let blank = scalar.text.bytes().take_while(|byte| *byte == b'\n').count();
        let before = line.saturating_sub(blank + 1);
        let is_line = |(written, read): (&str, &str)| written.trim() == read.trim();
        match scalar.style {
            Style::Literal => Place::Block(before),
            // Lines that are indented further than the first stay lines, and so does nearly every document of tunnels.
            Style::Folded if source.lines().skip(before).zip(scalar.text.lines()).all(is_line) => Place::Block(before),
            _ => Place::Within(line),
        }
    }

    fn decoded(secret: &Node) -> Self {
        let name = get(secret, "metadata").and_then(|metadata| get(metadata, "name")).and_then(text);
        Place::Decoded(name.map(|name| format!(" of Secret {}", shown(name))).unwrap_or_default())
    }

    fn locate(&self, fault: Fault) -> Fault {
        let Fault { line, tunnel, key, message, fix } = fault;
        match self {
            Place::Block(_) => Fault { line, tunnel, key, message, fix },
            Place::Within(at) => {
                Fault { line: *at, tunnel, key, message: format!("{message} (line {line} within this text)"), fix }
            }
            Place::Decoded(of) => {
                Fault { line, tunnel, key, message: format!("{message} (line of the decoded data.tunnels{of})"), fix }
            }
        }
    }
}
