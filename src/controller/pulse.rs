//! Is the hub there? When to look, to knock, and to give up on a session. Pure.
//!
//! WireGuard itself notices a restarted hub only after up to two minutes: keepalives ask for no answer. So a leader
//! sends a small packet every 2 s that a forwarding hub answers at once (ICMP) and any WireGuard within 10 s
//! (keepalive), and reads nothing but the peer's receive counter.

use std::time::Duration;

use crate::clock::Moment;
use crate::tunnel::LinkStats;

/// Between probes.
const PROBE_EVERY: Duration = Duration::from_secs(2);
/// The same while a hub that answers probes has not answered the last one, or is looked for after a hold: one packet in
/// ten that is lost each way must not look like a hub that is gone.
const PROBE_AGAIN: Duration = Duration::from_millis(250);
/// A reading follows its probe by this much, long enough for an answer from the other side of the earth.
const READ_AFTER_PROBE: Duration = Duration::from_millis(900);
/// Between readings while the first handshake is awaited: this is what the takeover's figures rest on.
const READ_RISING: Duration = Duration::from_millis(5);
/// Between readings once the hub is slow to answer.
const READ_WAITING: Duration = Duration::from_millis(100);
/// A handshake is re-kicked after this, and then each time after 1.6 times the last wait (a fixed wait shorter than
/// the round-trip time never completes one).
const KICK: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// Where the hub has answered before, the first wait is half as long again as that took, but no longer than this.
const KICK_KNOWING: Duration = Duration::from_millis(750);
/// Silence after which a hub that answers probes is taken for restarted.
const SILENCE_ANSWERING: Duration = Duration::from_secs(5);
/// The same for one that only sends WireGuard's own keepalives.
const SILENCE_OTHERWISE: Duration = Duration::from_secs(15);
/// The same for a session in which nothing came yet but the answer to its handshake. A hub that calls just then, and is
/// answered by the peer before this one, goes on in a session that nobody has any more, while it hears all that is said
/// in ours. Only once in a row: a hub that answers no probes has nothing to say before its keepalive.
const SILENCE_UNCONFIRMED: Duration = Duration::from_secs(2);
/// So many probes answered in a row make a hub one that answers.
const ANSWERS_IN_A_ROW: u8 = 2;
/// A session that was held is given up when the hub is not heard in it so long after the pod leads on.
const RESUMED: Duration = READ_AFTER_PROBE;
/// A hub that a predecessor may still pull back is spoken to so often for one round trip: so long its last answers, which
/// left before it could know, come in at the hub, and each is followed by one of ours before the hub has sent much,
const INSIST_AT_FIRST: Duration = Duration::from_millis(2);
/// then at waits that grow from the first to the second of these,
const INSIST_EVERY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(50));
/// for so long after the first handshake, and a round trip more, and after the second. The second makes the hub forget the
/// predecessor's session: after one the predecessor pulled the hub back each time, after two never (docs/decisions.md).
const INSIST_FOR: (Duration, Duration) = (Duration::from_millis(30), Duration::from_millis(1500));
/// That round trip is no longer than this: what silences the predecessor does so for two seconds.
const FARTHEST: Duration = Duration::from_secs(1);
/// The first wait before a handshake is kicked there: the hub's answer may have gone to the predecessor.
const KICK_INSISTING: Duration = Duration::from_millis(100);
/// The same where the hub is known to be near.
const KICK_NEAR: Duration = Duration::from_millis(40);
/// A session is over so long after its handshake (WireGuard white paper, 6.1).
const SESSION: Duration = Duration::from_secs(180);
/// In hold a packet is handed so often to a session that is over. Without one WireGuard gives up a minute and a half after
/// its first try at a handshake; what it tries is defused on its way, one in 20 s, and keeps a NAT open for the hub's own
/// call. Many forget after 30 s.
const KNOCK_EVERY: Duration = Duration::from_secs(5);
/// The second handshake does not count as an interruption for so long.
const REASSURING: Duration = Duration::from_secs(1);

