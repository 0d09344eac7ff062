//! The tunnel's link on the real kernel: in namespaces of their own, against an independent WireGuard (`wireguard-go`).
//!
//! The backend under test is gotatun; with `WIREVIP_TEST_BACKEND=kernel` it is the kernel's WireGuard.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::clock::paced;
use lab::netns::Netns;
use lab::processes::Processes;
use lab::wireguard::{Wireguard, WireguardKind};
use wirevip::secret::{PublicKey, SecretKey, TunnelName};
use wirevip::tunnel::network::KernelNet;
use wirevip::tunnel::preflight::preflight;
use wirevip::tunnel::rtnl::Rtnl;
use wirevip::tunnel::system::SystemLinks;
use wirevip::tunnel::testing::plan;
use wirevip::tunnel::{
    Alias, Backend, BackendChoice, Device, HostError, HostNet, LinkBackend, LinkError, LinkPlan, Slot, Step,
};

const OUR_KEY: [u8; 32] = [0x41; 32];
const HUB_KEY: [u8; 32] = [0x42; 32];
const SHARED: [u8; 32] = [0x43; 32];

/// A pod and a hub, one veth between them.
struct World {
    pod: Netns,
    hub: Netns,
    wireguard: Wireguard,
    _processes: Processes,
    _alone: MutexGuard<'static, ()>,
}

/// A child process has all of its parent's descriptors until it is another program: while one test starts a tool, no link
/// and no port of another's would be gone for the kernel.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    fn new() -> Result<Self> {
        let alone = alone();
        let (pod, hub) = (Netns::new("pod")?, Netns::new("hub")?);
        pod.cable("eth0", &hub, "eth0", 1500)?;
        for (ns, host) in [(&pod, 2), (&hub, 1)] {
            ns.ip(&[
                &format!("address add 192.0.2.{host}/24 dev eth0"),
                &format!("address add 2001:db8::{host}/64 dev eth0 nodad"),
            ])?;
        }
        pod.ip(&["route add default via 192.0.2.1"])?;
        let config = format!(
            "[Interface]\nPrivateKey = {}\nListenPort = 51820\n\
             [Peer]\nPublicKey = {}\nPresharedKey = {}\nAllowedIPs = 10.99.0.2/32\n",
            base64(HUB_KEY),
            base64(public(OUR_KEY)),
            base64(SHARED),
        );
        let processes = Processes::new()?;
        let wireguard = Wireguard::start(&hub, "wghub", WireguardKind::WireguardGo, &config, &processes)?;
        hub.ip(&["address add 10.99.0.1/24 dev wghub", "link set wghub mtu 1420 up"])?;
        Ok(Self { pod, hub, wireguard, _processes: processes, _alone: alone })
    }

    /// Runs this in the pod.
    fn in_pod(&self, work: impl AsyncFnOnce(SystemLinks, KernelNet) -> Result<()> + Send) -> Result<()> {
        in_namespace(&self.pod, work)
    }

    fn hub_pings(&self) -> Result<()> {
        self.hub.sh("ping -c 2 -i 0.2 -W 2 10.99.0.2").map(drop)
    }

    fn pod_pings(&self) -> Result<()> {
        self.pod.sh("ping -c 2 -i 0.2 -W 2 -I 10.99.0.2 10.99.0.1").map(drop)
    }
}

fn in_namespace(pod: &Netns, work: impl AsyncFnOnce(SystemLinks, KernelNet) -> Result<()> + Send) -> Result<()> {
    pod.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let rtnl = Rtnl::open()?;
            work(SystemLinks::new(backend(), rtnl.clone())?, KernelNet::new(rtnl)).await
        })
    })
}

fn public(key: [u8; 32]) -> [u8; 32] {
    x25519_dalek::PublicKey::from(&x25519_dalek::StaticSecret::from(key)).to_bytes()
}

fn base64(bytes: [u8; 32]) -> String {
    use base64::Engine;
    base64::prelude::BASE64_STANDARD.encode(bytes)
}

