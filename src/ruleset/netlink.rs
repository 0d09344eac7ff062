//! A netfilter socket: batches, requests and dumps, each bounded in time and in tries.

use std::io;
use std::os::fd::AsRawFd;

use netlink_packet_core::{NLA_TYPE_MASK, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage};
use netlink_packet_netfilter::nftables::NfTablesMessage;
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::FirewallError;
use super::encode::Message;

/// A whole ruleset goes in one send: 1,000 Services of 10 backends are about 0.9 MB.
const SEND_BUFFER: usize = 64 << 20;
const RECEIVE_BUFFER: usize = 8 << 20;
/// The kernel answers within the system call that asks: what has not come by then, never will.
const PATIENCE_MICROSECONDS: i64 = 100_000;
/// A dump is torn when somebody changes what it reads.
const TRIES: usize = 10;

const NFNL_SUBSYS_NFTABLES: u16 = 10;

/// Bytes of a message before its attributes: netlink's header, then netfilter's.
const NETLINK_HEADER: usize = 16;
const NETFILTER_HEADER: usize = 4;

/// A socket in the network namespace in which it was opened.
#[derive(Debug)]
pub(super) struct Channel {
    socket: Socket,
    sequence: u32,
}

/// The answer to one message: error number, 0 = done, and the kernel's own words.
struct Answer {
    errno: i32,
    words: Option<String>,
}

struct Frame<'a> {
    /// Of the message that is answered.
    sequence: u32,
    /// Something changed while the kernel listed it.
    torn: bool,
    body: Body<'a>,
}

enum Body<'a> {
    Answer(Answer),
    Done,
    Data(&'a [u8]),
}

