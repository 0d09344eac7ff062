#!/usr/bin/env bash
# emulated.sh aarch64|x86_64: has the binary that static.sh built for another machine read every example in tests/check, in an
# emulator of that machine. Exit 1, with the difference, when one is told otherwise than on this one. What needs a kernel
# (links, rules) is not tried.
. "$(dirname "$0")/lib.sh"

arch=$1
lab/setup/packages.sh "emulated_$arch"
binary=$(cd "${CARGO_TARGET_DIR:-target}" && pwd)/$arch-unknown-linux-gnu/release/wirevip
cd tests/check
told=0
for example in good/*.out bad/*.out; do
  { "qemu-$arch-static" "$binary" check -f "${example%.out}" 2>/dev/null || [ $? = 2 ]; } | diff -u "$example" - >&2 ||
    fail "the binary for $arch reads tests/check/${example%.out} otherwise"
  told=$((told + 1))
done
note "$arch: $told examples are read as on this machine"
