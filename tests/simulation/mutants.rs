//! Programs that are broken on purpose, each at a seam, so that nothing of it is in the product: the checker has to
//! object to every one of them. What a mutant does is what a plausible mistake would do.

use std::io;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;
use wirevip::election::{Gate, Leadership, Params, Record};
use wirevip::fence;
use wirevip::ruleset::model::{Expr, Rule, Verdict};
use wirevip::ruleset::{FirewallError, Step, Transaction, fence_table};
use wirevip::secret::TunnelName;

use crate::world::PORT;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutant {
    /// The program as it is.
    None,
    /// Gives the Lease back first and takes the tunnel down then, as client-go's ReleaseOnCancel does.
    ReleasesBeforeDown,
    /// Arms the fence until the Lease's end.
    NoMargin,
    /// Takes a Lease as soon as the holder's `renewTime` is old by the own wall clock.
    TrustsRemoteClock,
    /// Leaves it to the process to fall silent.
    NoFence,
    /// Arms the fence for twice what is left.
    ArmsTooLong,
    /// Re-arms by deleting the old element and adding a new one: the kernel refuses that when the old one has expired.
    RearmFailsOnExpired,
    /// Writes the fence anew with each change of the forwards.
    ForwardsWipeFence,
    /// Goes on with the session of an earlier tenure although another led in between.
    LeadsOn,
    /// Lets everything out where it should only answer.
    HoldSpeaksFreely,
    /// Lets out as they are the handshakes and keepalives that it should defuse.
    DefusesNothing,
    /// Goes on answering a hub that speaks to another.
    IgnoresForeign,
    /// Shakes hands with the hub once, and says nothing more to keep it.
    NeverInsists,
    /// Writes the Lease whatever its resourceVersion.
    WritesUnguarded,
    /// Does not count the changes of holder.
    CountsNothing,
    /// Leaves the forwards behind when it ends.
    LeavesForwards,
    /// Never looks whether what it wrote is still there.
    NeverLooks,
    /// Cannot remove its link.
    KeepsLink,
}

impl Mutant {
    /// What the program sees of a Lease.
    pub fn lease(self, mut lease: Lease, identity: &str, wall: Timestamp) -> Lease {
        let record = Record::from(&lease);
        let term = SignedDuration::from_secs(record.duration_seconds.into());
        let old = record.renewed.is_some_and(|renewed| renewed + term < wall);
        if self == Mutant::TrustsRemoteClock && old && record.holder != identity {
            lease.spec = Some(Record { holder: String::new(), duration_seconds: 1, ..record }.spec());
        }
        lease
    }

    /// What the kernel gets for a transaction. `expired`: the element that opened the fence has gone by itself.
    pub fn transaction(
        self,
        tunnel: &TunnelName,
        transaction: &Transaction,
        expired: Option<bool>,
    ) -> Result<Transaction, FirewallError> {
        let name = fence_table(tunnel);
        let mut next = transaction.clone();
        let timeouts = |next: &mut Transaction, change: fn(Duration) -> Duration| {
            for step in &mut next.0 {
                if let Step::Refill { elements, .. } = step {
                    elements.iter_mut().filter_map(|element| element.timeout.as_mut()).for_each(|t| *t = change(*t));
                }
            }
        };
        let ends =
            |step: &Step| matches!(step, Step::Refill { set, elements, .. } if set == "lead" && elements.is_empty());
        match self {
            Mutant::ReleasesBeforeDown if next.0.iter().any(ends) => next.0.clear(),
            Mutant::NoMargin => timeouts(&mut next, |timeout| timeout + Params::default().margin()),
            Mutant::ArmsTooLong => timeouts(&mut next, |timeout| timeout * 2),
            Mutant::NoFence => next.0.retain(|step| match step {
                Step::Replace(table) => table.name != name,
                Step::Refill { table, .. } => *table != name,
                Step::Delete(_) | Step::Edit { .. } => true,
            }),
            Mutant::RearmFailsOnExpired if expired == Some(true) && next.0.iter().any(is_refill) => {
                let source = io::Error::from(io::ErrorKind::NotFound);
                return Err(FirewallError::Refused {
                    step: "deleting the element".into(),
                    detail: String::new(),
                    source,
                });
            }
            Mutant::ForwardsWipeFence
                if next.0.iter().any(|step| match step {
                    Step::Replace(table) => table.name != name,
                    Step::Edit { table, .. } => *table != name,
                    _ => false,
                }) =>
            {
                next = next.then(fence::raise(tunnel, PORT));
            }
            // It stays, behind a closed fence.
            Mutant::LeadsOn => next.0.retain(|step| !matches!(step, Step::Delete(table) if *table == name)),
            Mutant::HoldSpeaksFreely => {
                let held = next.0.iter().find_map(|step| match step {
                    Step::Refill { set, elements, .. } if set == "hold" => Some(elements.clone()),
                    _ => None,
                });
                for step in &mut next.0 {
                    if let (Step::Refill { set, elements, .. }, Some(held)) = (step, &held)
                        && set == "lead"
                        && !held.is_empty()
                    {
                        elements.clone_from(held);
                    }
                }
            }
            Mutant::DefusesNothing => {
                rewrite(&mut next, &name, "quiet", &[vec![Expr::Verdict(Verdict::Accept)]]);
            }
            Mutant::IgnoresForeign => rewrite(&mut next, &name, "strange", &[]),
            Mutant::LeavesForwards => next.0.retain(|step| !matches!(step, Step::Delete(table) if *table != name)),
            _ => {}
        }
        Ok(next)
    }

    /// Takes for intact what it did not even write.
    pub fn blind_to(self, tunnel: &TunnelName, table: &str) -> bool {
        self == Mutant::NeverLooks || self == Mutant::NoFence && table == fence_table(tunnel)
    }

    /// What comes before the removal of the link. `false`: nothing comes after.
    pub async fn removes(self) -> bool {
        match self {
            Mutant::ReleasesBeforeDown => tokio::time::sleep(Duration::from_millis(300)).await,
            Mutant::KeepsLink => std::future::pending().await,
            _ => {}
        }
        self != Mutant::LeadsOn
    }

    /// Stands at the gate beside the controller, for as long as the campaign lasts.
    pub fn at_the_gate(self, gate: Gate, mut leadership: tokio::sync::watch::Receiver<Leadership>) {
        if self != Mutant::ReleasesBeforeDown {
            return;
        }
        tokio::spawn(async move {
            while leadership.changed().await.is_ok() {
                if let Leadership::Following { .. } = *leadership.borrow_and_update() {
                    gate.quiet();
                }
            }
        });
    }
}

/// Gives a chain of the table other rules, where the table is written.
fn rewrite(transaction: &mut Transaction, table: &str, chain: &str, rules: &[Rule]) {
    for step in &mut transaction.0 {
        if let Step::Replace(written) = step
            && written.name == table
        {
            let chain =
                written.chains.iter_mut().find(|other| other.name == chain).expect("the fence has such a chain");
            chain.rules = rules.to_vec();
        }
    }
}

fn is_refill(step: &Step) -> bool {
    matches!(step, Step::Refill { .. })
}
