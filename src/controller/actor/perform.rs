//! What each step does to the kernel.

use std::sync::Arc;

use super::Actor;
use crate::controller::{Drift, Outcome, Step};
use crate::election::Tenure;
use crate::fence;
use crate::ruleset::{self, Firewall, Forget};
use crate::tunnel::{HostError, HostNet, LinkBackend, LinkPlan};

impl<L: LinkBackend, H: HostNet, F: Firewall> Actor<L, H, F> {
    pub(super) async fn perform(&mut self, step: &Step) -> anyhow::Result<Outcome> {
        let name = self.controller.settings().name.clone();
        match step {
            // Granted before the step was taken.
            Step::Speak => {}
            Step::Quiet => self.gate.quiet(),
            Step::StepDown => self.gate.step_down(),
            Step::ApplyForwards(plan) => self.apply_forwards(plan)?,
            Step::RaiseFence { port } => {
                self.firewall.commit(&fence::raise(&name, *port))?;
                self.foreign.raised(self.clock.now());
            }
            Step::ArmFence { port, until } => {
                let left = until.since(self.clock.now());
                match fence::lead(&name, *port, left, self.controller.may_hold()) {
                    Some(transaction) => self.firewall.commit(&transaction)?,
                    None => anyhow::bail!("the tenure is over before it could be armed; waiting for the next renewal"),
                }
            }
            Step::HoldFence { port } => self.firewall.commit(&fence::hold(&name, *port))?,
            Step::AskFence => return Ok(Outcome::Foreign(fence::standing(&mut self.firewall, &name)?.silenced)),
            Step::CloseFence => self.firewall.commit(&fence::close(&name))?,
            Step::RemoveFence => {
                self.count_packets();
                self.firewall.commit(&fence::remove(&name))?;
                self.fenced = (self.fenced.0 + self.fenced.1, 0);
            }
            Step::CreateLink(plan) => self.link.create(plan).await?,
            Step::AttachLink(plan) => {
                self.net.attach(plan).await?;
            }
            Step::SetPeer(plan) => {
                self.link.fresh_peer(plan).await?;
                self.inscribe(plan, self.controller.tenure_at(self.clock.now())).await;
            }
            Step::Kick(plan) => self.link.fresh_peer(plan).await?,
            Step::UpdatePeer(plan) => {
                self.link.update_peer(plan).await?;
                self.inscribe(plan, self.controller.tenure_at(self.clock.now())).await;
            }
            Step::Probe(plan) => self.net.probe(plan).await?,
            Step::Inspect => return Ok(Outcome::Stats(self.link.stats(&name).await?)),
            Step::Audit(plan) => return Ok(Outcome::Drift(self.audit(plan).await?)),
            Step::RemoveLink(plan) => self.remove_link(plan).await?,
            Step::RemoveForwards => {
                self.firewall.commit(&ruleset::remove(&name))?;
                self.firewall.forget(&Forget::Tunnel(self.controller.slot()))?;
            }
        }
        Ok(Outcome::Done)
    }

    /// Without it a later life makes the peer afresh: no reason to fail.
    async fn inscribe(&self, plan: &LinkPlan, tenure: Option<Tenure>) {
        let Some(tenure) = tenure.filter(|_| self.controller.may_hold()) else { return };
        if let Err(error) = self.link.inscribe(plan, tenure.transitions).await {
            tracing::debug!(tunnel = %plan.name, %error, "a later life will not know of which tenure the session is");
        }
    }

    fn apply_forwards(&mut self, plan: &LinkPlan) -> anyhow::Result<()> {
        let forwards = Arc::clone(self.controller.wanted());
        let rules = ruleset::Plan {
            tunnel: &plan.name,
            slot: plan.slot,
            vip: plan.vip,
            pod_nic: &self.controller.nic().name,
            mtu: plan.mtu,
            forwards: &forwards,
        };
        let applied = ruleset::apply(&mut self.firewall, &rules)?;
        let old = self.controller.applied();
        if let Some(old) = old {
            let gone = ruleset::vanished(old, &forwards, plan.vip);
            if !gone.is_empty() {
                self.firewall.forget(&Forget::Flows(gone))?;
            }
        }
        if (old.is_none() || applied == ruleset::Applied::Whole) && self.controller.linked() {
            // Put back beside a living link: what came in meanwhile entered conntrack untranslated, and which backends it
            // was sent to before is not known.
            self.firewall.forget(&Forget::Lost(plan.vip, forwards))?;
        }
        Ok(())
    }

    /// Both, whatever becomes of the first: what is left behind is found by the next try.
    async fn remove_link(&mut self, plan: &LinkPlan) -> anyhow::Result<()> {
        if let Ok(last) = self.link.stats(&plan.name).await {
            self.count_traffic(last.received, last.sent);
        }
        let removed = self.link.remove(&plan.name).await;
        let detached = self.net.detach(plan).await;
        removed?;
        detached?;
        Ok(())
    }

    fn count_packets(&mut self) {
        let name = &self.controller.settings().name;
        if let Ok(packets) = fence::dropped(&mut self.firewall, name) {
            // One that was put back after somebody deleted it counts from zero.
            if packets < self.fenced.1 {
                self.fenced.0 += self.fenced.1;
            }
            self.fenced.1 = packets;
        }
        if let Ok(packets) = fence::foreign(&mut self.firewall, name) {
            let (peer, handshake) = (self.controller.peer_since(), self.controller.handshake());
            self.foreign.read(packets, peer, handshake, self.clock.now());
        }
    }

    async fn audit(&mut self, plan: &LinkPlan) -> anyhow::Result<Drift> {
        self.count_packets();
        let (link, missing) = match self.net.drift(plan).await {
            Ok(missing) => (false, missing),
            Err(HostError::LinkLost { .. }) => (true, vec![]),
            Err(error) => return Err(error.into()),
        };
        let drift = Drift {
            link,
            network: !missing.is_empty(),
            // What an earlier life wrote cannot be compared.
            forwards: self.controller.applied().is_some() && !ruleset::stands(&mut self.firewall, &plan.name)?,
            fence: !self.firewall.intact(&ruleset::fence_table(&plan.name))?,
        };
        if drift != Drift::default() {
            tracing::warn!(tunnel = %plan.name, ?drift, ?missing, "somebody changed what is ours; putting it back");
        }
        Ok(drift)
    }
}
