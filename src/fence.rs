//! The fence: this pod's WireGuard socket speaks and listens only while the tenure lasts, and it is the kernel that
//! sees to it (I1).
//!
//! What must hold:
//! - The table is written once per link, closed, and never replaced while the link lives: it remembers.
//! - What opens it is an element that the kernel lets expire. A frozen, starved or dead process changes nothing.
//! - Re-arming flushes and adds in one transaction: adding a live element does not extend it everywhere, and deleting
//!   an expired one fails.
//!
//! Pure: everything here is a transaction for [`crate::ruleset::Firewall`].

use std::time::Duration;

use crate::ruleset::model::{
    Base, Chain, ChainKind, Datatype, Element, Expr, Header, Hook, Reg, Rule, Set, SetValue, Step, Table, Transaction,
    Verdict,
};
use crate::ruleset::phrases::{self as say, rule};
use crate::ruleset::{Firewall, FirewallError, fence_table};
use crate::secret::TunnelName;

/// Tenures shorter than this cannot be armed: below a jiffy some kernels keep an element for ever.
pub const SHORTEST: Duration = Duration::from_millis(100);

/// Timeout of elements that name none. None of ours does; a hand that adds one must not open the fence for good.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// Ports that may speak and be heard: ours, while the tenure lasts.
const LEAD: &str = "lead";
const DROPPED: &str = "dropped";
const HEAR: &str = "hear";
const SPEAK: &str = "speak";

/// Before conntrack (−200), so that what is fenced off costs nothing and leaves nothing.
const RAW: i32 = -300;

/// Puts the fence of this tunnel's UDP port up, closed, whatever stood there.
pub fn raise(tunnel: &TunnelName, port: u16) -> Transaction {
    let base = |name: &str, hook, rules| Chain {
        name: name.to_owned(),
        base: Some(Base { kind: ChainKind::Filter, hook, priority: RAW }),
        rules,
    };
    let inner = |name: &str, offset| Chain { name: name.to_owned(), base: None, rules: unless_leading(offset) };
    let jump = |chain: &str| say::verdict(Verdict::Jump(chain.to_owned()));
    Transaction::replace(Table {
        name: fence_table(tunnel),
        counters: vec![DROPPED.to_owned()],
        sets: vec![Set {
            name: LEAD.to_owned(),
            key: vec![Datatype::Port],
            value: SetValue::Nothing,
            timeout: Some(DEFAULT_TIMEOUT),
            elements: Vec::new(),
        }],
        chains: vec![
            base("listening", Hook::Input, vec![rule([say::udp_to(port), jump(HEAR)])]),
            inner(HEAR, 2),
            base("speaking", Hook::Output, vec![rule([say::udp_from(port), jump(SPEAK)])]),
            inner(SPEAK, 0),
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

/// Is our port among those that lead? It is at `offset` of the UDP header.
fn unless_leading(offset: u32) -> Vec<Rule> {
    vec![
        vec![
            Expr::Payload { base: Header::Transport, offset, len: 2, to: Reg(0) },
            Expr::Contains { set: LEAD.to_owned(), key: Reg(0) },
            Expr::Verdict(Verdict::Return),
        ],
        rule([vec![Expr::Count(DROPPED.to_owned())], say::verdict(Verdict::Drop)]),
    ]
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