impl Channel {
    pub(super) fn open() -> Result<Self, FirewallError> {
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(|source| match source.raw_os_error() {
            Some(code) if code == nix::Error::EPROTONOSUPPORT as i32 => {
                FirewallError::Unsupported { step: "opening a netfilter socket".to_owned(), source }
            }
            _ => FirewallError::Socket(source),
        })?;
        socket.bind_auto().map_err(FirewallError::Socket)?;
        // An error then quotes the header of the message that failed, not all of its 30 KB.
        socket.set_cap_ack(true).map_err(FirewallError::Socket)?;
        socket.set_ext_ack(true).map_err(FirewallError::Socket)?;
        let patience = TimeVal::new(0, PATIENCE_MICROSECONDS);
        setsockopt(&socket, sockopt::ReceiveTimeout, &patience).map_err(|e| FirewallError::Socket(e.into()))?;
        // Needs NET_ADMIN, as all that follows: without it the first commit says so.
        let _ = setsockopt(&socket, sockopt::SndBufForce, &SEND_BUFFER);
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER);
        Ok(Self { socket, sequence: 0 })
    }

    /// All messages or none.
    pub(super) fn batch(&mut self, messages: Vec<Message>) -> Result<(), FirewallError> {
        let Some(last) = messages.len().checked_sub(1) else { return Ok(()) };
        let control = |body| {
            NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, NFNL_SUBSYS_NFTABLES), body)
        };
        let mut bytes = Vec::with_capacity(messages.len() * 256);
        let mut about = Vec::with_capacity(messages.len());
        let begin = self.append(&mut bytes, control(ControlMessage::BatchBegin), 0);
        for (index, message) in messages.into_iter().enumerate() {
            let ack = if index == last { NLM_F_ACK } else { 0 };
            self.append(&mut bytes, inet(message.body), message.flags | ack);
            about.push(message.about);
        }
        let end = self.append(&mut bytes, control(ControlMessage::BatchEnd), 0);
        self.send(&bytes)?;

        let mut failed = None;
        loop {
            for frame in frames(&self.receive()?) {
                let frame = frame?;
                // Before `begin`: answers to an earlier batch that was given up on.
                let place = frame.sequence.checked_sub(begin).filter(|_| frame.sequence < end);
                let (Some(place), Body::Answer(answer)) = (place, frame.body) else { continue };
                if answer.errno != 0 && failed.is_none() {
                    let step = match place.checked_sub(1).and_then(|index| about.get(index as usize)) {
                        Some(step) => step.clone(),
                        None => "committing the tables".to_owned(),
                    };
                    failed = Some(refusal(step, &answer));
                }
                // The batch as a whole was refused, or this was its last message: no more answers.
                if place == 0 || place as usize == about.len() {
                    return failed.map_or(Ok(()), Err);
                }
            }
        }
    }

    /// One message that is answered by an acknowledgement; `None` if what it names is not there.
    pub(super) fn request(&mut self, message: NetfilterMessage, about: &str) -> Result<Option<()>, FirewallError> {
        self.ask(message, about).map(|answer| answer.map(drop))
    }

    /// One message that is answered by one of the same kind: its attributes; `None` if what it names is not there.
    pub(super) fn get(&mut self, message: NetfilterMessage, about: &str) -> Result<Option<Vec<u8>>, FirewallError> {
        Ok(self.ask(message, about)?.flatten())
    }

    fn ask(&mut self, message: NetfilterMessage, about: &str) -> Result<Option<Option<Vec<u8>>>, FirewallError> {
        let mut bytes = Vec::new();
        let sequence = self.append(&mut bytes, message, NLM_F_ACK);
        self.send(&bytes)?;
        let mut found = None;
        loop {
            for frame in frames(&self.receive()?) {
                match frame? {
                    frame if frame.sequence != sequence => {}
                    Frame { body: Body::Data(attributes), .. } => found = Some(attributes.to_vec()),
                    Frame { body: Body::Answer(answer), .. } => {
                        return Ok(acknowledged(&answer, about)?.map(|()| found));
                    }
                    Frame { body: Body::Done, .. } => {}
                }
            }
        }
    }

    /// Attributes of each thing in a list; nothing if what is named is not there. Begun anew when it was torn.
    pub(super) fn dump(&mut self, message: &NetfilterMessage, about: &str) -> Result<Vec<Vec<u8>>, FirewallError> {
        for _ in 0..TRIES {
            if let Some(all) = self.dump_once(message.clone(), about)? {
                return Ok(all);
            }
        }
        Err(FirewallError::Socket(io::Error::from(io::ErrorKind::Interrupted)))
    }

    fn dump_once(&mut self, message: NetfilterMessage, about: &str) -> Result<Option<Vec<Vec<u8>>>, FirewallError> {
        let mut bytes = Vec::new();
        let sequence = self.append(&mut bytes, message, NLM_F_DUMP);
        self.send(&bytes)?;
        let (mut all, mut whole) = (Vec::new(), true);
        loop {
            for frame in frames(&self.receive()?) {
                let frame = frame?;
                if frame.sequence != sequence {
                    continue;
                }
                whole &= !frame.torn;
                match frame.body {
                    Body::Data(attributes) => all.push(attributes.to_vec()),
                    Body::Done => return Ok(whole.then_some(all)),
                    Body::Answer(Answer { errno, .. }) if errno == nix::Error::EINTR as i32 => return Ok(None),
                    Body::Answer(answer) => return acknowledged(&answer, about).map(|_| Some(Vec::new())),
                }
            }
        }
    }

    fn append(&mut self, bytes: &mut Vec<u8>, message: NetfilterMessage, flags: u16) -> u32 {
        // Kept below the sign bit: a wrap would make answers look older than their questions.
        self.sequence = (self.sequence + 1) & 0x7fff_ffff;
        let mut framed = NetlinkMessage::from(message);
        framed.header.flags = NLM_F_REQUEST | flags;
        framed.header.sequence_number = self.sequence;
        framed.finalize();
        let start = bytes.len();
        bytes.resize(start + framed.buffer_len(), 0);
        framed.serialize(&mut bytes[start..]);
        self.sequence
    }

    fn send(&self, bytes: &[u8]) -> Result<(), FirewallError> {
        self.discard_stale();
        again(|| self.socket.send_to(bytes, &SocketAddr::new(0, 0), 0)).map_err(FirewallError::Socket).map(drop)
    }

    /// What questions that failed left of their answers: if it filled the socket, the kernel would drop all further
    /// ones without a word.
    fn discard_stale(&self) {
        let mut any = [0];
        while let Ok(_) | Err(nix::Error::ENOBUFS | nix::Error::EINTR) =
            recv(self.socket.as_raw_fd(), &mut any, MsgFlags::MSG_DONTWAIT)
        {}
    }

    fn receive(&self) -> Result<Vec<u8>, FirewallError> {
        again(|| self.socket.recv_from_full()).map_err(FirewallError::Socket).map(|(bytes, _)| bytes)
    }
}

/// A message of family `inet`.
pub(super) fn inet(body: NfTablesMessage) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0), body)
}

/// A message of family IPv4.
pub(super) fn ipv4(body: impl Into<NetfilterMessageInner>) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::IPv4, 0, 0), body)
}

/// Kinds and values of one level's attributes, up to the first that is cut off.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?) & NLA_TYPE_MASK;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn again<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 0..TRIES {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
    Err(io::Error::from(io::ErrorKind::Interrupted))
}

