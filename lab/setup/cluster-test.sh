#!/usr/bin/env bash
# cluster-test.sh [NAME …]: the chart with the image of `make image` on the cluster of `make cluster`, with a hub and a client
# outside: all of tests/cluster, or the tests whose names contain one of these words. WIREVIP_CLUSTER_RUNS: how often each
# disruption is measured. The cluster is ended afterwards, unless it was up before.
# Last line: `N passed, N failed`. Exit 1 when anything failed.
. "$(dirname "$0")/lib.sh"

lab/setup/packages.sh test
lab/setup/rust.sh
lab/setup/assets.sh helm
have helm || fail "the chart is installed with helm: install it, or Go 1.26 or newer to build it"
lab/setup/image.sh
# As `make test` builds them: other packages would be other features, and all of it built again.
cargo build --locked --workspace --bins

images=target/cluster/images
mkdir -p "$images"
cp target/image/wirevip.tar "$images/wirevip.tar"
# The backends are the lab's own program, with the libraries that it is linked to.
root=$(mktemp -d)
log=$(mktemp)
ours=
finish() {
  rm -rf "$root" "$log"
  [ -z "$ours" ] || lab/setup/cluster.sh down
}
trap finish EXIT
lab=${CARGO_TARGET_DIR:-target}/debug/lab
ldd "$lab" | grep -oE '/[^ ]+' | while read -r library; do install -D "$(readlink -f "$library")" "$root$library"; done
strip -o "$root/lab" "$lab"
NAME=localhost/backend:1 ENTRYPOINT='["/lab","backend"]' lab/setup/archive.sh "$images/backend.tar" "$root"

if [ -e /run/netns/wirevip-lan ]; then
  for image in wirevip backend; do lab/setup/cluster.sh load "$images/$image.tar" >/dev/null; done
else
  ours=yes
  lab/setup/cluster.sh up
fi
status=0
cargo test --locked --workspace --test cluster -- --ignored --nocapture --test-threads=1 "$@" 2>&1 | tee "$log" || status=1
count() { sed -nE "s/^test result: .* ([0-9]+) $1[;.].*/\1/p" "$log" | awk '{n += $1} END {print n + 0}'; }
failed=$(count failed)
[ $status = 0 ] || [ "$failed" -gt 0 ] || failed=1
echo "$(count passed) passed, $failed failed"
exit $status
