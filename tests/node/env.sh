# Parameters of a cluster, all overridable from the environment. Sourced by every script here.
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(cd "$HERE/../.." && pwd)
[ -n "${BIN-}" ] || BIN=$("$ROOT/scripts/get-node")       # kubelet kube-scheduler kube-proxy coredns containerd .. runc cni/
[ -n "${KBIN-}" ] || KBIN=$("$ROOT/scripts/get-kube")     # etcd kube-apiserver kube-controller-manager kubectl
: "${STATE:=/tmp/countersign-node}"   # everything the cluster writes; short, as Unix sockets are < 108 characters
: "${NAME:=cs}"                       # node i is $NAME<i>, its cgroup /$NAME<i>, the host's bridge ${NAME}br
: "${NODES:=1}"                       # 1..9
: "${NODE_NET:=10.243.0}"             # host .1, node i .(1+i); /28
: "${POD_NET:=10.244}"                # node i: $POD_NET.i.0/24
: "${POD_CIDR:=$POD_NET.0.0/20}"      # all of them
: "${SVC_CIDR:=10.96.0.0/24}"
: "${API_PORT:=6443}"                 # in the first node's own network namespace: no clash with the host's ports
: "${PROXY_MODE:=nftables}"           # nftables | iptables
: "${PAUSE_IMAGE:=localhost/pause:dev}"
[ ${#NAME} -le 12 ] || { echo "NAME is too long" >&2; exit 2; }
HOST_IP=$NODE_NET.1; NODE_IP=$NODE_NET.2; SVC_API=${SVC_CIDR%.*}.1; BR=${NAME}br
export BIN KBIN STATE NAME NODES NODE_NET POD_NET POD_CIDR SVC_CIDR API_PORT PROXY_MODE PAUSE_IMAGE HOST_IP NODE_IP SVC_API BR HERE ROOT
