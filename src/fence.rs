//! The fence: this pod's WireGuard socket speaks freely only while the tenure lasts, and it is the kernel that sees to
//! it (I1).
//!
//! | state | how it comes | out | in |
//! |---|---|---|---|
//! | closed | raised, or told so | nothing | nothing |
//! | lead | armed for what is left of the tenure | everything | everything |
//! | hold | the tenure lapses where holding is allowed, or told so | answers | everything |
//!
//! What must hold:
//! - The table is written once per link, closed, and never replaced while the link lives: it remembers.
//! - What opens it is an element that the kernel lets expire. A frozen, starved or dead process changes nothing.
//! - Re-arming flushes and adds in one transaction: adding a live element does not extend it everywhere, and deleting
//!   an expired one fails.
//! - It knows our own sessions by the receiver indexes in our handshakes as they leave, and to whom those went. What the
//!   hub sends to another index is for another program with this key.
//! - Who holds answers, and starts nothing: only responses and data leave, only for a minute after the hub's last packet
//!   for one of our own sessions or its last call. Once it speaks to another, nothing leaves until it has not for two
//!   seconds, and then has spoken to us; one response to another in two seconds may have lost its way. Handshakes and keepalives that may not leave are *defused*, three a minute, so
//!   that a NAT on the way does not forget us: their first byte becomes 0.
//! - A fence put up beside a living session does not know its index: to it the hub speaks to another. It leads as any
//!   other, and is silent in hold, until the next handshake.
//! - Packets may be merged (GSO) and are judged by their first message. So a length never lets a message pass, and only
//!   what is known to be one message alone is defused.
//!
//! Pure: everything here is a transaction for [`crate::ruleset::Firewall`], reads what it holds, or reckons with what it
//! counted.

use std::time::Duration;

use crate::ruleset::model::{Element, Table};
use crate::ruleset::{Firewall, FirewallError, Step, Transaction, fence_table};
use crate::secret::TunnelName;

mod foreign;
mod table;

pub use self::foreign::Foreign;
pub use self::table::Times;
pub(crate) use self::table::{HOLD, LEAD};

/// Tenures shorter than this cannot be armed: below a jiffy some kernels keep an element for ever.
pub const SHORTEST: Duration = Duration::from_millis(100);

/// The fence of this tunnel's UDP port, closed.
pub fn render(tunnel: &TunnelName, port: u16, times: &Times) -> Table {
    table::render(tunnel, port, times)
}

/// Puts the fence of this tunnel's UDP port up, closed, whatever stood there.
pub fn raise(tunnel: &TunnelName, port: u16) -> Transaction {
    Transaction::replace(render(tunnel, port, &Times::default()))
}

/// Opens the fence for `left`, counted from the moment it is committed; what comes then is hold, where it is allowed,
/// else closed. `None` if `left` is less than [`SHORTEST`]: then the fence stays as it is, and lapses by itself if it
/// was open.
pub fn lead(tunnel: &TunnelName, port: u16, left: Duration, hold: bool) -> Option<Transaction> {
    let lead = Element { timeout: Some(left), ..element(port) };
    (left >= SHORTEST).then(|| refill(tunnel, Some(lead), hold.then(|| element(port))))
}

/// Ends leading at once; from now on the fence holds.
pub fn hold(tunnel: &TunnelName, port: u16) -> Transaction {
    refill(tunnel, None, Some(element(port)))
}

/// Closes the fence at once.
pub fn close(tunnel: &TunnelName) -> Transaction {
    refill(tunnel, None, None)
}

/// Takes the fence away. Only once the link is gone: without it everything may pass.
pub fn remove(tunnel: &TunnelName) -> Transaction {
    Transaction::delete(&fence_table(tunnel))
}

/// Packets that the fence stopped since it was put up, in and out.
pub fn dropped(firewall: &mut dyn Firewall, tunnel: &TunnelName) -> Result<u64, FirewallError> {
    firewall.counted(&fence_table(tunnel), table::DROPPED)
}

/// Packets that left defused since the fence was put up.
pub fn defused(firewall: &mut dyn Firewall, tunnel: &TunnelName) -> Result<u64, FirewallError> {
    firewall.counted(&fence_table(tunnel), table::DEFUSED)
}

