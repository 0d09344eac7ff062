# Sourced in a node's machine, with its $number: starts its daemons, each of which leaves its process id in /run.

daemon() {
  setsid "$@" </dev/null >>"/var/log/$1.log" 2>&1 &
  echo $! >"/run/$1.pid"
}

start_containerd() {
  daemon containerd --config /run/settings/containerd.toml
  within 20 ctr version || fail "containerd does not answer: see its log"
}

start_kubelet() {
  daemon kubelet --config=/run/settings/kubelet.yaml --kubeconfig="$keys/n$number.conf" --hostname-override="n$number" \
    --node-ip="$(node_address "$number")"
}

start_kube-proxy() { daemon kube-proxy --config=/run/settings/kube-proxy.yaml; }
