//! Wiring: the only file that knows every stage.
//!
//! The order at start: clean up what an earlier life left but for tunnels in hold (before any word with the API, I3) → check what is needed →
//! listen → connect → watch. The order at the end: every tunnel down and its Lease given back, all at once, within 3 s.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::admin::{self, Pages};
use crate::api::client::{self, Credentials};
use crate::cli::run::RunConfig;
use crate::clock::BootClock;
use crate::inheritance;
use crate::metrics::Metrics;
use crate::ruleset::NetlinkFirewall;
use crate::status::board::{Board, Pod};
use crate::tunnel::network::KernelNet;
use crate::tunnel::preflight::preflight;
use crate::tunnel::rtnl::Rtnl;
use crate::tunnel::system::SystemLinks;
use crate::tunnel::{Backend, BackendChoice, Found, HostNet, Nic};

mod fleet;
mod gauges;
mod herald;
mod leaving;

use fleet::Fleet;

/// All tunnels must be down and given back by then; what is not, runs out by itself.
const STOP_WITHIN: Duration = Duration::from_millis(2700);
/// How often the pod's NIC is looked at again.
const NIC_EVERY: Duration = Duration::from_secs(5);

/// Runs the sidecar until SIGTERM or SIGINT. A second signal ends it at once.
pub async fn run(config: RunConfig) -> anyhow::Result<()> {
    // Keys are in memory: neither a core dump nor another process of this user may read it (I8).
    nix::sys::prctl::set_dumpable(false).context("cannot forbid core dumps")?;
    let mut signals = Signals::new()?;
    let clock = Arc::new(BootClock);
    let rtnl = Rtnl::open().context("cannot talk to the kernel's routing (rtnetlink)")?;
    let net = Arc::new(KernelNet::new(rtnl.clone()));
    let choice = match config.backend {
        None => BackendChoice::Auto,
        Some(Backend::Kernel) => BackendChoice::Kernel,
        Some(Backend::Userspace) => BackendChoice::Userspace,
    };
    let swept = sweep(&net, config.hold && choice != BackendChoice::Userspace).await;
    let backend = preflight(choice, &rtnl).await.map_err(|missing| {
        let lines: Vec<_> = missing.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("this pod cannot run wirevip:\n  {}", lines.join("\n  "))
    })?;
    // After the checks, whose words on a missing capability are plainer.
    let (mut found, mut firewall) = swept?;
    if backend != Backend::Kernel {
        // The kernel had WireGuard, and has it no more: nobody can take that over.
        for found in found.drain(..) {
            inheritance::discard(&*net, &mut firewall, &found).await?;
        }
    }
    let links = Arc::new(SystemLinks::new(backend, rtnl).context("cannot prepare WireGuard")?);
    let listener = admin::listen(config.http_addr).await?;

    let metrics = Metrics::new();
    let identity = format!("{}_{}", config.pod_name, config.pod_uid);
    let pod = Pod { name: config.pod_name.clone(), node: config.node_name.clone(), identity, backend };
    let board = Arc::new(Board::new(pod, clock.clone()));
    let pages = Pages { board: Arc::clone(&board), metrics: gauges::renderer(&metrics, &board, clock.clone()) };
    let connection = client::connect(Credentials::Pod, &metrics).await?;
    tracing::info!(backend = ?backend, version = env!("CARGO_PKG_VERSION"), "ready to serve; waiting for the Secret");

    let nic = net.nic().await?;
    let (nic_sender, nic) = watch::channel(nic);
    let (stop_sender, stop) = watch::channel(false);
    let fleet = Fleet::new(fleet::Parts {
        config,
        clock,
        links,
        net: Arc::clone(&net),
        firewall,
        found,
        metrics,
        board,
        connection,
        nic,
        stop,
    })?;
    let mut fleet = tokio::spawn(fleet.run());
    tokio::select! {
        () = admin::serve(listener, pages, admin::Limits::default()) => anyhow::bail!("the HTTP server ended by itself"),
        ended = &mut fleet => anyhow::bail!("the fleet of tunnels ended by itself: {ended:?}"),
        () = follow_nic(&net, nic_sender) => Ok(()),
        signal = signals.next() => {
            tracing::info!(signal, "handing over");
            stop_sender.send_replace(true);
            tokio::select! {
                ended = tokio::time::timeout(STOP_WITHIN, &mut fleet) => match ended {
                    Ok(Ok(())) => { tracing::info!("handed over; nothing is left"); Ok(()) }
                    Ok(Err(panicked)) => Err(panicked.into()),
                    Err(_) => anyhow::bail!("not everything was down within {STOP_WITHIN:?}; what is left goes at the next start"),
                },
                signal = signals.next() => anyhow::bail!("a second {signal}: ending at once; what is left goes at the next start"),
            }
        }
    }
}

/// Removes what an earlier life left in this network namespace, but for what may serve on, if anything may. Needs no API,
/// and comes before everything else. Returns that, and the way to the kernel's tables, one for all tunnels.
async fn sweep(net: &KernelNet, inherit: bool) -> anyhow::Result<(Vec<Found>, NetlinkFirewall)> {
    let mut firewall = NetlinkFirewall::open()?;
    let found = match inherit {
        true => inheritance::find(net, &mut firewall).await.unwrap_or_else(|error| {
            // The clean-up fails too then, or the checks that follow do, and tell why.
            tracing::debug!(%error, "what an earlier life left cannot be looked at");
            vec![]
        }),
        false => vec![],
    };
    inheritance::sweep(net, &mut firewall, &found).await?;
    Ok((found, firewall))
}

async fn follow_nic(net: &KernelNet, sender: watch::Sender<Nic>) {
    loop {
        tokio::time::sleep(NIC_EVERY).await;
        match net.nic().await {
            Ok(nic) => {
                sender.send_if_modified(|known| {
                    let changed = *known != nic;
                    *known = nic;
                    changed
                });
            }
            // The tunnels keep what they have; their own steps tell what no longer works.
            Err(error) => tracing::debug!(%error, "the pod's NIC cannot be seen"),
        }
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
