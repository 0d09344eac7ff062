//! Whole daemons against simulated chance: see `docs/simulation.md`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, reason = "all of it is tests")]

mod broken;
mod checker;
mod clock;
mod kernel;
mod mutants;
mod packets;
mod pod;
mod process;
mod record;
mod rules;
mod run;
mod weather;
mod wire;
mod wireguard;
mod world;