fn backend() -> Backend {
    match std::env::var("WIREVIP_TEST_BACKEND").as_deref() {
        Ok("kernel") => Backend::Kernel,
        _ => Backend::Userspace,
    }
}

fn our_plan() -> LinkPlan {
    let mut plan = plan("wg0");
    plan.private_key = SecretKey::new(OUR_KEY);
    plan.peer.public_key = PublicKey(public(HUB_KEY));
    plan.peer.preshared_key = Some(SecretKey::new(SHARED));
    plan
}

#[expect(clippy::disallowed_methods, reason = "a test's deadline")]
fn until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !holds()? {
        ensure!(start.elapsed() < paced(Duration::from_secs(15)), "still not so: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

async fn handshake(links: &SystemLinks, plan: &LinkPlan) -> Result<()> {
    let wait = async {
        while links.stats(&plan.name).await?.handshake_age.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    };
    tokio::time::timeout(paced(Duration::from_secs(15)), wait).await.context("no handshake")?
}

async fn up(links: &SystemLinks, net: &KernelNet, plan: &LinkPlan) -> Result<()> {
    links.create(plan).await?;
    net.attach(plan).await?;
    links.fresh_peer(plan).await?;
    Ok(())
}

async fn down(links: &SystemLinks, net: &KernelNet, plan: &LinkPlan) -> Result<()> {
    links.remove(&plan.name).await?;
    net.detach(plan).await?;
    Ok(())
}

fn assert_nothing_left(pod: &Netns) -> Result<()> {
    let links = pod.sh("ip -o link")?;
    ensure!(links.lines().count() == 2, "links left: {links}");
    let rules = pod.sh("ip -4 rule")?;
    ensure!(rules.lines().count() == 3, "rules left: {rules}");
    let routes = pod.sh("ip route show table all")?;
    ensure!(!routes.contains("table 20033"), "routes left: {routes}");
    ensure!(routes.contains("default via 192.0.2.1 dev eth0"), "the pod's own routes are gone: {routes}");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_tunnel_carries_pings_both_ways_and_leaves_nothing_behind() -> Result<()> {
    let world = World::new()?;
    let plan = our_plan();
    world.in_pod(async |links, net| {
        up(&links, &net, &plan).await?;
        assert_eq!(net.drift(&plan).await?, []);
        handshake(&links, &plan).await?;
        world.hub_pings()?;
        world.pod_pings()?;
        let stats = links.stats(&plan.name).await?;
        assert!(stats.received > 0 && stats.sent > 0, "{stats:?}");
        down(&links, &net, &plan).await?;
        assert_nothing_left(&world.pod)?;
        down(&links, &net, &plan).await
    })
}

#[test]
#[ignore = "needs root"]
fn nothing_leaves_before_there_is_a_peer_and_a_handshake_leaves_at_once_when_there_is() -> Result<()> {
    let world = World::new()?;
    world.pod.sh("nft add table inet t")?;
    world.pod.sh("nft add chain inet t o { type filter hook output priority 0 ; }")?;
    world.pod.sh("nft add rule inet t o udp sport 51820 counter")?;
    let packets = || Ok::<_, anyhow::Error>(world.pod.sh("nft list chain inet t o")?.contains("packets 0 "));
    let mut plan = our_plan();
    plan.peer.persistent_keepalive = 0;
    world.in_pod(async |links, net| {
        links.create(&plan).await?;
        net.attach(&plan).await?;
        assert!(packets()?, "a link without a peer has spoken");
        links.fresh_peer(&plan).await?;
        // The kernel's leaves by a work queue.
        until("a handshake has left", || Ok(!packets()?))?;
        handshake(&links, &plan).await?;
        down(&links, &net, &plan).await
    })
}

#[test]
#[ignore = "needs root"]
fn a_peer_changed_in_place_keeps_its_session_and_a_fresh_one_has_none() -> Result<()> {
    let world = World::new()?;
    let plan = our_plan();
    let mut changed = plan.clone();
    changed.peer.persistent_keepalive = 25;
    changed.peer.allowed_ips.push("fd00::/8".parse()?);
    changed.mtu = 1300;
    world.in_pod(async |links, net| {
        up(&links, &net, &plan).await?;
        handshake(&links, &plan).await?;
        world.wireguard.wg(&["set", "wghub", "peer", &base64(public(OUR_KEY)), "remove"], None)?;
        // The hub knows us no more: whoever starts anew now gets no answer.
        assert_eq!(net.attach(&changed).await?, [Step::Mtu(1300)]);
        links.update_peer(&changed).await?;
        assert!(links.stats(&plan.name).await?.handshake_age.is_some(), "the session is gone");
        let before = links.stats(&plan.name).await?;
        links.fresh_peer(&changed).await?;
        let after = links.stats(&plan.name).await?;
        assert_eq!(after.handshake_age, None, "a fresh peer remembers a session");
        assert!(after.sent > before.sent && after.received >= before.received, "{before:?}, then {after:?}");
        down(&links, &net, &changed).await
    })?;
    assert_nothing_left(&world.pod)
}

#[test]
#[ignore = "needs root"]
fn a_refused_send_is_silence_and_not_the_end_of_the_tunnel() -> Result<()> {
    let world = World::new()?;
    let plan = our_plan();
    world.in_pod(async |links, net| {
        world.pod.sh("nft add table inet t")?;
        world.pod.sh("nft add chain inet t o { type filter hook output priority 0 ; }")?;
        world.pod.sh("nft add rule inet t o udp sport 51820 counter drop")?;
        up(&links, &net, &plan).await?;
        for _ in 0..20 {
            links.fresh_peer(&plan).await?;
        }
        assert_eq!(links.stats(&plan.name).await?.handshake_age, None);
        world.pod.sh("nft delete table inet t")?;
        links.fresh_peer(&plan).await?;
        handshake(&links, &plan).await?;
        world.hub_pings()?;
        down(&links, &net, &plan).await
    })
}

#[test]
#[ignore = "needs root"]
fn what_an_outsider_takes_away_is_seen_and_put_back() -> Result<()> {
    let world = World::new()?;
    let plan = our_plan();
    let table = plan.slot.routing_table();
    world.in_pod(async |links, net| {
        up(&links, &net, &plan).await?;
        let route = Step::Route { table };
        let damage = [
            // With its last address a link loses its routes.
            ("ip address del 10.99.0.2/32 dev wg0".to_owned(), vec![Step::Address(plan.vip), route]),
            (
                format!("ip rule del table {table} fwmark 0x10000/0xff0000"),
                vec![Step::MarkRule { mark: 0x1_0000, table }],
            ),
            (format!("ip rule del from 10.99.0.2 table {table}"), vec![Step::SourceRule { source: plan.vip, table }]),
            (format!("ip route flush table {table}"), vec![route]),
            ("ip link set wg0 mtu 1300".to_owned(), vec![Step::Mtu(plan.mtu)]),
            ("ip link set wg0 down".to_owned(), vec![Step::Up, route]),
            ("sysctl -qw net.ipv4.conf.wg0.rp_filter=1".to_owned(), vec![Step::LooseReversePath]),
            ("sysctl -qw net.ipv4.conf.eth0.forwarding=0".to_owned(), vec![Step::Forward(Device::Nic)]),
        ];
        for (command, missing) in damage {
            world.pod.sh(&command)?;
            assert_eq!(net.drift(&plan).await?, missing, "after {command}");
            net.attach(&plan).await?;
            assert_eq!(net.drift(&plan).await?, [], "after {command} and the repair");
        }
        handshake(&links, &plan).await?;
        world.hub_pings()?;
        down(&links, &net, &plan).await
    })?;
    assert_nothing_left(&world.pod)
}

#[test]
#[ignore = "needs root"]
fn a_link_that_someone_deletes_is_lost_and_can_be_made_again() -> Result<()> {
    let world = World::new()?;
    let plan = our_plan();
    world.in_pod(async |links, net| {
        up(&links, &net, &plan).await?;
        world.pod.sh("ip link del wg0")?;
        assert!(matches!(net.drift(&plan).await, Err(HostError::LinkLost { .. })));
        let told = async {
            while links.stats(&plan.name).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(paced(Duration::from_secs(15)), told).await.context("the backend does not notice")?;
        assert!(matches!(links.stats(&plan.name).await, Err(LinkError::Lost { .. })));
        up(&links, &net, &plan).await?;
        handshake(&links, &plan).await?;
        world.hub_pings()?;
        down(&links, &net, &plan).await
    })?;
    assert_nothing_left(&world.pod)
}

/// The kernel's goes on under its new name; a link in user space goes with its process's descriptor.
#[test]
#[ignore = "needs root"]
fn a_link_that_someone_renames_is_removed_under_its_new_name_and_no_others() -> Result<()> {
    let world = World::new()?;
    let plan = our_plan();
    let other = LinkPlan { slot: Slot::new(7).context("a slot")?, ..plan.clone() };
    world.in_pod(async |links, net| {
        up(&links, &net, &plan).await?;
        world.pod.ip(&["link set wg0 down", "link set wg0 name renamed", "link set renamed up"])?;
        assert!(matches!(net.drift(&plan).await, Err(HostError::LinkLost { .. })));
        for (name, plan) in [("stray", &plan), ("theirs", &other)] {
            world.pod.sh(&format!("ip link add {name} type bridge"))?;
            world.pod.sh(&format!("ip link set {name} alias {}", Alias::of(plan, None)))?;
        }
        down(&links, &net, &plan).await?;
        world.pod.sh("ip link del theirs")?;
        Ok(())
    })?;
    assert_nothing_left(&world.pod)
}

#[test]
#[ignore = "needs root"]
fn a_name_or_a_port_that_is_taken_is_refused_and_its_holder_left_alone() -> Result<()> {
    let world = World::new()?;
    let mut nic = our_plan();
    nic.name = TunnelName::new("eth0").context("a name")?;
    let plan = our_plan();
    world.in_pod(async |links, net| {
        let before = world.pod.sh("ip -d address show eth0")?;
        assert!(matches!(links.create(&nic).await, Err(LinkError::NameTaken { .. })));
        assert!(matches!(net.attach(&nic).await, Err(HostError::LinkLost { .. })));
        links.remove(&nic.name).await?;
        net.detach(&nic).await?;
        assert_eq!(world.pod.sh("ip -d address show eth0")?, before);
        // A TUN that somebody keeps: TUNSETIFF alone would attach to it.
        world.pod.sh("ip tuntap add wg0 mode tun")?;
        assert!(matches!(links.create(&plan).await, Err(LinkError::NameTaken { .. })));
        world.pod.sh("ip tuntap del wg0 mode tun")?;
        let holder = std::net::UdpSocket::bind("0.0.0.0:51820")?;
        assert!(matches!(links.create(&plan).await, Err(LinkError::PortTaken { port: 51820 })));
        drop(holder);
        links.create(&plan).await?;
        // The kernel holds the port from here on.
        net.attach(&plan).await?;
        let mut other = plan.clone();
        other.name = TunnelName::new("wg1").context("a name")?;
        assert!(matches!(links.create(&other).await, Err(LinkError::PortTaken { port: 51820 })));
        down(&links, &net, &plan).await
    })?;
    assert_nothing_left(&world.pod)
}

#[test]
#[ignore = "needs root"]
fn a_hub_is_reached_over_ipv6_and_over_ipv4_where_the_pod_has_no_ipv6() -> Result<()> {
    for (endpoint, prepare) in [
        ("[2001:db8::1]:51820", "ip -6 route show"),
        ("192.0.2.1:51820", "sysctl -qw net.ipv6.conf.all.disable_ipv6=1"),
    ] {
        let world = World::new()?;
        world.pod.sh(prepare)?;
        let mut plan = our_plan();
        plan.peer.endpoint = endpoint.parse()?;
        world.in_pod(async |links, net| {
            up(&links, &net, &plan).await?;
            handshake(&links, &plan).await?;
            world.hub_pings()?;
            down(&links, &net, &plan).await
        })?;
        assert_nothing_left(&world.pod)?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_pod_that_lacks_something_is_told_what_and_how_to_mend_it() -> Result<()> {
    const NAME: &str = "a_pod_that_lacks_something_is_told_what_and_how_to_mend_it";
    if is_helper() {
        return do_in_helper(async |_, _| match preflight(BackendChoice::Userspace, &Rtnl::open()?).await {
            Ok(backend) => say(&format!("{backend:?}")),
            Err(missing) => say(&missing.iter().map(ToString::to_string).collect::<Vec<_>>().join(" | ")),
        });
    }
    let _alone = alone();
    let pod = Netns::new("pod")?;
    let (mut whole, mut output) = helper(&pod, NAME)?;
    assert_eq!(hear(&mut output)?, "Userspace");
    ensure!(whole.wait()?.success());
    let exe = std::env::current_exe()?.display().to_string();
    let output = pod
        .command("setpriv")
        .args(["--bounding-set=-net_admin", "--inh-caps=-net_admin", &exe, "--ignored", "--exact", "--nocapture", NAME])
        .env("WIREVIP_TEST_HELPER", "1")
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(said.contains("capability NET_ADMIN is missing: add it to"), "{said}");
    ensure!(!said.contains("nftables does not answer"), "one cause, one line: {said}");
    Ok(())
}

/// Runs the test of this name again, in a process of its own inside `pod`, and gives what `do_in_helper` prints.
fn helper(pod: &Netns, test: &str) -> Result<(Child, BufReader<std::process::ChildStdout>)> {
    let exe = std::env::current_exe()?.display().to_string();
    let mut child = pod
        .command(&exe)
        .args(["--ignored", "--exact", "--nocapture", "--test-threads=1", test])
        .env("WIREVIP_TEST_HELPER", "1")
        .stdout(Stdio::piped())
        .spawn()?;
    let output = BufReader::new(child.stdout.take().context("no output")?);
    Ok((child, output))
}

fn is_helper() -> bool {
    std::env::var_os("WIREVIP_TEST_HELPER").is_some()
}

fn do_in_helper(work: impl AsyncFnOnce(SystemLinks, KernelNet) -> Result<()>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let rtnl = Rtnl::open()?;
        work(SystemLinks::new(backend(), rtnl.clone())?, KernelNet::new(rtnl)).await
    })
}

fn say(word: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "\nhelper: {word}")?)
}

fn hear(output: &mut BufReader<std::process::ChildStdout>) -> Result<String> {
    for line in output.lines() {
        if let Some(word) = line?.strip_prefix("helper: ") {
            return Ok(word.to_owned());
        }
    }
    bail!("the helper has ended without a word")
}

#[test]
#[ignore = "needs root"]
fn what_a_killed_process_left_is_swept_and_nothing_of_anybody_elses() -> Result<()> {
    if is_helper() {
        return do_in_helper(async |links, net| {
            up(&links, &net, &our_plan()).await?;
            say("up")?;
            std::future::pending().await
        });
    }
    let world = World::new()?;
    let (mut child, mut output) =
        helper(&world.pod, "what_a_killed_process_left_is_swept_and_nothing_of_anybody_elses")?;
    assert_eq!(hear(&mut output)?, "up");
    child.kill()?;
    child.wait()?;
    let links = match backend() {
        Backend::Kernel => 2,
        Backend::Userspace => {
            until("the TUN is gone", || Ok(world.pod.sh("ip link show wg0").is_err()))?;
            1
        }
    };
    assert!(world.pod.sh("ip rule")?.contains("from 10.99.0.2 lookup"), "nothing was left to sweep");
    world.pod.sh("ip link add ours type veth peer name theirs")?;
    world.pod.sh("ip link add wg9 type bridge")?;
    world.pod.sh("ip link set ours alias wirevip:1:00112233")?;
    world.pod.sh("ip link set wg9 alias someone-elses")?;
    world.pod.sh("ip rule add from 10.1.1.1 table 77 priority 30569")?;
    world.pod.sh("ip route add 10.2.2.0/24 via 192.0.2.1 table 77")?;
    world.in_pod(async |_, net| {
        let swept = net.sweep(&[]).await?;
        assert_eq!((swept.links, swept.rules), (links, 2), "{swept:?}");
        assert_eq!(net.sweep(&[]).await?, Default::default());
        Ok(())
    })?;
    assert!(world.pod.sh("ip link show wg9").is_ok());
    assert!(world.pod.sh("ip rule")?.contains("from 10.1.1.1 lookup 77"));
    assert!(world.pod.sh("ip route show table 77")?.contains("10.2.2.0/24"));
    for command in ["ip link del wg9", "ip rule del table 77", "ip route flush table 77"] {
        world.pod.sh(command)?;
    }
    assert_nothing_left(&world.pod)
}

#[test]
#[ignore = "needs root"]
fn twenty_links_made_and_removed_leak_neither_descriptors_nor_threads() -> Result<()> {
    if is_helper() {
        return do_in_helper(async |links, net| {
            let count = |what| Ok::<_, std::io::Error>(std::fs::read_dir(format!("/proc/self/{what}"))?.count());
            let mut counts = Vec::new();
            for _ in 0..21 {
                up(&links, &net, &our_plan()).await?;
                down(&links, &net, &our_plan()).await?;
                counts.push((count("fd")?, count("task")?));
            }
            let [first, .., last] = counts.as_slice() else { bail!("no counts") };
            // A thread that waits for the kernel may come or go; twenty may not.
            ensure!(last.0 <= first.0 && last.1 <= first.1 + 4, "descriptors and threads: {counts:?}");
            let status = std::fs::read_to_string("/proc/self/status")?;
            say(status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or_default())
        });
    }
    let world = World::new()?;
    let (mut child, mut output) =
        helper(&world.pod, "twenty_links_made_and_removed_leak_neither_descriptors_nor_threads")?;
    let word = hear(&mut output)?;
    writeln!(std::io::stdout(), "after 21 links: {word}")?;
    ensure!(child.wait()?.success(), "the helper failed");
    assert_nothing_left(&world.pod)
}

#[test]
#[ignore = "needs root"]
fn the_nic_is_that_of_the_default_route_and_a_pod_without_one_is_told_so() -> Result<()> {
    let world = World::new()?;
    world.pod.sh("ip link set eth0 mtu 1450")?;
    world.in_pod(async |_, net| {
        let nic = net.nic().await?;
        assert_eq!((nic.name.as_str(), nic.mtu, nic.ipv4), ("eth0", 1450, Some("192.0.2.2".parse()?)));
        world.pod.sh("ip route del default")?;
        assert!(matches!(net.nic().await, Err(HostError::NoNic)));
        Ok(())
    })
}

/// The kernel refuses a second list on a socket that is reading one; two tunnels audit at the same time.
#[test]
#[ignore = "needs root"]
fn many_may_look_at_the_network_at_once() -> Result<()> {
    let world = World::new()?;
    world.in_pod(async |_, net| {
        for _ in 0..50 {
            let (a, b, c) = tokio::join!(net.nic(), net.nic(), net.nic());
            assert_eq!((a?, b?), (net.nic().await?, c?));
            // Whoever loses interest leaves a list that nobody reads.
            let _ = tokio::time::timeout(Duration::from_micros(50), net.nic()).await;
        }
        Ok(())
    })
}

/// `unshare`, `ip` and the rest must be there, or every test above fails for the wrong reason.
#[test]
#[ignore = "needs root"]
fn the_tools_these_tests_need_are_installed() -> Result<()> {
    for (tool, argument) in [("wireguard-go", "--version"), ("wg", "--version"), ("nft", "--version"), ("ping", "-V")] {
        Command::new(tool).arg(argument).output().with_context(|| format!("{tool} is not installed"))?;
    }
    Ok(())
}
