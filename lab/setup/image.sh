#!/usr/bin/env bash
# image.sh: target/image/wirevip.tar, an OCI archive with the image that the Dockerfile builds: the static binary and nothing
# else. For this machine's architecture, and for the other one too if `make build` or `make arm64` has built its binary.
. "$(dirname "$0")/lib.sh"

version=$(sed -n '/^\[workspace.package\]/,/^\[/ s/^version = "\(.*\)"/\1/p' Cargo.toml)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
roots=()
architectures=
for pair in x86_64:amd64 aarch64:arm64; do
  arch=${pair%:*} architecture=${pair#*:}
  if [ "$arch" != "$(uname -m)" ] && [ ! -e "${CARGO_TARGET_DIR:-target}/$arch-unknown-linux-gnu/release/wirevip" ]; then
    note "$architecture: left out, its binary was never built here"
  else
    install -D -m 755 "$(lab/setup/static.sh "$arch")" "$work/$architecture/wirevip"
    roots+=("$work/$architecture")
    architectures+="$architecture "
  fi
done
NAME=localhost/wirevip:$version ENTRYPOINT='["/wirevip"]' CMD='["run"]' ARCHITECTURES=$architectures \
  lab/setup/archive.sh target/image/wirevip.tar "${roots[@]}"
note "localhost/wirevip:$version (${architectures% }): target/image/wirevip.tar, $(du -h target/image/wirevip.tar | cut -f 1)"
