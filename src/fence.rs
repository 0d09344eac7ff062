//! The fence: this pod's WireGuard socket speaks and listens only while the tenure lasts, and it is the kernel that
//! sees to it (I1).
//!
//! What must hold:
//! - The table is written once per link, closed, and never replaced while the link lives: it remembers.
//! - What opens it is an element that the kernel lets expire. A frozen, starved or dead process changes nothing.
//! - Re-arming flushes and adds in one transaction: adding a live element does not extend it everywhere, and deleting
//!   an expired one fails.
//! - It knows our own sessions by the receiver indexes in our handshakes as they leave, and to whom those went. What the
//!   hub sends to another index is for another program with this key, and is counted ([`foreign`]). Lengths are never
//!   looked at: packets may be merged (GSO).
//!
//! Pure: everything here is a transaction for [`crate::ruleset::Firewall`], or reckons with what it counted.

use std::time::Duration;

use crate::clock::Moment;
use crate::ruleset::model::{
    Base, Chain, ChainKind, Datatype, Element, Expr, Header, Hook, Reg, Rule, Set, SetValue, Table, Verdict,
};
use crate::ruleset::phrases::{self as say, rule};
use crate::ruleset::{Firewall, FirewallError, Step, Transaction, fence_table};
use crate::secret::TunnelName;

/// Tenures shorter than this cannot be armed: below a jiffy some kernels keep an element for ever.
pub const SHORTEST: Duration = Duration::from_millis(100);

/// Timeout of elements that name none. None of ours does; a hand that adds one must not open the fence for good.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// Ports that may speak and be heard: ours, while the tenure lasts.
const LEAD: &str = "lead";
/// Receiver indexes of our own sessions.
const MINE: &str = "mine";
/// Whom we sent handshakes to.
const HUB4: &str = "hub4";
const HUB6: &str = "hub6";
const DROPPED: &str = "dropped";
const FOREIGN: &str = "foreign";
const HEAR: &str = "hear";
const LISTEN: &str = "listen";
const OTHER: &str = "other";
const SPEAK: &str = "speak";
const LEARN: &str = "learn";

/// Longer than any session: 180 s after its handshake WireGuard neither sends nor takes anything in it.
const REMEMBERED: Duration = Duration::from_secs(300);
/// Far more handshakes than the fastest kicking begins in that time.
const MOST: u32 = 4096;

/// Types of messages, their first byte (WireGuard white paper, 5.4), and where in them an index stands.
const INITIATION: u8 = 1;
const RESPONSE: u8 = 2;
const DATA: u8 = 4;
const SENDER: u32 = 4;
const RECEIVERS: [(u8, u32); 2] = [(DATA, 4), (RESPONSE, 8)];

const R0: Reg = Reg(0);

/// Before conntrack (−200), so that what is fenced off costs nothing and leaves nothing.
const RAW: i32 = -300;

/// Puts the fence of this tunnel's UDP port up, closed, whatever stood there.
pub fn raise(tunnel: &TunnelName, port: u16) -> Transaction {
    let base = |name: &str, hook, rules| Chain {
        name: name.to_owned(),
        base: Some(Base { kind: ChainKind::Filter, hook, priority: RAW }),
        rules,
    };
    let inner = |name: &str, rules| Chain { name: name.to_owned(), base: None, rules };
    let jump = |chain: &str| say::verdict(Verdict::Jump(chain.to_owned()));
    let stop = || rule([count(DROPPED), say::verdict(Verdict::Drop)]);
    let begun = |kind| rule([say::udp_begins(kind), jump(LEARN)]);
    let led = |offset, verdict| rule([leads(offset), say::verdict(verdict)]);
    Transaction::replace(Table {
        name: fence_table(tunnel),
        counters: vec![DROPPED.to_owned(), FOREIGN.to_owned()],
        sets: vec![
            set(LEAD, Datatype::Port, DEFAULT_TIMEOUT, None),
            set(MINE, Datatype::Number, REMEMBERED, Some(MOST)),
            set(HUB4, Datatype::Ipv4, REMEMBERED, Some(MOST)),
            set(HUB6, Datatype::Ipv6, REMEMBERED, Some(MOST)),
        ],
        chains: vec![
            base("listening", Hook::Input, vec![rule([say::udp_to(port), jump(HEAR)])]),
            inner(HEAR, vec![led(2, Verdict::Goto(LISTEN.to_owned())), stop()]),
            inner(LISTEN, RECEIVERS.into_iter().flat_map(received).collect()),
            inner(OTHER, vec![rule([from_hub4(), count(FOREIGN)]), rule([from_hub6(), count(FOREIGN)])]),
            base("speaking", Hook::Output, vec![rule([say::udp_from(port), jump(SPEAK)])]),
            inner(SPEAK, vec![begun(INITIATION), begun(RESPONSE), led(0, Verdict::Return), stop()]),
            inner(LEARN, vec![our_index(), our_hub4(), our_hub6()]),
        ],
    })
}

/// Opens the fence for `left`, counted from the moment it is committed; `None` if that is less than [`SHORTEST`]: then
/// the fence stays as it is, and closes by itself if it was open.
pub fn arm(tunnel: &TunnelName, port: u16, left: Duration) -> Option<Transaction> {
    let lead = Element { key: padded(port), value: None, timeout: Some(left) };
    (left >= SHORTEST).then(|| refill(tunnel, vec![lead]))
}

/// Closes the fence at once.
pub fn close(tunnel: &TunnelName) -> Transaction {
    refill(tunnel, Vec::new())
}

/// Takes the fence away. Only once the link is gone: without it everything may pass.
pub fn remove(tunnel: &TunnelName) -> Transaction {
    Transaction::delete(&fence_table(tunnel))
}

