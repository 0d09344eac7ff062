//! `wirevip run`: the sidecar. Arguments in, [`RunConfig`] out; the daemon takes it from there.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{ArgAction, ValueEnum};
use tracing_subscriber::EnvFilter;

use super::logs;
use crate::election::Params;
use crate::secret::is_subdomain;
use crate::tunnel::Backend;

/// Run the sidecar: hold tunnels by Lease and forward their VIPs into the cluster
///
/// Talks to the cluster it runs in, else to the one of KUBECONFIG.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Namespace of this pod, its Secret and its Leases.
    #[arg(long, env = "POD_NAMESPACE")]
    namespace: Option<String>,
    /// Name of this pod.
    #[arg(long, env = "POD_NAME")]
    pod_name: Option<String>,
    /// UID of this pod; with its name, the holder in a Lease.
    #[arg(long, env = "POD_UID")]
    pod_uid: Option<String>,
    /// Name of the node that this pod runs on.
    #[arg(long, env = "NODE_NAME")]
    node_name: Option<String>,
    /// Name of the Secret with the tunnels.
    #[arg(long, env = "WIREVIP_SECRET_NAME", default_value = "wireguard")]
    secret_name: String,
    /// How long a Lease counts without renewal; whole seconds.
    #[arg(long, env = "WIREVIP_LEASE_DURATION", default_value = "5s", value_parser = duration, value_name = "TIME")]
    lease_duration: Duration,
    /// How long a leader tries to renew before it gives up.
    #[arg(long, env = "WIREVIP_RENEW_DEADLINE", default_value = "3s", value_parser = duration, value_name = "TIME")]
    renew_deadline: Duration,
    /// The time between two attempts.
    #[arg(long, env = "WIREVIP_RETRY_PERIOD", default_value = "1s", value_parser = duration, value_name = "TIME")]
    retry_period: Duration,
    /// Forward the API server on each tunnel that does not say `controlPlane: false`.
    #[arg(
        long, env = "WIREVIP_CONTROL_PLANE", default_value_t = true, default_missing_value = "true", num_args = 0..=1,
        require_equals = true, action = ArgAction::Set, value_name = "true|false"
    )]
    control_plane: bool,
    /// The VIP's port for the API server.
    #[arg(
        long, env = "WIREVIP_CONTROL_PLANE_PORT", default_value_t = 6443, value_name = "PORT",
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    control_plane_port: u16,
    /// Forward only Services of this namespace [default: all].
    #[arg(long, env = "WIREVIP_SERVICE_NAMESPACE", value_name = "NAMESPACE")]
    service_namespace: Option<String>,
    /// Who carries the packets: the kernel's WireGuard, or this process over /dev/net/tun.
    #[arg(long, env = "WIREVIP_BACKEND", default_value = "auto")]
    backend: BackendChoice,
    /// Let a tunnel answer on after its tenure, until a successor has the hub: an API server that is away or a process
    /// that hangs then costs clients nothing.
    #[arg(
        long, env = "WIREVIP_HOLD", default_value_t = true, default_missing_value = "true", num_args = 0..=1,
        require_equals = true, action = ArgAction::Set, value_name = "true|false"
    )]
    hold: bool,
    /// Where /livez, /readyz, /metrics and /status are served.
    #[arg(long, env = "WIREVIP_HTTP_ADDR", default_value = "0.0.0.0:9586", value_name = "ADDRESS:PORT")]
    http_addr: SocketAddr,
    /// How log lines look.
    #[arg(long, env = "WIREVIP_LOG_FORMAT", default_value = "text")]
    log_format: logs::Format,
    /// error, warn, info, debug, trace, off, or a filter like `wirevip=debug,kube=info`; RUST_LOG counts if this is
    /// not given [default: info].
    #[arg(long, env = "WIREVIP_LOG_LEVEL")]
    log_level: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum BackendChoice {
    /// The kernel's if it has WireGuard, else this process.
    Auto,
    /// The kernel's WireGuard.
    Kernel,
    /// WireGuard in this process.
    Userspace,
}

