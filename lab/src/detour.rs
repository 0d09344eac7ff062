//! A longer way through the internet for some of the packets between pods and hubs: those that take it come late, and so
//! in another order. Needs no netem: the way leads through a TUN device whose other end is this program.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::time::sleep;

use crate::clock::now;
use crate::netns::Netns;
use crate::plan;

const LINK: &str = "detour";
/// Mark and routing table.
const NUMBER: u32 = 77;

/// The longer way. Closed when dropped; what is on it is lost.
pub struct Detour {
    internet: Netns,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Detour {
    /// Sends `percent` of the packets the longer way, which takes `delay` more.
    pub fn open(internet: &Netns, percent: u8, delay: Duration) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (ready, opened) = std::sync::mpsc::sync_channel::<Result<()>>(1);
        let (netns, flag) = (internet.clone(), Arc::clone(&stop));
        let thread = thread::Builder::new().name(LINK.into()).spawn(move || {
            let ended = netns.enter().and_then(|()| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async {
                    let link = tun_rs::DeviceBuilder::new().name(LINK).build_async().context("no TUN device")?;
                    let _ = ready.send(Ok(()));
                    carry(&link, delay, &flag).await
                })
            });
            if let Err(error) = ended {
                // Nobody listens any more if it had opened; then packets that should be late are lost.
                let _ = ready.send(Err(error));
            }
        })?;
        opened.recv().context("the detour's thread ended before it began")??;
        let detour = Self { internet: internet.clone(), stop, thread: Some(thread) };
        internet.ip(&[
            format!("link set {LINK} up"),
            format!("route replace default dev {LINK} table {NUMBER}"),
            format!("rule add fwmark {NUMBER} lookup {NUMBER}"),
        ])?;
        let chosen = format!("iifname != {LINK} numgen random mod 100 < {percent} meta mark set {NUMBER}");
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
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Gives every packet back after `delay`: the kernel then routes it as one that has just come.
async fn carry(link: &tun_rs::AsyncDevice, delay: Duration, stop: &AtomicBool) -> Result<()> {
    let mut waiting: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut buffer = vec![0; 65_536];
    while !stop.load(Ordering::Relaxed) {
        let pause = waiting.front().map_or(Duration::from_millis(20), |(due, _)| due.saturating_duration_since(now()));
        tokio::select! {
            read = link.recv(&mut buffer) => {
                let length = read.context("the detour's device is gone")?;
                waiting.push_back((now() + delay, buffer[..length].to_vec()));
            }
            () = sleep(pause.min(Duration::from_millis(20))) => {}
        }
        while let Some((_, packet)) = waiting.pop_front_if(|(due, _)| *due <= now()) {
            // A packet that the kernel will not take is a lost one.
            let _ = link.send(&packet).await;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

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
