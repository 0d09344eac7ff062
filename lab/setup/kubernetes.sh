#!/usr/bin/env bash
# kubernetes.sh [RELEASE …]: every test that takes a real API server, and the chart on a real cluster, on these releases of
# Kubernetes (1.35); on all that lab/kube/cluster knows if none is named. WIREVIP_CLUSTER_RUNS as in cluster-test.sh.
# Last line: `N passed, N failed`, of all together. Exit 1 when anything failed.
. "$(dirname "$0")/lib.sh"

newest=$(sed -nE 's/^\tk8s.io\/kubernetes v(1\.[0-9]+).*/\1/p' lab/kube/cluster/go.mod)
if [ $# = 0 ]; then
  mapfile -t known < <(cd lab/kube/cluster && ls -r [0-9]*.mod)
  set -- "$newest" "${known[@]%.mod}"
fi

lab/setup/packages.sh test
lab/setup/rust.sh
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# Each of these tests has a world, and so an API server, of its own.
on_the_api_server() (
  program=cluster${WIREVIP_KUBERNETES:+-$WIREVIP_KUBERNETES}
  assets=$top/target/kube/assets${WIREVIP_KUBERNETES:+-$WIREVIP_KUBERNETES}
  CGO_ENABLED=0 lab/kube/build.sh target/kube cluster || exit 1
  env -u KUBEBUILDER_ASSETS lab/kube/build.sh target/kube etcd || exit 1
  mkdir -p "$assets"
  ln -sfn "../$program" "$assets/kube-apiserver"
  [ ! -x target/kube/etcd ] || ln -sfn ../etcd "$assets/etcd"
  export KUBEBUILDER_ASSETS=$assets
  namespaces cargo test --locked --no-fail-fast --test kubernetes --test scenarios -- --ignored real 2>&1 | tee -a "$log"
)

on_a_cluster() { lab/setup/cluster-test.sh 2>&1 | tee -a "$log"; }

status=0
for release in "$@"; do
  unset WIREVIP_KUBERNETES
  [ "$release" = "$newest" ] || export WIREVIP_KUBERNETES=$release
  say "Kubernetes $release"
  timed "API server $release" on_the_api_server || status=1
  timed "cluster of $release" on_a_cluster || status=1
done

count() { sed -nE "s/^test result: .* ([0-9]+) $1[;.].*/\1/p" "$log" | awk '{n += $1} END {print n + 0}'; }
failed=$(count failed)
[ $status = 0 ] || [ "$failed" -gt 0 ] || failed=1
printf '   %s\n' "${timings[@]}" >&2
echo "$(count passed) passed, $failed failed"
exit $status
