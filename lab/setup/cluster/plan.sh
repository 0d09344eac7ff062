# Sourced after lib.sh: where the parts of a cluster are, who has which address (as in lab/src/plan.rs), and words that
# the scripts beside it share.

work=$top/target/cluster
programs=$work/programs   # links to what lab/kube built
packages=$work/packages   # Debian packages, unpacked
images=$work/images       # OCI archives: every node has them from its start
state=$work/state         # keys, and a directory for each machine; gone with the cluster
keys=$state/keys

nodes=${WIREVIP_CLUSTER_NODES:-3}
lan=wirevip-lan
api=10.10.0.5
gateway=10.10.0.1
service_network=10.96.0.0/16
kubernetes_service=10.96.0.1
dns_service=10.96.0.10
pod_network=10.20.0.0/16
node_address() { echo "10.10.0.$((10 + $1))"; }
node_pods() { echo "10.20.$1.0/24"; }
numbers() { seq 1 "$nodes"; }

machine_path=$programs:$packages/usr/bin:$packages/usr/sbin:$PATH

# The LAN, and with it kubectl's way to the API server, is in a network namespace of its own.
kubectl() { ip netns exec "$lan" "$programs/kubectl" --kubeconfig "$keys/admin.conf" "$@"; }

# within SECONDS COMMAND …: asks five times a second until it succeeds; exit 1 if it never does.
within() {
  local left=$(($1 * 5))
  shift
  until "$@" >/dev/null 2>&1; do
    [ $((left -= 1)) -gt 0 ] || return 1
    sleep 0.2
  done
}
