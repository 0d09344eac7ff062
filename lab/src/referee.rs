//! Judges a record of what was said at the hubs (I1): who had whose turn, when two were heard for one tunnel, when the
//! hub fell back to somebody whose turn was over. Pure, and from the record alone.
//!
//! A *turn* begins with a pod's first initiation after it wrote the Lease, and lasts until another's begins. Whoever else
//! is heard meanwhile is heard *together* with the one whose turn it is. That is allowed
//! - for [`IN_FLIGHT`] after a turn began: what left before the fence closed;
//! - with hold, to one whose turn was before: answers (no initiation), while the hub's last word in a session of its own
//!   is at most [`ANSWERS`] old. The hub must not heed them: it may *return* to the old one for [`RETURN`] at most.
//!
//! Nothing else is. A packet whose first byte is none of WireGuard's is no speech: everybody ignores it.

mod story;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::record::{Entry, Message, Packet, Record, Speaker, What};

/// How long after a successor's first packet one of its predecessor's may arrive. It left before the fence closed; since
/// then the Lease was written, the successor was told and armed its own fence, and in this lab a packet takes less than
/// a millisecond to the hub. The rest is for a machine with other work.
pub const IN_FLIGHT: Duration = Duration::from_millis(10);

/// How long the hub may send to one whose turn is over, after it has heard the successor. A round trip of the lab's own comes on
/// top: so long a handshake takes, and before it is complete the successor has nothing to say by which it would keep the hub.
pub const RETURN: Duration = Duration::from_millis(300);

/// How long a holder may answer after the hub's last word to it.
pub const ANSWERS: Duration = Duration::from_secs(60);

/// How many packets of which kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Count {
    /// Beginnings of handshakes.
    pub initiations: usize,
    /// Answers to handshakes, and cookies.
    pub responses: usize,
    /// Data and keepalives.
    pub data: usize,
}

impl Count {
    fn add(&mut self, kind: Message) {
        match kind {
            Message::Initiation => self.initiations += 1,
            Message::Response | Message::Cookie => self.responses += 1,
            Message::Data => self.data += 1,
            Message::Other(_) => {}
        }
    }
}

/// The time in which a tunnel is one speaker's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Turn {
    /// The tunnel, by its place.
    pub tunnel: usize,
    /// Whose turn.
    pub who: Speaker,
    /// Its first packet.
    pub from: Duration,
    /// Its last packet.
    pub to: Duration,
    /// What it said.
    pub packets: Count,
}

/// Two were heard for one tunnel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Together {
    /// The tunnel, by its place.
    pub tunnel: usize,
    /// Whose turn it was.
    pub turn: Speaker,
    /// Who was heard beside.
    pub beside: Speaker,
    /// From the beginning of the turn; for one who never had a turn, from its first packet.
    pub from: Duration,
    /// To the last packet of the one beside.
    pub to: Duration,
    /// What it said.
    pub packets: Count,
    /// Why it may not be; `None`: it may.
    pub fault: Option<&'static str>,
}

/// The hub sent to one whose turn it was not, after it had heard the one whose turn it was.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Return {
    /// The tunnel, by its place.
    pub tunnel: usize,
    /// Whose turn it was.
    pub turn: Speaker,
    /// To whom it sent.
    pub back: Speaker,
    /// Its first packet there.
    pub from: Duration,
    /// The next sign that it heeds the right one; else its last packet there.
    pub to: Duration,
    /// How many packets it sent there.
    pub packets: usize,
    /// Why it may not be; `None`: it may.
    pub fault: Option<&'static str>,
}

/// What a record shows.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Judgement {
    /// In the order in which they began, tunnel by tunnel.
    pub turns: Vec<Turn>,
    /// In the order in which they were noticed, tunnel by tunnel.
    pub together: Vec<Together>,
    /// In order of time, tunnel by tunnel.
    pub returns: Vec<Return>,
}

