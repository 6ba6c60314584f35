package controllers

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	nodeipamconfig "k8s.io/kubernetes/pkg/controller/nodeipam/config"
	netutils "k8s.io/utils/net"

	"github.com/mote-dev/mote/internal/clusterconfig"
	"github.com/mote-dev/mote/internal/informer"
	"github.com/mote-dev/mote/server/loopback"
	"github.com/mote-dev/mote/server/pki"
)

// newConfig returns what controllers need, with an API server that never answers.
func newConfig(t *testing.T, args ...string) Config {
	t.Helper()
	keys, err := pki.Open(t.TempDir(), pki.Names{DNSNames: []string{"localhost"}}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	api := loopback.NewServer()
	t.Cleanup(api.Close)
	client, err := kubernetes.NewForConfig(api.Config(manager))
	if err != nil {
		t.Fatal(err)
	}
	return Config{
		PKI:       keys,
		Loopback:  api,
		Informers: informer.NewShared(informers.NewSharedInformerFactory(client, 0)),
		Cluster: clusterconfig.Config{
			ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd00:42::/56")},
			ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16"), netip.MustParsePrefix("fd00:43::/112")},
		},
		ExtraArgs: args,
		Built:     func() {},
	}
}

func TestRun_BeforeLeading_OnlyVolumeControllersAreBuilt(t *testing.T) {
	c := newConfig(t)
	built := false
	c.Built = func() { built = true }
	ctx, cancel := context.WithCancel(t.Context())
	lost := errors.New("never led")
	c.Lead = func(ctx context.Context, _ func(context.Context) error) error {
		if !built {
			t.Error("a node in this process still has to wait for the volume plugins")
		}
		cancel()
		<-ctx.Done()
		return lost
	}
	// Whatever asked the API server would wait for its answer.
	if err := Run(ctx, c); !errors.Is(err, lost) {
		t.Errorf("run: %v, want what Lead returned", err)
	}
}

func TestRun_UnknownFlag_IsRefused(t *testing.T) {
	err := Run(t.Context(), newConfig(t, "no-such-flag=1"))
	if err == nil || !strings.Contains(err.Error(), "kube-controller-manager-arg") ||
		!strings.Contains(err.Error(), "no-such-flag") {
		t.Errorf("run: %v, want the name of the setting and of the flag", err)
	}
}

func TestConfig_ComponentConfig_TakesClusterAndFlags(t *testing.T) {
	c, err := newConfig(t, "node-cidr-mask-size-ipv4=26",
		"controllers=*,-node-ipam-controller").componentConfig(nil)
	if err != nil {
		t.Fatal(err)
	}
	clusterCIDRs, err := netutils.ParseCIDRs([]string{"10.42.0.0/16", "fd00:42::/56"})
	if err != nil {
		t.Fatal(err)
	}
	if got := c.ComponentConfig.KubeCloudShared.ClusterCIDR; got != "10.42.0.0/16,fd00:42::/56" {
		t.Errorf("cluster CIDRs %s", got)
	}
	if got := c.ComponentConfig.NodeIPAMController; got.ServiceCIDR != "10.43.0.0/16" ||
		got.SecondaryServiceCIDR != "fd00:43::/112" {
		t.Errorf("service CIDRs %s and %s", got.ServiceCIDR, got.SecondaryServiceCIDR)
	}
	sizes, err := maskSizes(c.ComponentConfig.NodeIPAMController, clusterCIDRs)
	if err != nil || len(sizes) != 2 || sizes[0] != 26 || sizes[1] != clusterconfig.NodeMaskIPv6 {
		t.Errorf("mask sizes %v, %v; want the flag's and the default", sizes, err)
	}
	if _, err := maskSizes(nodeipamconfig.NodeIPAMControllerConfiguration{NodeCIDRMaskSize: 24},
		clusterCIDRs); err == nil {
		t.Error("one mask size for both families is not refused")
	}
	if c.ComponentConfig.Generic.LeaderElection.LeaderElect {
		t.Error("upstream's leader election is on beside mote's")
	}
}
