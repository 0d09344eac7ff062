//! WireGuard as one end of a tunnel sees it, without its secrets: sessions are receiver indexes, and who knows one is
//! authentic. Pure. The rules are those of the kernel (`drivers/net/wireguard`: noise.c, timers.c).

use std::time::Duration;

/// REKEY_TIMEOUT: between calls.
const RETRY: Duration = Duration::from_secs(5);
/// REKEY_AFTER_TIME: who began a session begins the next one then, when it has something to send.
const REKEY: Duration = Duration::from_secs(120);
/// REJECT_AFTER_TIME.
const REJECT: Duration = Duration::from_secs(180);
/// KEEPALIVE_TIMEOUT + REKEY_TIMEOUT: data that nobody answered for so long is followed by a call.
const DEAF: Duration = Duration::from_secs(15);

/// What a message is of, with the indexes that a fence looks at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Message {
    /// Type 1, which begins a handshake.
    Call { sender: u32 },
    /// Type 2, which answers it.
    Response { sender: u32, receiver: u32 },
    /// Type 4.
    Data { receiver: u32, content: Content },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    Keepalive,
    /// Asks for [`Content::Answer`].
    Request,
    Answer,
}

impl Message {
    /// As it goes over the wire. What is encrypted stands here as one byte.
    pub fn bytes(self) -> Vec<u8> {
        let (kind, words, length) = match self {
            Message::Call { sender } => (1, [sender, 0], 148),
            Message::Response { sender, receiver } => (2, [sender, receiver], 92),
            Message::Data { receiver, content: Content::Keepalive } => (4, [receiver, 0], 32),
            Message::Data { receiver, content } => (4, [receiver, u32::from(content == Content::Request)], 96),
        };
        let mut bytes = vec![kind, 0, 0, 0];
        words.iter().for_each(|word| bytes.extend(word.to_le_bytes()));
        bytes.resize(length, 0);
        bytes
    }

    /// `None`: no message of WireGuard's, and thrown away.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let (first, second) = (word(4)?, word(8)?);
        let content = match (bytes.len(), second) {
            (32, _) => Content::Keepalive,
            (_, 1) => Content::Request,
            _ => Content::Answer,
        };
        match bytes[0] {
            1 => Some(Message::Call { sender: first }),
            2 => Some(Message::Response { sender: first, receiver: second }),
            4 => Some(Message::Data { receiver: first, content }),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Keypair {
    mine: u32,
    theirs: u32,
    born: Duration,
    /// We began the handshake.
    called: bool,
}

/// All that one end knows of the other.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    previous: Option<Keypair>,
    current: Option<Keypair>,
    /// Of a handshake that we answered: ours to send in once something comes in it.
    next: Option<Keypair>,
    /// The call that is under way: its index, and when it left.
    calling: Option<(u32, Duration)>,
    /// Of the calls that came.
    newest: u32,
    /// When anything was last said in a session.
    pub said: Duration,
    /// When the first data was said of those that nothing has followed.
    unanswered: Option<Duration>,
}

impl Peer {
    /// A call, with this index of ours. It alone can be answered from now on.
    pub fn call(&mut self, mine: u32, now: Duration) -> Message {
        (self.calling, self.unanswered) = (Some((mine, now)), None);
        Message::Call { sender: mine }
    }

    /// Is it time to call?
    pub fn should_call(&self, now: Duration) -> bool {
        let old = |pair: &Keypair| now >= pair.born + if pair.called { REKEY } else { REJECT };
        let deaf = self.unanswered.is_some_and(|since| now >= since + DEAF);
        let waits = self.calling.is_some_and(|(_, since)| now < since + RETRY);
        !waits && (deaf || self.calling.is_some() || self.current.as_ref().is_none_or(old))
    }

    /// The other called: answers. `None`: the call is older than one that came before, which WireGuard tells by a time
    /// stamp, and here its index.
    pub fn called(&mut self, theirs: u32, mine: u32, now: Duration) -> Option<Message> {
        if theirs <= self.newest {
            return None;
        }
        self.newest = theirs;
        (self.previous, self.next) = (None, Some(Keypair { mine, theirs, born: now, called: false }));
        (self.said, self.unanswered) = (now, None);
        Some(Message::Response { sender: mine, receiver: theirs })
    }

    /// The other answered a call. `false`: not the one that is under way.
    pub fn answered(&mut self, theirs: u32, mine: u32, now: Duration) -> bool {
        if self.calling.is_none_or(|(index, _)| index != mine) {
            return false;
        }
        self.previous = self.next.take().or(self.current);
        self.current = Some(Keypair { mine, theirs, born: now, called: true });
        (self.calling, self.unanswered) = (None, None);
        true
    }

    /// Data came. `false`: of no session that is known.
    pub fn take(&mut self, mine: u32, now: Duration) -> bool {
        let knows = |pair: &Option<Keypair>| pair.is_some_and(|pair| pair.mine == mine && now < pair.born + REJECT);
        let confirmed = knows(&self.next);
        if !confirmed && !knows(&self.current) && !knows(&self.previous) {
            return false;
        }
        if confirmed {
            (self.previous, self.current, self.calling) = (self.current, self.next.take(), None);
        }
        self.unanswered = None;
        true
    }

    /// Says this in the present session, if there is one.
    pub fn say(&mut self, content: Content, now: Duration) -> Option<Message> {
        let pair = self.current.filter(|pair| now < pair.born + REJECT)?;
        self.said = now;
        if content != Content::Keepalive {
            self.unanswered = self.unanswered.or(Some(now));
        }
        Some(Message::Data { receiver: pair.theirs, content })
    }

    /// The other's index in the session that we send in.
    pub fn theirs(&self) -> Option<u32> {
        self.current.map(|pair| pair.theirs)
    }
}
