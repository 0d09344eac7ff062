//! What is worth telling of a tunnel, from one snapshot to the next. Pure.

use std::time::Duration;

use super::Snapshot;
use crate::clock::Moment;
use crate::election::Leadership;
use crate::secret::Tunnel;

/// A change of a tunnel that is worth a log line and an Event.
#[derive(Clone, PartialEq, Debug)]
pub enum Notice {
    /// The hub answered, and the table is in place.
    Up,
    /// It served, and no longer does.
    Down,
    /// It leads, and the hub has not answered for [`NO_HANDSHAKE_AFTER`].
    NoHandshake,
    /// The tenure ran out without a renewal, and the tunnel is held.
    Holding,
    /// The tenure ran out without a renewal: the kernel closed the fence.
    FenceClosed,
    /// This node's clock is off the Lease holder's by so many seconds.
    ClockSkew(f64),
    /// The hub sends packets, so many by now, of sessions that are not ours.
    SecondSpeaker(u64),
    /// A step keeps failing.
    Failing(String),
}

/// How long a hub may leave a leader without an answer before that is told.
pub const NO_HANDSHAKE_AFTER: Duration = Duration::from_secs(5);

/// Clocks that differ by so many seconds are told. What is measured holds the way of a renewal through the API too.
const SKEW: f64 = 1.0;

/// Turns successive snapshots into notices, each said once per episode.
#[derive(Clone, Debug, Default)]
pub struct Narrator {
    served: bool,
    led_until: Option<Moment>,
    no_handshake_told: bool,
    skew_told: bool,
    strangers: Strangers,
    failure: Option<String>,
}

impl Narrator {
    /// What the step to this snapshot is worth telling.
    pub fn tell(&mut self, snapshot: &Snapshot, now: Moment) -> Vec<Notice> {
        let mut notices = vec![];
        if let Some(until) = self.led_until
            && until <= now
            && !snapshot.leads(now)
        {
            notices.push(if snapshot.holds() { Notice::Holding } else { Notice::FenceClosed });
        }
        self.led_until = match &snapshot.leadership {
            Leadership::Leading(tenure) if tenure.until > now => Some(tenure.until),
            _ => None,
        };
        let serves = snapshot.serves && (snapshot.leads(now) || snapshot.holds());
        match (self.served, serves) {
            (false, true) => notices.push(Notice::Up),
            (true, false) => notices.push(Notice::Down),
            _ => {}
        }
        self.served = serves;
        let waited = snapshot.peer_since.is_some_and(|since| now.since(since) >= NO_HANDSHAKE_AFTER);
        let unanswered = snapshot.leads(now) && snapshot.handshake.is_none() && waited;
        if unanswered && !self.no_handshake_told {
            notices.push(Notice::NoHandshake);
        }
        self.no_handshake_told = unanswered || (self.no_handshake_told && snapshot.handshake.is_none());
        let skew = snapshot.standing.clock_skew.map_or(0.0, |skew| skew.as_secs_f64());
        let skewed = skew.abs() >= SKEW;
        if skewed && !self.skew_told {
            notices.push(Notice::ClockSkew(skew));
        }
        self.skew_told = skewed;
        notices.extend(self.strangers.heard(snapshot.foreign_packets, now).map(Notice::SecondSpeaker));
        if snapshot.failure != self.failure {
            notices.extend(snapshot.failure.clone().map(Notice::Failing));
            self.failure.clone_from(&snapshot.failure);
        }
        notices
    }
}

/// One packet alone may be a stray; any program that works sends more.
const STRANGERS_MANY: u64 = 2;
/// Silence for so long ends an episode of strangers.
const STRANGERS_QUIET: Duration = Duration::from_secs(60);

/// Packets of sessions that are not ours, episode by episode.
#[derive(Clone, Debug, Default)]
struct Strangers {
    /// At the last one of them.
    packets: u64,
    last: Moment,
    /// Before this episode.
    before: u64,
    told: bool,
}

