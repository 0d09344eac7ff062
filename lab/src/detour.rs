//! A longer way through the internet for some of the packets between pods and hubs: those that take it come late, and so
//! in another order. It is a [`Road`] that begins and ends in the internet.

use std::time::Duration;

use anyhow::Result;

use crate::netns::Netns;
use crate::plan;
use crate::road::{Conditions, Road};

/// Where the longer way begins, and where it ends.
const ENDS: [&str; 2] = ["detour", "detourend"];
/// Mark and routing table.
const NUMBER: u32 = 77;

/// The longer way. Closed when dropped; what is on it is lost.
pub struct Detour {
    internet: Netns,
    _road: Road,
}

impl Detour {
    /// Sends `percent` of the packets the longer way, which takes `delay` more.
    pub fn open(internet: &Netns, percent: u8, delay: Duration) -> Result<Self> {
        let [begin, end] = ENDS;
        let conditions = Conditions { round_trip: delay * 2, ..Conditions::default() };
        let road = Road::lay(conditions, [(internet, begin), (internet, end)])?;
        let detour = Self { internet: internet.clone(), _road: road };
        internet.ip(&[
            format!("route replace default dev {begin} table {NUMBER}"),
            format!("rule add fwmark {NUMBER} lookup {NUMBER}"),
        ])?;
        let chosen = format!("iifname != {end} numgen random mod 100 < {percent} meta mark set {NUMBER}");
        let port = plan::HUB_PORT;
        internet.nft(&format!(
            "table ip lab_detour {{
                chain pre {{ type filter hook prerouting priority mangle;
                    udp dport {port} {chosen}
                    udp sport {port} {chosen}
                }}
            }}"
        ))?;
        Ok(detour)
    }
}

impl Drop for Detour {
    fn drop(&mut self) {
        // What fails here goes with the namespace.
        let _ = self.internet.nft("add table ip lab_detour\ndelete table ip lab_detour");
        let _ = self.internet.sh(&format!("ip rule del fwmark {NUMBER} lookup {NUMBER}"));
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use anyhow::Context;

    use super::*;
    use crate::clock::now;

    #[test]
    #[ignore = "needs root or a user namespace"]
    fn packets_that_take_the_longer_way_come_late_and_out_of_order() -> Result<()> {
        let (pod, internet, hub) = (Netns::new("pod")?, Netns::new("internet")?, Netns::new("hub")?);
        internet.sysctls(&[("net/ipv4/ip_forward", "1")])?;
        pod.cable("eth0", &internet, "pod", 1500)?;
        hub.cable("eth0", &internet, "hub", 1500)?;
        internet.ip(&["addr add 203.0.113.254/24 dev pod", "addr add 192.0.2.126/25 dev hub"])?;
        pod.ip(&["addr add 203.0.113.1/24 dev eth0", "route add default via 203.0.113.254"])?;
        hub.ip(&["addr add 192.0.2.10/25 dev eth0", "route add default via 192.0.2.126"])?;
        let socket = |netns: &Netns, address: &str| netns.run(|| Ok(UdpSocket::bind(address)?));
        let (from, to) = (socket(&pod, "203.0.113.1:20100")?, socket(&hub, "192.0.2.10:51820")?);
        to.set_read_timeout(Some(Duration::from_secs(5)))?;
        let order = || -> Result<Vec<u8>> {
            for number in 0..50 {
                from.send_to(&[number], "192.0.2.10:51820")?;
            }
            let mut byte = [0];
            (0..50).map(|_| to.recv_from(&mut byte).map(|_| byte[0]).context("a packet was lost")).collect()
        };
        let all: Vec<u8> = (0..50).collect();
        assert_eq!(order()?, all);
        let detour = Detour::open(&internet, 50, Duration::from_millis(100))?;
        let sent = now();
        let mut mixed = order()?;
        assert!(sent.elapsed() >= Duration::from_millis(100), "nothing was late");
        assert_ne!(mixed, all, "nothing was overtaken");
        mixed.sort_unstable();
        assert_eq!(mixed, all, "nothing is lost, nothing doubled");
        drop(detour);
        assert_eq!(order()?, all);
        Ok(())
    }
}
