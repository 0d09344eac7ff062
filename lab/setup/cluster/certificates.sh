# Sourced after plan.sh: make_keys writes a certificate authority, a certificate for each server and client, and a
# kubeconfig for each client, into $keys. Elliptic keys: all of it takes a second.

make_keys() (
  umask 077
  mkdir -p "$keys"
  cd "$keys"
  new_key ca
  openssl req -x509 -new -key ca.key -subj /CN=wirevip-cluster -days 30 -out ca.crt
  apiserver_certificate apiserver
  certificate kubelet-client /O=system:masters/CN=apiserver-to-kubelet clientAuth
  client admin /O=system:masters/CN=admin
  for daemon in kube-controller-manager kube-scheduler kube-proxy; do client "$daemon" "/CN=system:$daemon"; done
  for number in $(numbers); do
    client "n$number" "/O=system:nodes/CN=system:node:n$number"
    certificate "n$number-serving" "/O=system:nodes/CN=system:node:n$number" serverAuth \
      "DNS:n$number,IP:$(node_address "$number")"
  done
  openssl genrsa -out service-accounts.key 2048 2>/dev/null
  openssl rsa -in service-accounts.key -pubout -out service-accounts.pub 2>/dev/null
)

# apiserver_certificate FILE: 10.77.0.2 is the VIP, which users add to theirs.
apiserver_certificate() {
  certificate "$1" /CN=kube-apiserver serverAuth "IP:$api,IP:$kubernetes_service,IP:127.0.0.1,IP:10.77.0.2,\
DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local"
}

# A new certificate for the API server, which reads it again by itself.
renew_apiserver_certificate() (
  umask 077
  cd "$keys"
  apiserver_certificate renewed
  mv renewed.key apiserver.key
  mv renewed.crt apiserver.crt
)

new_key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"; }

# certificate FILE SUBJECT USAGE [NAMES]
certificate() {
  new_key "$1"
  {
    echo keyUsage=digitalSignature
    echo "extendedKeyUsage=$3"
    [ -z "${4:-}" ] || echo "subjectAltName=$4"
  } >"$1.ext"
  openssl req -new -key "$1.key" -subj "$2" |
    openssl x509 -req -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -extfile "$1.ext" -out "$1.crt" 2>/dev/null
  rm "$1.ext"
}

# client FILE SUBJECT
client() {
  certificate "$1" "$2" clientAuth
  cat >"$1.conf" <<YAML
apiVersion: v1
kind: Config
clusters:
  - name: cluster
    cluster: {server: "https://$api:6443", certificate-authority-data: $(base64 -w0 <ca.crt)}
users:
  - name: user
    user: {client-certificate-data: $(base64 -w0 <"$1.crt"), client-key-data: $(base64 -w0 <"$1.key")}
contexts:
  - name: context
    context: {cluster: cluster, user: user}
current-context: context
YAML
}
