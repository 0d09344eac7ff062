//! The road between the cluster's gateway and the internet where it is no plain cable: packets take their time on it,
//! get lost, or overtake each other. Needs no netem: it is a TUN device at either end, and this program between them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use tun_rs::SyncDevice;

use crate::clock::now;
use crate::netns::Netns;

/// What a packet takes longer that is overtaken.
const STRAY: Duration = Duration::from_millis(20);
/// How many packets of a hundred are, where any are.
const STRAYS: u8 = 25;
/// The longest wait before the flag to stop is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// What a road does to packets, both ways alike.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Conditions {
    /// What both ways take together.
    pub round_trip: Duration,
    /// So many packets of a hundred are lost, each way.
    pub loss: u8,
    /// Are some packets overtaken by others?
    pub reorder: bool,
}

impl Conditions {
    /// Is a cable as good?
    pub fn are_perfect(self) -> bool {
        self == Self::default()
    }

    /// The longest that a packet is on the road.
    pub fn longest(self) -> Duration {
        self.round_trip / 2 + if self.reorder { STRAY } else { Duration::ZERO }
    }

    /// How long this packet is on the road; `None`: it is lost.
    fn chance(self) -> Option<Duration> {
        let percent = || rand::random_range(0..100_u8);
        if percent() < self.loss {
            return None;
        }
        let stray = self.reorder && percent() < STRAYS;
        Some(self.round_trip / 2 + if stray { STRAY } else { Duration::ZERO })
    }
}

/// A road. Closed when dropped; its two devices go with it.
pub struct Road {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Road {
    /// Lays a road between two namespaces; the ends get these names, and are up.
    pub fn lay(conditions: Conditions, ends: [(&Netns, &str); 2]) -> Result<Self> {
        let open = |(netns, name): (&Netns, &str)| {
            let device = netns.run(|| {
                let device = tun_rs::DeviceBuilder::new().name(name).mtu(1500).build_sync().context("no TUN device")?;
                device.set_nonblocking(true)?;
                Ok(device)
            })?;
            netns.ip(&[format!("link set {name} txqueuelen 10000 up")])?;
            Ok::<_, anyhow::Error>(device)
        };
        let [here, there] = ends;
        let (here, there) = (open(here)?, open(there)?);
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = thread::Builder::new().name("road".into()).spawn(move || {
            // It ends by the flag, or when a device is gone: then packets no longer arrive, and whoever waits says so.
            let _ = carry(conditions, &here, &there, &flag);
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Road {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Packets on their way to one end, the next to arrive on top; those due at once arrive in the order in which they left.
type OnTheWay = BinaryHeap<Reverse<(Instant, u64, Vec<u8>)>>;

fn carry(conditions: Conditions, here: &SyncDevice, there: &SyncDevice, stop: &AtomicBool) -> Result<()> {
    let mut ways = [(here, there, OnTheWay::new()), (there, here, OnTheWay::new())];
    let mut left = 0;
    let mut buffer = vec![0; 65_536];
    while !stop.load(Ordering::Relaxed) {
        let next = ways.iter().filter_map(|(_, _, way)| way.peek()).map(|Reverse((due, ..))| *due).min();
        let pause = next.map_or(LOOK, |due| due.saturating_duration_since(now()).min(LOOK));
        let mut wait = [here, there].map(|device| PollFd::new(device.as_fd(), PollFlags::POLLIN));
        ppoll(&mut wait, Some(TimeSpec::from_duration(pause)), None)?;
        for (from, to, way) in &mut ways {
            loop {
                let length = match from.recv(&mut buffer) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    read => read.context("the road's device is gone")?,
                };
                if let Some(takes) = conditions.chance() {
                    way.push(Reverse((now() + takes, left, buffer[..length].to_vec())));
                    left += 1;
                }
            }
            while way.peek().is_some_and(|Reverse((due, ..))| *due <= now()) {
                if let Some(Reverse((_, _, packet))) = way.pop() {
                    // A packet that the kernel will not take is a lost one.
                    let _ = to.send(&packet);
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};

    use super::*;

    /// Sends numbered packets over a road; their numbers as they arrive, and what the first took.
    fn travel(conditions: Conditions, count: u16) -> Result<(Vec<u16>, Duration)> {
        let (a, b) = (Netns::new("a")?, Netns::new("b")?);
        let _road = Road::lay(conditions, [(&a, "road"), (&b, "road")])?;
        a.ip(&["addr add 192.0.2.1/24 dev road"])?;
        b.ip(&["addr add 192.0.2.2/24 dev road"])?;
        let socket = |netns: &Netns, address: &str| netns.run(|| Ok(UdpSocket::bind(address)?));
        let (from, to) = (socket(&a, "192.0.2.1:1000")?, socket(&b, "192.0.2.2:1000")?);
        setsockopt(&to, RcvBufForce, &(4 << 20))?;
        // Where some are lost, it is known by waiting that no more come.
        let patience = if conditions.loss > 0 { Duration::from_millis(500) } else { Duration::from_secs(5) };
        to.set_read_timeout(Some(patience))?;
        let (sent, mut first) = (now(), None);
        for number in 0..count {
            from.send_to(&number.to_be_bytes(), "192.0.2.2:1000")?;
        }
        let (mut bytes, mut arrived) = ([0; 2], Vec::new());
        while arrived.len() < usize::from(count) && to.recv_from(&mut bytes).is_ok() {
            first.get_or_insert_with(|| sent.elapsed());
            arrived.push(u16::from_be_bytes(bytes));
        }
        Ok((arrived, first.unwrap_or_default()))
    }

    #[test]
    #[ignore = "needs root or a user namespace"]
    fn a_long_road_takes_its_time_and_keeps_the_order() -> Result<()> {
        let (arrived, took) = travel(Conditions { round_trip: Duration::from_millis(200), ..Default::default() }, 100)?;
        assert_eq!(arrived, (0..100).collect::<Vec<_>>());
        assert!(took >= Duration::from_millis(100), "one way took {took:?}");
        Ok(())
    }

    #[test]
    #[ignore = "needs root or a user namespace"]
    fn a_bad_road_loses_so_many_of_a_hundred() -> Result<()> {
        let (arrived, _) = travel(Conditions { loss: 10, ..Default::default() }, 2000)?;
        // Ten standard deviations to either side.
        assert!((1666..1934).contains(&arrived.len()), "{} of 2000 arrived", arrived.len());
        assert!(arrived.is_sorted());
        Ok(())
    }

    #[test]
    #[ignore = "needs root or a user namespace"]
    fn on_a_winding_road_packets_overtake_each_other_and_none_is_lost() -> Result<()> {
        let (mut arrived, _) = travel(Conditions { reorder: true, ..Default::default() }, 100)?;
        assert!(!arrived.is_sorted());
        arrived.sort_unstable();
        assert_eq!(arrived, (0..100).collect::<Vec<_>>());
        Ok(())
    }
}
