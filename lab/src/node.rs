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

/// One node of the cluster.
pub struct Node {
    /// Its number; 0 is the worker, which has no sidecar.
    pub number: u8,
    /// Its namespace; `eth0` is the LAN, `pods` the bridge of its pods.
    pub netns: Netns,
}

impl Node {
    /// Cuts it off; takes the place of an earlier cut.
    pub fn cut(&self, cut: Cut) -> Result<()> {
        let rules = match cut {
            Cut::Api => format!("ip daddr {api} drop\nip saddr {api} drop", api = plan::API),
            Cut::Hub => "ip daddr 192.0.2.0/24 drop\nip saddr 192.0.2.0/24 drop".to_owned(),
            Cut::All => "iifname eth0 drop\noifname eth0 drop".to_owned(),
        };
        let chains = ["prerouting", "postrouting"]
            .map(|hook| format!("chain {hook} {{ type filter hook {hook} priority -310; policy accept;\n{rules}\n}}"));
        self.netns.nft(&format!("{}\ntable ip lab_cut {{\n{}\n}}", clear(), chains.join("\n")))
    }

    /// Ends the cut.
    pub fn heal(&self) -> Result<()> {
        self.netns.nft(&clear())
    }
}

/// `add` first: deleting what is not there would fail.
fn clear() -> String {
    "add table ip lab_cut\ndelete table ip lab_cut".to_owned()
}