/// Packets that the hub sent, while we led, in sessions that are not ours, since the fence was put up. Not all of them
/// mean a second speaker: see [`Foreign`].
pub fn foreign(firewall: &mut dyn Firewall, tunnel: &TunnelName) -> Result<u64, FirewallError> {
    firewall.counted(&fence_table(tunnel), table::COUNTED)
}

/// What a fence was found to be, by a process that may not be the one that put it up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Standing {
    /// The port that speaks freely now.
    pub leads: Option<u16>,
    /// The port that holds, now or when it leads no more.
    pub holds: Option<u16>,
    /// Has the hub spoken to us last, within the last minute?
    pub heard: bool,
    /// Has the hub spoken to another while we held, within the last two seconds?
    pub silenced: bool,
}

/// Reads what stands: all of it nothing where there is no fence.
pub fn standing(firewall: &mut dyn Firewall, tunnel: &TunnelName) -> Result<Standing, FirewallError> {
    let name = fence_table(tunnel);
    let mut any = |sets: [String; 2]| {
        sets.iter().try_fold(false, |any, set| Ok(any || !firewall.members(&name, set)?.is_empty()))
    };
    let (heard, silenced) = (any(table::both(table::HEARD))?, any(table::both(table::FOREIGN))?);
    let mut port = |set| Ok(firewall.members(&name, set)?.iter().find_map(|key| port_of(key)));
    Ok(Standing { leads: port(LEAD)?, holds: port(HOLD)?, heard, silenced })
}

/// Takes the fence of this port that an earlier process put up, with all that it remembers. `false`: there is none such,
/// and one must be raised, after the link is gone.
pub fn adopt(firewall: &mut dyn Firewall, tunnel: &TunnelName, port: u16) -> Result<bool, FirewallError> {
    firewall.adopt(&render(tunnel, port, &Times::default()))
}

fn refill(tunnel: &TunnelName, lead: Option<Element>, hold: Option<Element>) -> Transaction {
    let step = |(set, element): (&str, Option<Element>)| Step::Refill {
        table: fence_table(tunnel),
        set: set.to_owned(),
        elements: element.into_iter().collect(),
    };
    Transaction([(LEAD, lead), (HOLD, hold)].map(step).to_vec())
}

fn element(port: u16) -> Element {
    Element { key: port.to_be_bytes().to_vec(), value: None, timeout: None }
}

