//! The lab's commands.
//!
//! Without root they run in a user namespace of their own, where the host allows that. Ctrl-C makes every wait end
//! with an error, so that the world goes down in order; a second one ends the lab at once, and the kernel ends the
//! world with it.

mod bench;
mod demo;
mod live;
mod needs;
mod referee;
pub mod screen;
mod up;

use std::path::PathBuf;
use std::process::{ExitCode, exit};
use std::time::Duration;

use self::bench::Extent;
use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use lab::WorldSpec;
use lab::api::Kind;
use lab::clock;
use tokio::signal::unix::{SignalKind, signal};

/// A small internet out of network namespaces, with the real sidecars in it and a client beyond the VPN node
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show a hand-over, a kill and a node cut, and the gap of each at the client
    Demo {
        #[command(flatten)]
        world: WorldArgs,
    },
    /// Measure gaps over many runs, and what a pod costs
    Bench {
        /// Measure this alone.
        #[arg(value_name = "WHAT")]
        only: Option<bench::Part>,
        #[command(flatten)]
        world: WorldArgs,
        /// Runs of each kind of takeover [default: 30, and 100 hand-overs].
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        runs: Option<u32>,
        /// Seconds for which the API server is away: 600 for what the documentation promises.
        #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(10..))]
        outage: u64,
        /// Tunnels of `scale`, each with a hub of its own: a hundred want 4 GB of memory.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u8).range(1..=100))]
        tunnels: u8,
    },
    /// Judge a record of what was said at the hubs, and print it: who had whose turn, and who was heard beside
    Referee {
        /// A record that a world left where WIREVIP_RECORDS names a directory, or that a failed test names.
        #[arg(value_name = "FILE")]
        record: PathBuf,
    },
    /// Answer with this name on this port, TCP and UDP, as the backends of a world do: for containers
    Backend {
        /// What it answers with.
        name: String,
        /// Its port.
        port: u16,
    },
    /// Keep a world up to play in, until Ctrl-C
    Up {
        #[command(flatten)]
        world: WorldArgs,
    },
}

#[derive(clap::Args)]
struct WorldArgs {
    /// The sidecar's program.
    #[arg(long, value_name = "FILE")]
    bin: PathBuf,
    /// Nodes with a sidecar.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=9))]
    nodes: u8,
    /// Which API server.
    #[arg(long, default_value = "embedded")]
    api: Api,
    /// An argument for the sidecars, e.g. --arg=--log-level=debug; may be given often.
    #[arg(long = "arg", value_name = "ARGUMENT", allow_hyphen_values = true)]
    args: Vec<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Api {
    /// The lab's own, in this process.
    Embedded,
    /// kube-apiserver and etcd.
    Real,
}

impl WorldArgs {
    fn spec(&self) -> Result<WorldSpec> {
        let bin = self
            .bin
            .canonicalize()
            .with_context(|| format!("no program {}; build it with `cargo build --release`", self.bin.display()))?;
        let kind = match self.api {
            Api::Embedded => Kind::Embedded,
            Api::Real => Kind::Real,
        };
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        Ok(WorldSpec::default().bin(bin).nodes(self.nodes).api(kind).args(&args))
    }
}

/// Reads the command line and does what it says.
pub fn run() -> Result<ExitCode> {
    let args = Args::parse();
    if !matches!(args.command, Command::Referee { .. } | Command::Backend { .. }) {
        if let Some(code) = needs::become_root()? {
            return Ok(code);
        }
        needs::check()?;
        heed_signals()?;
    }
    let done = match &args.command {
        Command::Demo { world } => demo::run(world.spec()?),
        Command::Bench { only, world, runs, outage, tunnels } => bench::run(
            &world.spec()?,
            *only,
            Extent { runs: *runs, outage: Duration::from_secs(*outage), tunnels: *tunnels },
        ),
        Command::Up { world } => up::run(world.spec()?),
        Command::Backend { name, port } => lab::backend::serve(name, *port),
        Command::Referee { record } => return referee::run(record),
    };
    match done {
        Err(_) if clock::interrupted() => {
            screen::complain("stopped; nothing is left");
            Ok(ExitCode::from(130))
        }
        other => other.map(|()| ExitCode::SUCCESS),
    }
}

fn heed_signals() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
                if clock::interrupted() {
                    exit(130);
                }
                clock::interrupt();
            }
        });
    })?;
    Ok(())
}