impl Strangers {
    /// The number of packets of the episode, when it is first worth telling.
    fn heard(&mut self, packets: u64, now: Moment) -> Option<u64> {
        if packets <= self.packets {
            return None;
        }
        if now.since(self.last) >= STRANGERS_QUIET {
            (self.before, self.told) = (self.packets, false);
        }
        (self.packets, self.last) = (packets, now);
        let episode = packets - self.before;
        let tell = episode >= STRANGERS_MANY && !self.told;
        self.told |= tell;
        tell.then_some(episode)
    }
}

/// The likely causes of an unanswered handshake, for an operator who must look somewhere first.
pub fn no_handshake_causes(settings: &Tunnel) -> String {
    format!(
        "the hub at {} does not answer: check that its [Peer] has this tunnel's public key (and the same preshared \
         key), that its own key is this peerPublicKey, that UDP port {} is open there and on the way, that no other \
         program uses this key, and that this node's clock is not behind the others' (a hub refuses handshakes older \
         than the last it saw)",
        settings.endpoint, settings.endpoint.port,
    )
}

#[cfg(test)]
mod tests {
    use super::super::tests::{at, leading, snapshot};
    use super::*;
    use crate::controller::State;

    #[test]
    fn a_takeover_a_lapse_and_a_hand_over_are_told_once_each() {
        let mut narrator = Narrator::default();
        assert_eq!(narrator.tell(&snapshot(), at(0)), []);
        assert_eq!(narrator.tell(&leading(5, None), at(1)), []);
        assert_eq!(narrator.tell(&leading(5, Some(2)), at(2)), [Notice::Up]);
        assert_eq!(narrator.tell(&leading(6, Some(2)), at(3)), []);
        assert_eq!(narrator.tell(&leading(6, Some(2)), at(6)), [Notice::FenceClosed, Notice::Down]);
        assert_eq!(narrator.tell(&snapshot(), at(7)), []);
        assert_eq!(narrator.tell(&leading(12, Some(8)), at(8)), [Notice::Up]);
        assert_eq!(narrator.tell(&snapshot(), at(9)), [Notice::Down], "a hand-over closes no fence on us");
    }

    #[test]
    fn a_lapse_that_is_held_is_no_going_down_until_it_falls() {
        let mut narrator = Narrator::default();
        let held = |state| Snapshot { state, serves: true, ..snapshot() };
        assert_eq!(narrator.tell(&leading(5, Some(2)), at(2)), [Notice::Up]);
        assert_eq!(narrator.tell(&held(State::Holding), at(6)), [Notice::Holding]);
        assert_eq!(narrator.tell(&held(State::Holding), at(7)), []);
        assert_eq!(narrator.tell(&leading(12, Some(2)), at(8)), []);
        assert_eq!(narrator.tell(&held(State::Holding), at(9)), [], "a hand-over is no lapse");
        assert_eq!(narrator.tell(&held(State::Falling), at(10)), [Notice::Down]);
    }

    #[test]
    fn a_silent_hub_is_told_after_five_seconds_once_until_it_answers() {
        let mut narrator = Narrator::default();
        assert_eq!(narrator.tell(&leading(60, None), at(5)), []);
        assert_eq!(narrator.tell(&leading(60, None), at(6)), [Notice::NoHandshake]);
        assert_eq!(narrator.tell(&leading(60, None), at(7)), []);
        assert_eq!(narrator.tell(&leading(60, Some(8)), at(8)), [Notice::Up]);
        assert_eq!(narrator.tell(&leading(60, None), at(9)), [Notice::Down, Notice::NoHandshake]);
    }

    #[test]
    fn a_second_speaker_is_told_once_until_it_was_quiet_for_a_minute() {
        let mut narrator = Narrator::default();
        let mut heard = |packets, now| {
            let seen = Snapshot { foreign_packets: packets, ..leading(1000, Some(2)) };
            let notices = narrator.tell(&seen, at(now));
            notices.into_iter().find(|notice| matches!(notice, Notice::SecondSpeaker(_)))
        };
        for (packets, now, told) in [
            (0, 3, None),
            (1, 4, None),
            (1, 5, None),
            (3, 6, Some(3)),
            (9, 7, None),
            (10, 66, None),
            (11, 126, None),
            (12, 127, Some(2)),
            (20, 186, None),
            (22, 246, Some(2)),
        ] {
            assert_eq!(heard(packets, now), told.map(Notice::SecondSpeaker), "{packets} packets at {now} s");
        }
    }
}