fn port_of(key: &[u8]) -> Option<u16> {
    key.try_into().ok().map(u16::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clock::TokioClock;
    use crate::ruleset::testing::FakeFirewall;

    const PORT: u16 = 51820;

    fn tunnel() -> TunnelName {
        TunnelName::new("wg0").unwrap()
    }

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// What a transaction leaves in the sets `lead` and `hold`.
    fn refilled(transaction: &Transaction) -> [Vec<Element>; 2] {
        [LEAD, HOLD].map(|name| {
            let elements = |step: &Step| match step {
                Step::Refill { set, elements, .. } if set == name => Some(elements.clone()),
                _ => None,
            };
            transaction.0.iter().find_map(elements).unwrap()
        })
    }

    #[test]
    fn a_tenure_below_a_tenth_of_a_second_is_never_armed() {
        assert_eq!(lead(&tunnel(), PORT, Duration::from_millis(99), true), None);
        assert!(lead(&tunnel(), PORT, Duration::from_millis(100), true).is_some());
    }

    #[test]
    fn every_element_of_the_fence_expires_but_that_of_hold() {
        let port = |timeout| vec![Element { timeout, ..element(PORT) }];
        let armed = |hold| refilled(&lead(&tunnel(), PORT, secs(3), hold).unwrap());
        assert_eq!(armed(false), [port(Some(secs(3))), vec![]]);
        assert_eq!(armed(true), [port(Some(secs(3))), port(None)]);
        assert_eq!(refilled(&hold(&tunnel(), PORT)), [vec![], port(None)]);
        assert_eq!(refilled(&close(&tunnel())), [vec![], vec![]]);
        let Transaction(steps) = raise(&tunnel(), PORT);
        let [Step::Replace(table)] = steps.as_slice() else { unreachable!("{steps:?}") };
        for set in &table.sets {
            assert!(set.elements.is_empty(), "raised closed");
            assert_eq!(set.timeout.is_none(), set.name == HOLD, "{}", set.name);
            assert_eq!(set.learns.is_none(), [LEAD, HOLD].contains(&set.name.as_str()), "{} has no bound", set.name);
        }
        assert_eq!(table.census().elements, [(HOLD.to_owned(), 0)].into(), "what an audit counts");
    }

    #[tokio::test(start_paused = true)]
    async fn the_fence_is_raised_closed_opens_when_armed_and_closes_by_itself() {
        let mut firewall = FakeFirewall::new(Arc::new(TokioClock::new()));
        let tunnel = tunnel();
        let arm = |left| lead(&tunnel, PORT, secs(left), false).unwrap();
        assert!(firewall.commit(&arm(3)).is_err(), "nothing to arm");
        firewall.commit(&raise(&tunnel, PORT)).unwrap();
        assert!(!firewall.open(&tunnel));

        firewall.commit(&arm(3)).unwrap();
        tokio::time::advance(Duration::from_millis(2999)).await;
        assert!(firewall.open(&tunnel));
        firewall.commit(&arm(3)).unwrap();
        tokio::time::advance(Duration::from_millis(2999)).await;
        assert!(firewall.open(&tunnel), "re-armed");
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(!firewall.open(&tunnel) && !firewall.holds(&tunnel), "expired");

        firewall.commit(&arm(3)).unwrap();
        firewall.commit(&close(&tunnel)).unwrap();
        assert!(!firewall.open(&tunnel), "closed by hand");
        firewall.commit(&remove(&tunnel)).unwrap();
        assert!(firewall.open(&tunnel), "no fence stops nobody");
    }

    #[tokio::test(start_paused = true)]
    async fn where_it_is_allowed_a_lapsed_fence_holds_until_it_is_closed_and_another_process_can_tell() {
        let clock = Arc::new(TokioClock::new());
        let mut firewall = FakeFirewall::new(clock);
        let tunnel = tunnel();
        let name = fence_table(&tunnel);
        assert_eq!(standing(&mut firewall, &tunnel).unwrap(), Standing::default());
        assert!(!adopt(&mut firewall, &tunnel, PORT).unwrap(), "there is none");
        firewall.commit(&raise(&tunnel, PORT)).unwrap();
        assert_eq!(standing(&mut firewall, &tunnel).unwrap(), Standing::default(), "closed");

        firewall.commit(&lead(&tunnel, PORT, secs(3), true).unwrap()).unwrap();
        let leads = Standing { leads: Some(PORT), holds: Some(PORT), ..Standing::default() };
        assert_eq!(standing(&mut firewall, &tunnel).unwrap(), leads);
        tokio::time::advance(secs(3)).await;
        assert!(!firewall.open(&tunnel) && firewall.holds(&tunnel));
        let mut other = firewall.clone();
        let holds = Standing { leads: None, ..leads };
        assert_eq!(standing(&mut other, &tunnel).unwrap(), holds);
        assert!(!adopt(&mut other, &tunnel, PORT + 1).unwrap(), "another port's");
        assert!(adopt(&mut other, &tunnel, PORT).unwrap() && other.intact(&name).unwrap());

        let (heard, silenced) = (Standing { heard: true, ..holds }, Standing { silenced: true, ..holds });
        for (sets, expected) in [(table::both(table::HEARD), heard), (table::both(table::FOREIGN), silenced)] {
            for set in sets {
                firewall.learn(&name, &set, &[192, 0, 2, 1], secs(2));
                assert_eq!(standing(&mut firewall, &tunnel).unwrap(), expected, "{set}");
                tokio::time::advance(secs(2)).await;
                assert_eq!(standing(&mut firewall, &tunnel).unwrap(), holds, "{set}");
            }
        }
        firewall.commit(&lead(&tunnel, PORT, secs(3), true).unwrap()).unwrap();
        firewall.commit(&hold(&tunnel, PORT)).unwrap();
        assert!(!firewall.open(&tunnel) && firewall.holds(&tunnel), "told to hold");
        firewall.commit(&close(&tunnel)).unwrap();
        assert_eq!(standing(&mut firewall, &tunnel).unwrap(), Standing::default(), "closed by hand");
    }
}
