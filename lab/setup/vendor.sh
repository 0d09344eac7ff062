#!/usr/bin/env bash
# vendor.sh: makes vendor/gotatun anew: the published crate, less its tests, with vendor/gotatun.patch.
# vendor.sh --check: exit 1, with the difference, when vendor/gotatun is anything else.
# vendor.sh --patch: writes vendor/gotatun.patch anew, from vendor/gotatun as it is.
. "$(dirname "$0")/lib.sh"

crate=gotatun-0.10.2
sha256=5e37c2134d46523ed5b3c4bbdb578225e2e7379d03aea65baef41584725b1991
# Cargo's own notes, and what only `cargo test` and `cargo bench` of the crate itself would read.
left_out=(Cargo.lock Cargo.toml.orig .cargo_vcs_info.json benches tests src/device/tests src/device/tests.rs src/device/integration_tests)

lab/setup/packages.sh vendor
lab/setup/rust.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# published DIR: the crate as the registry has it, less what is left out. `cargo info` is what downloads one crate alone.
published() {
  local home=${CARGO_HOME:-$HOME/.cargo} archive
  (cd "$work" && cargo info --quiet --registry crates-io "${crate%-*}@${crate##*-}" >/dev/null) || fail "$crate could not be downloaded"
  archive=$(find "$home/registry/cache" -name "$crate.crate" | head -n 1)
  sha256sum --quiet --check <<<"$sha256  $archive" || fail "$archive is not the crate that was read: compare before you trust it"
  mkdir -p "$1"
  tar -xzf "$archive" -C "$1" --strip-components 1
  (cd "$1" && rm -r "${left_out[@]}")
}

# difference A B: as the patch has it, without dates.
difference() { (cd "$work" && diff -ruN --label "a/$3" --label "b/$3" "$1/$3" "$2/$3") || [ $? = 1 ]; }

case ${1:-} in
  --patch)
    published "$work/a"
    cp -r vendor/gotatun "$work/b"
    (cd "$work" && find a b -type f -printf '%P\n') | LC_ALL=C sort -u | while read -r file; do difference a b "$file"; done >vendor/gotatun.patch
    ;;
  --check | "")
    published "$work/gotatun"
    patch --quiet --directory "$work/gotatun" --strip 1 --no-backup-if-mismatch <vendor/gotatun.patch || status=$?
    if [ -n "${1:-}" ]; then
      diff -ru "$work/gotatun" vendor/gotatun >&2 || fail "vendor/gotatun is not $crate with vendor/gotatun.patch: see vendor/README.md"
    else
      rm -rf vendor/gotatun
      cp -r "$work/gotatun" vendor/gotatun
    fi
    [ "${status:-0}" = 0 ] || fail "vendor/gotatun.patch does not fit $crate: see vendor/README.md"
    ;;
  *) fail "usage: vendor.sh [--check|--patch]" ;;
esac
