//! What is ours in a leader's pod, and an outsider who takes it away.

use std::fmt;

use anyhow::{Context, Result};

use crate::netns::Netns;

/// Something of ours for the tunnel `wg0`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ours {
    /// The tables of the forwards.
    Forwards,
    /// The fence's table.
    Fence,
    /// The link.
    Link,
    /// The routing rules.
    Rules,
    /// The routes that they lead to.
    Routes,
    /// That the link is up.
    Up,
}

impl Ours {
    /// Takes it away.
    pub fn delete(self, pod: &Netns) -> Result<()> {
        match self {
            Self::Forwards => pod.sh("nft delete table inet wirevip_wg0"),
            Self::Fence => pod.sh("nft delete table inet wirevip_wg0_fence"),
            Self::Link => pod.sh("ip link del wg0"),
            Self::Up => pod.sh("ip link set wg0 down"),
            Self::Rules => return delete_each(pod, |priority, _| format!("ip rule del priority {priority}")),
            Self::Routes => return delete_each(pod, |_, table| format!("ip route flush table {table}")),
        }
        .map(drop)
    }
}

impl fmt::Display for Ours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Forwards => "the forwards' table deleted",
            Self::Fence => "the fence's table deleted",
            Self::Link => "the link deleted",
            Self::Rules => "the rules deleted",
            Self::Routes => "the routes deleted",
            Self::Up => "the link set down",
        })
    }
}

fn delete_each(pod: &Netns, command: impl Fn(&str, &str) -> String) -> Result<()> {
    rules(pod)?.iter().try_for_each(|(priority, table)| pod.sh(&command(priority, table)).map(drop))
}

/// Every rule that is not the kernel's own: its priority, and the table that it leads to.
pub fn rules(pod: &Netns) -> Result<Vec<(String, String)>> {
    let mut rules = Vec::new();
    for line in pod.sh("ip rule show")?.lines() {
        let (priority, rule) = line.split_once(':').context("a rule without a priority")?;
        let table = rule.split_whitespace().skip_while(|word| *word != "lookup").nth(1).unwrap_or_default();
        if !["local", "main", "default"].contains(&table) {
            rules.push((priority.to_owned(), table.to_owned()));
        }
    }
    Ok(rules)
}
