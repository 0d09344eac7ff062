//! The tables in a real kernel, with real bytes: client ─ link named as the tunnel ─ pod ─ pod network ─ backends.
//! No WireGuard: what comes out of the tunnel is the matter here.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::netns::Netns;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket};
use wirevip::fence;
use wirevip::ruleset::{self, Applied, Firewall, Forget, NetlinkFirewall, Plan, Transaction};
use wirevip::secret::TunnelName;
use wirevip::services::{Forward, Forwards, Owner, Protocol, VipPort};
use wirevip::tunnel::Slot;

const VIP: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 1);
const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 5);
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
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
    node: Netns,
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
        Ok(Self { tunnel, slot, client, pod, node, backends, firewall })
    }

    fn apply(&mut self, forwards: &Forwards) -> Result<Applied> {
        let plan = Plan { tunnel: &self.tunnel, slot: self.slot, vip: VIP, pod_nic: "eth0", mtu: MTU, forwards };
        Ok(ruleset::apply(&mut self.firewall, &plan)?)
    }

    /// What `conntrack` of the pod has for our tunnel.
    fn marked_flows(&self) -> Result<usize> {
        let mark = format!("mark={}", self.slot.mark());
        Ok(self.pod.sh("conntrack -L")?.lines().filter(|line| line.contains(&mark)).count())
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
        // More than five standard deviations to either side.
        ensure!(hits.len() == 3 && hits.values().all(|n| (850..=1150).contains(n)), "spread: {hits:?}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_closed_fence_stops_even_a_stranger_and_an_armed_one_closes_by_itself() -> Result<()> {
    let mut world = World::new()?;
    let (ours, other) = world.pod.run(|| Ok((UdpSocket::bind((POD, 51820))?, UdpSocket::bind((POD, 0))?)))?;
    let hub = world.node.run(|| Ok(UdpSocket::bind((ROUTER, 51820))?))?;
    let speaks = || match ours.send_to(b"x", (ROUTER, 51820)) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(false),
        sent => sent.map(|_| true).context("sending"),
    };
    let hears = || -> Result<bool> {
        hub.send_to(b"x", (POD, 51820))?;
        Ok(!is_silent(&ours)?)
    };

    world.firewall.commit(&fence::raise(&world.tunnel, 51820))?;
    ensure!(!speaks()?, "a fence is raised closed");
    ensure!(!hears()?, "and deaf");
    ensure!(other.send_to(b"x", (ROUTER, 51820)).is_ok(), "other ports are no matter of the fence");
    ensure!(fence::dropped(&mut world.firewall, &world.tunnel)? == 2, "the fence counts");

    let arm = |left| fence::lead(&world.tunnel, 51820, Duration::from_millis(left), false).context("too short");
    world.firewall.commit(&arm(60_000)?)?;
    ensure!(speaks()?, "an armed fence is open");
    world.firewall.commit(&arm(150)?)?;
    until("the fence closes by itself", || Ok(!speaks()?))?;
    world.firewall.commit(&arm(60_000)?)?;
    ensure!(speaks()? && hears()?, "armed over an expired element");
    world.firewall.commit(&arm(120_000)?)?;
    let listed = world.pod.sh("nft list table inet wirevip_wg0_fence")?;
    ensure!(listed.contains("51820 timeout 2m"), "re-arming extends: {listed}");
    world.firewall.commit(&fence::close(&world.tunnel))?;
    ensure!(!speaks()?, "closed by hand");

    world.firewall.commit(&fence::remove(&world.tunnel))?;
    ensure!(world.firewall.tables()?.is_empty() && speaks()?, "removed");
    Ok(())
}

/// A WireGuard message of this type with these indexes, as far as a fence looks at it.
fn message(kind: u8, first: u32, second: u32) -> Vec<u8> {
    let mut bytes = vec![kind, 0, 0, 0];
    bytes.extend(first.to_le_bytes());
    bytes.extend(second.to_le_bytes());
    bytes.resize(148, 0);
    bytes
}

