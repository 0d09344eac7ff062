//! Tells what happens: each notice as one log line and one Event on the object it concerns.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::fleet::Parts;
use crate::clock::Clock;
use crate::election::campaign::Standing;
use crate::secret::TunnelName;
use crate::secret::watch::SecretState;
use crate::services::Translation;
use crate::services::watch::Inputs;
use crate::status::{FaultsByTunnel, Narrator, Notice, Snapshot, no_handshake_causes, told};

pub(super) struct Herald {
    clock: Arc<dyn Clock>,
}

impl Herald {
    pub(super) fn new(parts: &Parts) -> Self {
        Self { clock: parts.clock.clone() }
    }

    pub(super) fn secret(&self, _state: &SecretState) {}

    pub(super) fn faults(&self, faults: &FaultsByTunnel) {
        for (tunnel, faults) in faults {
            for fault in faults {
                tracing::warn!(tunnel, fault = told(fault), "the Secret has a fault");
            }
        }
    }

    pub(super) fn translated(&self, _inputs: &Inputs, _translation: Translation) {}

    pub(super) fn listen(
        &self,
        aides: &mut JoinSet<()>,
        name: &TunnelName,
        mut snapshot: watch::Receiver<Snapshot>,
        _standing: watch::Receiver<Standing>,
    ) {
        let (clock, name) = (Arc::clone(&self.clock), name.clone());
        aides.spawn(async move {
            let mut narrator = Narrator::default();
            while snapshot.changed().await.is_ok() {
                let seen = snapshot.borrow_and_update().clone();
                for notice in narrator.tell(&seen, clock.now()) {
                    match notice {
                        Notice::Up => tracing::info!(tunnel = %name, vip = %seen.settings.vip, "tunnel up"),
                        Notice::Down => tracing::info!(tunnel = %name, "tunnel down"),
                        Notice::NoHandshake => {
                            tracing::warn!(tunnel = %name, "{}", no_handshake_causes(&seen.settings));
                        }
                        Notice::FenceClosed => tracing::warn!(tunnel = %name, "fence closed"),
                        Notice::Failing(why) => tracing::warn!(tunnel = %name, why, "failing"),
                    }
                }
            }
        });
    }
}
