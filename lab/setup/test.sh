#!/usr/bin/env bash
# test.sh [CARGO TEST OPTION …]: runs every test that this machine can run, and tells the rest as not run.
#
# A test that needs more than an ordinary user's machine is marked `#[ignore = "needs …"]`. First the others run;
# from that run's output come the ignored ones with their reasons. Those whose needs are met here run second.
# A reason that `met` below does not know is a failure: a test must not be left out unnoticed.
# WIREVIP_LATER names a need, e.g. `cluster`: tests that have it are run by who sets it, and not told here.
# Last line: `N passed, N failed, N skipped`. Exit 1 when anything failed.
. "$(dirname "$0")/lib.sh"

[ -z "${KUBEBUILDER_ASSETS:-}" ] && [ -x target/kube/kube-apiserver ] && export KUBEBUILDER_ASSETS=$top/target/kube

# met NEED: exit 0 when this machine has it, 1 (and why not) when not, 2 when nobody taught this script the word.
met() {
  case $1 in
    root) namespaces true || { echo "no network namespaces can be made here; run as root"; return 1; } ;;
    kube-apiserver)
      { [ -x "${KUBEBUILDER_ASSETS:-/nonexistent}/kube-apiserver" ] || { have kube-apiserver && have etcd; }; } ||
        { echo "no kube-apiserver and etcd here: make assets builds them where Go 1.26 is"; return 1; } ;;
    WireGuard)
      namespaces unshare --net ip link add wgprobe type wireguard 2>/dev/null ||
        { echo "this kernel has no WireGuard, or lets us make no link; \`make vm\` has one that does"; return 1; } ;;
    helm) have helm || { echo "no helm here: make assets builds it where Go 1.26 is"; return 1; } ;;
    elector)
      { [ -x "${KUBEBUILDER_ASSETS:-/nonexistent}/elector" ] || [ -x target/kube/elector ] || have elector; } ||
        { echo "no client-go elector here: make assets builds it where Go 1.26 is"; return 1; } ;;
    kubectl) have kubectl || { echo "no kubectl here: install it (https://kubernetes.io/docs/tasks/tools)"; return 1; } ;;
    cgroup)
      { is_root && [ -e /sys/fs/cgroup/devices/devices.deny ]; } ||
        { echo "no cgroup v1 of devices here, or no right to make one: run as root where there is one"; return 1; } ;;
    cluster) echo "\`make cluster-test\` runs it"; return 1 ;;
    Go) have_go || { echo "no Go 1.26 or newer here"; return 1; } ;;
    *) return 2 ;;
  esac
}

# The words of a reason that name a need, in the order in which they are asked for.
needs_of() { grep -oE '\b(root|kube-apiserver|WireGuard|helm|elector|kubectl|cgroup|cluster|Go)\b' <<<"$1" || true; }

log=$(mktemp)
trap 'rm -f "$log" "$log".*' EXIT
status=0

say "tests that need nothing special"
ordinary() { cargo test --workspace --no-fail-fast --locked "$@" 2>&1 | tee "$log.1"; }
timed "build, and tests that need nothing special" ordinary "$@" || status=1

# `test NAME ... ignored, REASON`; a doc test's name has blanks in it, and no reason.
sed -nE 's/^test (.*) \.\.\. ignored(, (.*))?$/\1\t\3/p' "$log.1" | sort -u >"$log.ignored"
told=$(sed -nE 's/^test result: .* ([0-9]+) ignored;.*/\1/p' "$log.1" | awk '{n += $1} END {print n + 0}')
seen=$(sed -nE '/^test .* \.\.\. ignored/p' "$log.1" | wc -l)
[ "$told" = "$seen" ] || { note "cargo counts $told ignored tests, their lines are $seen: some output was garbled"; status=1; }

skip=()
: >"$log.left"
runnable=0
while IFS=$'\t' read -r name reason; do
  why= need=
  needs=$(needs_of "$reason")
  if [ -z "$needs" ]; then
    why="the reason '$reason' names no need that lab/setup/test.sh knows"
    status=1
  fi
  for need in $needs; do why=$(met "$need") || break; done
  if [ -n "$why" ] && [ "$need" = "${WIREVIP_LATER:-}" ]; then
    skip+=(--skip "$name")
  elif [ -n "$why" ]; then
    skip+=(--skip "$name")
    printf '   not run: %s (%s): %s\n' "$name" "${reason:-no reason given}" "$why" >>"$log.left"
  else
    runnable=$((runnable + 1))
  fi
done <"$log.ignored"

: >"$log.2"
if [ $runnable -gt 0 ]; then
  say "$runnable tests that need more: root, namespaces, an API server"
  # --exact makes --skip exact too: no test is left out because another's name is part of its own.
  demanding() {
    namespaces cargo test --workspace --no-fail-fast --locked --lib --bins --tests \
      "$@" -- --ignored --exact "${skip[@]}" 2>&1 | tee "$log.2"
  }
  timed "tests that need more" demanding "$@" || status=1
fi

count() { cat "$log.1" "$log.2" | sed -nE "s/^test result: .* ([0-9]+) $1[;.].*/\1/p" | awk '{n += $1} END {print n + 0}'; }
failed=$(count failed)
passed=$(count passed)
left=$(wc -l <"$log.left")
# A test program that did not build or died tells no number.
[ $status = 0 ] || [ "$failed" -gt 0 ] || failed=1

say "result"
printf '   %s\n' "${timings[@]}" >&2
cat "$log.left" >&2
sed -nE 's/^test (.*) \.\.\. FAILED$/   failed: \1/p' "$log.1" "$log.2" >&2
echo "$passed passed, $failed failed, $left skipped"
exit $status
