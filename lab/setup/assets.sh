#!/usr/bin/env bash
# assets.sh [kube] [elector] [helm]: builds, from their Go modules, programs that only tests use, into target/.
# Takes minutes the first time, nothing after that. Without Go it says so and leaves them out: exit 0, since the
# tests that need them are then told as not run.
. "$(dirname "$0")/lib.sh"

helm_version=v3.19.5
# Helm believes in Kubernetes v1.20 unless its linker flags name another.
kube_minor=34

build_kube() {
  if [ -n "${KUBEBUILDER_ASSETS:-}" ] || { have kube-apiserver && have etcd; }; then
    note "kube-apiserver and etcd: those of KUBEBUILDER_ASSETS or PATH"
  elif [ -x target/kube/kube-apiserver ] && [ -x target/kube/etcd ]; then
    :
  elif ! have_go; then
    note "kube-apiserver and etcd: not built, since there is no Go 1.26 or newer (or set KUBEBUILDER_ASSETS)"
  else
    say "building kube-apiserver and etcd from their Go modules (minutes, once)"
    timed "build kube-apiserver and etcd" lab/kube/build.sh target/kube etcd kube-apiserver
  fi
}

build_elector() {
  if ! have_go; then
    note "client-go's elector: not built, since there is no Go 1.26 or newer; it is told as not run"
  else
    say "building client-go's elector from its Go module (a minute, once)"
    timed "build client-go's elector" lab/kube/build.sh target/kube elector
  fi
}

build_helm() {
  if have helm; then
    :
  elif ! have_go; then
    note "helm: not built, since there is no Go 1.26 or newer; the chart's own tests are told as not run"
  else
    say "building helm from its Go module (a minute or two, once)"
    local module=helm.sh/helm/v3 flags="-s -w"
    for part in chartutil lint/rules; do
      flags+=" -X $module/pkg/$part.k8sVersionMajor=1 -X $module/pkg/$part.k8sVersionMinor=$kube_minor"
    done
    mkdir -p "$tools"
    timed "build helm" env GOBIN="$tools" GOFLAGS=-mod=mod CGO_ENABLED=0 \
      go install -trimpath -ldflags "$flags" "$module/cmd/helm@$helm_version"
  fi
}

for asset in "$@"; do
  case $asset in kube | elector | helm) "build_$asset" ;; *) fail "assets.sh knows no '$asset'" ;; esac
done
[ ${#timings[@]} = 0 ] || printf '%s\n' "${timings[@]}" >&2
