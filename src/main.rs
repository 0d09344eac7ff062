//! Arguments → logs → subcommand → exit code; all of it in [`wirevip::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    wirevip::cli::main()
}