impl Judgement {
    /// All that may not be, a line each.
    pub fn faults(&self) -> Vec<String> {
        let together = self.together.iter().filter(|together| together.fault.is_some()).map(Together::to_string);
        together.chain(self.returns.iter().filter(|back| back.fault.is_some()).map(Return::to_string)).collect()
    }

    /// The same without strangers: for records in which one is heard on purpose.
    pub fn faults_among_pods(&self) -> Vec<String> {
        let pod = |who: Speaker| matches!(who, Speaker::Node(_));
        let mut among = self.clone();
        among.together.retain(|together| pod(together.turn) && pod(together.beside));
        among.returns.retain(|back| pod(back.turn) && pod(back.back));
        among.faults()
    }
}

/// Judges a record.
pub fn judge(record: &Record) -> Judgement {
    let mut tunnels: BTreeMap<usize, Tunnel> = BTreeMap::new();
    for entry in &record.entries {
        let new = || Tunnel::new(entry.tunnel, record.hold, record.detour);
        tunnels.entry(entry.tunnel).or_insert_with(new).see(entry);
    }
    let mut judgement = Judgement::default();
    for tunnel in tunnels.into_values() {
        let Tunnel { turns, together, returns, .. } = tunnel.end();
        judgement.turns.extend(turns);
        judgement.together.extend(together);
        judgement.returns.extend(returns);
    }
    judgement
}

/// One tunnel, as far as its record was read.
struct Tunnel {
    number: usize,
    hold: bool,
    detour: Duration,
    /// The last one's is the present turn.
    turns: Vec<Turn>,
    together: Vec<Together>,
    returns: Vec<Return>,
    /// The node that wrote the Lease last, not counting renewals by hand.
    claimed: Option<u8>,
    /// Has the hub sent to the one whose turn it is?
    hub_heard: bool,
    /// The hub's return that is not over, if any.
    back: Option<Back>,
    /// Who gave this index to a session.
    sessions: BTreeMap<u32, Speaker>,
    /// The hub's last word to each in a session of its own.
    addressed: BTreeMap<Speaker, Duration>,
}

/// A return that may go on.
struct Back {
    to: Speaker,
    from: Duration,
    last: Duration,
    packets: usize,
    /// The right one was heard since: the hub should heed it again.
    over: Option<Duration>,
}

impl Tunnel {
    fn new(number: usize, hold: bool, detour: Duration) -> Self {
        Self {
            number,
            hold,
            detour,
            turns: Vec::new(),
            together: Vec::new(),
            returns: Vec::new(),
            claimed: None,
            hub_heard: false,
            back: None,
            sessions: BTreeMap::new(),
            addressed: BTreeMap::new(),
        }
    }

    fn see(&mut self, entry: &Entry) {
        match entry.what {
            What::Lease(Some(node)) => self.claimed = Some(node),
            What::Lease(None) => {}
            What::ToHub(packet) => {
                if packet.kind.is_speech() {
                    self.hear(entry.at, Speaker::at(packet.peer), &packet);
                }
            }
            What::FromHub(packet) => {
                if packet.kind.is_speech() {
                    self.answered(entry.at, Speaker::at(packet.peer), &packet);
                }
            }
        }
    }

    fn hear(&mut self, at: Duration, who: Speaker, packet: &Packet) {
        if let Some(index) = packet.sender {
            self.sessions.insert(index, who);
        }
        let claimed = self.claimed.map(Speaker::Node) == Some(who);
        match self.turns.last_mut() {
            Some(turn) if turn.who == who => {
                turn.to = at;
                turn.packets.add(packet.kind);
                if let Some(back) = self.back.as_mut().filter(|back| back.to != who) {
                    back.over.get_or_insert(at);
                }
            }
            Some(turn) if !(claimed && packet.kind == Message::Initiation) => {
                let turn = *turn;
                self.beside(at, who, packet, turn);
            }
            _ => {
                self.close_return(at);
                let mut packets = Count::default();
                packets.add(packet.kind);
                self.turns.push(Turn { tunnel: self.number, who, from: at, to: at, packets });
                self.hub_heard = false;
            }
        }
    }

