//! Lays the namespaces, cables, addresses and routes of a world (`plan.rs` has the drawing).

use std::fmt::Write;

use anyhow::Result;

use crate::netns::Netns;
use crate::plan;
use crate::road::{Conditions, Road};

const OPEN_ROAD: [(&str, &str); 3] =
    [("net/ipv4/ip_forward", "1"), ("net/ipv4/conf/all/rp_filter", "0"), ("net/ipv4/conf/default/rp_filter", "0")];

/// What is beyond a cluster: the client, the hubs, the roads between them, and the cluster's NAT.
pub struct Outside {
    /// Beyond the hubs.
    pub client: Netns,
    /// Routes between client, hubs and the gateway.
    pub internet: Netns,
    /// The cluster's NAT; `lan` is the bridge of the cluster's side.
    pub gateway: Netns,
    /// By index.
    pub hubs: Vec<Netns>,
    /// From the gateway to the internet, where that is no cable.
    road: Option<Road>,
}

impl Outside {
    /// `hubs` hubs, and a NAT that gives UDP from the `n`th of these sources the public ports of node `n`; the road from
    /// the gateway to the internet is in these conditions.
    pub fn lay(hubs: u8, sources: &[String], conditions: Conditions) -> Result<Self> {
        let internet = Netns::new("internet")?;
        internet.sysctls(&OPEN_ROAD)?;
        let client = leaf("client", &internet, "client", 1500)?;
        client.ip(&[format!("addr add {}/24 dev eth0", plan::CLIENT), default(plan::CLIENT_ROUTER)])?;
        let (gateway, road) = lay_gateway(&internet, sources, conditions)?;
        internet.ip(&[
            format!("addr add {}/24 dev client", plan::CLIENT_ROUTER),
            format!("addr add {}/24 dev gateway", plan::GATEWAY_ROUTER),
            "link add hubs type bridge".into(),
            "link set hubs up".into(),
            format!("addr add {}/25 dev hubs", plan::HUB_ROUTER),
        ])?;
        let hubs = (0..hubs).map(|index| lay_hub(&internet, index)).collect::<Result<_>>()?;
        Ok(Self { client, internet, gateway, hubs, road })
    }
}

/// The namespaces of a world, joined and routed, with nothing running in them.
pub struct Topology {
    /// Beyond the hubs.
    pub client: Netns,
    /// Routes between client, hubs and the gateway.
    pub internet: Netns,
    /// The cluster's NAT.
    pub gateway: Netns,
    /// API server and DNS.
    pub control: Netns,
    /// By index.
    pub hubs: Vec<Netns>,
    /// By number; 0 is the worker.
    pub nodes: Vec<Netns>,
    /// The sidecar pods of nodes 1, 2, …
    pub pods: Vec<Netns>,
    /// Backend pods, in the order asked for.
    pub backends: Vec<Netns>,
    /// From the gateway to the internet, where that is no cable.
    _road: Option<Road>,
}

impl Topology {
    /// `sidecars` nodes besides the worker, `hubs` hubs, a backend pod on each of the nodes in `backends`;
    /// pod links have MTU `pod_mtu`, and the road from the gateway to the internet is in these conditions.
    pub fn lay(sidecars: u8, hubs: u8, backends: &[u8], pod_mtu: u32, conditions: Conditions) -> Result<Self> {
        let Outside { client, internet, gateway, hubs, road } = Outside::lay(hubs, &sources(sidecars), conditions)?;
        let control = leaf("api", &gateway, "api", 1500)?;
        gateway.ip(&["link set api master lan"])?;
        control.ip(&[format!("addr add {}/24 dev eth0", plan::API), default(plan::LAN_GATEWAY)])?;
        let nodes = (0..=sidecars).map(|n| lay_node(&gateway, n, pod_mtu)).collect::<Result<Vec<_>>>()?;
        for (namespace, me) in [(&gateway, None), (&control, None)].into_iter().chain(nodes.iter().zip((0..).map(Some)))
        {
            namespace.ip(&routes_to_pods(sidecars, me))?;
        }
        let mut pods = Vec::new();
        for (node, number) in nodes.iter().zip(0..).skip(1) {
            pods.push(lay_pod(&format!("pod{number}"), node, number, "sidecar", plan::sidecar(number), pod_mtu)?);
        }
        let mut backend_pods = Vec::new();
        for (number, index) in backends.iter().zip(0..) {
            let node =
                nodes.get(usize::from(*number)).ok_or_else(|| anyhow::anyhow!("no node {number} for a backend"))?;
            let (name, port, address) = (format!("b{index}"), format!("b{index}"), plan::backend(*number, index));
            backend_pods.push(lay_pod(&name, node, *number, &port, address, pod_mtu)?);
        }
        Ok(Self { client, internet, gateway, control, hubs, nodes, pods, backends: backend_pods, _road: road })
    }

    /// The NAT forgets every flow; from now on it gives ports from the other half of each pod's range (`true`), or of
    /// the whole again.
    pub fn remap(&self, other_half: bool) -> Result<()> {
        let sidecars = u8::try_from(self.pods.len())?;
        self.gateway.nft(&format!("delete table ip gateway\n{}", nat_rules(&sources(sidecars), other_half)))?;
        self.gateway.sh("conntrack -F").map(drop)
    }

