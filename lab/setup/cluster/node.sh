# node.sh NUMBER, sourced by machine-init.sh: writes the settings of a node's daemons and starts them. Their logs are in
# the machine's /var/log.
number=$1

mkdir -p /run/settings/cni /var/lib/kubelet
cat >/run/settings/containerd.toml <<TOML
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  disable_apparmor = true
  # Lowering oom_score_adj needs a capability that not every root has, and without it no pod starts.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$packages/usr/lib/cni"
    conf_dir = "/run/settings/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      BinaryName = "${WIREVIP_CLUSTER_RUNC:-$packages/usr/sbin/runc}"
      SystemdCgroup = false
TOML

# A new network namespace has the IPv4 forwarding of the machine outside; a real node's pods have that of the node.
cat >/run/settings/cni/10-pods.conflist <<JSON
{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "pods", "isGateway": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "$(node_pods "$number")"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "tuning", "sysctl": {"net.ipv4.ip_forward": "${WIREVIP_CLUSTER_FORWARDING:-1}"}}
]}
JSON

# Like a router at home: the lab's gateway, which answers while there is one.
echo "nameserver $gateway" >/run/settings/resolv.conf
cat >/run/settings/kubelet.yaml <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $keys/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $keys/n$number-serving.crt
tlsPrivateKeyFile: $keys/n$number-serving.key
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
resolvConf: /run/settings/resolv.conf
clusterDNS: [$dns_service]
clusterDomain: cluster.local
volumePluginDir: /var/lib/kubelet/volume-plugins
nodeStatusUpdateFrequency: 4s
# Disk and memory are shared with other work on the machine: nothing is evicted for want of them.
evictionHard: {memory.available: "0%", nodefs.available: "0%", nodefs.inodesFree: "0%", imagefs.available: "0%", imagefs.inodesFree: "0%"}
imageGCHighThresholdPercent: 100
maxOpenFiles: 16384
oomScoreAdj: 0
YAML

cat >/run/settings/kube-proxy.yaml <<YAML
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
hostnameOverride: n$number
clientConnection: {kubeconfig: $keys/kube-proxy.conf}
clusterCIDR: $pod_network
oomScoreAdj: 0
# 0 leaves sysctls alone that only the machine outside can set.
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
YAML

. lab/setup/cluster/node-daemons.sh
start_containerd
for image in "$images"/*.tar; do ctr --namespace k8s.io images import "$image"; done
start_kube-proxy
start_kubelet
