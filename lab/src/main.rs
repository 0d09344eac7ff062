//! `lab`: a small internet to watch, to measure, or to play in.

mod command;

use std::process::ExitCode;

fn main() -> ExitCode {
    match command::run() {
        Ok(code) => code,
        Err(error) => {
            command::screen::complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}
