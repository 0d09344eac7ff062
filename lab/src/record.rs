//! What was said at the hubs of a world, and who held the Leases meanwhile: a record that can be kept in a file, read by
//! a person, and judged again (`referee.rs`). Pure.
//!
//! A file has a line for the world and then one for each entry, in order of time:
//!
//! ```text
//! wirevip-record 1 hold=false detour=0.000000
//! 0.512345 0 lease node1
//! 0.530211 0 > 203.0.113.1:20100 initiation 148 1a2b3c4d -
//! 0.530807 0 < 203.0.113.1:20100 response 92 00c0ffee 1a2b3c4d
//! ```
//!
//! that is: seconds, tunnel, direction as the hub sees it, the pod's end, message, bytes, sender's and receiver's index.

use std::fmt::{self, Write};
use std::net::SocketAddrV4;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::plan;

/// The first word of a file, and the number of its form.
const MAGIC: &str = "wirevip-record 1";

/// Message types of WireGuard (whitepaper, section 5.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Message {
    /// 1: a handshake's beginning.
    Initiation,
    /// 2: its answer.
    Response,
    /// 3: a cookie.
    Cookie,
    /// 4: data, or a keepalive if 32 bytes long.
    Data,
    /// Anything else; every WireGuard ignores it.
    Other(u8),
}

impl Message {
    /// By its first byte.
    pub fn of(kind: u8) -> Self {
        match kind {
            1 => Message::Initiation,
            2 => Message::Response,
            3 => Message::Cookie,
            4 => Message::Data,
            other => Message::Other(other),
        }
    }

    /// Is it WireGuard's? A packet with another first byte, a *defused* one among them, is ignored by everybody.
    pub fn is_speech(self) -> bool {
        !matches!(self, Message::Other(_))
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Message::Initiation => f.write_str("initiation"),
            Message::Response => f.write_str("response"),
            Message::Cookie => f.write_str("cookie"),
            Message::Data => f.write_str("data"),
            Message::Other(kind) => write!(f, "type{kind}"),
        }
    }
}

impl FromStr for Message {
    type Err = anyhow::Error;

    fn from_str(word: &str) -> Result<Self> {
        Ok(match word {
            "initiation" => Message::Initiation,
            "response" => Message::Response,
            "cookie" => Message::Cookie,
            "data" => Message::Data,
            other => Message::Other(other.strip_prefix("type").context("no message of WireGuard's")?.parse()?),
        })
    }
}

/// Who is at the other end of the hub's wire.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Speaker {
    /// The sidecar pod of this node.
    Node(u8),
    /// Anybody else.
    Stranger(SocketAddrV4),
}

impl Speaker {
    /// Who has this address, as the hub sees it.
    pub fn at(address: SocketAddrV4) -> Self {
        plan::speaker(address).map_or(Speaker::Stranger(address), Speaker::Node)
    }
}

impl fmt::Display for Speaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Speaker::Node(number) => write!(f, "node {number}"),
            Speaker::Stranger(address) => write!(f, "a stranger at {address}"),
        }
    }
}

/// One packet at a hub's WireGuard port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet {
    /// The other end, as the hub sees it.
    pub peer: SocketAddrV4,
    /// What it was.
    pub kind: Message,
    /// Bytes of UDP payload. Merged packets count as one.
    pub length: usize,
    /// The index that its sender gives the session: handshake messages only.
    pub sender: Option<u32>,
    /// The index that its receiver gave the session: all but initiations.
    pub receiver: Option<u32>,
}

/// Something that happened to a tunnel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// A packet reached the hub.
    ToHub(Packet),
    /// A packet left the hub.
    FromHub(Packet),
    /// The Lease was written by the sidecar of this node; `None`: by somebody else.
    Lease(Option<u8>),
}

/// An entry of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Since the record began.
    pub at: Duration,
    /// The tunnel, by its place.
    pub tunnel: usize,
    /// What happened.
    pub what: What,
}

/// Everything that a referee must know.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Record {
    /// May a sidecar hold: answer the hub after its tenure?
    pub hold: bool,
    /// The longest that the lab itself kept a packet on its way, on purpose.
    pub detour: Duration,
    /// In order of time.
    pub entries: Vec<Entry>,
}

impl Record {
    /// Puts the entries in order of time; those of one moment keep theirs.
    pub fn sort(&mut self) {
        self.entries.sort_by_key(|entry| entry.at);
    }

