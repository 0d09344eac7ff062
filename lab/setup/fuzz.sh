#!/usr/bin/env bash
# fuzz.sh SECONDS [FUZZER …]: builds the fuzzers of tests/fuzz (secret, services, api) and runs them side by side for so
# long. What they learn is kept in target/fuzz for the next run; a broken input is named, with the way to try it again.
. "$(dirname "$0")/lib.sh"

seconds=${1:-}
[[ $seconds =~ ^[0-9]+$ ]] || fail "usage: fuzz.sh SECONDS [secret|services|api …]"
shift
[ $# -gt 0 ] || set -- secret services api

lab/setup/packages.sh fuzz
export RUSTC_WORKSPACE_WRAPPER=$top/lab/setup/instrument.sh
build=(cargo test --workspace --locked --features fuzz/fuzzers --no-run --message-format json-render-diagnostics)
for fuzzer; do build+=(--test "fuzz-$fuzzer"); done
built=$("${build[@]}")

declare -A process program
for fuzzer; do
  learnt=target/fuzz/$fuzzer
  mkdir -p "$learnt"
  program[$fuzzer]=$(grep -oE '"executable":"[^"]+"' <<<"$built" | cut -d '"' -f 4 | grep "/fuzz_$fuzzer-")
  examples=("tests/fuzz/corpus/$fuzzer")
  [ "$fuzzer" != secret ] || examples+=(tests/check/good tests/check/bad)
  "${program[$fuzzer]}" -max_total_time="$seconds" -max_len=4096 -timeout=30 -rss_limit_mb=512 \
    -dict=tests/fuzz/words.dict -artifact_prefix="target/fuzz/$fuzzer-" -print_final_stats=1 \
    "$learnt" "${examples[@]}" >"$learnt.log" 2>&1 &
  process[$fuzzer]=$!
done

status=0
for fuzzer; do
  log=target/fuzz/$fuzzer.log
  if wait "${process[$fuzzer]}"; then
    executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    covered=$(sed -nE 's/^#[0-9]+\s+DONE\s+cov: ([0-9]+) .*/\1/p' "$log")
    note "$fuzzer: $executions inputs in $seconds s, $covered branches reached, none broke it"
  else
    status=1
    grep -vE '^#[0-9]+' "$log" | tail -n 60 >&2
    input=$(sed -n 's/.*Test unit written to //p' "$log")
    note "$fuzzer: BROKEN by $input; again: ${program[$fuzzer]} $input"
  fi
done
exit $status
