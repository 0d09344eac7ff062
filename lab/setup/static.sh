#!/usr/bin/env bash
# static.sh [x86_64|aarch64]: the release binary without any library beside it, as the image takes it.
# Prints its path: target/<triple>/release/wirevip.
. "$(dirname "$0")/lib.sh"

arch=${1:-$(uname -m)}
case $arch in x86_64 | aarch64) ;; *) fail "static.sh builds for x86_64 or aarch64, not '$arch'" ;; esac
triple=$arch-unknown-linux-gnu

lab/setup/rust.sh
if [ "$arch" != "$(uname -m)" ]; then
  lab/setup/packages.sh "cross_$arch"
  rustup target list --installed | grep -qx "$triple" || rustup target add "$triple" >&2
  # The linker for Rust, and the compiler for the C and assembly in ring.
  upper=$(tr 'a-z-' 'A-Z_' <<<"$triple")
  export "CARGO_TARGET_${upper}_LINKER=$arch-linux-gnu-gcc" "CC_${triple//-/_}=$arch-linux-gnu-gcc"
fi
# With --target the flags are not used for build scripts and macros, which must stay dynamic.
RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --package wirevip --bin wirevip --target "$triple"
echo "${CARGO_TARGET_DIR:-target}/$triple/release/wirevip"
