//! One node, and the ways to cut it off.

use anyhow::Result;

use crate::netns::Netns;
use crate::plan;

/// From what a node is cut off. Packets are dropped, not refused, and links stay up: nobody is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cut {
    /// Its pods from the API server.
    Api,
    /// Its pods from all hubs.
    Hub,
    /// Itself and its pods from everything.
    All,
}

/// Which packets a cut drops.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// All.
    Both,
    /// Those that leave the node.
    Out,
    /// Those that come to it.
    In,
}

const CUTS: [Cut; 3] = [Cut::Api, Cut::Hub, Cut::All];
const WAYS: [Way; 3] = [Way::Both, Way::Out, Way::In];

/// One node of the cluster.
pub struct Node {
    /// Its number; 0 is the worker, which has no sidecar.
    pub number: u8,
    /// Its namespace; `eth0` is the LAN, `pods` the bridge of its pods.
    pub netns: Netns,
}

impl Node {
    /// Cuts it off, both ways.
    pub fn cut(&self, cut: Cut) -> Result<()> {
        self.cut_one_way(cut, Way::Both)
    }

    /// Cuts it off, this way, beside other cuts that may be on.
    pub fn cut_one_way(&self, cut: Cut, way: Way) -> Result<()> {
        let (out, into) = match cut {
            Cut::Api => (format!("ip daddr {}", plan::API), format!("ip saddr {}", plan::API)),
            Cut::Hub => ("ip daddr 192.0.2.0/24".to_owned(), "ip saddr 192.0.2.0/24".to_owned()),
            Cut::All => ("oifname eth0".to_owned(), "iifname eth0".to_owned()),
        };
        let rules = match way {
            Way::Both => format!("{out} drop\n{into} drop"),
            Way::Out => format!("{out} drop"),
            Way::In => format!("{into} drop"),
        };
        let chains = ["prerouting", "postrouting"]
            .map(|hook| format!("chain {hook} {{ type filter hook {hook} priority -310; policy accept;\n{rules}\n}}"));
        let table = table(cut, way);
        self.netns.nft(&format!("{}\ntable ip {table} {{\n{}\n}}", clear(&table), chains.join("\n")))
    }

    /// Ends this cut.
    pub fn mend(&self, cut: Cut, way: Way) -> Result<()> {
        self.netns.nft(&clear(&table(cut, way)))
    }

    /// Ends all cuts.
    pub fn heal(&self) -> Result<()> {
        let tables = CUTS.iter().flat_map(|cut| WAYS.iter().map(|way| clear(&table(*cut, *way))));
        self.netns.nft(&tables.collect::<Vec<_>>().join("\n"))
    }
}

fn table(cut: Cut, way: Way) -> String {
    format!("lab_cut_{cut:?}_{way:?}")
}

/// `add` first: deleting what is not there would fail.
fn clear(table: &str) -> String {
    format!("add table ip {table}\ndelete table ip {table}")
}