    /// As in a file.
    pub fn to_text(&self) -> String {
        let Self { hold, detour, entries } = self;
        let mut text = format!("{MAGIC} hold={hold} detour={}\n", seconds(*detour));
        for Entry { at, tunnel, what } in entries {
            let _ = write!(text, "{} {tunnel} ", seconds(*at));
            let (arrow, packet) = match what {
                What::ToHub(packet) => ('>', packet),
                What::FromHub(packet) => ('<', packet),
                What::Lease(node) => {
                    let _ = match node {
                        Some(node) => writeln!(text, "lease node{node}"),
                        None => writeln!(text, "lease other"),
                    };
                    continue;
                }
            };
            let Packet { peer, kind, length, sender, receiver } = packet;
            let index = |index: &Option<u32>| index.map_or("-".into(), |index| format!("{index:08x}"));
            let _ = writeln!(text, "{arrow} {peer} {kind} {length} {} {}", index(sender), index(receiver));
        }
        text
    }

    /// From a file; an error names the line.
    pub fn from_text(text: &str) -> Result<Self> {
        let mut lines = text.lines().zip(1..);
        let (head, _) = lines.next().context("an empty file is no record")?;
        let settings =
            head.strip_prefix(MAGIC).with_context(|| format!("no record: it does not begin with {MAGIC}"))?;
        let setting = |name: &str| {
            settings.split_whitespace().find_map(|word| word.strip_prefix(name)).with_context(|| format!("no {name}"))
        };
        let mut record = Self { hold: setting("hold=")?.parse()?, detour: time(setting("detour=")?)?, entries: vec![] };
        for (line, number) in lines {
            record.entries.push(entry(line).with_context(|| format!("line {number}: {line}"))?);
        }
        Ok(record)
    }
}

fn entry(line: &str) -> Result<Entry> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (at, tunnel, what) = match words[..] {
        [at, tunnel, "lease", "other"] => (at, tunnel, What::Lease(None)),
        [at, tunnel, "lease", node] => {
            (at, tunnel, What::Lease(Some(node.strip_prefix("node").context("no node")?.parse()?)))
        }
        [at, tunnel, arrow, peer, kind, length, sender, receiver] => {
            let index = |word: &str| (word != "-").then(|| u32::from_str_radix(word, 16)).transpose();
            let packet = Packet {
                peer: peer.parse()?,
                kind: kind.parse()?,
                length: length.parse()?,
                sender: index(sender)?,
                receiver: index(receiver)?,
            };
            match arrow {
                ">" => (at, tunnel, What::ToHub(packet)),
                "<" => (at, tunnel, What::FromHub(packet)),
                _ => bail!("a direction is > or <"),
            }
        }
        _ => bail!("an entry has 4 or 8 words"),
    };
    Ok(Entry { at: time(at)?, tunnel: tunnel.parse()?, what })
}

/// Seconds with six digits.
pub fn seconds(time: Duration) -> String {
    format!("{}.{:06}", time.as_secs(), time.subsec_micros())
}

fn time(word: &str) -> Result<Duration> {
    let (whole, micros) = word.split_once('.').context("no time")?;
    ensure!(micros.len() == 6, "a time has six digits after the point");
    Ok(Duration::from_secs(whole.parse()?) + Duration::from_micros(micros.parse()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_the_same_after_a_file() -> Result<()> {
        let packet = |kind, sender, receiver| Packet {
            peer: "203.0.113.1:20100".parse().unwrap(),
            kind,
            length: 148,
            sender,
            receiver,
        };
        let whats = [
            What::Lease(Some(1)),
            What::ToHub(packet(Message::Initiation, Some(7), None)),
            What::FromHub(packet(Message::Response, Some(0xffff_ffff), Some(7))),
            What::ToHub(packet(Message::Other(0), None, None)),
            What::Lease(None),
        ];
        let entries = whats.iter().zip(1..).map(|(what, n)| Entry {
            at: Duration::from_micros(n * 1_000_001),
            tunnel: 1,
            what: *what,
        });
        let record = Record { hold: true, detour: Duration::from_millis(20), entries: entries.collect() };
        assert_eq!(Record::from_text(&record.to_text())?, record);
        Ok(())
    }

    #[test]
    fn what_is_no_record_is_told_with_its_line() {
        let told = |text: &str| format!("{:#}", Record::from_text(text).unwrap_err());
        assert!(told("").contains("empty"));
        assert!(told("pcap\n").contains("does not begin"));
        let head = "wirevip-record 1 hold=false detour=0.000000\n";
        assert!(told(&format!("{head}0.000001 0 lease node1\n1.5 0 lease node1\n")).contains("line 3: 1.5"));
        assert!(told(&format!("{head}0.000001 0 > nowhere data 1 - -\n")).contains("line 2"));
    }

    #[test]
    fn a_pod_is_known_by_its_address_and_all_others_are_strangers() {
        let who = |text: &str| Speaker::at(text.parse().unwrap()).to_string();
        assert_eq!(who("203.0.113.1:20299"), "node 2");
        assert_eq!(who("203.0.113.1:1024"), "a stranger at 203.0.113.1:1024");
    }
}