#[test]
#[ignore = "needs root"]
fn a_fence_counts_what_the_hub_sends_to_indexes_that_were_never_ours() -> Result<()> {
    let mut world = World::new()?;
    world.node.sh("ip addr add fd00::1/64 dev br0 nodad")?;
    world.pod.sh("ip addr add fd00::5/64 dev eth0 nodad")?;
    let ours = world.pod.run(|| Ok(UdpSocket::bind("[::]:51820")?))?;
    world.firewall.commit(&fence::raise(&world.tunnel, 51820))?;
    let arm = fence::lead(&world.tunnel, 51820, Duration::from_secs(60), false).context("too short")?;
    world.firewall.commit(&arm)?;
    let mut expected = 0;
    for (host, stranger, pod) in [("10.244.0.1", "10.244.0.11", "10.244.0.5"), ("[fd00::1]", "", "[fd00::5]")] {
        let hub = world.node.run(|| Ok(UdpSocket::bind(format!("{host}:51820"))?))?;
        let to_hub: SocketAddr = match format!("{host}:51820").parse()? {
            SocketAddr::V4(v4) => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
            v6 => v6,
        };
        let mut says = |socket: &UdpSocket, bytes: &[u8], counts: bool, what: &str| -> Result<()> {
            socket.send_to(bytes, format!("{pod}:51820"))?;
            // Counted or not, it is heard.
            ours.set_read_timeout(Some(PATIENCE))?;
            ours.recv(&mut [0; 256]).with_context(|| format!("{host}: {what}"))?;
            expected += u64::from(counts);
            let counted = fence::foreign(&mut world.firewall, &world.tunnel)?;
            ensure!(counted == expected, "{host}: {what}: {counted}, not {expected}");
            Ok(())
        };
        says(&hub, &message(4, 7, 0), false, "nothing was ever sent there")?;
        ours.send_to(&message(1, 0xa1, 9), to_hub)?;
        ours.send_to(&message(2, 0xa2, 9), to_hub)?;
        ours.send_to(&message(4, 0xb1, 9), to_hub)?;
        for (bytes, counts, what) in [
            (message(4, 0xa1, 0), false, "data in the session that we began"),
            (message(4, 0xa2, 0), false, "data in the session that the hub began"),
            (message(2, 0xff, 0xa1), false, "a response to us"),
            (message(1, 0xff, 0xff), false, "a handshake of the hub's own"),
            (message(3, 0xff, 0xff), false, "a cookie"),
            (message(4, 0xff, 0xa1), true, "data for another"),
            (message(4, 0xb1, 0), true, "data for the hub's own index"),
            (message(2, 0xa1, 0xff), true, "a response to another"),
            (vec![4, 0, 0, 0, 1, 2, 3], false, "a packet too short to have an index"),
        ] {
            says(&hub, &bytes, counts, what)?;
        }
        if !stranger.is_empty() {
            let other = world.backends[0].run(|| Ok(UdpSocket::bind(format!("{stranger}:51820"))?))?;
            says(&other, &message(4, 0xff, 0), false, "data from somebody who is not the hub")?;
        }
    }
    ensure!(expected == 6 && fence::dropped(&mut world.firewall, &world.tunnel)? == 0, "nothing is dropped");
    ensure!(world.firewall.intact("wirevip_wg0_fence")?, "what rules add is no change");
    let listed = world.pod.sh("nft list table inet wirevip_wg0_fence")?;
    ensure!(listed.contains("fd00::1") && listed.contains("update @mine"), "nft lists it: {listed}");
    world.firewall.commit(&fence::close(&world.tunnel))?;
    let hub = world.node.run(|| Ok(UdpSocket::bind("10.244.0.1:51820")?))?;
    hub.send_to(&message(4, 0xff, 0), "10.244.0.5:51820")?;
    until("the drop", || Ok(fence::dropped(&mut world.firewall, &world.tunnel)? == 1))?;
    ensure!(fence::foreign(&mut world.firewall, &world.tunnel)? == 6, "who does not lead does not count");
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

#[test]
#[ignore = "needs root"]
fn only_clients_within_the_source_ranges_get_in() -> Result<()> {
    let mut world = World::new()?;
    world.serve(8080)?;
    let mut narrow = forward(&all_backends(8080));
    narrow.source_ranges = vec!["192.0.2.0/24".parse()?, "198.51.100.0/28".parse()?];
    world.apply(&[(vip_port(Protocol::Udp, 80), narrow)].into())?;
    world.client.run(|| {
        ensure!(ask_udp(Ipv4Addr::new(198, 51, 100, 15), 80).is_ok(), "the last address of a range");
        let outside = UdpSocket::bind((Ipv4Addr::new(198, 51, 100, 16), 0))?;
        outside.connect((VIP, 80))?;
        ensure!(is_silent(&outside)?, "the first address after it is dropped");
        Ok(())
    })?;
    ensure!(world.marked_flows()? == 1, "a dropped packet leaves no flow");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn with_client_affinity_a_lost_backend_moves_only_its_own_clients() -> Result<()> {
    let mut world = World::new()?;
    world.serve(8080)?;
    let chosen = |world: &mut World, backends: &[SocketAddrV4]| -> Result<Vec<u8>> {
        let mut sticky = forward(backends);
        sticky.client_ip_affinity = true;
        world.apply(&[(vip_port(Protocol::Udp, 80), sticky)].into())?;
        world.client.run(|| {
            let mut all = Vec::new();
            for last in 1..=60 {
                let client = Ipv4Addr::new(198, 51, 100, last);
                let first = ask_udp(client, 80)?;
                ensure!(ask_udp(client, 80)? == first, "{client} from another port, another backend");
                all.push(first);
            }
            Ok(all)
        })
    };
    let before = chosen(&mut world, &all_backends(8080))?;
    ensure!((0..BACKENDS).all(|number| before.contains(&number)), "all backends have clients: {before:?}");
    let after = chosen(&mut world, &[backend(0, 8080), backend(2, 8080)])?;
    for (old, new) in before.iter().zip(&after) {
        ensure!(if *old == 1 { *new != 1 } else { old == new }, "a client moved from {old} to {new}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn what_is_not_forwarded_is_refused_at_the_vip_and_dropped_elsewhere() -> Result<()> {
    let mut world = World::new()?;
    world.serve(8080)?;
    let empty = [Protocol::Tcp, Protocol::Udp].map(|protocol| (vip_port(protocol, 80), forward(&[])));
    world.apply(&empty.clone().into())?;
    // As tempting as can be: answers would find their way.
    world.backends[0].sh(&format!("ip route add 198.51.100.0/24 via {POD}"))?;
    let _metrics = world.pod.run(|| {
        Ok((TcpListener::bind((Ipv4Addr::UNSPECIFIED, 9586))?, UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 9586))?))
    })?;
    let (no_backends, unknown) = world.client.run(|| {
        for port in [80, 81, 9586] {
            let refused = ask_tcp(port).err().map(|error| error.kind());
            ensure!(refused == Some(io::ErrorKind::ConnectionRefused), "TCP {port}: {refused:?}");
        }
        let socket = |port| -> Result<UdpSocket> {
            let socket = UdpSocket::bind((CLIENT, 0))?;
            socket.connect((VIP, port))?;
            let refused = ask_again(&socket).err().map(|error| error.kind());
            ensure!(refused == Some(io::ErrorKind::ConnectionRefused), "UDP {port}: {refused:?}");
            Ok(socket)
        };
        let sockets = (socket(80)?, socket(81)?);
        socket(9586)?;
        for dark in [POD, backend_address(0), ROUTER] {
            for port in [9586, 8080] {
                let socket = UdpSocket::bind((CLIENT, 0))?;
                socket.connect((dark, port))?;
                ensure!(is_silent(&socket)?, "{dark}:{port} answered");
            }
            let tcp = TcpStream::connect_timeout(&(dark, 8080).into(), Duration::from_millis(300));
            ensure!(tcp.is_err_and(|error| error.kind() == io::ErrorKind::TimedOut), "{dark} answered TCP");
        }
        Ok(sockets)
    })?;
    world.client.sh(&format!("ping -c 1 -W 5 {VIP}"))?;
    ensure!(world.marked_flows()? == 1, "refused and dropped packets leave no flow, ping does");

    let mut full = Forwards::from(empty);
    full.values_mut().for_each(|forward| forward.backends = all_backends(8080));
    full.insert(vip_port(Protocol::Udp, 81), forward(&all_backends(8080)));
    world.apply(&full)?;
    ensure!(ask_again(&no_backends).is_ok() && ask_again(&unknown).is_ok(), "a refused socket is served from now on");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_backend_cannot_send_into_the_tunnel() -> Result<()> {
    let mut world = World::new()?;
    world.serve(8080)?;
    world.apply(&[(vip_port(Protocol::Udp, 80), forward(&[backend(0, 8080)]))].into())?;
    // As tempting as can be: the pod's own routes point there too.
    world.pod.sh("ip route add 198.51.100.0/24 dev wg0")?;
    let villain = &world.backends[0];
    villain.sh(&format!("ip route add 198.51.100.0/24 via {POD}"))?;
    villain.sh(&format!("ip route add {VIP} via {POD}"))?;
    let (victim, flow) = world.client.run(|| {
        let flow = UdpSocket::bind((CLIENT, 7000))?;
        flow.connect((VIP, 80))?;
        ask_again(&flow)?;
        Ok((UdpSocket::bind((CLIENT, 9))?, flow))
    })?;
    villain.run(|| {
        UdpSocket::bind((backend_address(0), 0))?.send_to(b"x", (CLIENT, 9))?;
        Ok(())
    })?;
    ensure!(is_silent(&victim)?, "a new flow of the backend came through");
    // In the direction of a living flow, forged.
    villain.sh(&format!("ip addr add {CLIENT}/32 dev lo"))?;
    villain.run(|| {
        UdpSocket::bind((CLIENT, 7000))?.send_to(b"x", (VIP, 80))?;
        Ok(())
    })?;
    flow.set_read_timeout(Some(Duration::from_millis(300)))?;
    ensure!(flow.recv(&mut [0; 16]).is_err(), "a forged packet was answered, or sent into the tunnel");
    Ok(())
}

/// Conntrack does not ask by which interface a packet of a flow comes.
#[test]
#[ignore = "needs root"]
fn a_flow_of_another_tunnel_is_not_taken_over_by_who_sends_its_packets_through_this_one() -> Result<()> {
    let mut world = World::new()?;
    world.serve(8080)?;
    world.apply(&[(vip_port(Protocol::Udp, 80), forward(&all_backends(8080)))].into())?;
    let flow = world.client.run(|| {
        let flow = UdpSocket::bind((CLIENT, 7000))?;
        flow.connect((VIP, 80))?;
        ask_again(&flow)?;
        Ok(flow)
    })?;
    let theirs = Slot::new(2).context("no slot")?.mark();
    world.pod.sh(&format!("conntrack -U -p udp -d {VIP} -m {theirs}"))?;
    ensure!(is_silent(&flow)?, "it came through");
    let flows = world.pod.sh("conntrack -L -p udp")?;
    ensure!(flows.contains(&format!("mark={theirs}")) && world.marked_flows()? == 0, "taken over: {flows}");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn tcp_flows_that_a_new_leader_does_not_know_are_reset_at_once() -> Result<()> {
    let mut world = World::new()?;
    let listener = world.backends[0].run(|| Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080))?))?;
    let _keeps_all_open = thread::spawn(move || listener.incoming().collect::<Vec<_>>());
    world.apply(&[(vip_port(Protocol::Tcp, 80), forward(&[backend(0, 8080)]))].into())?;
    let connect = || world.client.run(|| Ok(TcpStream::connect_timeout(&(VIP, 80).into(), PATIENCE)?));
    let (mut talking, leaving) = (connect()?, connect()?);
    ensure!(world.firewall.forget(&Forget::Tunnel(world.slot))? == 2, "two flows");

    talking.write_all(b"more")?;
    // conntrack calls the FIN of an unknown flow invalid, where it calls data new.
    leaving.shutdown(std::net::Shutdown::Write)?;
    for mut stream in [talking, leaving] {
        stream.set_read_timeout(Some(PATIENCE))?;
        let end = stream.read(&mut [0]).err().map(|error| error.kind());
        ensure!(end == Some(io::ErrorKind::ConnectionReset), "{end:?}");
    }
    ensure!(world.marked_flows()? == 0, "and nothing of them enters conntrack");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn large_answers_and_uploads_fit_though_no_icmp_reaches_the_ends() -> Result<()> {
    const SIZE: usize = 1 << 20;
    let mut world = World::new()?;
    let listener = world.backends[0].run(|| Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080))?))?;
    world.apply(&[(vip_port(Protocol::Tcp, 80), forward(&[backend(0, 8080)]))].into())?;
    // Deaf to "fragmentation needed": what fits, fits by the segment size alone.
    for end in [&world.client, &world.backends[0]] {
        end.sh("nft add table ip deaf")?;
        end.sh("nft add chain ip deaf in { type filter hook input priority 0 ; }")?;
        end.sh("nft add rule ip deaf in meta l4proto icmp drop")?;
    }
    let server = thread::spawn(move || -> io::Result<usize> {
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut all = vec![0; SIZE];
        stream.read_exact(&mut all)?;
        stream.write_all(&all)?;
        Ok(all.len())
    });
    let mut stream = world.client.run(|| Ok(TcpStream::connect_timeout(&(VIP, 80).into(), PATIENCE)?))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&vec![7; SIZE])?;
    stream.read_exact(&mut vec![0; SIZE]).context("the answer")?;
    ensure!(matches!(server.join(), Ok(Ok(SIZE))), "the upload");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_backend_hears_that_its_datagrams_are_too_big_for_the_tunnel() -> Result<()> {
    let mut world = World::new()?;
    let server = world.backends[0].run(|| Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 8080))?))?;
    // Fits the pod network's 1450, not the tunnel's 1390; Linux forbids fragmenting it until told.
    let _answers = thread::spawn(move || {
        while let Ok((_, from)) = server.recv_from(&mut [0; 16]) {
            let _ = server.send_to(&[7; 1400], from);
        }
    });
    world.apply(&[(vip_port(Protocol::Udp, 80), forward(&[backend(0, 8080)]))].into())?;
    let socket = world.client.run(|| Ok(UdpSocket::bind((CLIENT, 0))?))?;
    socket.connect((VIP, 80))?;
    socket.set_read_timeout(Some(Duration::from_millis(300)))?;
    until("a large datagram arrives", || {
        socket.send(b"?")?;
        Ok(socket.recv(&mut [0; 2048]).is_ok_and(|length| length == 1400))
    })
}

