#!/bin/sh
# instrument.sh RUSTC ARGUMENT …: rustc for the crates of this workspace (as RUSTC_WORKSPACE_WRAPPER), with the
# counters that libFuzzer reads, and fast. All of these are options of the stable compiler. What these crates depend on
# is not built anew, so that the fuzzers share it with `cargo test`; generic code of theirs is counted where it is used.
exec "$@" -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
  -Cllvm-args=-sanitizer-coverage-trace-compares \
  -Copt-level=1 -Cdebug-assertions=on -Coverflow-checks=on
