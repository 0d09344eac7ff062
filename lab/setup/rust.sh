#!/usr/bin/env bash
# rust.sh [COMPONENT …]: a Rust new enough for Cargo.toml's rust-version, by rustup where none is there.
. "$(dirname "$0")/lib.sh"

# A linker and C headers, and curl to fetch rustup with.
lab/setup/packages.sh build
need=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
if ! have cargo || ! version_at_least "$need" "$(rustc --version 2>&1 || true)"; then
  if ! have rustup; then
    # The version that this project is tested with, so that a lint of tomorrow fails nobody's first build.
    say "installing Rust $need with rustup, for this user (into ${CARGO_HOME:-$HOME/.cargo})"
    script=$(mktemp)
    trap 'rm -f "$script"' EXIT
    curl --proto '=https' --tlsv1.2 -fsS -o "$script" https://static.rust-lang.org/rustup/rustup-init.sh ||
      fail "rustup could not be fetched: check the network, or install Rust $need or newer by hand"
    sh "$script" -y --quiet --no-modify-path --profile minimal --default-toolchain "$need" </dev/null >/dev/null
    hash -r
  fi
  version_at_least "$need" "$(rustc --version 2>&1 || true)" || {
    say "this project needs Rust $need: installing it with rustup, for this directory alone"
    rustup toolchain install --profile minimal "$need" >&2 && rustup override set "$need" >&2
    hash -r
  }
  version_at_least "$need" "$(rustc --version 2>&1 || true)" ||
    fail "Rust $need or newer is needed, found: $(command -v rustc) $(rustc --version 2>&1). Put rustup's first in PATH"
fi
for component in "$@"; do
  case $component in
    clippy) cargo clippy --version >/dev/null 2>&1 || rustup component add clippy >&2 ;;
    rustfmt) cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt >&2 ;;
    *) fail "rust.sh knows no component '$component'" ;;
  esac
done
