package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/mote-dev/mote/test/tools/sandbox"
)

// etcd speaks without TLS here: one encryption less for the API server than kubeadm asks of it.
func (u *upstream) etcdArgs() []string {
	client, peer := "http://127.0.0.1:"+etcdPort, "http://127.0.0.1:"+etcdPeerPort
	return []string{
		"--name=bench", "--data-dir=" + u.path("etcd"), "--snapshot-count=10000",
		"--listen-client-urls=" + client, "--advertise-client-urls=" + client,
		"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer, "--initial-cluster=bench=" + peer,
	}
}

func (u *upstream) apiserverArgs() []string {
	f := u.ca.file
	return []string{
		"--etcd-servers=http://127.0.0.1:" + etcdPort,
		"--secure-port=" + apiPort, "--advertise-address=" + sandbox.HostIP, "--allow-privileged=true",
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--enable-bootstrap-token-auth=true",
		"--service-cluster-ip-range=" + peerServices,
		"--client-ca-file=" + f("ca.crt"), "--tls-cert-file=" + f("apiserver.crt"),
		"--tls-private-key-file=" + f("apiserver.key"),
		"--kubelet-client-certificate=" + f("apiserver-kubelet-client.crt"),
		"--kubelet-client-key=" + f("apiserver-kubelet-client.key"),
		"--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + f("service-accounts.crt"),
		"--service-account-signing-key-file=" + f("service-accounts.key"),
		"--requestheader-client-ca-file=" + f("ca.crt"), "--requestheader-allowed-names=front-proxy-client",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-", "--requestheader-group-headers=X-Remote-Group",
		"--requestheader-username-headers=X-Remote-User",
		"--proxy-client-cert-file=" + f("front-proxy-client.crt"),
		"--proxy-client-key-file=" + f("front-proxy-client.key"),
	}
}

// controllersArgs leave the election of a leader out, as mote does while it is alone: it would
// write every two seconds.
func (u *upstream) controllersArgs() []string {
	f := u.ca.file
	kubeconfig := f("controllers.kubeconfig")
	return []string{
		"--kubeconfig=" + kubeconfig, "--authentication-kubeconfig=" + kubeconfig,
		"--authorization-kubeconfig=" + kubeconfig,
		"--bind-address=127.0.0.1", "--secure-port=" + controllersPort, "--leader-elect=false",
		"--controllers=*,bootstrapsigner,tokencleaner", "--use-service-account-credentials=true",
		"--allocate-node-cidrs=true", "--cluster-cidr=" + peerPods, "--service-cluster-ip-range=" + peerServices,
		"--client-ca-file=" + f("ca.crt"), "--requestheader-client-ca-file=" + f("ca.crt"),
		"--root-ca-file=" + f("ca.crt"),
		"--cluster-signing-cert-file=" + f("ca.crt"), "--cluster-signing-key-file=" + f("ca.key"),
		"--service-account-private-key-file=" + f("service-accounts.key"),
	}
}

func (u *upstream) schedulerArgs() []string {
	kubeconfig := u.ca.file("scheduler.kubeconfig")
	return []string{
		"--kubeconfig=" + kubeconfig, "--authentication-kubeconfig=" + kubeconfig,
		"--authorization-kubeconfig=" + kubeconfig,
		"--bind-address=127.0.0.1", "--secure-port=" + schedulerPort, "--leader-elect=false",
	}
}

func (u *upstream) kubeletArgs() []string {
	return []string{
		"--config=" + u.path("kubelet.yaml"), "--kubeconfig=" + u.ca.file("kubelet.kubeconfig"),
		"--root-dir=" + u.path("kubelet"),
		"--hostname-override=" + nodeName, "--node-ip=" + sandbox.HostIP,
	}
}

// writeConfigs writes the files that kubelet, kube-proxy, containerd and its CNI plugins read.
func (u *upstream) writeConfigs() error {
	values := strings.NewReplacer(
		"DIR", u.dir, "PKI", u.ca.dir, "TOOLS", u.tools, "SOCKET", u.socket(), "PAUSE", pauseImage, "NODEPODS",
		peerNodePods, "PODS", peerPods, "DNS", peerNames,
		"KUBELETHEALTH", kubeletHealthPort, "KUBELETPORT", kubeletPort, "PROXYHEALTH", proxyHealthPort, "PROXYMETRICS",
		proxyMetricsPort, "NODE", nodeName,
	)
	for name, text := range map[string]string{
		"containerd.toml": containerdConfig, "kubelet.yaml": kubeletConfig, "proxy.yaml": proxyConfig,
		"cni/10-bench.conflist": cniConfig,
	} {
		if err := os.MkdirAll(filepath.Dir(u.path(name)), 0o755); err != nil {
			return fmt.Errorf("make folder for configuration: %w", err)
		}
		if err := os.WriteFile(u.path(name), []byte(values.Replace(text)), 0o644); err != nil {
			return fmt.Errorf("write configuration: %w", err)
		}
	}
	return nil
}

// Not every machine lets runc lower oom_score_adj.
const containerdConfig = `version = 3
root = "DIR/containerd"
state = "DIR/containerd-state"
[grpc]
address = "SOCKET"
[ttrpc]
address = "SOCKET.ttrpc"
[plugins."io.containerd.cri.v1.images"]
snapshotter = "overlayfs"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "PAUSE"
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["TOOLS"]
conf_dir = "DIR/cni"
use_internal_loopback = true
[plugins."io.containerd.cri.v1.runtime".containerd]
default_runtime_name = "runc"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = "TOOLS/runc"
SystemdCgroup = false
`

const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
port: KUBELETPORT
healthzPort: KUBELETHEALTH
containerRuntimeEndpoint: unix://SOCKET
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: PKI/ca.crt}
authorization: {mode: Webhook}
tlsCertFile: PKI/kubelet-serving.crt
tlsPrivateKeyFile: PKI/kubelet-serving.key
clusterDomain: cluster.local
clusterDNS: [DNS]
podLogsDir: DIR/pod-logs
volumePluginDir: DIR/volume-plugins
`

const proxyConfig = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clusterCIDR: PODS
hostnameOverride: NODE
clientConnection: {kubeconfig: PKI/proxy.kubeconfig}
healthzBindAddress: 127.0.0.1:PROXYHEALTH
metricsBindAddress: 127.0.0.1:PROXYMETRICS
conntrack: {maxPerCore: 0}
`

const cniConfig = `{"cniVersion": "1.0.0", "name": "bench", "plugins": [
  {"type": "bridge", "bridge": "bench0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "DIR/cni-state", "ranges": [[{"subnet": "NODEPODS"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}
]}
`
