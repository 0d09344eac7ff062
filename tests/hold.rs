//! Hold with real WireGuard on both sides: a hub and two pods with one key on one network, wireguard-go at the hub and in
//! the successor, gotatun or wireguard-go in the pod that holds.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use lab::clock::{now, until};
use lab::netns::Netns;
use lab::processes::Processes;
use lab::recorder::{Heard, Message, Recorder};
use lab::wireguard::{Wireguard, WireguardKind};
use nix::sys::signal::Signal;
use tokio::runtime::Runtime;
use wirevip::fence;
use wirevip::ruleset::{Firewall, NetlinkFirewall, Transaction};
use wirevip::secret::{PublicKey, SecretKey, TunnelName};
use wirevip::tunnel::network::KernelNet;
use wirevip::tunnel::rtnl::Rtnl;
use wirevip::tunnel::system::SystemLinks;
use wirevip::tunnel::testing::plan;
use wirevip::tunnel::{Backend, HostNet, LinkBackend, LinkPlan};

const POD_KEY: [u8; 32] = [0x51; 32];
const HUB_KEY: [u8; 32] = [0x52; 32];
const PORT: u16 = 51820;
const LONG: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(15);

const FIRST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const SECOND: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);
/// A takeover is watched for at least so long: longer than a silenced pod is silent.
const WATCHED: Duration = Duration::from_secs(4);

struct World {
    tunnel: TunnelName,
    hub: Netns,
    first: Netns,
    second: Netns,
    _switch: Netns,
    processes: Processes,
    wireguard: Wireguard,
}

/// Who carries the tunnel of the pod that holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Carrier {
    Gotatun,
    WireguardGo,
}

impl World {
    fn new() -> Result<Self> {
        let (switch, hub) = (Netns::new("switch")?, Netns::new("hub")?);
        let (first, second) = (Netns::new("first")?, Netns::new("second")?);
        switch.ip(&["link add br0 type bridge", "link set br0 up"])?;
        for (host, ns) in [(1, &hub), (2, &first), (3, &second)] {
            switch.cable(&format!("p{host}"), ns, "eth0", 1500)?;
            switch.ip(&[format!("link set p{host} master br0")])?;
            ns.ip(&[format!("address add 192.0.2.{host}/24 dev eth0")])?;
            if host > 1 {
                ns.ip(&["route add default via 192.0.2.1"])?;
            }
        }
        let processes = Processes::new()?;
        let config = format!(
            "[Interface]\nPrivateKey = {}\nListenPort = {PORT}\n[Peer]\nPublicKey = {}\nAllowedIPs = 10.99.0.2/32\n",
            base64(HUB_KEY),
            base64(public(POD_KEY)),
        );
        let wireguard = Wireguard::start(&hub, "wghub", WireguardKind::WireguardGo, &config, &processes)?;
        hub.ip(&["address add 10.99.0.1/24 dev wghub", "link set wghub mtu 1420 up"])?;
        let tunnel = TunnelName::new("wg0").context("no name")?;
        Ok(Self { tunnel, hub, first, second, _switch: switch, processes, wireguard })
    }

