//! The VPN node: an independent WireGuard with a public address, configured from the files in `lab/hub/`.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::clock::until;
use crate::keys::KeyPair;
use crate::netns::Netns;
use crate::plan;
use crate::processes::Processes;
use crate::recorder::{Heard, Recorder};
use crate::wireguard::{Wireguard, WireguardKind};

const CONFIG: &str = include_str!("../hub/wg0.conf");
const FORWARD: &str = include_str!("../hub/forward.nft");
const LINK: &str = "wg0";
const WAN: &str = "eth0";

/// What the hub knows of its peer, the pods.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerState {
    /// Where it last heard it.
    pub endpoint: Option<SocketAddrV4>,
    /// Seconds since 1970 of the last handshake; 0: none.
    pub latest_handshake: u64,
    /// Bytes received from it.
    pub received: u64,
    /// Bytes sent to it.
    pub sent: u64,
}

/// One hub with one tunnel.
pub struct Hub {
    /// Its namespace; `eth0` is its public side.
    pub netns: Netns,
    /// Its public address; changes by [`Hub::move_to`].
    pub address: Ipv4Addr,
    /// Its UDP port.
    pub port: u16,
    /// The VIP that it forwards to.
    pub vip: Ipv4Addr,
    /// What carries it.
    pub kind: WireguardKind,
    /// Its keys.
    pub keys: KeyPair,
    inside: Ipv4Addr,
    pods_public_key: String,
    preshared_key: Option<String>,
    ports: String,
    processes: Arc<Processes>,
    wireguard: Option<Wireguard>,
    recorder: Recorder,
}

impl Hub {
    /// Brings hub `index` up in a namespace that has its public address on `eth0` already.
    pub fn start(
        netns: &Netns,
        index: u8,
        pods: &KeyPair,
        preshared: Option<&str>,
        processes: &Arc<Processes>,
    ) -> Result<Self> {
        let port = plan::HUB_PORT;
        let mut hub = Self {
            netns: netns.clone(),
            address: plan::hub(index),
            port,
            vip: plan::vip(index),
            kind: WireguardKind::available(netns)?,
            keys: KeyPair::generate(),
            inside: plan::hub_in_tunnel(index),
            pods_public_key: pods.public.clone(),
            preshared_key: preshared.map(str::to_owned),
            // Everything but WireGuard itself: a test opens any port without telling the hub.
            ports: format!("1-{}, {}-65535", port - 1, port + 1),
            processes: Arc::clone(processes),
            wireguard: None,
            recorder: Recorder::start(netns, port..port + 1)?,
        };
        netns.sysctls(&[("net/ipv4/ip_forward", "1"), ("net/ipv4/conf/all/rp_filter", "0")])?;
        hub.power_on()?;
        hub.netns.nft(&hub.fill(FORWARD))?;
        Ok(hub)
    }

    /// Where clients find this port of the VIP.
    pub fn public(&self, port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(self.address, port)
    }

    /// Makes the WireGuard link with its configuration: no session, no endpoint known.
    pub fn power_on(&mut self) -> Result<()> {
        let config = strip(&self.fill(CONFIG));
        self.wireguard = Some(Wireguard::start(&self.netns, LINK, self.kind, &config, &self.processes)?);
        self.netns.ip(&[
            format!("addr add {}/32 dev {LINK}", self.inside),
            format!("link set {LINK} mtu 1420 up"),
            format!("route add {}/32 dev {LINK}", self.vip),
        ])
    }

    /// Ends it as a power cut does.
    pub fn power_off(&mut self) -> Result<()> {
        self.wireguard.take().map_or(Ok(()), |mut wireguard| wireguard.power_off())
    }

    /// Off and on again: it has forgotten every session and where the pods are.
    pub fn restart(&mut self) -> Result<()> {
        self.power_off()?;
        until("the end of the old link", Duration::from_secs(5), || {
            Ok(self.netns.sh(&format!("ip link show {LINK}")).is_err().then_some(()))
        })?;
        self.power_on()
    }

