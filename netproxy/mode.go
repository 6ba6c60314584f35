package netproxy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"k8s.io/apimachinery/pkg/util/version"
	utiliptables "k8s.io/kubernetes/pkg/util/iptables"
	utilkernel "k8s.io/kubernetes/pkg/util/kernel"
	"sigs.k8s.io/knftables"

	"github.com/mote-dev/mote/internal/clusterconfig"
)

// ErrNoBackend is returned when the host has neither a usable nftables nor a usable iptables.
var ErrNoBackend = errors.New("no usable packet filter: install nftables (nft 1.0.1 or newer, kernel 5.13 or newer) or iptables")

// ErrNoIPv6 is returned when pods of the cluster have IPv6 addresses and the host has no such thing.
var ErrNoIPv6 = errors.New("pods of this cluster have IPv6 addresses, which this machine's kernel has not or has switched off: " +
	"run `sysctl -w net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.disable_ipv6=0`, or boot it without ipv6.disable=1")

// ErrNoIP6Tables is returned in iptables mode when pods of the cluster have IPv6 addresses, whose services nobody would carry.
var ErrNoIP6Tables = errors.New("pods of this cluster have IPv6 addresses, and ip6tables is missing or does not work: install it, or nftables (nft 1.0.1 or newer, kernel 5.13 or newer)")

// probeTable is the table the probe checks rules in. Checking does not make it.
const probeTable = "mote-probe"

// chooseMode decides on the backend by trying what it needs; forced is used as it is, but tried as well.
func chooseMode(ctx context.Context, forced string) (string, error) {
	switch forced {
	case ModeNFTables:
		if err := probeNFTables(ctx); err != nil {
			return "", fmt.Errorf("use nftables: %w", err)
		}
		return ModeNFTables, nil
	case ModeIPTables:
		if err := probeIPTables(); err != nil {
			return "", fmt.Errorf("use iptables: %w", err)
		}
		return ModeIPTables, nil
	}
	nftErr := probeNFTables(ctx)
	if nftErr == nil {
		return ModeNFTables, nil
	}
	if err := probeIPTables(); err != nil {
		return "", fmt.Errorf("%w (nftables: %w; iptables: %w)", ErrNoBackend, nftErr, err)
	}
	return ModeIPTables, nil
}

// probeNFTables asks tool and kernel to check, without applying, a rule of every kind the proxier and the pod network
// write: kernels are built without single expressions, and then fail only when the first such rule is applied.
func probeNFTables(ctx context.Context) error {
	kernel, err := utilkernel.GetVersion()
	if err != nil {
		return fmt.Errorf("read kernel version: %w", err)
	}
	if kernel.LessThan(version.MustParseGeneric(utilkernel.NFTablesKubeProxyKernelVersion)) {
		return fmt.Errorf("kernel %s is older than %s", kernel, utilkernel.NFTablesKubeProxyKernelVersion)
	}
	nft, err := knftables.New(knftables.IPv4Family, probeTable)
	if err != nil {
		return err
	}
	tx := nft.NewTransaction()
	tx.Add(&knftables.Table{})
	tx.Add(&knftables.Chain{Name: "probe-nat", Type: knftables.PtrTo(knftables.NATType), Hook: knftables.PtrTo(knftables.PreroutingHook), Priority: knftables.PtrTo(knftables.DNATPriority)})
	tx.Add(&knftables.Chain{Name: "probe-snat", Type: knftables.PtrTo(knftables.NATType), Hook: knftables.PtrTo(knftables.PostroutingHook), Priority: knftables.PtrTo(knftables.SNATPriority)})
	tx.Add(&knftables.Chain{Name: "probe-filter", Type: knftables.PtrTo(knftables.FilterType), Hook: knftables.PtrTo(knftables.ForwardHook), Priority: knftables.PtrTo(knftables.FilterPriority)})
	tx.Add(&knftables.Chain{Name: "probe-endpoint"})
	tx.Add(&knftables.Map{Name: "services", Type: "ipv4_addr . inet_proto . inet_service : verdict"})
	tx.Add(&knftables.Set{Name: "pods", Type: "ipv4_addr", Flags: []knftables.SetFlag{knftables.IntervalFlag}})
	tx.Add(&knftables.Set{Name: "affinity", Type: "ipv4_addr", Flags: []knftables.SetFlag{knftables.DynamicFlag, knftables.TimeoutFlag}})
	for chain, rules := range map[string][]string{
		"probe-nat":      {"ip daddr . meta l4proto . th dport vmap @services", "fib daddr type local numgen random mod 2 vmap { 0 : goto probe-endpoint, 1 : goto probe-endpoint }"},
		"probe-endpoint": {"update @affinity { ip saddr timeout 10s }", "meta l4proto tcp dnat to 192.0.2.1:80"},
		"probe-snat":     {"ip saddr @pods mark and 0x4000 != 0 mark set mark xor 0x4000 masquerade fully-random"},
		"probe-filter":   {"ct state new reject", "ct status dnat accept"},
	} {
		for _, rule := range rules {
			tx.Add(&knftables.Rule{Chain: chain, Rule: rule})
		}
	}
	if err := nft.Check(ctx, tx); err != nil {
		return fmt.Errorf("check rules: %w", err)
	}
	return nil
}

// probeIPTables asks whether the tool is there and the kernel knows its tables.
func probeIPTables() error {
	return utiliptables.New(utiliptables.ProtocolIPv4).Present()
}

// ipv6Enabled tells whether the kernel has IPv6 and it is not switched off.
func ipv6Enabled() bool {
	if _, err := os.Stat("/proc/net/if_inet6"); err != nil {
		return false
	}
	return !ipv6Off("all")
}

// ipv6Off tells whether IPv6 is switched off for "all" interfaces, or by "default" for those to come.
func ipv6Off(which string) bool {
	off, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + which + "/disable_ipv6")
	return err == nil && strings.TrimSpace(string(off)) == "1"
}

// checkIPv6 refuses a host on which no pod of the cluster could be started. The bridge begins with the default.
func checkIPv6(cluster clusterconfig.Config) error {
	if cluster.HasIPv6() && (!ipv6Enabled() || ipv6Off("default")) {
		return ErrNoIPv6
	}
	return nil
}
