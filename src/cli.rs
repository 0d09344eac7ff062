//! The command line: one file a subcommand.
//!
//! What must hold: results go to stdout and all else to stderr; the exit code is 0 done, 1 failed, 2 bad usage or
//! configuration; arguments are checked whole before anything else is read.

mod check;
mod completion;
mod logs;
pub mod run;
mod status;

use std::io::Write;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

/// Gives a private Kubernetes cluster a public address over outbound WireGuard, with fast and fenced failover.
#[derive(Parser)]
#[command(name = "wirevip", version, propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(Box<run::Args>),
    Check(check::Args),
    Status(status::Args),
    Completion(completion::Args),
}

/// How a command ended, if it did its work at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    /// All is well.
    Done,
    /// The work is done, and its result is that something given is wrong.
    Refused,
    /// Something was done, and what is missing is in the result.
    Partial,
}

/// The whole program.
pub fn main() -> ExitCode {
    let Cli { command } = Cli::parse();
    let mut stdout = std::io::stdout().lock();
    let outcome = match command {
        Command::Run(args) => match run::Setup::check(*args, std::env::var("RUST_LOG").ok()) {
            Ok(setup) => run::start(setup).map(|()| Outcome::Done),
            Err(wrong) => return usage("run", &wrong),
        },
        Command::Check(args) => check::run(args, &mut stdout),
        Command::Status(args) => match status::Plan::check(args) {
            Ok(plan) => status::run(&plan, &mut stdout),
            Err(wrong) => return usage("status", &wrong),
        },
        Command::Completion(args) => completion::run(args, &mut Cli::command(), &mut stdout).map(|()| Outcome::Done),
    };
    let flushed = stdout.flush();
    match outcome.and_then(|outcome| Ok(flushed.map(|()| outcome)?)) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Refused) => ExitCode::from(2),
        Ok(Outcome::Partial) => ExitCode::FAILURE,
        // Whoever reads has seen enough (`wirevip check … | head -1`): nothing to tell anyone.
        Err(error) if is_broken_pipe(&error) => ExitCode::FAILURE,
        Err(error) => {
            // `{:#}`: the causes are not repeated in each error's own text.
            let _ = writeln!(std::io::stderr(), "wirevip: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Tells everything that is wrong with the arguments, as clap tells what it finds itself.
fn usage(subcommand: &str, wrong: &[String]) -> ExitCode {
    let mut cli = Cli::command();
    cli.build();
    let command = cli.find_subcommand_mut(subcommand);
    let message = wrong.join("\nerror: ");
    let error = match command {
        Some(command) => command.error(ErrorKind::ValueValidation, message),
        None => cli.error(ErrorKind::ValueValidation, message),
    };
    // Nowhere to tell it: the exit code still does.
    let _ = error.print();
    ExitCode::from(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