    /// Drops WireGuard in both directions (`true`), or lets it through again.
    pub fn silence(&self, on: bool) -> Result<()> {
        let port = self.port;
        let rules = if on {
            format!(
                "add chain ip lab_silence in {{ type filter hook input priority -300; }}
                 add rule ip lab_silence in udp dport {port} drop
                 add chain ip lab_silence out {{ type filter hook output priority -300; }}
                 add rule ip lab_silence out udp sport {port} drop"
            )
        } else {
            String::new()
        };
        self.netns
            .nft(&format!("add table ip lab_silence\ndelete table ip lab_silence\nadd table ip lab_silence\n{rules}"))
    }

    /// Gives up its public address for another one.
    pub fn move_to(&mut self, address: Ipv4Addr) -> Result<()> {
        self.netns.ip(&[
            format!("addr add {address}/25 dev {WAN}"),
            format!("addr del {}/25 dev {WAN}", self.address),
            format!("addr replace {address}/25 dev {WAN}"),
            format!("route replace default via {}", plan::HUB_ROUTER),
        ])?;
        self.address = address;
        Ok(())
    }

    /// Routes these networks into the tunnel as well and takes answers from there: what a curious hub would do.
    pub fn reach_into(&self, networks: &[&str]) -> Result<()> {
        let allowed = format!("{}/32,{}", self.vip, networks.join(","));
        self.wg(&["set", LINK, "peer", &self.pods_public_key, "allowed-ips", &allowed], None)?;
        self.netns.ip(&networks.iter().map(|network| format!("route replace {network} dev {LINK}")).collect::<Vec<_>>())
    }

    /// What it knows of the pods.
    pub fn peer(&self) -> Result<PeerState> {
        let dump = self.wg(&["show", LINK, "dump"], None)?;
        let fields: Vec<&str> = dump.lines().nth(1).context("the hub has no peer")?.split('\t').collect();
        let field = |at: usize| fields.get(at).copied().context("`wg show dump` has too few columns");
        Ok(PeerState {
            endpoint: field(2)?.parse().ok(),
            latest_handshake: field(4)?.parse()?,
            received: field(5)?.parse()?,
            sent: field(6)?.parse()?,
        })
    }

    /// The node whose sidecar it last heard.
    pub fn serves(&self) -> Result<Option<u8>> {
        Ok(self.peer()?.endpoint.and_then(plan::speaker))
    }

    /// Every WireGuard packet that arrived here.
    pub fn heard(&self) -> Vec<Heard> {
        self.recorder.heard()
    }

    /// Every WireGuard packet that arrived here or left.
    pub fn packets(&self) -> Vec<Heard> {
        self.recorder.all()
    }

    fn wg(&self, words: &[&str], input: Option<&str>) -> Result<String> {
        self.wireguard.as_ref().context("the hub is off")?.wg(words, input)
    }

    fn fill(&self, template: &str) -> String {
        let filled = template
            .replace("@HUB_PRIVATE_KEY@", &self.keys.private)
            .replace("@LISTEN_PORT@", &self.port.to_string())
            .replace("@HUB_TUNNEL_ADDRESS@", &self.inside.to_string())
            .replace("@POD_PUBLIC_KEY@", &self.pods_public_key)
            .replace("@VIP@", &self.vip.to_string())
            .replace("@WAN@", WAN)
            .replace("@WG@", LINK)
            .replace("@PORTS@", &self.ports);
        match &self.preshared_key {
            Some(key) => filled.replace("AllowedIPs", &format!("PresharedKey = {key}\nAllowedIPs")),
            None => filled,
        }
    }
}

/// What `wg setconf` does not know, `wg-quick` takes care of; here the lab does.
fn strip(config: &str) -> String {
    config.lines().filter(|line| !line.starts_with("Address")).map(|line| format!("{line}\n")).collect()
}
