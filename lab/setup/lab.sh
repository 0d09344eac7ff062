#!/usr/bin/env bash
# lab.sh demo|bench …: builds the release binary and the lab, and runs the lab on it.
. "$(dirname "$0")/lib.sh"

lab/setup/packages.sh lab
need_namespaces
lab/setup/rust.sh
cargo build --release --locked --package wirevip --package lab
release=${CARGO_TARGET_DIR:-target}/release
command=${1:?"usage: lab.sh demo|bench …"}
shift
# Ctrl-C reaches the lab too, which then removes every trace.
namespaces "$release/lab" "$command" --bin "$release/wirevip" "$@"
