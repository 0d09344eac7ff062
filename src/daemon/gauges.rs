//! The metrics of this moment: counters are kept by those who count, gauges are read off the board when asked for.

use std::sync::Arc;

use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::status::board::Board;

/// Renders `/metrics`.
pub(super) fn renderer(
    metrics: &Metrics,
    board: &Arc<Board>,
    clock: Arc<dyn Clock>,
) -> Arc<dyn Fn() -> String + Send + Sync> {
    let (metrics, board) = (metrics.clone(), Arc::clone(board));
    Arc::new(move || {
        let now = clock.now();
        for (name, snapshot) in board.snapshots() {
            metrics.tunnel(&name, |tunnel| {
                tunnel.leader = snapshot.leads(now);
                tunnel.holding = snapshot.holds();
                tunnel.tenure_remaining = snapshot.tenure_left(now);
                tunnel.handshake_age = snapshot.handshake.map(|done| now.since(done));
                tunnel.forwards = snapshot.forwards.as_ref().map(|forwards| forwards.len());
                tunnel.backends = snapshot
                    .forwards
                    .as_ref()
                    .map(|forwards| forwards.values().map(|forward| forward.backends.len()).sum());
                // While a Lease is deleted it shows none; a counter never goes back.
                let transitions = snapshot.standing.transitions.and_then(|n| u64::try_from(n).ok());
                tunnel.lease_transitions = tunnel.lease_transitions.max(transitions.unwrap_or_default());
                tunnel.clock_skew = snapshot.standing.clock_skew.map(|skew| skew.as_secs_f64());
                tunnel.fence_dropped_packets = snapshot.fenced_packets;
                (tunnel.received_bytes, tunnel.transmitted_bytes) = snapshot.traffic;
            });
        }
        metrics.encode()
    })
}
