//! Reckons which packets for others, that came while we led, mean a second speaker. Pure.

use std::time::Duration;

use crate::clock::Moment;

/// For so long after its first handshake with us a hub may still use the session of our predecessor.
const SETTLING: Duration = Duration::from_secs(2);

/// Reckons with readings of [`super::foreign()`]: which of those packets were meant for another program that uses our key.
/// After a takeover, or a restart in the same pod, the hub goes on with the old session until the first packet in the
/// new one reaches it. So only what came [`SETTLING`] after the present peer's first handshake counts; and of a fence
/// that was put up beside a living session, which it does not know, only from its next handshake on.
#[derive(Clone, Debug, Default)]
pub struct Foreign {
    total: u64,
    raised: Moment,
    /// The last reading, and when.
    last: (u64, Moment),
    /// When the present peer was set, and its first handshake that this fence has seen.
    session: Option<(Moment, Moment)>,
}

impl Foreign {
    /// A fence was put up: its counter begins at 0, and it knows no session.
    pub fn raised(&mut self, now: Moment) {
        *self = Self { total: self.total, raised: now, last: (0, now), session: None };
    }

    /// The counter was read. `peer`: when the present one was set; `handshake`: when it last completed one.
    pub fn read(&mut self, counted: u64, peer: Option<Moment>, handshake: Option<Moment>, now: Moment) {
        let (before, then) = std::mem::replace(&mut self.last, (counted, now));
        let (Some(peer), Some(handshake)) = (peer, handshake) else { return };
        if self.session.is_none_or(|(known, _)| known != peer) {
            self.session = (handshake >= self.raised).then_some((peer, handshake));
        }
        if self.session.is_some_and(|(_, first)| first + SETTLING <= then) {
            self.total += counted.saturating_sub(before);
        }
    }

    /// All that counted, over all fences.
    pub fn total(&self) -> u64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::new(Duration::from_millis(millis))
    }

    #[test]
    fn what_the_hub_sends_in_a_predecessors_session_until_two_seconds_after_the_handshake_does_not_count() {
        let mut foreign = Foreign::default();
        foreign.raised(at(0));
        let peer = Some(at(10));
        foreign.read(5, peer, None, at(500));
        for (counted, now) in [(9, 1000), (12, 1500), (20, 2800), (30, 3400)] {
            foreign.read(counted, peer, Some(at(900)), at(now));
            assert_eq!(foreign.total(), 0, "the interval that ends at {now} begins within 2 s of the handshake");
        }
        foreign.read(31, peer, Some(at(900)), at(3900));
        assert_eq!(foreign.total(), 1);
        foreign.read(33, peer, Some(at(3800)), at(4400));
        assert_eq!(foreign.total(), 3, "a rekey of one's own sessions is no takeover");
    }

    #[test]
    fn a_fresh_peer_and_a_new_fence_settle_anew_and_nothing_told_is_forgotten() {
        let mut foreign = Foreign::default();
        foreign.raised(at(0));
        let (first, second) = (Some(at(10)), Some(at(6000)));
        foreign.read(0, first, Some(at(20)), at(3000));
        foreign.read(2, first, Some(at(20)), at(4000));
        assert_eq!(foreign.total(), 2);
        foreign.read(8, second, Some(at(6100)), at(6500));
        foreign.read(9, second, Some(at(6100)), at(8000));
        assert_eq!(foreign.total(), 2);
        foreign.read(10, second, Some(at(6100)), at(9000));
        foreign.read(11, second, Some(at(6100)), at(9500));
        assert_eq!(foreign.total(), 3);
        foreign.raised(at(10_000));
        foreign.read(7, second, Some(at(6100)), at(20_000));
        foreign.read(99, second, Some(at(6100)), at(20_500));
        assert_eq!(foreign.total(), 3, "a fence put up beside a living session does not know its index");
        foreign.read(100, second, Some(at(21_000)), at(21_500));
        foreign.read(100, second, Some(at(21_000)), at(23_500));
        foreign.read(101, second, Some(at(21_000)), at(24_000));
        assert_eq!(foreign.total(), 4);
    }
}