/// What a sidecar is to do, checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunConfig {
    /// Where this pod, its Secret and its Leases are.
    pub namespace: String,
    /// This pod.
    pub pod_name: String,
    /// Its UID.
    pub pod_uid: String,
    /// Its node.
    pub node_name: String,
    /// The Secret with the key `tunnels`.
    pub secret_name: String,
    /// The times of each election, by its rules.
    pub election: Params,
    /// May tunnels forward the API server at all?
    pub control_plane: bool,
    /// On which port of the VIP, from 1.
    pub control_plane_port: u16,
    /// The only namespace whose Services count; `None`: all.
    pub service_namespace: Option<String>,
    /// Who carries the packets; `None`: the kernel if it can, else this process.
    pub backend: Option<Backend>,
    /// May a tunnel answer on after its tenure?
    pub hold: bool,
    /// Where to serve HTTP.
    pub http_addr: SocketAddr,
}

/// `500ms`, `5s` or `1m`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "give a whole number and its unit, such as 5s or 500ms".to_owned();
    let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at_checked(split).ok_or_else(wrong)?;
    let number: u32 = number.parse().map_err(|_| wrong())?;
    match unit {
        "ms" => Ok(Duration::from_millis(number.into())),
        "s" => Ok(Duration::from_secs(number.into())),
        "m" => Ok(Duration::from_secs(u64::from(number) * 60)),
        _ => Err(wrong()),
    }
}

/// Checked arguments: what to do, and how to tell about it.
#[derive(Debug)]
pub(super) struct Setup {
    config: RunConfig,
    log_format: logs::Format,
    log_filter: EnvFilter,
}

impl Setup {
    /// Everything that is wrong with the arguments at once, or what they say. `rust_log`: the environment's RUST_LOG.
    pub(super) fn check(args: Args, rust_log: Option<String>) -> Result<Self, Vec<String>> {
        let Args {
            namespace,
            pod_name,
            pod_uid,
            node_name,
            secret_name,
            lease_duration,
            renew_deadline,
            retry_period,
            control_plane,
            control_plane_port,
            service_namespace,
            backend,
            hold,
            http_addr,
            log_format,
            log_level,
        } = args;
        let mut wrong = Vec::new();
        let election = Params { lease: lease_duration, renew_deadline, retry: retry_period };
        if let Err(why) = election.check() {
            wrong.push(format!("--lease-duration, --renew-deadline, --retry-period: {why}"));
        }
        let level = [log_level, rust_log].into_iter().flatten().find(|level| !level.trim().is_empty());
        let log_filter = logs::filter(level.as_deref().unwrap_or("info")).map_err(|why| wrong.push(why)).ok();
        for (flag, name) in [("--secret-name", Some(&secret_name)), ("--namespace", namespace.as_ref())] {
            if let Some(name) = name.filter(|name| !name.is_empty() && !is_subdomain(name)) {
                wrong.push(format!("{flag}: `{name}` is no name of a Kubernetes object"));
            }
        }
        if secret_name.is_empty() {
            wrong.push("--secret-name is empty; leave it out for `wireguard`".to_owned());
        }
        // Empty is what an unset chart value leaves in the environment.
        let service_namespace = service_namespace.filter(|name| !name.is_empty());
        if let Some(name) = service_namespace.as_ref().filter(|name| !is_subdomain(name)) {
            wrong.push(format!("--service-namespace: `{name}` is no name of a namespace"));
        }
        let mut given = |flag: &str, variable: &str, field: &str, value: Option<String>| {
            let value = value.filter(|value| !value.is_empty());
            if value.is_none() {
                wrong.push(format!(
                    "{flag} is missing; in a pod, set {variable} from the downward API (fieldRef {field})"
                ));
            }
            value.unwrap_or_default()
        };
        let config = RunConfig {
            namespace: given("--namespace", "POD_NAMESPACE", "metadata.namespace", namespace),
            pod_name: given("--pod-name", "POD_NAME", "metadata.name", pod_name),
            pod_uid: given("--pod-uid", "POD_UID", "metadata.uid", pod_uid),
            node_name: given("--node-name", "NODE_NAME", "spec.nodeName", node_name),
            secret_name,
            election,
            control_plane,
            control_plane_port,
            service_namespace,
            backend: match backend {
                BackendChoice::Auto => None,
                BackendChoice::Kernel => Some(Backend::Kernel),
                BackendChoice::Userspace => Some(Backend::Userspace),
            },
            hold,
            http_addr,
        };
        match log_filter {
            Some(log_filter) if wrong.is_empty() => Ok(Self { config, log_format, log_filter }),
            _ => Err(wrong),
        }
    }
}