    /// Runs this in a pod while it has its tunnel up, silent until the first [`Pod::fresh`].
    fn with_pod(&self, ns: &Netns, carrier: Carrier, work: impl FnOnce(&Pod<'_>) -> Result<()> + Send) -> Result<()> {
        let plan = pod_plan();
        if carrier == Carrier::WireguardGo {
            let config = format!("[Interface]\nPrivateKey = {}\nListenPort = {PORT}\n", base64(POD_KEY));
            let wireguard = Wireguard::start(ns, "wgpod", WireguardKind::WireguardGo, &config, &self.processes)?;
            ns.ip(&["address add 10.99.0.2/24 dev wgpod", "link set wgpod mtu 1420 up"])?;
            return ns.run(|| work(&Pod::WireguardGo(wireguard)));
        }
        ns.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let (links, net) = runtime.block_on(async {
                let rtnl = Rtnl::open()?;
                let (links, net) = (SystemLinks::new(Backend::Userspace, rtnl.clone())?, KernelNet::new(rtnl));
                links.create(&plan).await?;
                net.attach(&plan).await?;
                anyhow::Ok((links, net))
            })?;
            work(&Pod::Gotatun(&runtime, &links, &plan))?;
            runtime.block_on(async {
                links.remove(&plan.name).await?;
                Ok(net.detach(&plan).await?)
            })
        })
    }

    /// A fence round the first pod, which leads.
    fn fence(&self) -> Result<NetlinkFirewall> {
        let mut firewall = firewall(&self.first)?;
        firewall.commit(&fence::raise(&self.tunnel, PORT))?;
        firewall.commit(&self.lead()?)?;
        Ok(firewall)
    }

    fn lead(&self) -> Result<Transaction> {
        fence::lead(&self.tunnel, PORT, LONG, true).context("too short")
    }

    /// All of so many pings of the hub's, 20 ms apart, are answered.
    fn hub_pings(&self, count: u32) -> Result<()> {
        let said = self.hub.sh(&format!("ping -c {count} -i 0.02 -W 2 10.99.0.2"))?;
        ensure!(said.contains(" 0% packet loss"), "{said}");
        Ok(())
    }

    fn until_hub_reaches_the_pod(&self) -> Result<()> {
        until("an answer to the hub", PATIENCE, || Ok(self.hub.sh("ping -c 1 -W 1 10.99.0.2").ok()))?;
        Ok(())
    }

    fn endpoint(&self) -> Result<String> {
        let said = self.wireguard.wg(&["show", "wghub", "endpoints"], None)?;
        Ok(said.split_whitespace().last().unwrap_or_default().to_owned())
    }
}

/// A pod's tunnel.
enum Pod<'a> {
    Gotatun(&'a Runtime, &'a SystemLinks, &'a LinkPlan),
    WireguardGo(Wireguard),
}

impl Pod<'_> {
    /// Begins anew, by a handshake.
    fn fresh(&self) -> Result<()> {
        match self {
            Pod::Gotatun(runtime, links, plan) => Ok(runtime.block_on(links.fresh_peer(plan))?),
            Pod::WireguardGo(wireguard) => {
                let key = base64(public(HUB_KEY));
                let peer = ["set", "wgpod", "peer", &key];
                wireguard.wg(&[&peer[..], &["remove"]].concat(), None)?;
                let settings = ["endpoint", "192.0.2.1:51820", "allowed-ips", "0.0.0.0/0", "persistent-keepalive", "5"];
                wireguard.wg(&[&peer[..], &settings].concat(), None).map(drop)
            }
        }
    }

    fn has_session(&self) -> Result<bool> {
        match self {
            Pod::Gotatun(runtime, links, plan) => {
                Ok(runtime.block_on(links.stats(&plan.name))?.handshake_age.is_some())
            }
            Pod::WireguardGo(wireguard) => {
                Ok(!wireguard.wg(&["show", "wgpod", "latest-handshakes"], None)?.trim_end().ends_with("\t0"))
            }
        }
    }

    /// Kicks until the hub answers.
    fn handshake(&self) -> Result<()> {
        let (mut wait, begun) = (Duration::from_millis(250), now());
        loop {
            self.fresh()?;
            let kicked = now();
            while kicked.elapsed() < wait {
                if self.has_session()? {
                    return Ok(());
                }
                thread::sleep(Duration::from_millis(5));
            }
            ensure!(begun.elapsed() < PATIENCE, "the hub does not answer a handshake");
            wait = wait.mul_f64(1.6).min(Duration::from_secs(5));
        }
    }
}

