# Sourced by machine-init.sh: the daemons of the control plane. Their logs are in the machine's /var/log.

daemon() { "$@" </dev/null >>"/var/log/$1.log" 2>&1 & }

mkdir -p /var/lib/etcd
daemon etcd --data-dir=/var/lib/etcd --unsafe-no-fsync --log-level=error \
  --listen-client-urls=http://127.0.0.1:2379 --advertise-client-urls=http://127.0.0.1:2379
daemon kube-apiserver --etcd-servers=http://127.0.0.1:2379 --service-cluster-ip-range="$service_network" \
  --advertise-address="$api" --tls-cert-file="$keys/apiserver.crt" --tls-private-key-file="$keys/apiserver.key" \
  --client-ca-file="$keys/ca.crt" --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
  --service-account-issuer=https://kubernetes.default.svc.cluster.local --allow-privileged=true \
  --service-account-key-file="$keys/service-accounts.pub" --service-account-signing-key-file="$keys/service-accounts.key" \
  --kubelet-client-certificate="$keys/kubelet-client.crt" --kubelet-client-key="$keys/kubelet-client.key" \
  --kubelet-certificate-authority="$keys/ca.crt" --kubelet-preferred-address-types=InternalIP --cert-dir=/run/apiserver
# These two end where there is no API server at their start.
within 60 curl -sf --cacert "$keys/ca.crt" "https://$api:6443/readyz" || fail "the API server does not answer"
# The kubelets tell their state every 4 s; who is silent for 16 s is taken for gone.
daemon kube-controller-manager --kubeconfig="$keys/kube-controller-manager.conf" --leader-elect=false \
  --use-service-account-credentials --root-ca-file="$keys/ca.crt" \
  --service-account-private-key-file="$keys/service-accounts.key" --node-monitor-period=2s \
  --node-monitor-grace-period=16s --bind-address=127.0.0.1 --cert-dir=/run/controllers
daemon kube-scheduler --kubeconfig="$keys/kube-scheduler.conf" --leader-elect=false --bind-address=127.0.0.1 \
  --cert-dir=/run/scheduler
