package netproxy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"time"

	"go.uber.org/zap"
	"k8s.io/apimachinery/pkg/util/version"
	utilkernel "k8s.io/kubernetes/pkg/util/kernel"

	"github.com/mote-dev/mote/internal/clusterconfig"
	"github.com/mote-dev/mote/internal/retry"
	"github.com/mote-dev/mote/netproxy/nfttool"
	"github.com/mote-dev/mote/netproxy/podnet"
)

// ErrNoBackend is returned when the host has neither a usable nftables nor a usable iptables.
var ErrNoBackend = errors.New(
	"no usable packet filter: install nftables (nft 1.0.1 or newer, kernel 5.13 or newer) or iptables")

// ErrNoIPv6 is returned when pods of the cluster have IPv6 addresses and the host has no IPv6.
var ErrNoIPv6 = errors.New(
	"pods of this cluster have IPv6 addresses, but IPv6 is missing or switched off in this machine's kernel: " +
		"run `sysctl -w net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.disable_ipv6=0`, or boot it without " +
		"ipv6.disable=1")

// ErrNoIP6Tables is returned in iptables mode when pods of the cluster have IPv6 addresses: their
// services would not work.
var ErrNoIP6Tables = errors.New(
	"pods of this cluster have IPv6 addresses, and ip6tables is missing or does not work: install it, or nftables " +
		"(nft 1.0.1 or newer, kernel 5.13 or newer)")

// errNoIPTables is in the error of a probe that found iptables missing or without its kernel
// tables.
var errNoIPTables = errors.New("iptables is not usable on this host")

const (
	// probeTries bounds how often a probe that fails for an unknown reason is repeated.
	probeTries = 6
	// Pauses between such probes: 15 seconds in all.
	firstProbeRetry, lastProbeRetry = 500 * time.Millisecond, 8 * time.Second
	// iptablesTimeout bounds one run of iptables, which waits iptablesLockWait for the lock others
	// hold.
	iptablesTimeout  = 30 * time.Second
	iptablesLockWait = "20"
)

// chooseMode chooses the packet filter by probing what it needs. A forced mode is probed as well.
//
// Only a known answer decides, because choosing a mode deletes the rules of the other one. A probe
// that fails for another reason (no memory, a lock, a timeout) is repeated, and in the end its
// error is returned.
func chooseMode(ctx context.Context, forced string, log *zap.Logger) (string, error) {
	backoff := retry.Backoff{First: firstProbeRetry, Last: lastProbeRetry}
	for try := 1; ; try++ {
		mode, err := probeMode(ctx, forced)
		if err == nil || ctx.Err() != nil || try == probeTries ||
			errors.Is(err, nfttool.ErrUnsupported) || errors.Is(err, errNoIPTables) {
			return mode, err
		}
		log.Warn("packet filter not probed; trying again", zap.Error(err))
		if err := backoff.Wait(ctx); err != nil {
			return "", err
		}
	}
}

// probeMode probes once.
func probeMode(ctx context.Context, forced string) (string, error) {
	switch forced {
	case ModeNFTables:
		if err := probeNFTables(ctx); err != nil {
			return "", fmt.Errorf("use nftables: %w", err)
		}
		return ModeNFTables, nil
	case ModeIPTables:
		if err := probeIPTables(ctx, "iptables"); err != nil {
			return "", fmt.Errorf("use iptables: %w", err)
		}
		return ModeIPTables, nil
	}
	nftErr := probeNFTables(ctx)
	if nftErr == nil {
		return ModeNFTables, nil
	}
	if !errors.Is(nftErr, nfttool.ErrUnsupported) {
		return "", fmt.Errorf("probe nftables: %w", nftErr)
	}
	err := probeIPTables(ctx, "iptables")
	switch {
	case err == nil:
		return ModeIPTables, nil
	case errors.Is(err, errNoIPTables):
		return "", fmt.Errorf("%w (nftables: %w; iptables: %w)", ErrNoBackend, nftErr, err)
	}
	// Without the sentinel of nftErr, which would end the attempts.
	return "", fmt.Errorf("probe iptables: %w (nftables is not usable: %v)", err, nftErr)
}