fn pod_plan() -> LinkPlan {
    let mut plan = plan("wg0");
    plan.private_key = SecretKey::new(POD_KEY);
    plan.peer.public_key = PublicKey(public(HUB_KEY));
    plan.peer.preshared_key = None;
    plan
}

fn public(key: [u8; 32]) -> [u8; 32] {
    x25519_dalek::PublicKey::from(&x25519_dalek::StaticSecret::from(key)).to_bytes()
}

fn base64(bytes: [u8; 32]) -> String {
    use base64::Engine;
    base64::prelude::BASE64_STANDARD.encode(bytes)
}

fn firewall(ns: &Netns) -> Result<NetlinkFirewall> {
    ns.run(|| Ok(NetlinkFirewall::open()?))
}

#[test]
#[ignore = "needs root"]
fn a_tunnel_in_hold_answers_the_hub_and_a_closed_one_is_silent_but_not_dead() -> Result<()> {
    for carrier in [Carrier::Gotatun, Carrier::WireguardGo] {
        let world = World::new()?;
        let mut firewall = world.fence()?;
        world.with_pod(&world.first, carrier, |pod| {
            pod.fresh()?;
            world.until_hub_reaches_the_pod()?;
            firewall.commit(&fence::hold(&world.tunnel, PORT))?;
            world.hub_pings(100)?;
            firewall.commit(&fence::close(&world.tunnel))?;
            ensure!(world.hub.sh("ping -c 3 -i 0.1 -W 1 10.99.0.2").is_err(), "{carrier:?}: a closed fence answers");
            firewall.commit(&fence::hold(&world.tunnel, PORT))?;
            world.until_hub_reaches_the_pod()?;
            // The hub begins anew: its handshake is answered in hold.
            let (key, allowed) = (base64(public(POD_KEY)), ["allowed-ips", "10.99.0.2/32"]);
            world.wireguard.wg(&["set", "wghub", "peer", &key, "remove"], None)?;
            let endpoint = ["endpoint", "192.0.2.2:51820"];
            world.wireguard.wg(&[&["set", "wghub", "peer", &key][..], &allowed, &endpoint].concat(), None)?;
            world.until_hub_reaches_the_pod()?;
            firewall.commit(&world.lead()?)?;
            world.until_hub_reaches_the_pod()
        })?;
    }
    Ok(())
}

