//! What an earlier life of this process left in the pod's network: what goes at once, and what may serve on until the
//! Lease is known.
//!
//! What must hold:
//! - Only a tunnel of the kernel's WireGuard stays, with a session, its forwards, and a fence that falls to hold by
//!   itself: to it a dead process is no other than one that is cut off from the API.
//! - All else of ours goes before any word with the API (I3).
//! - What stays is taken over by the tunnel of its name, in hold, if its alias says that it was made as the Secret has it
//!   now; else it goes then, as does what the Secret does not name. Until its fence was told to hold it may still lead.

use std::net::SocketAddr;

use crate::fence;
use crate::ruleset::{self, Firewall, FirewallError, Forget, Transaction};
use crate::tunnel::{Alias, Found, HostError, HostNet, LinkBackend, LinkError, LinkPlan, LinkStats};

/// Why something could not be looked at or removed.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub enum InheritanceError {
    /// Links, rules, routes.
    Host(#[from] HostError),
    /// Tables, conntrack entries.
    Firewall(#[from] FirewallError),
    /// WireGuard.
    Link(#[from] LinkError),
}

/// What may serve on.
pub async fn find<H: HostNet, F: Firewall>(net: &H, firewall: &mut F) -> Result<Vec<Found>, InheritanceError> {
    let mut serving = Vec::new();
    let tables = firewall.tables()?;
    for found in net.found().await? {
        let forwards = tables.contains(&ruleset::forwards_table(&found.name));
        if forwards && fence::standing(firewall, &found.name)?.holds.is_some() {
            serving.push(found);
        }
    }
    Ok(serving)
}

/// Removes all that is ours but for these.
pub async fn sweep<H: HostNet, F: Firewall>(net: &H, firewall: &mut F, but: &[Found]) -> Result<(), InheritanceError> {
    let swept = net.sweep(but).await?;
    let stays = |table: &String| {
        but.iter()
            .any(|found| [ruleset::forwards_table(&found.name), ruleset::fence_table(&found.name)].contains(table))
    };
    let tables: Vec<String> = firewall.tables()?.into_iter().filter(|table| !stays(table)).collect();
    for table in &tables {
        firewall.commit(&Transaction::delete(table))?;
    }
    let flows = firewall.forget(&Forget::AllBut(but.iter().map(|found| found.alias.slot()).collect()))?;
    if swept != Default::default() || !tables.is_empty() || flows > 0 {
        tracing::info!(?swept, ?tables, flows, "removed what an earlier life had left");
    }
    for found in but {
        tracing::info!(tunnel = %found.name, "an earlier life left the tunnel in hold; so it stays until the Lease is known");
    }
    Ok(())
}

/// Removes one after all: silent first, then the rest.
pub async fn discard<H: HostNet, F: Firewall>(
    net: &H,
    firewall: &mut F,
    found: &Found,
) -> Result<(), InheritanceError> {
    // A fence that is gone cannot be closed, now or later. It is the link's going that counts as silence.
    let _ = firewall.commit(&fence::close(&found.name));
    net.discard(found).await?;
    firewall.commit(&ruleset::remove(&found.name))?;
    firewall.commit(&fence::remove(&found.name))?;
    firewall.forget(&Forget::Tunnel(found.alias.slot()))?;
    Ok(())
}

/// Takes one over, if it was made after this plan, but for the hub's address, which is the link's; what WireGuard measured
/// of it. `None`: it is not to be used.
pub async fn adopt<L: LinkBackend, F: Firewall>(
    link: &L,
    firewall: &mut F,
    found: &Found,
    plan: impl FnOnce(SocketAddr) -> LinkPlan,
) -> Result<Option<(LinkPlan, LinkStats)>, InheritanceError> {
    let Some(hub) = link.hub(&found.name).await? else { return Ok(None) };
    let plan = plan(hub);
    let stats = link.stats(&found.name).await?;
    let standing = fence::standing(firewall, &found.name)?;
    if !fits(&found.alias, &plan, &standing, &stats) || !fence::adopt(firewall, &found.name, plan.listen_port)? {
        return Ok(None);
    }
    link.adopt(&plan);
    Ok(Some((plan, stats)))
}

fn fits(alias: &Alias, plan: &LinkPlan, standing: &fence::Standing, stats: &LinkStats) -> bool {
    alias.fits(plan) && standing.holds == Some(plan.listen_port) && stats.handshake_age.is_some()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::tunnel::testing::plan;

    #[test]
    fn only_a_tunnel_that_is_as_planned_with_a_session_and_a_fence_that_holds_is_taken_over() {
        let plan = plan("wg0");
        let alias = Alias::of(&plan, Some(3));
        let standing = fence::Standing { holds: Some(plan.listen_port), ..Default::default() };
        let stats = LinkStats { handshake_age: Some(Duration::from_secs(9)), ..Default::default() };
        assert!(fits(&alias, &plan, &standing, &stats));
        let mut other = plan.clone();
        other.peer.allowed_ips.clear();
        assert!(!fits(&alias, &other, &standing, &stats), "made after another plan");
        assert!(!fits(&alias, &plan, &fence::Standing { leads: standing.holds, ..Default::default() }, &stats));
        let elsewhere = fence::Standing { holds: Some(plan.listen_port + 1), ..Default::default() };
        assert!(!fits(&alias, &plan, &elsewhere, &stats));
        assert!(!fits(&alias, &plan, &standing, &LinkStats::default()), "no session");
    }
}