    /// All of them.
    pub fn all(&self) -> Vec<&Netns> {
        let alone = [&self.client, &self.internet, &self.gateway, &self.control];
        alone.into_iter().chain(&self.hubs).chain(&self.nodes).chain(&self.pods).chain(&self.backends).collect()
    }
}

/// A namespace with one link, `eth0`, into `parent`, where it is called `port`.
fn leaf(name: &str, parent: &Netns, port: &str, mtu: u32) -> Result<Netns> {
    let netns = Netns::new(name)?;
    netns.cable("eth0", parent, port, mtu)?;
    Ok(netns)
}

fn default(via: std::net::Ipv4Addr) -> String {
    format!("route add default via {via}")
}

/// The sidecars' addresses, for the NAT.
fn sources(sidecars: u8) -> Vec<String> {
    (1..=sidecars).map(|number| plan::sidecar(number).to_string()).collect()
}

fn lay_gateway(internet: &Netns, sources: &[String], conditions: Conditions) -> Result<(Netns, Option<Road>)> {
    let gateway = Netns::new("gateway")?;
    gateway.sysctls(&OPEN_ROAD)?;
    let road = if conditions.are_perfect() {
        gateway.cable("wan", internet, "gateway", 1500)?;
        None
    } else {
        Some(Road::lay(conditions, [(&gateway, "wan"), (internet, "gateway")])?)
    };
    gateway.ip(&[
        format!("addr add {}/24 dev wan", plan::GATEWAY),
        default(plan::GATEWAY_ROUTER),
        "link add lan type bridge".into(),
        "link set lan up".into(),
        format!("addr add {}/24 dev lan", plan::LAN_GATEWAY),
    ])?;
    gateway.nft(&nat_rules(sources, false))?;
    Ok((gateway, road))
}

/// Everybody gets out, nobody gets in; UDP of each source gets public ports of its own range.
fn nat_rules(sources: &[String], other_half: bool) -> String {
    let mut ports = String::new();
    for (source, number) in sources.iter().zip(1..) {
        let (first, last) = plan::nat_ports(number);
        let first = if other_half { first + (last - first) / 2 } else { first };
        let _ =
            writeln!(ports, "oifname wan ip saddr {source} meta l4proto udp snat to {}:{first}-{last}", plan::GATEWAY);
    }
    let (first, last) = plan::OTHER_PORTS;
    format!(
        "table ip gateway {{
            chain postrouting {{ type nat hook postrouting priority srcnat; policy accept;
                {ports}
                oifname wan meta l4proto udp masquerade to :{first}-{last}
                oifname wan masquerade
            }}
            chain forward {{ type filter hook forward priority filter; policy drop;
                ct state established,related accept
                iifname lan accept
            }}
            chain input {{ type filter hook input priority filter; policy accept;
                iifname wan ct state new drop
            }}
        }}"
    )
}

fn lay_hub(internet: &Netns, index: u8) -> Result<Netns> {
    let hub = leaf(&format!("hub{index}"), internet, &format!("hub{index}"), 1500)?;
    internet.ip(&[format!("link set hub{index} master hubs")])?;
    hub.ip(&[format!("addr add {}/25 dev eth0", plan::hub(index)), default(plan::HUB_ROUTER)])?;
    Ok(hub)
}

fn lay_node(gateway: &Netns, number: u8, pod_mtu: u32) -> Result<Netns> {
    let node = leaf(&format!("node{number}"), gateway, &format!("node{number}"), 1500)?;
    gateway.ip(&[format!("link set node{number} master lan")])?;
    node.sysctls(&OPEN_ROAD)?;
    node.ip(&[
        format!("addr add {}/24 dev eth0", plan::node(number)),
        default(plan::LAN_GATEWAY),
        format!("link add pods mtu {pod_mtu} type bridge"),
        "link set pods up".into(),
        format!("addr add {}/24 dev pods", plan::pod_gateway(number)),
    ])?;
    Ok(node)
}

fn routes_to_pods(sidecars: u8, me: Option<u8>) -> Vec<String> {
    (0..=sidecars)
        .filter(|number| Some(*number) != me)
        .map(|number| format!("route add {}/24 via {}", plan::pod_network(number), plan::node(number)))
        .collect()
}

fn lay_pod(name: &str, node: &Netns, number: u8, port: &str, address: std::net::Ipv4Addr, mtu: u32) -> Result<Netns> {
    let pod = leaf(name, node, port, mtu)?;
    node.ip(&[format!("link set {port} master pods")])?;
    // As strict as a node may make its pods: nothing is forwarded, and rp_filter is on.
    pod.sysctls(&[
        ("net/ipv4/ip_forward", "0"),
        ("net/ipv4/conf/all/rp_filter", "1"),
        ("net/ipv4/conf/eth0/forwarding", "0"),
    ])?;
    pod.ip(&[format!("addr add {address}/24 dev eth0"), default(plan::pod_gateway(number))])?;
    Ok(pod)
}
