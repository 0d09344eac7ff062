use std::collections::BTreeMap;

use super::*;

fn name(text: &str) -> TunnelName {
    TunnelName::new(text).unwrap()
}

fn value(text: &str, series: &str) -> String {
    let found: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix(series)?.strip_prefix(' ')).collect();
    assert_eq!(found.len(), 1, "{series} is there {} times in\n{text}", found.len());
    found[0].to_owned()
}

#[test]
fn every_metric_of_the_contract_is_there_once_under_its_name() {
    let metrics = Metrics::new();
    metrics.set_tunnels([&name("wg0")]);
    metrics.set_config_valid(BTreeMap::from([("wg0".to_owned(), true)]));
    metrics.api_request("list", "services", "200");
    metrics.error("tunnel");
    let text = metrics.encode();
    let typed = [
        ("wirevip_build_info", "gauge"),
        ("wirevip_leader", "gauge"),
        ("wirevip_holding", "gauge"),
        ("wirevip_lease_transitions", "counter"),
        ("wirevip_tenure_remaining_seconds", "gauge"),
        ("wirevip_takeover_seconds", "histogram"),
        ("wirevip_handshake_age_seconds", "gauge"),
        ("wirevip_receive_bytes", "counter"),
        ("wirevip_transmit_bytes", "counter"),
        ("wirevip_fence_dropped_packets", "counter"),
        ("wirevip_clock_skew_seconds", "gauge"),
        ("wirevip_forwards", "gauge"),
        ("wirevip_backends", "gauge"),
        ("wirevip_ruleset_apply_seconds", "histogram"),
        ("wirevip_config_valid", "gauge"),
        ("wirevip_config_last_change_timestamp_seconds", "gauge"),
        ("wirevip_api_requests", "counter"),
        ("wirevip_errors", "counter"),
    ];
    for (metric, kind) in typed {
        assert_eq!(value(&text, &format!("# TYPE {metric}")), kind);
    }
    assert_eq!(text.matches("# TYPE ").count(), typed.len(), "a metric that the contract does not know");
    assert_eq!(value(&text, r#"wirevip_lease_transitions_total{tunnel="wg0"}"#), "0");
    assert_eq!(value(&text, r#"wirevip_api_requests_total{verb="list",resource="services",code="200"}"#), "1");
    assert_eq!(value(&text, r#"wirevip_errors_total{stage="tunnel"}"#), "1");
    assert_eq!(value(&text, r#"wirevip_config_valid{tunnel="wg0"}"#), "1.0");
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(value(&text, &format!(r#"wirevip_build_info{{version="{version}"}}"#)), "1.0");
    assert!(text.ends_with("# EOF\n"));
    assert!(!text.contains("_total_total"));
}

#[test]
fn what_is_not_measured_yet_is_nan_in_gauges_and_zero_in_counters() {
    let metrics = Metrics::new();
    metrics.set_tunnels([&name("wg0")]);
    let text = metrics.encode();
    for gauge in ["tenure_remaining_seconds", "handshake_age_seconds", "clock_skew_seconds", "forwards", "backends"] {
        assert_eq!(value(&text, &format!(r#"wirevip_{gauge}{{tunnel="wg0"}}"#)), "NaN");
    }
    for counter in ["lease_transitions", "receive_bytes", "transmit_bytes", "fence_dropped_packets"] {
        assert_eq!(value(&text, &format!(r#"wirevip_{counter}_total{{tunnel="wg0"}}"#)), "0");
    }
    for phase in ["detect", "lease", "link", "handshake"] {
        let series = format!(r#"wirevip_takeover_seconds_count{{tunnel="wg0",phase="{phase}"}}"#);
        assert_eq!(value(&text, &series), "0");
    }
}

#[test]
fn a_removed_tunnel_is_forgotten_and_stays_away() {
    let metrics = Metrics::new();
    let (kept, gone) = (name("wg0"), name("wg1"));
    metrics.set_tunnels([&kept, &gone]);
    metrics.tunnel(&kept, |t| t.lease_transitions = 7);
    metrics.set_tunnels([&kept]);
    metrics.tunnel(&gone, |t| t.leader = true);
    let text = metrics.encode();
    assert!(!text.contains("wg1"));
    assert_eq!(value(&text, r#"wirevip_lease_transitions_total{tunnel="wg0"}"#), "7");
}

#[test]
fn a_histogram_counts_each_span_in_every_bucket_at_or_above_it() {
    let metrics = Metrics::new();
    let tunnel = name("wg0");
    metrics.set_tunnels([&tunnel]);
    for millis in [1, 30, 60_000] {
        metrics.tunnel(&tunnel, |t| t.took(Phase::Link, Duration::from_millis(millis)));
    }
    let text = metrics.encode();
    let bucket = |le: &str| {
        // The encoder puts `le` first.
        let lines: Vec<&str> = text
            .lines()
            .filter(|l| l.starts_with("wirevip_takeover_seconds_bucket{"))
            .filter(|l| l.contains(&format!(r#"le="{le}""#)) && l.contains(r#"phase="link""#))
            .collect();
        assert_eq!(lines.len(), 1, "le={le} in\n{text}");
        lines[0].rsplit(' ').next().unwrap().to_owned()
    };
    assert_eq!(bucket("0.001"), "1");
    assert_eq!(bucket("0.05"), "2");
    assert_eq!(bucket("30.0"), "2");
    assert_eq!(bucket("+Inf"), "3");
}
