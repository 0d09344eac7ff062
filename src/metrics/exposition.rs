//! The names of the metrics, their help, and how the state is written out.

use std::collections::BTreeMap;
use std::fmt::Error;
use std::sync::{Arc, Mutex};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::{Histogram, Phase, State, TunnelMetrics, lock};
use crate::secret::TunnelName;

/// Writes the state out at each scrape.
#[derive(Debug)]
pub(super) struct Exposition(pub(super) Arc<Mutex<State>>);

impl Collector for Exposition {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        // A copy, so that a slow reader of /metrics holds nobody up.
        let state = {
            let state = lock(&self.0);
            State {
                tunnels: state.tunnels.clone(),
                config_valid: state.config_valid.clone(),
                config_changed: state.config_changed,
                ruleset_apply: state.ruleset_apply.clone(),
                api_requests: state.api_requests.clone(),
                errors: state.errors.clone(),
            }
        };
        process(&mut encoder, &state)?;
        tunnels(&mut encoder, &state.tunnels)
    }
}

fn process(encoder: &mut DescriptorEncoder<'_>, state: &State) -> Result<(), Error> {
    let State { tunnels: _, config_valid, config_changed, ruleset_apply, api_requests, errors } = state;

    let mut build = gauge(encoder, "wirevip_build_info", "Always 1; the version is in the label")?;
    set(&mut build, &[("version", env!("CARGO_PKG_VERSION"))], 1.0)?;

    let mut valid = gauge(encoder, "wirevip_config_valid", "Was the tunnel sound in the last document of the Secret")?;
    for (tunnel, sound) in config_valid {
        set(&mut valid, &[("tunnel", tunnel)], f64::from(u8::from(*sound)))?;
    }

    let help = "When the configuration in force was taken over, in seconds since 1970";
    let changed = config_changed.map_or(f64::NAN, |at| at.as_duration().as_secs_f64());
    let metric = gauge(encoder, "wirevip_config_last_change_timestamp_seconds", help)?;
    ConstGauge::new(changed).encode(metric)?;

    let help = "How long one replacement of a forwards table took";
    let mut apply = encoder.encode_descriptor("wirevip_ruleset_apply_seconds", help, None, MetricType::Histogram)?;
    histogram(&mut apply, ruleset_apply)?;

    let help = "Requests to the API server; code is the HTTP status, or error where none came";
    let mut requests = counter(encoder, "wirevip_api_requests", help)?;
    for ((verb, resource, code), count) in api_requests {
        add(&mut requests, &[("verb", verb), ("resource", resource), ("code", code)], *count)?;
    }

    let mut failed = counter(encoder, "wirevip_errors", "Failures by stage")?;
    for (stage, count) in errors {
        add(&mut failed, &[("stage", stage)], *count)?;
    }
    Ok(())
}

type Gauge = (&'static str, &'static str, fn(&TunnelMetrics) -> Option<f64>);
type Counter = (&'static str, &'static str, fn(&TunnelMetrics) -> u64);

#[expect(clippy::cast_precision_loss, reason = "nobody has 2^52 forwards")]
const GAUGES: [Gauge; 7] = [
    ("wirevip_leader", "Does this pod lead", |t| Some(f64::from(u8::from(t.leader)))),
    ("wirevip_holding", "Does this pod answer on without a tenure", |t| Some(f64::from(u8::from(t.holding)))),
    ("wirevip_tenure_remaining_seconds", "Time until the fence closes unless the Lease is renewed", |t| {
        t.tenure_remaining.map(|left| left.as_secs_f64())
    }),
    ("wirevip_handshake_age_seconds", "Time since the last handshake with the hub", |t| {
        t.handshake_age.map(|age| age.as_secs_f64())
    }),
    ("wirevip_clock_skew_seconds", "This clock minus that of the last leader, who wrote the Lease", |t| t.clock_skew),
    ("wirevip_forwards", "Ports forwarded", |t| t.forwards.map(|n| n as f64)),
    ("wirevip_backends", "Backends behind them", |t| t.backends.map(|n| n as f64)),
];

// The encoder adds `_total`.
const COUNTERS: [Counter; 4] = [
    ("wirevip_lease_transitions", "Changes of leader, as counted in the Lease", |t| t.lease_transitions),
    ("wirevip_receive_bytes", "Bytes from the hub", |t| t.received_bytes),
    ("wirevip_transmit_bytes", "Bytes to the hub", |t| t.transmitted_bytes),
    ("wirevip_fence_dropped_packets", "Packets that the fence held back", |t| t.fence_dropped_packets),
];

fn tunnels(encoder: &mut DescriptorEncoder<'_>, tunnels: &BTreeMap<TunnelName, TunnelMetrics>) -> Result<(), Error> {
    for (name, help, value) in GAUGES {
        let mut metric = gauge(encoder, name, help)?;
        for (tunnel, measured) in tunnels {
            set(&mut metric, &[("tunnel", tunnel.as_str())], value(measured).unwrap_or(f64::NAN))?;
        }
    }
    for (name, help, value) in COUNTERS {
        let mut metric = counter(encoder, name, help)?;
        for (tunnel, measured) in tunnels {
            add(&mut metric, &[("tunnel", tunnel.as_str())], value(measured))?;
        }
    }
    let (name, help) = ("wirevip_takeover_seconds", "How long each phase of a takeover took");
    let mut takeover = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
    for (tunnel, measured) in tunnels {
        for phase in Phase::ALL {
            let labels = [("tunnel", tunnel.as_str()), ("phase", phase.label())];
            let took = measured.takeover.get(&phase).cloned().unwrap_or_default();
            histogram(&mut takeover.encode_family(&labels)?, &took)?;
        }
    }
    Ok(())
}

fn gauge<'e>(encoder: &'e mut DescriptorEncoder<'_>, name: &'e str, help: &str) -> Result<MetricEncoder<'e>, Error> {
    encoder.encode_descriptor(name, help, None, MetricType::Gauge)
}

fn counter<'e>(encoder: &'e mut DescriptorEncoder<'_>, name: &'e str, help: &str) -> Result<MetricEncoder<'e>, Error> {
    encoder.encode_descriptor(name, help, None, MetricType::Counter)
}

fn set<const N: usize>(metric: &mut MetricEncoder<'_>, labels: &[(&str, &str); N], value: f64) -> Result<(), Error> {
    ConstGauge::new(value).encode(metric.encode_family(labels)?)
}

fn add<const N: usize>(metric: &mut MetricEncoder<'_>, labels: &[(&str, &str); N], value: u64) -> Result<(), Error> {
    ConstCounter::new(value).encode(metric.encode_family(labels)?)
}

fn histogram<const N: usize>(metric: &mut MetricEncoder<'_>, values: &Histogram<N>) -> Result<(), Error> {
    let Histogram { bounds, counts, above, sum } = values;
    let mut buckets: Vec<(f64, u64)> = bounds.iter().copied().zip(counts.iter().copied()).collect();
    buckets.push((f64::INFINITY, *above));
    metric.encode_histogram::<NoLabelSet>(*sum, counts.iter().sum::<u64>() + above, &buckets, None)
}
