package kubelet

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	internalapi "k8s.io/cri-api/pkg/apis"
	"k8s.io/kubernetes/cmd/kubelet/app/options"
	"k8s.io/kubernetes/pkg/cluster/ports"
	"k8s.io/kubernetes/pkg/kubelet/apis/config"

	"github.com/mote-dev/mote/internal/upstreamflag"
)

// Config configures a kubelet. No field may be zero unless its comment says so.
type Config struct {
	// RootDir is the kubelet's folder, which also has the pods' volumes.
	RootDir string
	// ImageDir is the container runtime's folder, which has the images and what containers write.
	ImageDir string
	// StaticPodsDir is the folder of the manifests of pods to run without the API server.
	StaticPodsDir string
	// PodLogsDir is the folder of the containers' logs.
	PodLogsDir string
	NodeName   string
	// NodeIPs are the node's addresses; with none, the kubelet detects them for each status report,
	// and so follows the network.
	NodeIPs []net.IP
	// REST reaches the API server with the node's rights.
	REST *rest.Config
	// ServingCertFile and ServingKeyFile are the kubelet's HTTPS identity. If both are empty, it
	// requests a certificate for its addresses from the cluster, and renews it. ClientCAFile is the
	// CA of its clients.
	ServingCertFile, ServingKeyFile, ClientCAFile string
	// CloseAll closes the connections to the API server after failed heartbeats; may be nil.
	CloseAll func()

	Runtime internalapi.RuntimeService
	Images  internalapi.ImageManagerService
	// RuntimeSocket is the container runtime's socket, for statistics.
	RuntimeSocket string

	// ClusterDNS and ClusterDomain go into pods' resolv.conf; may be empty.
	ClusterDNS    []netip.Addr
	ClusterDomain string
	// ResolvConf is the resolv.conf of pods with the host's DNS.
	ResolvConf string
	// CgroupRoot is the parent cgroup of all pods; "/" means the root.
	CgroupRoot string
	// Labels and Taints are set when the node first registers; may be empty.
	Labels map[string]string
	Taints []corev1.Taint
	// ExtraArgs are "flag=value" settings for the kubelet's own flags.
	ExtraArgs []string
	Logger    *zap.Logger
}

// server returns upstream's settings for c.
func (c Config) server() (*options.KubeletServer, error) {
	s, err := options.NewKubeletServer()
	if err != nil {
		return nil, fmt.Errorf("create kubelet options: %w", err)
	}
	// Declaring the flags comes first: it sets some fields to the flags' defaults.
	flags := pflag.NewFlagSet("kubelet", pflag.ContinueOnError)
	s.AddFlags(flags)
	options.AddKubeletConfigFlags(flags, &s.KubeletConfiguration)

	s.RootDirectory = c.RootDir
	s.CertDirectory = filepath.Join(c.RootDir, "pki")
	s.HostnameOverride = c.NodeName
	// The flag node-labels adds to this very map.
	maps.Copy(s.NodeLabels, c.Labels)
	s.RegisterWithTaints = c.Taints
	if len(c.NodeIPs) > 0 {
		s.NodeIP = joinIPs(c.NodeIPs)
	}
	// Without a file name here upstream runs standalone. The clients are passed as dependencies.
	s.KubeConfig = "in-process"

	k := &s.KubeletConfiguration
	k.ContainerRuntimeEndpoint = "unix://" + c.RuntimeSocket
	k.PodLogsDir = c.PodLogsDir
	k.VolumePluginDir = filepath.Join(c.RootDir, "volume-plugins")
	k.StaticPodPath = c.StaticPodsDir
	k.TLSCertFile, k.TLSPrivateKeyFile = c.ServingCertFile, c.ServingKeyFile
	k.ServerTLSBootstrap = c.ServingCertFile == ""
	k.Authentication.X509.ClientCAFile = c.ClientCAFile
	k.Authentication.Anonymous.Enabled = false
	k.Authentication.Webhook.Enabled = true
	k.Authorization.Mode = config.KubeletAuthorizationModeWebhook
	k.ClusterDomain = c.ClusterDomain
	for _, ip := range c.ClusterDNS {
		k.ClusterDNS = append(k.ClusterDNS, ip.String())
	}
	k.ResolverConfig = c.ResolvConf
	k.CgroupRoot = c.CgroupRoot
	// Older boards still have cgroup v1.
	k.FailCgroupV1 = false
	k.FailSwapOn = false
	k.ReadOnlyPort = 0
	k.HealthzPort = 0
	k.SerializeImagePulls = false
	// Nothing uses the kubelet's own iptables chains, and with nftables they would be the only
	// ones.
	k.MakeIPTablesUtilChains = false
	setEviction(k, c.RootDir, c.ImageDir, unix.Statfs)

	if err := unusedFlags().Refuse("kubelet-arg", c.ExtraArgs); err != nil {
		return nil, err
	}
	if err := applyFiles(k, c.ExtraArgs); err != nil {
		return nil, err
	}
	if err := upstreamflag.Apply(flags, "kubelet-arg", c.ExtraArgs); err != nil {
		return nil, err
	}
	return s, nil
}

// Address returns where a process on the same machine reaches a kubelet with these ExtraArgs.
func Address(extraArgs []string) string {
	host := upstreamflag.Value(extraArgs, "address", "")
	if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, upstreamflag.Value(extraArgs, "port", strconv.Itoa(ports.KubeletPort)))
}

func joinIPs(ips []net.IP) string {
	s := make([]string, len(ips))
	for i, ip := range ips {
		s[i] = ip.String()
	}
	return strings.Join(s, ",")
}