/// The first pod uploads as fast as it may.
fn upload(first: &Netns, stop: &AtomicBool) -> Result<()> {
    let socket = first.run(|| Ok(UdpSocket::bind("10.99.0.2:0")?))?;
    let to: SocketAddr = "10.99.0.1:9".parse()?;
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..10 {
            // Refused once the hub's ICMP has come back, and of no matter.
            let _ = socket.send_to(&[0; 1200], to);
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// What a successor to a Lease that was not released does: a handshake, heard every 50 ms for 1 s, another handshake,
/// and 0.5 s more of the same. Its tunnel stays until `stop`.
fn take_over(pod: &Pod<'_>, done: &AtomicBool, stop: &AtomicBool) -> Result<()> {
    let socket = UdpSocket::bind("10.99.0.2:0")?;
    for length in [1000, 500] {
        pod.handshake()?;
        let start = now();
        while start.elapsed() < Duration::from_millis(length) {
            thread::sleep(Duration::from_millis(50));
            // Refused once the hub's ICMP has come back, and of no matter.
            let _ = socket.send_to(b"heard", "10.99.0.1:9");
        }
    }
    done.store(true, Ordering::Relaxed);
    until("the end", PATIENCE, || Ok(stop.load(Ordering::Relaxed).then_some(())))
}

/// Longest time between two answers, of `ping -D`.
fn longest_gap(ping: &str) -> Result<Duration> {
    let stamp = |line: &str| line.strip_prefix('[')?.split_once(']')?.0.parse::<f64>().ok();
    let stamps: Vec<f64> = ping.lines().filter(|line| line.contains("bytes from")).filter_map(stamp).collect();
    let gaps = stamps.iter().zip(stamps.iter().skip(1)).map(|(a, b)| b - a);
    Ok(Duration::from_secs_f64(gaps.reduce(f64::max).context("no answers")?))
}

#[test]
#[ignore = "needs root"]
fn an_unannounced_successor_silences_a_pod_that_holds_and_uploads_within_a_tenth_of_a_second() -> Result<()> {
    // Both of one kind: gotatun's seconds are 27 ahead of all others', and a hub refuses who follows it with another.
    for carrier in [Carrier::Gotatun, Carrier::WireguardGo] {
        for round in 1..=5 {
            let Takeover { silent, gap, endpoint } = silenced(carrier)?;
            writeln!(
                std::io::stdout(),
                "{carrier:?} {round}: silent {} ms after the successor's first data, gap {} ms",
                silent.as_millis(),
                gap.as_millis(),
            )?;
            ensure!(silent < Duration::from_millis(100), "{carrier:?}, round {round}: spoke for {silent:?}");
            ensure!(endpoint == "192.0.2.3:51820", "{carrier:?}, round {round}: the hub is at {endpoint}");
        }
    }
    Ok(())
}

/// How a takeover went.
struct Takeover {
    /// The first pod's last word came so long after the second's first data.
    silent: Duration,
    /// Longest time without an answer at the hub.
    gap: Duration,
    /// Where the hub is in the end.
    endpoint: String,
}

fn silenced(carrier: Carrier) -> Result<Takeover> {
    let world = World::new()?;
    let mut firewall = world.fence()?;
    // The kernel's own stamps: a thread that looks now and then sees late what was said in time.
    let recorder = Recorder::start(&world.hub, PORT..PORT + 1)?;
    let mut pinging = world.hub.command("ping");
    pinging.args(["-D", "-i", "0.01", "10.99.0.2"]);
    let mut ping = String::new();
    world.with_pod(&world.first, carrier, |pod| {
        pod.fresh()?;
        world.until_hub_reaches_the_pod()?;
        firewall.commit(&fence::hold(&world.tunnel, PORT))?;
        let (done, stop, began) = (AtomicBool::new(false), AtomicBool::new(false), now());
        let pinging = world.processes.start("ping", pinging)?;
        thread::scope(|scope| {
            let uploading = scope.spawn(|| upload(&world.first, &stop));
            let successor = scope.spawn(|| world.with_pod(&world.second, carrier, |pod| take_over(pod, &done, &stop)));
            let watched = until("the takeover", 4 * PATIENCE, || {
                let done = done.load(Ordering::Relaxed) && began.elapsed() > WATCHED;
                Ok((done || successor.is_finished()).then_some(()))
            });
            // It is asked for its end before the successor is: no silence of its own making.
            let pinged = pinging.signal(Signal::SIGINT).and_then(|()| pinging.wait_exit(PATIENCE));
            stop.store(true, Ordering::Relaxed);
            for task in [uploading, successor] {
                task.join().map_err(|_| anyhow!("a thread panicked"))??;
            }
            pinged.and(watched)?;
            ping = until("ping's last words", PATIENCE, || {
                Ok(Some(pinging.log()).filter(|log| log.contains("packets transmitted")))
            })?;
            Ok(())
        })
    })?;
    let heard = recorder.heard();
    let said = |packet: &Heard, pod: Ipv4Addr| *packet.from.ip() == pod && packet.kind.is_speech();
    let data = heard.iter().find(|packet| said(packet, SECOND) && packet.kind == Message::Data);
    let took_over = data.context("the second said nothing")?.at;
    let last = heard.iter().rfind(|packet| said(packet, FIRST)).context("the first said nothing")?;
    let silent = last.at.saturating_duration_since(took_over);
    Ok(Takeover { silent, gap: longest_gap(&ping)?, endpoint: world.endpoint()? })
}
