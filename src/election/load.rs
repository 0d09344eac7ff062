//! What this pod leads already, so that leadership spreads over the pods: who leads much leaves others a head start
//! before it goes for a Lease that is free. What serves is never moved, since that would cut its clients' connections.
//!
//! All campaigns of a pod share one [`Load`]; each has a [`Share`] in it. Pods tell each other nothing.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// For each tunnel that this pod leads, others get so long before it goes for a Lease that was given back or has lapsed.
/// It costs little: after a hand-over the former leader still answers, after a crash clients have waited for a lease.
const FREED: Pace = Pace { each: Duration::from_millis(20), most: Duration::from_millis(200) };
/// The same for a Lease that was never made: the pods of a new installation begin within seconds of each other.
const UNMADE: Pace = Pace { each: Duration::from_millis(400), most: Duration::from_secs(3) };

struct Pace {
    each: Duration,
    /// With many tunnels the steps are shorter, so that a pod that is alone soon has all.
    most: Duration,
}

/// How long a candidate leaves a free Lease to others.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HeadStart {
    /// A Lease that was given back or has lapsed.
    pub freed: Duration,
    /// A Lease that was never made.
    pub unmade: Duration,
}

impl HeadStart {
    /// For one more of `tunnels`, of which the pod leads `led`. `place`, below `tunnels`: the tunnel's place in the pod's
    /// own order. Each pod has another one, so that pods that see many Leases free at once go for different ones.
    pub fn of(led: usize, place: usize, tunnels: usize) -> Self {
        let [led, place, tunnels] = [led, place, tunnels.max(1)].map(|count| count as f64);
        let steps = led + place / tunnels;
        let at = |pace: Pace| pace.each.min(pace.most.div_f64(tunnels)).mul_f64(steps);
        Self { freed: at(FREED), unmade: at(UNMADE) }
    }
}

/// One pod's load. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Load(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    shares: Mutex<Shares>,
    changed: Notify,
}

/// By place in the pod's own order: is the tunnel led, or about to be?
type Shares = BTreeMap<Place, bool>;

/// A hash of pod and tunnel; the number tells a tunnel that leaves from its successor of the same name.
type Place = (u64, usize);

impl Load {
    /// A tunnel that `pod` may lead.
    pub fn share(&self, pod: &str, tunnel: &str) -> Share {
        let mut hasher = DefaultHasher::new();
        (pod, tunnel).hash(&mut hasher);
        let hash = hasher.finish();
        let mut shares = self.lock();
        let number = shares.range((hash, 0)..=(hash, usize::MAX)).next_back().map_or(0, |(last, _)| last.1 + 1);
        shares.insert((hash, number), false);
        drop(shares);
        Share { load: self.clone(), place: (hash, number) }
    }

    /// When any tunnel is led, or is not any more. Made before the load is read, it misses nothing.
    pub(super) fn changed(&self) -> Notified<'_> {
        self.0.changed.notified()
    }

    fn lock(&self) -> MutexGuard<'_, Shares> {
        // Whole between any two statements: a panic elsewhere leaves nothing half done in it.
        self.0.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One tunnel's share in its pod's load, until dropped.
#[derive(Debug)]
pub struct Share {
    load: Load,
    place: Place,
}

impl Share {
    /// That of a pod's only tunnel: it leaves nobody a head start.
    pub fn alone() -> Self {
        Load::default().share("", "")
    }

    /// The load that it is part of.
    pub(super) fn load(&self) -> &Load {
        &self.load
    }

    /// Whether the tunnel is led, or about to be.
    pub(super) fn count(&self, led: bool) {
        if self.load.lock().insert(self.place, led) != Some(led) {
            self.load.0.changed.notify_waiters();
        }
    }

    /// What others get before this pod goes for this tunnel, as things stand.
    pub(super) fn head_start(&self) -> HeadStart {
        let shares = self.load.lock();
        let led = shares.iter().filter(|(place, led)| **place != self.place && **led).count();
        HeadStart::of(led, shares.range(..self.place).count(), shares.len())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.load.lock().remove(&self.place);
        self.load.0.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_pod_with_one_tunnel_waits_for_nobody() {
        let share = Share::alone();
        assert_eq!(share.head_start(), HeadStart::default());
        share.count(true);
        assert_eq!(share.head_start(), HeadStart::default(), "of its own tunnel it is no rival");
    }

    #[test]
    fn each_tunnel_led_is_a_step_more_and_the_last_of_many_is_within_the_most() {
        assert_eq!(HeadStart::of(1, 0, 2), HeadStart { freed: ms(20), unmade: ms(400) });
        assert_eq!(HeadStart::of(4, 0, 20), HeadStart { freed: ms(40), unmade: ms(600) });
        for tunnels in 2..=255 {
            for led in 1..tunnels {
                let (less, more) = (HeadStart::of(led - 1, tunnels - 1, tunnels), HeadStart::of(led, 0, tunnels));
                assert!(less.freed < more.freed && less.unmade < more.unmade, "{led} of {tunnels}");
            }
            let last = HeadStart::of(tunnels - 1, tunnels - 1, tunnels);
            assert!(last.freed < FREED.most && last.unmade < UNMADE.most, "{tunnels}: {last:?}");
        }
    }

    #[test]
    fn each_pod_has_an_order_of_its_own_with_one_favourite() {
        let order = |pod: &str| {
            let load = Load::default();
            let shares: Vec<Share> = (0..20).map(|n| load.share(pod, &format!("wg{n}"))).collect();
            shares.iter().map(|share| share.head_start().unmade).collect::<Vec<_>>()
        };
        let (ann, ben) = (order("ann"), order("ben"));
        assert_eq!(ann.iter().filter(|wait| wait.is_zero()).count(), 1, "{ann:?}");
        assert_ne!(ann, ben);
        assert_eq!(ann, order("ann"));
    }

    #[test]
    fn a_tunnel_that_left_counts_no_more_and_its_successor_of_the_same_name_does() {
        let load = Load::default();
        let (old, other) = (load.share("ann", "wg0"), load.share("ann", "wg1"));
        old.count(true);
        let new = load.share("ann", "wg0");
        drop(old);
        let place = usize::from(new.place < other.place);
        assert_eq!(other.head_start(), HeadStart::of(0, place, 2));
        new.count(true);
        assert_eq!(other.head_start(), HeadStart::of(1, place, 2));
    }

    #[test]
    fn a_change_wakes_who_waits_and_the_same_again_does_not() {
        let load = Load::default();
        let (one, other) = (load.share("ann", "wg0"), load.share("ann", "wg1"));
        let changed = other.load().changed();
        one.count(true);
        assert!(changed.now_or_never().is_some());
        let unchanged = other.load().changed();
        one.count(true);
        assert!(unchanged.now_or_never().is_none());
        let gone = other.load().changed();
        drop(one);
        assert!(gone.now_or_never().is_some(), "one tunnel less");
    }
}