    /// Heard in another's turn.
    fn beside(&mut self, at: Duration, who: Speaker, packet: &Packet, turn: Turn) {
        // What the hub was told by it may have brought it back: that is a return of its own.
        if self.back.as_ref().is_some_and(|back| back.over.is_some()) {
            self.close_return(at);
        }
        let was_its_turn = self.turns.iter().any(|earlier| earlier.who == who);
        let from = if was_its_turn { turn.from } else { at };
        let answers = packet.kind != Message::Initiation;
        let asked = self.addressed.get(&who).is_some_and(|word| at.saturating_sub(*word) <= ANSWERS);
        let fault = if !was_its_turn {
            Some("it never took the Lease")
        } else if at.saturating_sub(turn.from) <= IN_FLIGHT + self.detour {
            None
        } else if !self.hold {
            Some("its turn was over")
        } else if !answers {
            Some("it began a handshake though its turn was over")
        } else if !asked {
            Some("it answered nobody: the hub had not spoken to it for long")
        } else {
            None
        };
        let same = |t: &&mut Together| t.beside == who && t.turn == turn.who && t.to >= turn.from;
        if let Some(together) = self.together.iter_mut().rev().find(same) {
            together.to = at;
            together.packets.add(packet.kind);
            together.fault = together.fault.or(fault);
            return;
        }
        let mut packets = Count::default();
        packets.add(packet.kind);
        let (tunnel, turn) = (self.number, turn.who);
        self.together.push(Together { tunnel, turn, beside: who, from, to: at, packets, fault });
    }

    fn answered(&mut self, at: Duration, to: Speaker, packet: &Packet) {
        match packet.receiver {
            Some(index) => {
                if let Some(who) = self.sessions.get(&index) {
                    self.addressed.insert(*who, at);
                }
            }
            None => drop(self.addressed.insert(to, at)),
        }
        let Some(turn) = self.turns.last() else { return };
        // A cookie goes to whoever sent what it answers, heeded or not.
        if packet.kind == Message::Cookie {
            return;
        }
        if turn.who == to {
            self.hub_heard = true;
            self.close_return(at);
        } else if self.hub_heard {
            if self.back.as_ref().is_some_and(|back| back.to != to) {
                self.close_return(at);
            }
            let new = Back { to, from: at, last: at, packets: 0, over: None };
            let back = self.back.get_or_insert(new);
            back.last = at;
            back.packets += 1;
            // It does not heed the right one after all.
            back.over = None;
        }
    }

    /// The return is over, at `at` the latest.
    fn close_return(&mut self, at: Duration) {
        let (Some(back), Some(turn)) = (self.back.take(), self.turns.last()) else { return };
        let to = back.over.unwrap_or(at).max(back.last);
        let long = to - back.from > RETURN + 2 * self.detour;
        self.returns.push(Return {
            tunnel: self.number,
            turn: turn.who,
            back: back.to,
            from: back.from,
            to,
            packets: back.packets,
            fault: long.then_some("the hub went on with one whose turn was over"),
        });
    }

    fn end(mut self) -> Self {
        if let Some(last) = self.back.as_ref().map(|back| back.last) {
            self.close_return(last);
        }
        self
    }
}

impl fmt::Display for Together {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tunnel, turn, beside, from, to, packets, fault } = self;
        let length = story::milliseconds(*to - *from);
        write!(f, "tunnel {tunnel}: {beside} was heard in the turn of {turn} for {length} ({packets})")?;
        fault.map_or(Ok(()), |fault| write!(f, ": {fault}"))
    }
}

impl fmt::Display for Return {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tunnel, turn, back, from, to, packets, fault } = self;
        let length = story::milliseconds(*to - *from);
        write!(f, "tunnel {tunnel}: the hub sent to {back} in the turn of {turn} for {length} ({packets} packets)")?;
        fault.map_or(Ok(()), |fault| write!(f, ": {fault}"))
    }
}

#[cfg(test)]
mod tests;
