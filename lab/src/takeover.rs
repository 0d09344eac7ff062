//! One change of leader, as seen from outside: the gap at the client, and what passed when within it.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::clock::until;
use crate::gaps::Gap;
use crate::probe::Probe;
use crate::recorder::Message;
use crate::world::World;

/// A change of leader. All from outside: the API server's log, the hub's wire, the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Takeover {
    /// Node of the leader before.
    pub from: u8,
    /// Node of the leader after.
    pub to: u8,
    /// What began it: the signal, the cut.
    pub event: Instant,
    /// The client's silence.
    pub gap: Gap,
    /// The longest it was silent while the machine let it ask: what a bound is held against.
    pub silent: Duration,
    /// The successor's write of the Lease reached the API server.
    pub lease: Option<Instant>,
    /// The successor's first handshake message reached the hub.
    pub handshake: Option<Instant>,
    /// The successor's first data or keepalive reached the hub: the handshake was answered.
    pub session: Option<Instant>,
}

impl Takeover {
    /// Waits for another leader than `from` of tunnel `index` and for steady answers, then looks back.
    /// `probe` must have been steady before `event`.
    pub fn measure(
        world: &World,
        index: usize,
        probe: &Probe,
        from: u8,
        event: Instant,
        within: Duration,
    ) -> Result<Self> {
        let to = world.wait_leader(index, Some(from), within)?;
        let hub = world.hubs.get(index).context("no such hub")?;
        let first = |kinds: &[Message]| {
            let heard = hub.heard();
            let mut fits = heard.iter().filter(|h| h.at >= event && h.node() == Some(to) && kinds.contains(&h.kind));
            fits.next().map(|h| h.at)
        };
        let handshake = until("the successor's handshake", within, || Ok(first(&[Message::Initiation])))?;
        // One that holds answers until the successor is heard in a session, which is a round trip later.
        let session = until("the successor's first session", within, || Ok(first(&[Message::Data])))?;
        probe.steady_since(session, 100, within)?;
        let lease = world.lease_written(index, to, event)?;
        Ok(Self {
            from,
            to,
            event,
            gap: probe.gap_since(event),
            silent: probe.silence_since(event),
            lease,
            handshake: Some(handshake),
            session: Some(session),
        })
    }

    /// The phases, in order, each from the end of the one before: name and length. What was not seen is left out.
    pub fn phases(&self) -> Vec<(&'static str, Duration)> {
        // Where the change itself cost no answer the longest silence is any other, and no phase of this.
        let part = self.gap.ended && self.session.is_none_or(|session| self.gap.from <= session);
        let ends = [
            ("until the Lease is taken", self.lease),
            ("until the first handshake", self.handshake),
            ("until the hub's answer is used", self.session),
            ("until the client is answered", part.then_some(self.gap.to)),
        ];
        let mut last = self.event;
        let mut phases = Vec::new();
        for (name, end) in ends {
            if let Some(end) = end {
                phases.push((name, end.saturating_duration_since(last)));
                last = last.max(end);
            }
        }
        phases
    }
}

impl fmt::Display for Takeover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, gap, .. } = self;
        write!(f, "node {from} → node {to}: gap {:.1} ms", milliseconds(gap.length()))?;
        if self.silent < gap.length() {
            write!(f, ", {:.1} ms while the machine let the client ask", milliseconds(self.silent))?;
        }
        let phases: Vec<String> =
            self.phases().iter().map(|(name, length)| format!("{name} {:.1} ms", milliseconds(*length))).collect();
        write!(f, " ({})", phases.join(", "))
    }
}

/// For people.
pub fn milliseconds(length: Duration) -> f64 {
    length.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_follow_each_other_and_what_was_not_seen_is_left_out() {
        let zero = crate::clock::now();
        let at = |ms| zero + Duration::from_millis(ms);
        let gap = Gap { from: at(0), to: at(60), ended: true };
        let (lease, handshake) = (Some(at(20)), Some(at(30)));
        let mut takeover =
            Takeover { from: 1, to: 2, event: zero, gap, silent: gap.length(), lease, handshake, session: None };
        let lengths = |t: &Takeover| t.phases().iter().map(|(_, d)| d.as_millis()).collect::<Vec<_>>();
        assert_eq!(lengths(&takeover), [20, 10, 30]);
        takeover.session = Some(at(35));
        assert_eq!(lengths(&takeover), [20, 10, 5, 25]);
        takeover.gap.from = at(36);
        assert_eq!(lengths(&takeover), [20, 10, 5], "the silence came after it all");
        takeover.gap.from = at(0);
        takeover.gap.ended = false;
        assert_eq!(lengths(&takeover), [20, 10, 5]);
    }
}