/// What it is time for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Due {
    /// Read WireGuard's counters.
    Reading,
    /// Send a packet that the hub answers.
    Probe,
    /// Send another handshake.
    Kick,
}

/// The hub's pulse, for the present peer.
#[derive(Clone, Debug, Default)]
pub(super) struct Pulse {
    peer_since: Moment,
    stats: LinkStats,
    /// When the present peer last completed a handshake.
    handshake: Option<Moment>,
    /// When the receive counter last grew, or the peer was set.
    heard: Moment,
    next_read: Moment,
    next_probe: Moment,
    next_knock: Moment,
    next_kick: Moment,
    kick_wait: Duration,
    /// When the last handshake left. It alone can be answered: a new one forgets those before it.
    asked: Moment,
    /// How long the hub took to answer the last one that it answered, to us or to the pod that led before.
    round_trip: Option<Duration>,
    /// Receive counter when the last probe left, until its answer's reading.
    probe_sent_at: Option<u64>,
    answers: u8,
    /// Something came in the present session after its handshake.
    confirmed: bool,
    /// Nothing did in the one before.
    unconfirmed_before: bool,
    /// The last probe was not answered, and nothing was heard since.
    unanswered: bool,
    given_up: bool,
    /// The pod leads on after a hold; nothing was heard since.
    resumed: Option<Moment>,
    insistence: Insistence,
    insist_wait: Duration,
    /// The present peer was set to make sure of the hub: a handshake was answered just before.
    reassures: bool,
}

/// How far the pulse is in winning the hub from a predecessor that did not give its Lease back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Insistence {
    /// There is nobody to win it from, or it is won.
    #[default]
    Needless,
    /// The next handshake is the first or the second.
    Next { round: usize },
    /// Since that handshake the hub is spoken to often.
    Since { round: usize, handshake: Moment },
    /// It is time for the second handshake.
    Again,
}

impl Pulse {
    /// A fresh peer was given to the link; its first handshake is on its way.
    pub(super) fn peer_set(&mut self, now: Moment) {
        // Whether the hub answers probes is a trait of the hub and outlives the peer, unless its silence was a mistake:
        // then it is learned anew, lest a hub that stopped forwarding costs a handshake every 5 s.
        let answers = if self.given_up { 0 } else { self.answers };
        let unconfirmed_before = self.given_up && self.answered() && !self.confirmed;
        let makes_sure = unconfirmed_before && !self.unconfirmed_before;
        let insistence = match self.insistence {
            Insistence::Again => Insistence::Next { round: 1 },
            Insistence::Since { round, .. } => Insistence::Next { round },
            other => other,
        };
        let kick_wait = self.first_kick(insistence);
        *self = Self {
            peer_since: now,
            heard: now,
            next_read: now + READ_RISING,
            next_probe: now + PROBE_EVERY,
            next_kick: now + kick_wait,
            kick_wait,
            asked: now,
            round_trip: self.round_trip,
            answers,
            unconfirmed_before,
            insistence,
            reassures: self.insistence == Insistence::Again || makes_sure,
            // The counters are the link's, and go on.
            stats: LinkStats { handshake_age: None, ..self.stats },
            ..Self::default()
        };
    }

    /// An earlier life gave the link its peer, which has a session.
    pub(super) fn inherited(&mut self, stats: LinkStats, now: Moment) {
        let handshake = stats.handshake_age.map(|age| now - age);
        *self = Self {
            peer_since: handshake.unwrap_or(now),
            heard: now,
            stats,
            handshake,
            confirmed: true,
            next_read: now + READ_AFTER_PROBE,
            next_probe: now,
            insistence: self.insistence,
            round_trip: self.round_trip,
            ..Self::default()
        };
    }

    /// The link is gone, and all that was known of the hub by it.
    pub(super) fn unlinked(&mut self) {
        let insistence = match self.insistence {
            Insistence::Needless => Insistence::Needless,
            _ => Insistence::Next { round: 0 },
        };
        *self = Self { insistence, round_trip: self.round_trip, ..Self::default() };
    }

