//! `wirevip check`: every fault of a Secret, before a cluster sees it.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;
use zeroize::Zeroizing;

use super::Outcome;
use crate::secret::{Fault, manifest};

/// No file of Secrets is larger: each is at most 1 MiB to Kubernetes.
const MOST_BYTES: u64 = 16 << 20;

/// Check the Secret of tunnels: every fault at once
///
/// Reads a Secret manifest (stringData or data), several of them, or the bare document of tunnels, and prints each
/// fault as `FILE:LINE: TUNNEL.KEY: what is wrong; what would be right`. Needs no cluster and no root. Never prints
/// a key. Exits with 2 if there are faults.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The file to check, or - for standard input.
    #[arg(short, long, env = "WIREVIP_FILE")]
    file: PathBuf,
    /// How to print the faults.
    #[arg(short, long, env = "WIREVIP_OUTPUT", default_value = "text")]
    output: Output,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Output {
    /// A line a fault.
    Text,
    /// An array of {file, line, tunnel, key, message, fix}.
    Json,
}

pub(super) fn run(args: Args, out: &mut impl Write) -> anyhow::Result<Outcome> {
    let Args { file, output } = args;
    let name = file.display().to_string();
    let bytes = read(&file).with_context(|| format!("cannot read {name}; give a file, or - for standard input"))?;
    let checked = match bytes {
        Some(bytes) => manifest::check(&bytes),
        None => manifest::Checked::too_large("16 MiB"),
    };
    match output {
        Output::Text => {
            for fault in &checked.faults {
                writeln!(out, "{}", line(&name, fault))?;
            }
        }
        Output::Json => {
            let entries: Vec<Entry<'_>> = checked.faults.iter().map(|fault| Entry { file: &name, fault }).collect();
            serde_json::to_writer_pretty(&mut *out, &entries)?;
            writeln!(out)?;
        }
    }
    // Beside faults, and beside JSON, what follows is not the result that someone may count or parse.
    if checked.faults.is_empty() && matches!(output, Output::Text) {
        summary(&name, &checked, out)?;
        Ok(Outcome::Done)
    } else {
        summary(&name, &checked, &mut std::io::stderr())?;
        Ok(if checked.faults.is_empty() { Outcome::Done } else { Outcome::Refused })
    }
}

/// The file's bytes; nothing if there are more than [`MOST_BYTES`].
fn read(file: &Path) -> std::io::Result<Option<Zeroizing<Vec<u8>>>> {
    let source: Box<dyn Read> = match file.to_str() {
        Some("-") => Box::new(std::io::stdin().lock()),
        _ => Box::new(File::open(file)?),
    };
    let mut bytes = Zeroizing::new(Vec::new());
    source.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= MOST_BYTES).then_some(bytes))
}

/// A fault as an element of the JSON array.
#[derive(Serialize)]
struct Entry<'a> {
    file: &'a str,
    #[serde(flatten)]
    fault: &'a Fault,
}

fn line(file: &str, fault: &Fault) -> String {
    let Fault { line, tunnel, key, message, fix } = fault;
    let place = match (tunnel, key) {
        (Some(tunnel), Some(key)) => format!("{tunnel}.{key}: "),
        (Some(one), None) | (None, Some(one)) => format!("{one}: "),
        (None, None) => String::new(),
    };
    format!("{file}:{line}: {place}{message}; {fix}")
}

/// What the file would do: above all, whose API server it puts on the internet.
fn summary(file: &str, checked: &manifest::Checked, out: &mut impl Write) -> std::io::Result<()> {
    let manifest::Checked { tunnels, faults } = checked;
    let count = |number: usize, what: &str| format!("{number} {what}{}", if number == 1 { "" } else { "s" });
    writeln!(out, "{file}: {}, {}", count(tunnels.len(), "sound tunnel"), count(faults.len(), "fault"))?;
    for tunnel in tunnels {
        let (name, vip) = (&tunnel.name, tunnel.vip);
        if tunnel.control_plane {
            writeln!(out, "{file}: {name} exposes the API server on {vip}:6443; controlPlane: false keeps it in")?;
        } else {
            writeln!(out, "{file}: {name} does not expose the API server")?;
        }
    }
    Ok(())
}
