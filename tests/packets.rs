//! The tables in a real kernel, with real bytes: client ─ link named as the tunnel ─ pod ─ pod network ─ backends.
//! No WireGuard: what comes out of the tunnel is the matter here.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::netns::Netns;
use wirevip::fence;
use wirevip::ruleset::{self, Firewall, NetlinkFirewall, Plan, Transaction};
use wirevip::secret::TunnelName;
use wirevip::services::{Forward, Forwards, Owner, Protocol, VipPort};
use wirevip::tunnel::Slot;

const VIP: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 1);
const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 5);
const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const MTU: u16 = 1390;
const BACKENDS: u8 = 3;
const PATIENCE: Duration = Duration::from_secs(5);

fn backend_address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, 0, 11 + number)
}

fn backend(number: u8, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(backend_address(number), port)
}

struct World {
    tunnel: TunnelName,
    slot: Slot,
    client: Netns,
    pod: Netns,
    /// The pod network's bridge lives as long as this.
    _node: Netns,
    backends: Vec<Netns>,
    firewall: NetlinkFirewall,
}

impl World {
    fn new() -> Result<Self> {
        let tunnel = TunnelName::new("wg0").context("no name")?;
        let slot = Slot::new(1).context("no slot")?;
        let (client, pod, node) = (Netns::new("client")?, Netns::new("pod")?, Netns::new("node")?);
        for each in [&client, &pod, &node] {
            each.sh("ip link set lo up")?;
        }
        client.sh("ip link add c0 type veth peer name wg0")?;
        client.sh(&format!("ip link set wg0 netns {}", pod.path()))?;
        client.sh("ip link set c0 up")?;
        for last in 1..=60 {
            client.sh(&format!("ip addr add 198.51.100.{last}/24 dev c0"))?;
        }
        client.sh("ip route add default dev c0")?;
        pod.sh(&format!("ip link set wg0 up mtu {MTU}"))?;
        pod.sh(&format!("ip addr add {VIP}/32 dev wg0"))?;

        node.sh("ip link add br0 type bridge")?;
        node.sh("ip addr add 10.244.0.1/24 dev br0")?;
        node.sh("ip link set br0 up")?;
        plug(&node, "pod", &pod, POD)?;
        let mut backends = Vec::new();
        for number in 0..BACKENDS {
            let ns = Netns::new(&format!("backend {number}"))?;
            ns.sh("ip link set lo up")?;
            plug(&node, &format!("b{number}"), &ns, backend_address(number))?;
            backends.push(ns);
        }
        for setting in ["ip_forward=1", "conf.all.rp_filter=0", "conf.eth0.rp_filter=0", "conf.wg0.rp_filter=2"] {
            pod.sh(&format!("sysctl -qw net.ipv4.{setting}"))?;
        }
        let (mark, mask, table) = (slot.mark(), Slot::MARK_MASK, slot.routing_table());
        pod.sh(&format!("ip rule add fwmark {mark}/{mask} table {table}"))?;
        pod.sh(&format!("ip rule add from {VIP} table {table}"))?;
        pod.sh(&format!("ip route add default dev wg0 table {table}"))?;
        let firewall = pod.run(|| Ok(NetlinkFirewall::open()?))?;
        Ok(Self { tunnel, slot, client, pod, _node: node, backends, firewall })
    }

    fn apply(&mut self, forwards: &Forwards) -> Result<()> {
        self.firewall.commit(&Transaction::replace(ruleset::render(&Plan {
            tunnel: &self.tunnel,
            slot: self.slot,
            vip: VIP,
            mtu: MTU,
            forwards,
        })))?;
        Ok(())
    }

    /// Starts servers on this port in every backend: to whatever they hear they answer the backend's number.
    fn serve(&self, port: u16) -> Result<()> {
        for (number, ns) in (0u8..).zip(&self.backends) {
            let (tcp, udp) = ns.run(|| {
                Ok((TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?, UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?))
            })?;
            thread::spawn(move || {
                for stream in tcp.incoming() {
                    let Ok(mut stream) = stream else { return };
                    let _ = stream.write_all(&[number]);
                }
            });
            thread::spawn(move || {
                let mut buffer = [0; 2048];
                while let Ok((_, from)) = udp.recv_from(&mut buffer) {
                    let _ = udp.send_to(&[number], from);
                }
            });
        }
        Ok(())
    }
}

fn plug(node: &Netns, port: &str, pod: &Netns, address: Ipv4Addr) -> Result<()> {
    node.sh(&format!("ip link add {port} mtu 1450 type veth peer name eth0 mtu 1450"))?;
    node.sh(&format!("ip link set eth0 netns {}", pod.path()))?;
    node.sh(&format!("ip link set {port} master br0 up"))?;
    pod.sh(&format!("ip addr add {address}/24 dev eth0"))?;
    pod.sh("ip link set eth0 up")?;
    pod.sh("ip route add default via 10.244.0.1")?;
    Ok(())
}