fn frames(bytes: &[u8]) -> impl Iterator<Item = Result<Frame<'_>, FirewallError>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let Some((frame, after)) = split(rest) else {
            rest = &[];
            return Some(Err(FirewallError::Garbled { what: "a netfilter message" }));
        };
        rest = after;
        Some(Ok(frame))
    })
}

fn split(bytes: &[u8]) -> Option<(Frame<'_>, &[u8])> {
    const NLMSG_ERROR: u16 = 2;
    const NLMSG_DONE: u16 = 3;
    let length = read_u32(bytes, 0)? as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let flags = u16::from_ne_bytes(bytes.get(6..8)?.try_into().ok()?);
    let sequence = read_u32(bytes, 8)?;
    let body = bytes.get(NETLINK_HEADER..length)?;
    let after = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    let body = match kind {
        NLMSG_ERROR => {
            let errno = read_u32(body, 0)?.cast_signed().checked_neg()?;
            // With capped acknowledgements only the header of the failed message is quoted, then come the words.
            let words = body.get(4 + NETLINK_HEADER..).and_then(|extra| {
                attributes(extra)
                    .find(|(kind, _)| *kind == 1)
                    .map(|(_, words)| String::from_utf8_lossy(words).into_owned())
            });
            Body::Answer(Answer { errno, words })
        }
        NLMSG_DONE => Body::Done,
        _ => Body::Data(body.get(NETFILTER_HEADER..)?),
    };
    Some((Frame { sequence, torn: flags & NLM_F_DUMP_INTR != 0, body }, after))
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn acknowledged(answer: &Answer, about: &str) -> Result<Option<()>, FirewallError> {
    match answer.errno {
        0 => Ok(Some(())),
        code if code == nix::Error::ENOENT as i32 => Ok(None),
        _ => Err(refusal(about.to_owned(), answer)),
    }
}

fn refusal(step: String, answer: &Answer) -> FirewallError {
    let source = io::Error::from_raw_os_error(answer.errno);
    let detail = match &answer.words {
        Some(words) => format!(": {}", words.trim_end_matches('\0')),
        None => String::new(),
    };
    match nix::Error::from_raw(answer.errno) {
        nix::Error::EPERM => FirewallError::NotPermitted,
        // ENOENT: an expression or a chain type whose module is not there. Our own batches name nothing else absent,
        // but for a set in a table that somebody took away.
        nix::Error::EOPNOTSUPP | nix::Error::EPROTONOSUPPORT | nix::Error::EAFNOSUPPORT => {
            FirewallError::Unsupported { step, source }
        }
        nix::Error::ENOENT if step.starts_with("adding") => FirewallError::Unsupported { step, source },
        _ => FirewallError::Refused { step, detail, source },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answer(errno: i32, words: Option<&str>) -> Answer {
        Answer { errno, words: words.map(str::to_owned) }
    }

    #[test]
    fn errors_say_what_to_do() {
        let adding = |errno| refusal("adding rule 3 to chain x of table y".to_owned(), &answer(errno, Some("why\0")));
        assert!(adding(1).to_string().contains("capability NET_ADMIN"));
        assert!(adding(2).to_string().contains("load nf_tables"));
        assert!(adding(95).to_string().contains("load nf_tables"));
        let other = adding(16).to_string();
        assert!(other.starts_with("adding rule 3 to chain x of table y: the kernel refused it: why;"), "{other}");
    }

    #[test]
    fn what_is_not_there_is_no_error_where_it_was_only_asked_for() {
        assert_eq!(acknowledged(&answer(2, None), "asking").unwrap(), None);
        assert_eq!(acknowledged(&answer(0, None), "asking").unwrap(), Some(()));
        assert!(acknowledged(&answer(22, None), "asking").is_err());
    }

    #[test]
    #[ignore = "needs root"]
    fn answers_that_nobody_waited_for_crowd_out_none() -> anyhow::Result<()> {
        use netlink_packet_netfilter::nftables::GenMessage;

        let pod = lab::netns::Netns::new("pod")?;
        let mut channel = pod.run(|| Ok(Channel::open()?))?;
        let question = || inet(NfTablesMessage::GetGen(GenMessage { attributes: Vec::new() }));
        // More than the socket takes.
        for _ in 0..3 * RECEIVE_BUFFER / 1024 {
            let mut bytes = Vec::new();
            channel.append(&mut bytes, question(), NLM_F_ACK);
            channel.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
        }
        assert!(channel.get(question(), "asking for the generation")?.is_some());
        Ok(())
    }

    proptest! {
        #[test]
        fn junk_is_an_error_and_never_a_hang(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = frames(&bytes).count();
            let _ = attributes(&bytes).count();
        }
    }
}
