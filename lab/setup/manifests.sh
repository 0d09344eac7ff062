#!/usr/bin/env bash
# manifests.sh [DIR]: renders the chart into DIR (manifests/ unless given), for `kubectl apply -f manifests/`.
# manifests.sh --check: exit 1, with the difference, when manifests/ is not what the chart renders.
. "$(dirname "$0")/lib.sh"

if ! have helm; then
  [ "${1:-}" = --check ] || fail "helm is needed: run 'make assets' where Go 1.26 is, or install helm"
  note "manifests against the chart: NOT CHECKED, there is no helm here"
  exit 0
fi

# One file a group, in the order in which kubectl must apply them: it takes them by name.
render() {
  local dir=$1
  mkdir -p "$dir"
  cat >"$dir/00-namespace.yaml" <<'YAML'
# Rendered by `make manifests`; change charts/wirevip instead.
apiVersion: v1
kind: Namespace
metadata:
  name: wirevip
  labels:
    app.kubernetes.io/name: wirevip
    # The pods add NET_ADMIN, which the levels "baseline" and "restricted" refuse.
    pod-security.kubernetes.io/enforce: privileged
YAML
  part "$dir/10-rbac.yaml" templates/serviceaccount.yaml templates/rbac.yaml
  part "$dir/20-daemonset.yaml" templates/daemonset.yaml
}

part() {
  local file=$1 template show=()
  shift
  for template in "$@"; do show+=(--show-only "$template"); done
  {
    echo '# Rendered by `make manifests`; change charts/wirevip instead.'
    # These two labels would say that helm looks after the objects, which it does not.
    helm template wirevip charts/wirevip --namespace wirevip --kube-version 1.34.0 "${show[@]}" |
      sed -e '/^ *helm\.sh\/chart:/d' -e '/^ *app\.kubernetes\.io\/managed-by:/d'
  } >"$file"
}

if [ "${1:-}" = --check ]; then
  dir=$(mktemp -d)
  trap 'rm -rf "$dir"' EXIT
  render "$dir"
  diff -ru manifests "$dir" >&2 || fail "manifests/ is not what the chart renders: run 'make manifests' and commit"
else
  render "${1:-manifests}"
fi