/// Packets that the fence stopped since it was put up, in and out.
pub fn dropped(firewall: &mut dyn Firewall, tunnel: &TunnelName) -> Result<u64, FirewallError> {
    firewall.counted(&fence_table(tunnel), DROPPED)
}

/// Packets that the hub sent, while we led, in sessions that are not ours, since the fence was put up. Not all of them
/// mean a second speaker: see [`Foreign`].
pub fn foreign(firewall: &mut dyn Firewall, tunnel: &TunnelName) -> Result<u64, FirewallError> {
    firewall.counted(&fence_table(tunnel), FOREIGN)
}

/// For so long after its first handshake with us a hub may still use the session of our predecessor.
const SETTLING: Duration = Duration::from_secs(2);

/// Reckons with readings of [`foreign`]: which of those packets were meant for another program that uses our key.
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

fn set(name: &str, key: Datatype, timeout: Duration, learns: Option<u32>) -> Set {
    Set {
        name: name.to_owned(),
        key: vec![key],
        value: SetValue::Nothing,
        timeout: Some(timeout),
        learns,
        elements: Vec::new(),
    }
}

/// Our port, at `offset` of the UDP header, is among those that lead.
fn leads(offset: u32) -> Vec<Expr> {
    let port = Expr::Payload { base: Header::Transport, offset, len: 2, to: R0 };
    [vec![port], among(LEAD)].concat()
}

/// A message of this type for one of our own sessions passes, one for another is none of ours; one too short to be for
/// any passes as well, and WireGuard throws it away.
fn received((kind, receiver): (u8, u32)) -> [Rule; 2] {
    let index = || [say::udp_begins(kind), vec![say::udp_word(receiver)]].concat();
    let other = Verdict::Goto(OTHER.to_owned());
    [rule([index(), among(MINE), say::verdict(Verdict::Return)]), rule([index(), say::verdict(other)])]
}

/// What leaves in a handshake of ours: the index that the hub will send to, and the hub's address.
fn our_index() -> Rule {
    vec![say::udp_word(SENDER), learn(MINE)]
}

fn our_hub4() -> Rule {
    rule([say::ipv4(), vec![address(16, 4), learn(HUB4)]])
}

fn our_hub6() -> Rule {
    rule([say::ipv6(), vec![address(24, 16), learn(HUB6)]])
}

fn from_hub4() -> Vec<Expr> {
    [say::ipv4(), vec![address(12, 4)], among(HUB4)].concat()
}

fn from_hub6() -> Vec<Expr> {
    [say::ipv6(), vec![address(8, 16)], among(HUB6)].concat()
}

/// From the header of either family.
fn address(offset: u32, len: u32) -> Expr {
    Expr::Payload { base: Header::Network, offset, len, to: R0 }
}

fn among(set: &str) -> Vec<Expr> {
    vec![Expr::Contains { set: set.to_owned(), key: R0 }]
}

fn learn(set: &str) -> Expr {
    Expr::Learn { set: set.to_owned(), key: R0 }
}

fn count(counter: &str) -> Vec<Expr> {
    vec![Expr::Count(counter.to_owned())]
}

fn refill(tunnel: &TunnelName, elements: Vec<Element>) -> Transaction {
    Transaction(vec![Step::Refill { table: fence_table(tunnel), set: LEAD.to_owned(), elements }])
}

fn padded(port: u16) -> Vec<u8> {
    port.to_be_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clock::TokioClock;
    use crate::ruleset::testing::FakeFirewall;

    fn tunnel() -> TunnelName {
        TunnelName::new("wg0").unwrap()
    }

    #[test]
    fn a_tenure_below_a_tenth_of_a_second_is_never_armed() {
        assert_eq!(arm(&tunnel(), 51820, Duration::from_millis(99)), None);
        assert!(arm(&tunnel(), 51820, Duration::from_millis(100)).is_some());
    }

    #[test]
    fn every_element_of_the_fence_expires() {
        let Some(Transaction(steps)) = arm(&tunnel(), 51820, Duration::from_secs(3)) else { unreachable!("too short") };
        let [Step::Refill { elements, .. }] = steps.as_slice() else { unreachable!("{steps:?}") };
        assert!(elements.iter().all(|element| element.timeout == Some(Duration::from_secs(3))));
        let Transaction(steps) = raise(&tunnel(), 51820);
        let [Step::Replace(table)] = steps.as_slice() else { unreachable!("{steps:?}") };
        assert!(table.sets.iter().all(|set| set.timeout.is_some() && set.elements.is_empty()));
    }

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

    #[tokio::test(start_paused = true)]
    async fn the_fence_is_raised_closed_opens_when_armed_and_closes_by_itself() {
        let mut firewall = FakeFirewall::new(Arc::new(TokioClock::new()));
        let tunnel = tunnel();
        let arm = |left| arm(&tunnel, 51820, Duration::from_secs(left)).unwrap();
        assert!(firewall.commit(&arm(3)).is_err(), "nothing to arm");
        firewall.commit(&raise(&tunnel, 51820)).unwrap();
        assert!(!firewall.open(&tunnel));

        firewall.commit(&arm(3)).unwrap();
        tokio::time::advance(Duration::from_millis(2999)).await;
        assert!(firewall.open(&tunnel));
        firewall.commit(&arm(3)).unwrap();
        tokio::time::advance(Duration::from_millis(2999)).await;
        assert!(firewall.open(&tunnel), "re-armed");
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(!firewall.open(&tunnel), "expired");

        firewall.commit(&arm(3)).unwrap();
        firewall.commit(&close(&tunnel)).unwrap();
        assert!(!firewall.open(&tunnel), "closed by hand");
        firewall.commit(&remove(&tunnel)).unwrap();
        assert!(firewall.open(&tunnel), "no fence stops nobody");
    }
}