/// Logs on, runtime up, sidecar in.
pub(super) fn start(setup: Setup) -> anyhow::Result<()> {
    let Setup { config, log_format, log_filter } = setup;
    logs::start(log_format, log_filter);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(crate::daemon::run(config));
    // Dropping it would wait for threads that still ask a name server for the API server's address, 10 s and more each.
    runtime.shutdown_background();
    ended
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        args: Args,
    }

    const POD: [&str; 5] = ["run", "--namespace=w", "--pod-name=w-x", "--pod-uid=u", "--node-name=n"];

    fn config(more: &[&str]) -> Result<RunConfig, Vec<String>> {
        let Only { args } = Only::try_parse_from(POD.iter().chain(more)).map_err(|error| vec![error.to_string()])?;
        Setup::check(args, None).map(|setup| setup.config)
    }

    #[test]
    fn what_is_not_given_is_as_documented() {
        let seconds = Duration::from_secs;
        let expected = RunConfig {
            namespace: "w".to_owned(),
            pod_name: "w-x".to_owned(),
            pod_uid: "u".to_owned(),
            node_name: "n".to_owned(),
            secret_name: "wireguard".to_owned(),
            election: Params { lease: seconds(5), renew_deadline: seconds(3), retry: seconds(1) },
            control_plane: true,
            control_plane_port: 6443,
            service_namespace: None,
            backend: None,
            hold: true,
            http_addr: ([0, 0, 0, 0], 9586).into(),
        };
        assert_eq!(config(&[]), Ok(expected));
    }

    #[test]
    fn what_is_given_counts() {
        let given = [
            "--lease-duration=15s",
            "--renew-deadline=10s",
            "--retry-period=1500ms",
            "--control-plane=false",
            "--control-plane-port=443",
            "--service-namespace=apps",
            "--backend=userspace",
            "--hold=false",
            "--http-addr=[::]:80",
        ];
        let config = config(&given).unwrap();
        assert_eq!(config.election.renew_deadline, Duration::from_secs(10));
        assert_eq!(config.election.retry, Duration::from_millis(1500));
        assert!(!config.control_plane && !config.hold);
        assert_eq!((config.control_plane_port, config.backend), (443, Some(Backend::Userspace)));
        assert_eq!(config.service_namespace.as_deref(), Some("apps"));
        assert_eq!(config.http_addr.to_string(), "[::]:80");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for flag in [
            "--lease-duration=4s",
            "--lease-duration=5500ms",
            "--renew-deadline=1s",
            "--retry-period=0s",
            "--retry-period=1",
            "--retry-period=1.5s",
            "--retry-period=-1s",
            "--retry-period=99999999999s",
            "--control-plane=yes",
            "--control-plane-port=0",
            "--control-plane-port=65536",
            "--service-namespace=Apps",
            "--secret-name=",
            "--backend=magic",
            "--http-addr=9586",
            "--log-format=xml",
            "--log-level=wirevip=loud",
            "--hold=maybe",
        ] {
            assert!(config(&[flag]).is_err(), "{flag}");
        }
    }

    #[test]
    fn rust_log_counts_where_no_level_is_given() {
        let filter = |flags: &[&str], rust_log: &str| {
            let Only { args } = Only::try_parse_from(POD.iter().chain(flags)).unwrap();
            Setup::check(args, Some(rust_log.to_owned())).map(|setup| setup.log_filter.to_string())
        };
        let sorted = |text: String| text.split(',').map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
        for (flags, rust_log, expected) in [
            (&[][..], "", "warn,gotatun=off,wirevip=info"),
            (&[], "debug", "warn,gotatun=off,wirevip=debug"),
            (&[], "kube=trace,info", "kube=trace,info"),
            (&["--log-level=debug"], "trace", "warn,gotatun=off,wirevip=debug"),
        ] {
            let filter = filter(flags, rust_log).unwrap();
            let always = format!("{expected},kube_client=off,kube_runtime=error");
            assert_eq!(sorted(filter), sorted(always), "{flags:?} {rust_log}");
        }
    }
}