    /// The pod that led before says how long the hub took to answer it.
    pub(super) fn expect(&mut self, round_trip: Duration) {
        self.round_trip = Some(round_trip);
    }

    /// How long the hub takes to answer, if that is known.
    pub(super) fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    /// How long a handshake is given before it is kicked.
    fn first_kick(&self, insistence: Insistence) -> Duration {
        let needless = insistence == Insistence::Needless;
        let Some(round_trip) = self.round_trip else { return if needless { KICK.0 } else { KICK_INSISTING } };
        let least = if needless { KICK.0 } else { KICK_NEAR };
        (round_trip * 3 / 2).min(KICK_KNOWING).max(least)
    }

    /// When the counters are to be read next.
    pub(super) fn next_reading(&self, now: Moment) -> Moment {
        self.next_read.max(now)
    }

    /// A predecessor may still be heard: the hub is to be won from it, from the next handshake on.
    /// From one that gave its Lease back (`clean`) it takes no second handshake: that one is silent within seconds.
    pub(super) fn insist(&mut self, clean: bool) {
        self.insistence = Insistence::Next { round: usize::from(clean) };
    }

    /// The pod leads on with a session that it held: is the hub still there?
    pub(super) fn resume(&mut self, now: Moment) {
        self.given_up = false;
        self.resumed = Some(now);
        self.heard = now;
        self.probe_sent_at = None;
        self.next_probe = now;
        self.next_read = now + READ_AFTER_PROBE;
    }

    /// The session is worth nothing any more.
    pub(super) fn give_up(&mut self) {
        self.given_up = true;
    }

    /// What is due at `now`.
    pub(super) fn due(&self, now: Moment) -> Option<Due> {
        if now >= self.next_read {
            return Some(Due::Reading);
        }
        if !self.answered() {
            return (now >= self.next_kick).then_some(Due::Kick);
        }
        (now >= self.next_probe).then_some(Due::Probe)
    }

    /// When something is due next.
    pub(super) fn next(&self, now: Moment) -> Moment {
        let other = if self.answered() { self.next_probe } else { self.next_kick };
        self.next_read.min(other).max(now)
    }

    /// WireGuard's counters were read.
    pub(super) fn measured(&mut self, stats: LinkStats, now: Moment) {
        let grew = stats.received > self.stats.received;
        let first_answer = !self.answered() && stats.handshake_age.is_some();
        self.stats = stats;
        // WireGuard in user space forgets a session that is over, and with it when it began. The peer is there all the same.
        self.handshake = stats.handshake_age.map(|age| now - age).or(self.handshake);
        if grew || first_answer {
            self.heard = now;
            self.resumed = None;
            self.unanswered = false;
        }
        self.confirmed |= grew && !first_answer;
        if first_answer {
            self.round_trip = Some(now.since(self.asked));
            self.next_probe = now;
            if let Insistence::Next { round } = self.insistence {
                self.insistence = Insistence::Since { round, handshake: now };
                self.insist_wait = INSIST_EVERY.0;
            }
        }
        if let Insistence::Since { round, handshake } = self.insistence
            && now.since(handshake) >= self.insist_for(round)
        {
            self.insistence = if round == 0 { Insistence::Again } else { Insistence::Needless };
        }
        if self.resumed.is_some_and(|since| now.since(since) >= RESUMED) {
            self.given_up = true;
        }
        if let Some(before) = self.probe_sent_at.take() {
            // A hub that once answers is expected to; its silence is what we look for.
            if stats.received > before {
                self.answers = (self.answers + 1).min(ANSWERS_IN_A_ROW);
            } else if self.answers < ANSWERS_IN_A_ROW {
                self.answers = 0;
            } else {
                self.unanswered = true;
                self.next_probe = now;
            }
        }
        if self.answered() && now.since(self.heard) >= self.patience() {
            self.given_up = true;
        }
        self.next_read = now + self.read_every(now);
    }