fn vip_port(protocol: Protocol, port: u16) -> VipPort {
    VipPort { protocol, port }
}

fn forward(backends: &[SocketAddrV4]) -> Forward {
    Forward {
        owner: Owner::ControlPlane,
        backends: backends.to_vec(),
        client_ip_affinity: false,
        source_ranges: Vec::new(),
    }
}

fn all_backends(port: u16) -> Vec<SocketAddrV4> {
    (0..BACKENDS).map(|number| backend(number, port)).collect()
}

/// One connection to the VIP from the calling thread's namespace: which backend answered?
fn ask_tcp(port: u16) -> io::Result<u8> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((VIP, port)), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answer = [0];
    stream.read_exact(&mut answer)?;
    Ok(answer[0])
}

/// One datagram to the VIP from a fresh socket of this address: which backend answered?
fn ask_udp(from: Ipv4Addr, port: u16) -> io::Result<u8> {
    let socket = UdpSocket::bind((from, 0))?;
    socket.connect((VIP, port))?;
    ask_again(&socket)
}

fn ask_again(socket: &UdpSocket) -> io::Result<u8> {
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(b"?")?;
    let mut answer = [0];
    socket.recv(&mut answer)?;
    Ok(answer[0])
}

#[test]
#[ignore = "needs root"]
fn three_thousand_connections_spread_evenly_over_tcp_and_udp_on_one_port() -> Result<()> {
    let mut world = World::new()?;
    world.serve(8080)?;
    let forwards: Forwards = [Protocol::Tcp, Protocol::Udp]
        .map(|protocol| (vip_port(protocol, 80), forward(&all_backends(8080))))
        .into_iter()
        .collect();
    world.apply(&forwards)?;

    let mut tcp = BTreeMap::<u8, u32>::new();
    let mut udp = BTreeMap::<u8, u32>::new();
    world.client.run(|| {
        for _ in 0..3000 {
            *tcp.entry(ask_tcp(80)?).or_default() += 1;
            *udp.entry(ask_udp(CLIENT, 80)?).or_default() += 1;
        }
        Ok(())
    })?;
    for hits in [tcp, udp] {
        ensure!(hits.len() == 3 && hits.values().all(|n| (900..=1100).contains(n)), "spread: {hits:?}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_closed_fence_stops_even_a_stranger_and_an_armed_one_closes_by_itself() -> Result<()> {
    let mut world = World::new()?;
    let (ours, peer) = world.pod.run(|| {
        let ours = UdpSocket::bind((POD, 51820))?;
        ours.connect((Ipv4Addr::new(10, 244, 0, 1), 9))?;
        Ok((ours, UdpSocket::bind((POD, 0))?))
    })?;
    peer.connect((Ipv4Addr::new(10, 244, 0, 1), 9))?;
    let speaks = || match ours.send(b"x") {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(false),
        // The router answers "port unreachable", which is no matter of the fence.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(true),
        other => other.map(|_| true).context("sending"),
    };

    world.firewall.commit(&fence::raise(&world.tunnel, 51820))?;
    ensure!(!speaks()?, "a fence is raised closed");
    ensure!(peer.send(b"x").is_ok(), "other ports are no matter of the fence");
    ensure!(fence::dropped(&mut world.firewall, &world.tunnel)? == 1, "the fence counts");

    let arm = |left| fence::arm(&world.tunnel, 51820, Duration::from_millis(left)).context("too short");
    world.firewall.commit(&arm(2000)?)?;
    ensure!(speaks()?, "an armed fence is open");
    until("the fence closes by itself", || Ok(!speaks()?))?;
    world.firewall.commit(&arm(60_000)?)?;
    ensure!(speaks()?, "armed over an expired element");
    world.firewall.commit(&arm(120_000)?)?;
    let listed = world.pod.sh("nft list table inet wirevip_wg0_fence")?;
    ensure!(listed.contains("timeout 2m expires 1m59s"), "re-arming extends: {listed}");
    world.firewall.commit(&fence::close(&world.tunnel))?;
    ensure!(!speaks()?, "closed by hand");

    world.firewall.commit(&fence::remove(&world.tunnel))?;
    ensure!(world.firewall.tables()?.is_empty() && speaks()?, "removed");
    Ok(())
}

/// Waits for what must come.
fn until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    for _ in 0..1000 {
        if holds()? {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(10));
    }
    bail!("{what}: not within 10 s")
}
