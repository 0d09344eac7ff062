#!/usr/bin/env bash
# deny.sh: licences, duplicate and foreign sources, and known vulnerabilities, by cargo-deny and deny.toml.
. "$(dirname "$0")/lib.sh"

lab/setup/rust.sh
if ! have cargo-deny; then
  say "installing cargo-deny (minutes, once)"
  # A fast build of a tool that runs for a second: its own optimisation would cost more than it saves.
  CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
    cargo install cargo-deny --version 0.20.2 --locked --quiet --root target/tools --target-dir target/tools/build
fi
cargo deny --workspace --locked check licenses bans sources
database=https://github.com/RustSec/advisory-db
if timeout 30 curl -fsS -o /dev/null "$database" 2>/dev/null; then
  cargo deny --workspace --locked check advisories
else
  note "known vulnerabilities: NOT CHECKED, $database cannot be reached from here"
fi
