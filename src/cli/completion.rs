//! `wirevip completion SHELL`.

use std::io::Write;

use clap_complete::Shell;

/// Print a completion script for a shell
///
/// For bash: `source <(wirevip completion bash)`.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The shell that is to complete `wirevip`.
    shell: Shell,
}

pub(super) fn run(args: Args, command: &mut clap::Command, out: &mut impl Write) -> anyhow::Result<()> {
    let Args { shell } = args;
    // Into memory first: clap_complete panics when it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(shell, command, "wirevip", &mut script);
    Ok(out.write_all(&script)?)
}