    /// The hub's answer to the second handshake would go to the predecessor, if one of that one's came in just then: it has
    /// to be silent before, which takes the hub's first packet in our session and the way back.
    fn insist_for(&self, round: usize) -> Duration {
        let round_trip = self.round_trip.unwrap_or_default().min(FARTHEST);
        if round == 0 { INSIST_FOR.0 + round_trip } else { INSIST_FOR.1 }
    }

    /// A session in which nothing is heard for so long is given up.
    fn patience(&self) -> Duration {
        if !self.confirmed && !self.unconfirmed_before {
            SILENCE_UNCONFIRMED
        } else if self.answers >= ANSWERS_IN_A_ROW {
            SILENCE_ANSWERING
        } else {
            SILENCE_OTHERWISE
        }
    }

    fn read_every(&self, now: Moment) -> Duration {
        match self.answered() {
            true if self.insists() => self.insist_wait,
            true if self.asks_again() => PROBE_AGAIN,
            true => Duration::from_secs(1),
            false if now.since(self.peer_since) < Duration::from_secs(2) => READ_RISING,
            false => READ_WAITING,
        }
    }

    /// The counters could not be read.
    pub(super) fn unread(&mut self, now: Moment) {
        self.next_read = now + Duration::from_millis(500);
    }

    /// A probe left.
    pub(super) fn probed(&mut self, now: Moment) {
        if let Insistence::Since { handshake, .. } = self.insistence {
            // Spoken to be heard, not to be answered.
            if self.round_trip.is_some_and(|round_trip| now.since(handshake) < round_trip) {
                self.next_probe = now + INSIST_AT_FIRST;
            } else {
                self.next_probe = now + self.insist_wait;
                self.insist_wait = (self.insist_wait * 2).min(INSIST_EVERY.1);
            }
            return;
        }
        if self.asks_again() {
            // The reading that is due stays due.
            self.next_probe = now + PROBE_AGAIN;
            return;
        }
        self.probe_sent_at = Some(self.stats.received);
        self.next_probe = now + PROBE_EVERY;
        self.next_read = now + READ_AFTER_PROBE;
    }

    /// When a tunnel in hold is to be reminded next that its session is over.
    pub(super) fn next_knock(&self) -> Option<Moment> {
        self.handshake.map(|handshake| (handshake + SESSION).max(self.next_knock))
    }

    /// That was done.
    pub(super) fn knocked(&mut self, now: Moment) {
        self.next_knock = now + KNOCK_EVERY;
    }

    /// A handshake left.
    pub(super) fn kicked(&mut self, now: Moment) {
        self.kick_wait = self.kick_wait.mul_f64(1.6).min(KICK.1);
        self.next_kick = now + self.kick_wait;
        self.asked = now;
    }

    fn asks_again(&self) -> bool {
        self.unanswered || self.resumed.is_some()
    }

    fn insists(&self) -> bool {
        matches!(self.insistence, Insistence::Since { .. })
    }

    /// Has the hub gone silent on a session that once worked, or is it time to have it forget another?
    pub(super) fn wants_fresh_peer(&self) -> bool {
        self.given_up || self.insistence == Insistence::Again
    }

    /// Does the hub serve? It does through the second handshake too.
    pub(super) fn serves(&self, now: Moment) -> bool {
        self.answered() || (self.reassures && now.since(self.peer_since) < REASSURING)
    }

    /// Has the present peer completed a handshake?
    pub(super) fn answered(&self) -> bool {
        self.handshake.is_some()
    }

    pub(super) fn handshake(&self) -> Option<Moment> {
        self.handshake
    }

    pub(super) fn peer_since(&self) -> Moment {
        self.peer_since
    }

    pub(super) fn stats(&self) -> LinkStats {
        self.stats
    }

    pub(super) fn unheard_for(&self, now: Moment) -> Duration {
        now.since(self.heard)
    }
}
