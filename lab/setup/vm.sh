#!/usr/bin/env bash
# vm.sh [NAME …]: runs tests in a virtual machine whose kernel has WireGuard, with that for pods and hubs: the named ones
# (whole names, as cargo prints them), else those that need it and those of `also` below.
# Last line: `N passed, N failed`. Exit 1 when anything failed.
. "$(dirname "$0")/lib.sh"

# Tests that run elsewhere on a userspace WireGuard: here once more on the kernel's. A program alone: all of its tests.
also="
tunnel
fence
scenarios takeover::embedded::a_leader_that_is_asked_to_stop_hands_over
scenarios takeover::embedded::a_leader_cut_off_from_the_api_is_silent_before_another_speaks
scenarios takeover::embedded::a_frozen_leader_is_silent_and_stands_by_when_it_wakes
scenarios hold::embedded::while_the_api_is_away_a_client_loses_nothing
scenarios hold::embedded::a_hand_over_is_made_before_the_old_tunnel_breaks
scenarios hold::embedded::without_hold_a_lapsed_leader_says_nothing
scenarios leftovers::embedded::a_leader_that_stops_leaves_nothing_and_gives_the_lease_back_when_silent
scenarios leftovers::embedded::a_removed_tunnel_leaves_nothing
scenarios forwarding::embedded::large_answers_and_datagrams_arrive_on_a_small_pod_network
scenarios healing::embedded::a_lost_link_comes_back
"
# Programs whose tests may need WireGuard in the kernel.
programs="tunnel fence packets scenarios"

lab/setup/packages.sh test vm
lab/setup/rust.sh
cargo build --locked --package wirevip --bin wirevip
built=$(cargo test --workspace --locked --no-run --tests --message-format=json |
  jq -r 'select(.executable != null and .profile.test) | "\(.target.name) \(.executable)"')

job=$(mktemp)
trap 'rm -f "$job" "$job".*' EXIT
# run PROGRAM [NAME …]: those tests of it, all of them if none is named.
run() {
  local program=$1 file
  shift
  file=$(awk -v name="$program" '$1 == name {print $2}' <<<"$built")
  [ -n "$file" ] || fail "there is no test program '$program'"
  # A name that fits nothing would pass unnoticed.
  local known name
  known=$("$file" --list --ignored 2>/dev/null)
  for name in "$@"; do grep -qFx "$name: test" <<<"$known" || fail "$program has no ignored test '$name'"; done
  printf 'echo "== %s" && %q --ignored --test-threads=1 ' "$program" "$file" >>"$job"
  [ $# = 0 ] || printf ' --exact' >>"$job"
  [ $# = 0 ] || printf ' %q' "$@" >>"$job"
  printf ' 2>&1 || status=1\n' >>"$job"
}

echo 'status=0' >"$job"
for program in $programs; do
  file=$(awk -v name="$program" '$1 == name {print $2}' <<<"$built")
  # What is ignored is told with its reason, and not run.
  mapfile -t names < <("$file" --skip ' ' 2>/dev/null | sed -nE 's/^test (.*) \.\.\. ignored, .*WireGuard.*/\1/p')
  if [ $# -gt 0 ]; then
    mapfile -t names < <(printf '%s\n' "${names[@]}" | grep -Fx -f <(printf '%s\n' "$@") || true)
  else
    awk -v name="$program" '$1 == name && NF == 1 {found = 1} END {exit !found}' <<<"$also" && run "$program" && continue
    mapfile -t -O "${#names[@]}" names < <(awk -v name="$program" '$1 == name {print $2}' <<<"$also")
  fi
  [ ${#names[@]} = 0 ] || run "$program" "${names[@]}"
done
echo 'exit $status' >>"$job"

say "tests in a virtual machine with WireGuard in its kernel"
status=0
WIREVIP_TEST_BACKEND=kernel WIREVIP_PACE=${WIREVIP_PACE:-10} lab/setup/vm-run.sh <"$job" | tee "$job.log" || status=1
count() { sed -nE "s/^test result: .* ([0-9]+) $1[;.].*/\1/p" "$job.log" | awk '{n += $1} END {print n + 0}'; }
failed=$(count failed)
[ $status = 0 ] || [ "$failed" -gt 0 ] || failed=1
echo "$(count passed) passed, $failed failed"
exit $status