#[test]
#[ignore = "needs root"]
fn udp_flows_to_a_vanished_backend_go_on_to_another_and_tcp_flows_stay() -> Result<()> {
    let mut world = World::new()?;
    world.serve(8080)?;
    let both = |backends: &[SocketAddrV4]| -> Forwards {
        [Protocol::Tcp, Protocol::Udp].map(|protocol| (vip_port(protocol, 80), forward(backends))).into()
    };
    let old = both(&[backend(0, 8080)]);
    world.apply(&old)?;
    let udp = world.client.run(|| Ok(UdpSocket::bind((CLIENT, 0))?))?;
    udp.connect((VIP, 80))?;
    ensure!(ask_again(&udp)? == 0 && world.client.run(|| Ok(ask_tcp(80)?))? == 0, "the old backend");
    let flows = world.marked_flows()?;

    let new = both(&[backend(1, 8080)]);
    world.apply(&new)?;
    ensure!(ask_again(&udp)? == 0, "conntrack sticks to the old one");
    let gone = ruleset::vanished(&old, &new, VIP);
    ensure!(world.firewall.forget(&Forget::Flows(gone))? == 1, "one UDP flow goes");
    ensure!(world.marked_flows()? == flows - 1, "and no other");
    ensure!(ask_again(&udp)? == 1, "the new backend");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn changing_the_forwards_under_traffic_loses_no_packet() -> Result<()> {
    let mut world = World::new()?;
    world.serve(8080)?;
    let udp = |backends: &[SocketAddrV4]| (vip_port(Protocol::Udp, 80), forward(backends));
    let [b0, b1, b2] = [0, 1, 2].map(|number| backend(number, 8080));
    let mut gated = udp(&[b0, b2]);
    gated.1.source_ranges = vec!["198.51.100.0/24".parse()?];
    let mut loyal = udp(&[b1, b2]);
    loyal.1.client_ip_affinity = true;
    let neighbour = (vip_port(Protocol::Udp, 80 + 64), forward(&[b0, b1]));
    let all: [Forwards; 7] = [
        [udp(&[b0, b1, b2])].into(),
        [udp(&[b1, b2]), neighbour.clone()].into(),
        [gated].into(),
        [udp(&[b2])].into(),
        [loyal, neighbour].into(),
        [udp(&[b0, b1])].into(),
        [udp(&[b0])].into(),
    ];
    world.apply(&all[0])?;
    let (other, other_vip) = (TunnelName::new("wg1").context("no name")?, Ipv4Addr::new(10, 200, 0, 2));
    let other_slot = Slot::new(2).context("no slot")?;
    let busy = std::sync::atomic::AtomicBool::new(true);
    let client = world.client.clone();
    let answered = thread::scope(|scope| -> Result<u32> {
        let asking = scope.spawn(|| {
            client.run(|| {
                let steady = UdpSocket::bind((CLIENT, 0))?;
                steady.connect((VIP, 80))?;
                let mut answered = 0;
                while busy.load(std::sync::atomic::Ordering::Relaxed) {
                    ask_again(&steady).context("a flow that was there before")?;
                    ask_udp(CLIENT, 80).context("a new flow")?;
                    answered += 2;
                }
                Ok(answered)
            })
        });
        let changed = all.iter().cycle().take(1000).try_for_each(|forwards| {
            ensure!(world.apply(forwards)? == Applied::Difference, "replaced");
            let plan = Plan { tunnel: &other, slot: other_slot, vip: other_vip, pod_nic: "eth0", mtu: MTU, forwards };
            ruleset::apply(&mut world.firewall, &plan)?;
            Ok(())
        });
        busy.store(false, std::sync::atomic::Ordering::Relaxed);
        changed?;
        asking.join().map_err(|_| anyhow::anyhow!("panicked"))?
    })?;
    ensure!(answered > 100, "hardly any traffic: {answered}");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn after_many_differences_the_kernel_has_what_the_firewall_believes() -> Result<()> {
    let mut world = World::new()?;
    // Everything changes now and then: ports, backends, ranges, affinity.
    let forwards = |round: u16| -> Forwards {
        (0..200u16)
            .filter(|port| !(port + round).is_multiple_of(7))
            .map(|port| {
                let changes = if port % 3 == 0 { round } else { round / 8 };
                let backends =
                    (0..(port + changes) % 5).map(|n| backend(u8::try_from(n % 3).unwrap_or(0), 1 + n + changes % 2));
                let mut forward = forward(&backends.collect::<Vec<_>>());
                forward.client_ip_affinity = (port + changes) % 40 == 0;
                forward.source_ranges =
                    (0..(port + changes) % 3).filter_map(|n| format!("10.{n}.0.0/16").parse().ok()).collect();
                let protocol = if port % 2 == 0 { Protocol::Tcp } else { Protocol::Udp };
                (vip_port(protocol, 1000 + port), forward)
            })
            .collect()
    };
    world.apply(&forwards(0))?;
    for round in 1..60 {
        ensure!(world.apply(&forwards(round))? == Applied::Difference, "round {round}");
        ensure!(ruleset::stands(&mut world.firewall, &world.tunnel)?, "round {round}: without looking");
        world.pod.sh(&format!("nft add table inet elsewhere{round}"))?;
        ensure!(ruleset::stands(&mut world.firewall, &world.tunnel)?, "round {round}: looked at");
    }
    let words = |world: &World| -> Result<Vec<String>> {
        let listed = world.pod.sh("nft list ruleset")?;
        let mut words: Vec<String> = listed.split([',', '\n']).map(|word| word.trim().to_owned()).collect();
        words.sort();
        Ok(words)
    };
    let changed = words(&world)?;
    let believed = world.firewall.written("wirevip_wg0").context("nothing believed")?;
    world.firewall.commit(&Transaction::replace((*believed).clone()))?;
    let replaced = words(&world)?;
    ensure!(replaced.len() > 500, "hardly anything there");
    let differing: Vec<_> = changed.iter().zip(&replaced).filter(|(a, b)| a != b).take(5).collect();
    ensure!(changed.len() == replaced.len() && differing.is_empty(), "{differing:?}");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_difference_to_what_an_outsider_took_away_becomes_the_whole_table_at_once() -> Result<()> {
    let mut world = World::new()?;
    world.serve(8080)?;
    let some: Forwards = [(vip_port(Protocol::Udp, 80), forward(&all_backends(8080)))].into();
    let fewer: Forwards = [(vip_port(Protocol::Udp, 80), forward(&[backend(0, 8080), backend(1, 8080)]))].into();
    for harm in ["nft delete table inet wirevip_wg0", "nft flush map inet wirevip_wg0 backends-16", "nft flush ruleset"]
    {
        world.apply(&some)?;
        world.pod.sh(harm)?;
        ensure!(world.apply(&fewer)? == Applied::Whole, "{harm}");
        ensure!(ruleset::stands(&mut world.firewall, &world.tunnel)?, "{harm}: put back");
        world.client.run(|| Ok(ask_udp(CLIENT, 80)?))?;
        ensure!(world.apply(&some)? == Applied::Difference, "{harm}: and on from there");
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn what_an_outsider_takes_away_is_noticed_and_what_he_adds_elsewhere_is_not() -> Result<()> {
    let mut world = World::new()?;
    let forwards: Forwards = [(vip_port(Protocol::Udp, 80), forward(&all_backends(8080)))].into();
    ensure!(!ruleset::stands(&mut world.firewall, &world.tunnel)?, "never written");
    let mut more = forwards.clone();
    more.insert(vip_port(Protocol::Tcp, 81), forward(&all_backends(8080)));
    for harm in [
        "nft flush ruleset",
        "nft delete table inet TABLE",
        "nft flush chain inet TABLE guard-in",
        "nft delete element inet TABLE ports { udp . 80 }",
        "nft delete element inet TABLE ports { tcp . 81 }",
        "nft delete element inet TABLE backends-16 { 0x40140001 }",
        "nft add rule inet TABLE translate accept",
        "nft add table inet TABLE { flags dormant ; }",
    ] {
        world.apply(&forwards)?;
        ensure!(world.apply(&more)? == Applied::Difference, "to be noticed too");
        world.firewall.commit(&fence::raise(&world.tunnel, 51820))?;
        let fence = ruleset::fence_table(&world.tunnel);
        let stands = |world: &mut World| -> Result<(bool, bool)> {
            Ok((ruleset::stands(&mut world.firewall, &world.tunnel)?, world.firewall.intact(&fence)?))
        };
        ensure!(stands(&mut world)? == (true, true), "just written, before {harm}");
        world.pod.sh("nft add table inet elsewhere")?;
        ensure!(stands(&mut world)? == (true, true), "an outsider's own table");
        let tables = world.firewall.tables()?;
        let table = tables.iter().find(|name| **name != fence).context("no table")?;
        world.pod.sh(&harm.replace("TABLE", table))?;
        // A commit of our own right after it must not hide it.
        if harm != "nft flush ruleset" {
            world.firewall.commit(&fence::close(&world.tunnel))?;
        }
        ensure!(stands(&mut world)? == (false, harm != "nft flush ruleset"), "{harm}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn clones_of_a_firewall_know_what_each_other_wrote() -> Result<()> {
    let mut world = World::new()?;
    let mut other = world.firewall.clone();
    let forwards: Forwards = [(vip_port(Protocol::Udp, 80), forward(&all_backends(8080)))].into();
    world.apply(&forwards)?;
    other.commit(&fence::raise(&world.tunnel, 51820))?;
    let (table, fence) = (ruleset::forwards_table(&world.tunnel), ruleset::fence_table(&world.tunnel));
    for firewall in [&mut world.firewall, &mut other] {
        ensure!(firewall.intact(&table)? && firewall.intact(&fence)?, "one of them does not know");
    }
    world.pod.sh(&format!("nft flush chain inet {table} guard-in"))?;
    ensure!(!other.intact(&table)? && other.intact(&fence)?, "an outsider's change is found by either");
    ensure!(!world.firewall.intact(&table)? && world.firewall.intact(&fence)?, "and then known to both");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn nothing_is_left_after_a_tunnel_is_gone() -> Result<()> {
    let mut world = World::new()?;
    world.serve(8080)?;
    world.apply(&[(vip_port(Protocol::Udp, 80), forward(&all_backends(8080)))].into())?;
    world.firewall.commit(&fence::raise(&world.tunnel, 51820))?;
    world.client.run(|| Ok((0..50).try_for_each(|_| ask_udp(CLIENT, 80).map(drop))?))?;
    let untouched = || -> Result<usize> { Ok(world.pod.sh("conntrack -L")?.lines().count()) };
    world.pod.sh("ping -c 1 -W 5 10.244.0.1")?;
    ensure!(untouched()? == 51, "fifty flows of clients, one of the pod's own");

    let elsewhere = Slot::new(2).context("no slot")?;
    let mut firewall = world.pod.run(|| Ok(NetlinkFirewall::open()?))?;
    ensure!(firewall.forget(&Forget::Tunnel(elsewhere))? == 0, "another tunnel's flows are not ours");
    ensure!(firewall.tables()? == ["wirevip_wg0", "wirevip_wg0_fence"], "whoever asks");
    for table in firewall.tables()? {
        firewall.commit(&Transaction::delete(&table))?;
        firewall.commit(&Transaction::delete(&table)).context("deleting what is not there")?;
    }
    ensure!(firewall.forget(&Forget::AllBut(vec![]))? == 50, "all of them");
    ensure!(untouched()? == 1 && world.pod.sh("nft list ruleset")?.is_empty(), "left over");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn flows_that_began_while_the_table_was_away_are_served_once_it_is_back() -> Result<()> {
    let mut world = World::new()?;
    world.serve(8080)?;
    let forwards: Forwards = [(vip_port(Protocol::Udp, 80), forward(&all_backends(8080)))].into();
    world.apply(&forwards)?;
    world.client.run(|| Ok(ask_udp(CLIENT, 80)?))?;
    // Conntrack goes on tracking for somebody else, and a socket of the pod swallows what comes.
    world.pod.sh("nft add table inet other")?;
    world.pod.sh("nft add chain inet other in { type filter hook input priority 0 ; }")?;
    world.pod.sh("nft add rule inet other in ct state new accept")?;
    let _swallows = world.pod.run(|| Ok(UdpSocket::bind((VIP, 80))?))?;
    world.firewall.commit(&ruleset::remove(&world.tunnel))?;
    let socket = world.client.run(|| Ok(UdpSocket::bind((CLIENT, 0))?))?;
    socket.connect((VIP, 80))?;
    ensure!(is_silent(&socket)?, "nothing forwards it");

    world.apply(&forwards)?;
    ensure!(ask_again(&socket).is_err(), "conntrack has it untranslated");
    let lost = |forwards: &Forwards| Forget::Lost(VIP, Arc::new(forwards.clone()));
    ensure!(world.firewall.forget(&lost(&forwards))? == 1, "one flow, not the sound one");
    ask_again(&socket).context("served again")?;
    let unserved = [(vip_port(Protocol::Udp, 80), forward(&[]))].into();
    ensure!(world.firewall.forget(&lost(&unserved))? == 2, "both, when the backends are others");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_failing_transaction_changes_nothing_and_says_which_step_failed() -> Result<()> {
    let mut world = World::new()?;
    world.apply(&[(vip_port(Protocol::Udp, 80), forward(&all_backends(8080)))].into())?;
    let before = world.pod.sh("nft list ruleset")?;
    let both = Transaction::delete("wirevip_wg0").then(fence::close(&world.tunnel));
    let error = world.firewall.commit(&both).err().context("closing a fence that is not there")?;
    ensure!(error.to_string().contains("emptying set lead of table wirevip_wg0_fence"), "{error}");
    ensure!(world.pod.sh("nft list ruleset")? == before, "half a transaction was done");
    ensure!(world.firewall.intact("wirevip_wg0")?, "still as it was");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn an_answer_outside_its_flows_window_does_not_make_the_pod_reset_the_backend() -> Result<()> {
    let mut world = World::new()?;
    let server = &world.backends[0];
    let listener = server.run(|| Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080))?))?;
    server.sh("nft add table ip watch")?;
    server.sh("nft add chain ip watch in { type filter hook input priority 0 ; }")?;
    server.sh("nft add rule ip watch in tcp flags & rst == rst counter")?;
    let forwards: Forwards = [(vip_port(Protocol::Tcp, 80), forward(&[backend(0, 8080)]))].into();
    world.apply(&forwards)?;
    let _client = world.client.run(|| Ok(TcpStream::connect_timeout(&(VIP, 80).into(), PATIENCE)?))?;
    let (_accepted, SocketAddr::V4(peer)) = listener.accept()? else { bail!("not IPv4") };

    let server = &world.backends[0];
    // Wherever the flow's numbers are, one of these is far ahead of them.
    for quarter in [0x10, 0x50, 0x90, 0xd0] {
        let ports = [8080u16.to_be_bytes(), peer.port().to_be_bytes()].concat();
        let mut stray = [&ports[..], &[quarter; 8], &[5 << 4, 16, 1, 0, 0, 0, 0, 0]].concat();
        let sum = tcp_checksum(backend_address(0), POD, &stray);
        stray[16..18].copy_from_slice(&sum.to_be_bytes());
        send_raw(server, SockProtocol::Tcp, POD, &stray)?;
    }
    // Whatever the stray packets led to has arrived before the answer to this.
    server.sh(&format!("ping -c 1 -W 5 {POD}"))?;
    let seen = server.sh("nft list table ip watch")?;
    ensure!(seen.contains("counter packets 0 "), "the pod reset a living flow: {seen}");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_router_beyond_the_tunnel_can_tell_a_backend_that_its_packets_are_too_big() -> Result<()> {
    let mut world = World::new()?;
    world.serve(8080)?;
    world.apply(&[(vip_port(Protocol::Udp, 80), forward(&[backend(0, 8080)]))].into())?;
    let client = world.client.run(|| Ok(UdpSocket::bind((CLIENT, 7000))?))?;
    client.connect((VIP, 80))?;
    ask_again(&client)?;

    // "Fragmentation needed, 1300", about an answer VIP:80 → client:7000 as the router saw it.
    let mut about = vec![0x45, 0, 5, 100, 0, 0, 0x40, 0, 64, 17, 0, 0];
    about.extend([VIP.octets(), CLIENT.octets()].concat());
    about.extend([80u16.to_be_bytes(), 7000u16.to_be_bytes(), 1380u16.to_be_bytes(), [0, 0]].concat());
    let header_sum = checksum(&about[..20]);
    about[10..12].copy_from_slice(&header_sum.to_be_bytes());
    let mut error = [&[3, 4, 0, 0, 0, 0][..], &1300u16.to_be_bytes(), &about].concat();
    let sum = checksum(&error);
    error[2..4].copy_from_slice(&sum.to_be_bytes());
    send_raw(&world.client, SockProtocol::Icmp, VIP, &error)?;
    until("the backend heeds it", || Ok(world.backends[0].sh(&format!("ip route get {POD}"))?.contains("mtu 1300")))
}

#[test]
#[ignore = "needs root"]
fn the_kernel_takes_large_and_odd_tables_and_nft_can_read_them() -> Result<()> {
    let mut world = World::new()?;
    let mut forwards = Forwards::new();
    for port in 1..=1000 {
        for (protocol, count) in [(Protocol::Tcp, port % 7), (Protocol::Udp, port % 3), (Protocol::Sctp, port % 2)] {
            let backends: Vec<SocketAddrV4> =
                (0..count).map(|n| SocketAddrV4::new((0x0af4_0000 + u32::from(n)).into(), port)).collect();
            let mut forward = forward(&backends);
            forward.client_ip_affinity = port % 50 == 0;
            forward.source_ranges =
                (0..port % 4).filter_map(|n| format!("10.{n}.0.0/{}", 8 * n).parse().ok()).collect();
            forwards.insert(vip_port(protocol, port), forward);
        }
    }
    forwards.insert(vip_port(Protocol::Tcp, 65535), forward(&(1..=2000).map(|n| backend(0, n)).collect::<Vec<_>>()));
    world.apply(&forwards)?;
    ensure!(ruleset::stands(&mut world.firewall, &world.tunnel)?, "there and complete");
    let listed = world.pod.sh("nft list ruleset")?;
    ensure!(listed.contains("mod 2000 seed 0x77697265"), "nft lists it");
    ensure!(listed.matches("goto tcp-").count() > 1000, "nft lists the ports");
    Ok(())
}

fn send_raw(from: &Netns, protocol: SockProtocol, to: Ipv4Addr, bytes: &[u8]) -> Result<()> {
    from.run(|| {
        let socket = socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), protocol)?;
        let [a, b, c, d] = to.octets();
        sendto(socket.as_raw_fd(), bytes, &SockaddrIn::new(a, b, c, d, 0), MsgFlags::empty())?;
        Ok(())
    })
}

fn tcp_checksum(from: Ipv4Addr, to: Ipv4Addr, segment: &[u8]) -> u16 {
    let length = u16::try_from(segment.len()).unwrap_or(0);
    checksum(&[&from.octets()[..], &to.octets(), &[0, 6], &length.to_be_bytes(), segment].concat())
}

/// RFC 1071, over an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Sends if connected, and hears nothing: neither an answer nor a refusal.
fn is_silent(socket: &UdpSocket) -> io::Result<bool> {
    socket.set_read_timeout(Some(Duration::from_millis(300)))?;
    if socket.peer_addr().is_ok() {
        socket.send(b"?")?;
    }
    match socket.recv(&mut [0; 16]) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        other => other.map(|_| false),
    }
}
