//! Logs go to stderr, as text or as one JSON object a line.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(super) enum Format {
    /// For people.
    Text,
    /// For collectors.
    Json,
}

/// What to log: a level for wirevip itself, while libraries only warn; or a whole filter as RUST_LOG takes it.
///
/// gotatun is heard only in a filter that names it. Its tasks end in an order that differs each time, and it calls that
/// an error at every orderly stop; what matters of it (the link is gone) is told by the tunnel's backend.
pub(super) fn filter(level: &str) -> Result<EnvFilter, String> {
    let level = level.trim();
    let directives = match level.to_ascii_lowercase().as_str() {
        plain @ ("error" | "warn" | "info" | "debug" | "trace") => format!("warn,gotatun=off,wirevip={plain}"),
        "off" => "off".to_owned(),
        _ if level.contains(['=', ',']) => level.to_owned(),
        _ => return Err(format!("`{level}` is no log level; give error, warn, info, debug, trace, off or a filter")),
    };
    let wrong = |error| format!("`{level}` is no log filter: {error}; give a level or target=level,…");
    let mut filter = EnvFilter::builder().parse(&directives).map_err(wrong)?;
    // kube_client logs whole bodies that it cannot parse: no filter may ask for those of a Secret (I8).
    for quiet in ["kube_client=off", "kube_runtime=error"] {
        filter = filter.add_directive(quiet.parse().map_err(wrong)?);
    }
    Ok(filter)
}

/// From here on, events go to stderr.
pub(super) fn start(format: Format, filter: EnvFilter) {
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        Format::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        Format::Json => builder.json().flatten_event(true).init(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gotatun_is_heard_only_when_it_is_named() {
        let of = |level| filter(level).unwrap().to_string();
        assert!(of("debug").contains("gotatun=off") && of("debug").contains("wirevip=debug"), "{}", of("debug"));
        assert!(of("info,gotatun=debug").contains("gotatun=debug"), "{}", of("info,gotatun=debug"));
    }
}
