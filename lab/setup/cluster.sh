#!/usr/bin/env bash
# cluster.sh: a real Kubernetes cluster out of namespaces: a control plane and WIREVIP_CLUSTER_NODES (3) nodes.
#
#   cluster.sh up                     builds what is missing, starts it, waits until it is ready
#   cluster.sh down                   ends all of it; nothing is left
#   cluster.sh kubectl|helm …         as administrator
#   cluster.sh load ARCHIVE           gives every node an image
#   cluster.sh in MACHINE COMMAND …   in control, n1, n2, …
#   cluster.sh forwarding 0|1         IPv4 forwarding of pods made from now on
#   cluster.sh power MACHINE on|off   at once, as by the mains switch; disks stay
#   cluster.sh cable NODE up|down     to the LAN
#   cluster.sh certificate            a new one for the API server, by the same CA; waits until it is served
#   cluster.sh starve NODE PROCESS    eats memory in its container until the kernel's OOM killer ends it
#   cluster.sh daemon NODE kubelet|containerd|kube-proxy kill|start
. "$(dirname "$0")/lib.sh"
. lab/setup/cluster/plan.sh
. lab/setup/cluster/machine.sh
. lab/setup/cluster/certificates.sh

lay_lan() {
  local number
  ip netns add "$lan"
  ip netns exec "$lan" sysctl -qw net.bridge.bridge-nf-call-iptables=0
  {
    echo "link set lo up"
    echo "link add lan type bridge"
    echo "addr add $api/24 dev lan"
    echo "link set lan up"
    echo "route add default via $gateway"
    for number in $(numbers); do echo "route add $(node_pods "$number") via $(node_address "$number")"; done
  } | ip -n "$lan" -batch -
}

# plug_in NODE: a cable from its namespace, which is made if need be, to the LAN; addresses and routes.
plug_in() {
  local number=${1#n} netns=wirevip-$1 other
  if [ ! -e "/run/netns/$netns" ]; then
    ip netns add "$netns"
    ip netns exec "$netns" sysctl -qw net.ipv4.ip_forward=1 net.bridge.bridge-nf-call-iptables=1
    ip -n "$lan" link add "$1" type veth peer name eth0 netns "$netns"
    ip -n "$lan" link set "$1" master lan up
    ip -n "$netns" link set lo up
    ip -n "$netns" addr add "$(node_address "$number")/24" dev eth0
  fi
  {
    echo "link set eth0 up"
    echo "route replace default via $gateway"
    for other in $(numbers); do
      [ "$other" = "$number" ] || echo "route replace $(node_pods "$other") via $(node_address "$other")"
    done
  } | ip -n "$netns" -batch -
}

power_on() {
  if [ "$1" = control ]; then
    machine_start control "$lan" control-plane.sh
  else
    plug_in "$1"
    machine_start "$1" "wirevip-$1" node.sh "${1#n}"
  fi
}

power_off() {
  [ "$1" = control ] || ip -n "wirevip-$1" link set eth0 down
  machine_kill "$1"
  [ "$1" != control ] || return 0
  # With its memory goes what stood in its kernel.
  ip netns exec "wirevip-$1" nft flush ruleset
  ip -n "wirevip-$1" link del pods 2>/dev/null || true
}

serves_certificate() {
  ip netns exec "$lan" openssl s_client -connect "$api:6443" </dev/null 2>/dev/null | openssl x509 |
    cmp -s - <(openssl x509 -in "$keys/apiserver.crt")
}
api_answers() { kubectl get --raw /readyz && kubectl get serviceaccount default; }
node_is_ready() { kubectl wait --for=condition=Ready "node/$1" --timeout=1s; }

up() {
  local number started
  [ ! -e "/run/netns/$lan" ] || fail "a cluster is up already: make cluster-down ends it"
  lab/setup/cluster/build.sh
  started=$(date +%s%N)
  make_keys
  lay_lan
  power_on control
  for number in $(numbers); do power_on "n$number"; done
  within 120 api_answers || fail "the API server does not answer: see $state/control/log"
  kubectl apply -f lab/setup/cluster/dns.yaml >/dev/null
  for number in $(numbers); do
    within 120 node_is_ready "n$number" || fail "node n$number does not become ready: see $state/n$number/log"
  done
  kubectl --namespace kube-system rollout status deployment/coredns --timeout=60s >/dev/null
  kubectl get nodes -o wide >&2
  note "ready in $((($(date +%s%N) - started) / 1000000)) ms; speak to it by: lab/setup/cluster.sh kubectl …"
}

down() {
  local directory netns
  [ -d "$state" ] || [ ! -e "/run/netns/$lan" ] || fail "the cluster that is up was not brought up from here"
  for directory in "$state"/*/pid; do
    [ ! -e "$directory" ] || machine_kill "$(basename "$(dirname "$directory")")"
  done
  for netns in /run/netns/wirevip-*; do
    [ ! -e "$netns" ] || ip netns del "$(basename "$netns")"
  done
  rm -rf "$state"
}

command=${1:-}
[ $# = 0 ] || shift
case $command in
  up | down) "$command" ;;
  kubectl) kubectl "$@" ;;
  helm)
    export HELM_CACHE_HOME=$work/helm HELM_CONFIG_HOME=$work/helm HELM_DATA_HOME=$work/helm
    ip netns exec "$lan" helm --kubeconfig "$keys/admin.conf" "$@"
    ;;
  load) for number in $(numbers); do machine_enter "n$number" ctr --namespace k8s.io images import "$(realpath "$1")"; done ;;
  in) machine_enter "$@" ;;
  forwarding)
    for number in $(numbers); do
      machine_enter "n$number" sed -i "s/\(ip_forward\": \)\"[01]\"/\1\"$1\"/" /run/settings/cni/10-pods.conflist
    done
    ;;
  power)
    "power_$2" "$1"
    [ "$1 $2" != "control on" ] || within 120 api_answers || fail "the API server does not answer: see $state/control/log"
    ;;
  cable) if [ "$2" = up ]; then plug_in "$1"; else ip -n "wirevip-$1" link set eth0 down; fi ;;
  starve) machine_enter "$1" "$top/lab/setup/cluster/starve.sh" "$2" ;;
  certificate)
    renew_apiserver_certificate
    within 90 serves_certificate || fail "the API server does not serve its new certificate: see $state/control/log"
    ;;
  daemon)
    case $3 in
      kill) machine_enter "$1" sh -c "kill -KILL \$(cat /run/$2.pid)" ;;
      start)
        machine_enter "$1" bash -c ". $top/lab/setup/lib.sh; . lab/setup/cluster/plan.sh; number=${1#n}
          . lab/setup/cluster/node-daemons.sh; PATH=\$machine_path GOMAXPROCS=2; export PATH GOMAXPROCS; start_$2"
        ;;
    esac
    ;;
  *) fail "usage: $(sed -n '/^#   /s/^#   //p' "$0")" ;;
esac
