//! The world itself, proven without a line of ours in the packets' way: a pod made by hand, with the hub's kind of
//! WireGuard and a DNAT rule, carries the client's packets through the NAT to a backend.

#![expect(clippy::print_stderr, reason = "a test tells what it measured")]

use std::time::Duration;

use anyhow::{Context, Result};
use lab::client::{Answer, Proto};
use lab::clock::now;
use lab::node::Cut;
use lab::probe::{Probe, ProbeKind};
use lab::recorder::Message;
use lab::wireguard::Wireguard;
use lab::{World, WorldSpec, plan};

const WITHIN: Duration = Duration::from_secs(5);

/// What a sidecar does, in ten lines of shell: tunnel, DNAT, masquerade, routing by mark.
fn carry_by_hand(world: &World, number: u8) -> Result<()> {
    let pod = &world.sidecar(number)?.netns;
    let tunnel = &world.spec.tunnels[0];
    let config = format!(
        "[Interface]\nPrivateKey = {}\nListenPort = 51820\n[Peer]\nPublicKey = {}\nAllowedIPs = 0.0.0.0/0\nEndpoint = {}\nPersistentKeepalive = 5\n",
        tunnel.private_key, tunnel.peer_public_key, tunnel.endpoint
    );
    pod.sysctls(&[
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", "0"),
    ])?;
    Wireguard::start(pod, "wg0", world.hubs[0].kind, &config, world.processes())?;
    pod.sh(&format!("ip addr add {}/32 dev wg0", tunnel.vip))?;
    pod.nft(&format!(
        "table ip hand {{
            chain pre {{ type nat hook prerouting priority dstnat; iifname wg0 meta l4proto {{ tcp, udp }} dnat to {}; }}
            chain post {{ type nat hook postrouting priority srcnat; oifname eth0 masquerade; }}
            chain flows {{ type filter hook prerouting priority mangle;
                iifname wg0 ct mark set 7;
                iifname eth0 ct mark 7 meta mark set 7; }}
        }}",
        world.backends[0].address
    ))?;
    pod.ip(&["rule add fwmark 7 table 7", "link set wg0 mtu 1420 up", "route add default dev wg0 table 7"])
}

#[test]
#[ignore = "needs root or a user namespace"]
fn a_world_carries_packets_and_leaves_nothing() -> Result<()> {
    let started = now();
    let mut world = World::lay(WorldSpec::default())?;
    eprintln!("up after {:?}; the hub is {}", started.elapsed(), world.hubs[0].kind);
    carry_by_hand(&world, 1)?;
    let target = world.hubs[0].public(8080);
    world.client.until(Proto::Tcp, target, WITHIN, |a| a.name() == Some("b0"))?;
    assert_eq!(world.client.who(Proto::Udp, target)?.name(), Some("b0"));
    assert_eq!(world.hubs[0].serves()?, Some(1));
    assert!(world.hubs[0].heard().iter().all(|h| h.node() == Some(1)));
    assert!(world.hubs[0].heard().iter().any(|h| h.kind == Message::Initiation));
    world.client.download(target, 3_000_000)?;
    world.client.upload(target, 3_000_000)?;
    assert_eq!(world.client.datagram(target, 4000)?, 4000);

    // Every kind of probe sees a cut as a gap, and answers before and after.
    let kinds = [ProbeKind::UdpFlow, ProbeKind::UdpFresh, ProbeKind::TcpConnect, ProbeKind::TcpAsk, ProbeKind::TcpLong];
    let probes = kinds.map(|kind| Probe::start(&world.topology.client, target, kind));
    let probes: Vec<Probe> = probes.into_iter().collect::<Result<_>>()?;
    for probe in &probes {
        probe.steady_since(now(), 20, WITHIN)?;
    }
    let node = &world.nodes[1];
    let cut = now();
    node.cut(Cut::Hub)?;
    std::thread::sleep(Duration::from_millis(400));
    node.heal()?;
    let healed = now();
    for probe in probes {
        probe.answered_since(healed, WITHIN)?;
        let gap = probe.gap_since(cut);
        assert!(gap.length() >= Duration::from_millis(390), "{gap:?}");
        eprintln!("a gap of {:?}, {} lost", gap.length(), probe.lost(cut, healed));
    }

    // A hub that is restarted knows nobody until it is spoken to; one that moves is not where it was.
    world.hubs[0].restart()?;
    assert_eq!(world.hubs[0].peer()?.endpoint, None);
    world.hubs[0].move_to(plan::hub(90))?;
    let old = std::net::SocketAddrV4::new(plan::hub(0), 8080);
    assert_eq!(world.client.patient(Duration::from_millis(200)).connect(old)?, Answer::Silence);
    world.finish().context("something is left")
}

#[test]
#[ignore = "needs root or a user namespace"]
fn the_gateway_lets_nothing_in() -> Result<()> {
    let world = World::lay(WorldSpec::default().nodes(1))?;
    let inside = std::net::SocketAddrV4::new(plan::GATEWAY, 20_100);
    let pod = &world.sidecar(1)?.netns;
    let listener = pod.run(|| Ok(std::net::UdpSocket::bind("0.0.0.0:51820")?))?;
    listener.set_read_timeout(Some(Duration::from_millis(200)))?;
    assert_eq!(world.client.patient(Duration::from_millis(200)).who(Proto::Udp, inside)?, Answer::Silence);
    assert!(listener.recv(&mut [0; 10]).is_err());
    world.finish()
}