// probeScript has a rule of every kind the proxier and the pod network write. It is checked, not
// applied: the table is not made.
const probeScript = `add table ip mote-probe
add chain ip mote-probe probe-nat { type nat hook prerouting priority -100 ; }
add chain ip mote-probe probe-snat { type nat hook postrouting priority 100 ; }
add chain ip mote-probe probe-filter { type filter hook forward priority 0 ; }
add chain ip mote-probe probe-endpoint
add map ip mote-probe services { type ipv4_addr . inet_proto . inet_service : verdict ; }
add set ip mote-probe pods { type ipv4_addr ; flags interval ; }
add set ip mote-probe affinity { type ipv4_addr ; flags dynamic,timeout ; }
add rule ip mote-probe probe-nat ip daddr . meta l4proto . th dport vmap @services
add rule ip mote-probe probe-nat fib daddr type local numgen random mod 2 vmap { 0 : goto probe-endpoint, 1 : goto probe-endpoint }
add rule ip mote-probe probe-endpoint update @affinity { ip saddr timeout 10s }
add rule ip mote-probe probe-endpoint meta l4proto tcp dnat to 192.0.2.1:80
add rule ip mote-probe probe-snat ip saddr @pods mark and 0x4000 != 0 mark set mark xor 0x4000 masquerade fully-random
add rule ip mote-probe probe-filter ct state new reject
add rule ip mote-probe probe-filter ct status dnat accept
`

// probeNFTables lets tool and kernel check [probeScript]: some kernels lack single expressions, and
// fail only when the first such rule is applied. Its error has [nfttool.ErrUnsupported] if the host
// lacks something.
func probeNFTables(ctx context.Context) error {
	kernel, err := utilkernel.GetVersion()
	if err != nil {
		return fmt.Errorf("read kernel version: %w", err)
	}
	if kernel.LessThan(version.MustParseGeneric(utilkernel.NFTablesKubeProxyKernelVersion)) {
		return fmt.Errorf("kernel %s is older than %s: %w", kernel, utilkernel.NFTablesKubeProxyKernelVersion,
			nfttool.ErrUnsupported)
	}
	tool, err := nfttool.Run(ctx, "", "--version")
	if err != nil {
		return err
	}
	// What knftables, which the proxier uses, refuses.
	if strings.HasPrefix(tool, "nftables v0.") || strings.HasPrefix(tool, "nftables v1.0.0 ") {
		return fmt.Errorf("%s is older than v1.0.1: %w", strings.TrimSpace(tool), nfttool.ErrUnsupported)
	}
	if _, err := nfttool.Run(ctx, probeScript, "--check", "-f", "-"); err != nil {
		return fmt.Errorf("check rules: %w", err)
	}
	return nil
}

// probeIPTables checks that the tool (iptables or ip6tables) is installed and the kernel has its
// tables. Its error has errNoIPTables if not.
func probeIPTables(ctx context.Context, tool string) error {
	ctx, cancel := context.WithTimeout(ctx, iptablesTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, tool, "-w", iptablesLockWait, "-t", "nat", "-S", "POSTROUTING")
	cmd.WaitDelay = time.Second
	cmd.Env = append(cmd.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	err = fmt.Errorf("run %s: %w: %s", tool, err, strings.Join(strings.Fields(string(out)), " "))
	var exit *exec.ExitError
	// A missing nat table, and a kernel without nftables under a tool that writes those.
	known := errors.As(err, &exit) && exit.Exited() &&
		(strings.Contains(string(out), "does not exist") || strings.Contains(string(out), "not supported"))
	if known || errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("%w: %w", errNoIPTables, err)
	}
	return err
}

// ipv6Enabled reports whether the kernel has IPv6 and it is not switched off.
func ipv6Enabled() (bool, error) {
	ok, err := podnet.HostHasIPv6()
	if err != nil || !ok {
		return false, err
	}
	off, err := ipv6Off("all")
	return !off, err
}

// ipv6Off reports whether IPv6 is switched off for "all" interfaces, or by "default" for new ones.
func ipv6Off(which string) (bool, error) {
	off, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + which + "/disable_ipv6")
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("check whether IPv6 is switched off: %w", err)
	}
	return strings.TrimSpace(string(off)) == "1", nil
}

// CheckHost returns [ErrNoIPv6] for a host on which no pod of the cluster could start: the pods'
// bridge gets the default setting of new interfaces. A node asks before any part of it adds an
// address or writes a rule, as the first of them to fail would only report what the kernel said.
func CheckHost(cluster clusterconfig.Config) error {
	if !cluster.HasIPv6() {
		return nil
	}
	enabled, err := ipv6Enabled()
	if err != nil {
		return err
	}
	off, err := ipv6Off("default")
	if err != nil {
		return err
	}
	if !enabled || off {
		return ErrNoIPv6
	}
	return nil
}
