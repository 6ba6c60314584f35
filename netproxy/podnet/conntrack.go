package podnet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/fsnotify/fsnotify"
	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// leaseRemoved has the next pass look for entries of pods that are gone. The lease may be one that
// no pass has seen: of a pod that came and went in between.
func (n *Network) leaseRemoved() {
	n.mu.Lock()
	n.leaseGone = true
	n.mu.Unlock()
	n.poke(false)
}

// forgetLeases calls forgetGone for the leases given back since the last pass.
func (n *Network) forgetLeases(self Node) error {
	n.mu.Lock()
	removed := n.leaseGone
	n.leaseGone = false
	n.mu.Unlock()
	err := n.forgetGone(self, removed)
	if err != nil && removed {
		n.mu.Lock()
		n.leaseGone = true
		n.mu.Unlock()
	}
	return err
}

// forgetGone deletes the connection tracking entries of pods that went since the last call, and on
// the first call those of pods that went while nothing watched. removed says that a lease was given
// back, even if no call has seen it. Without that a UDP client that goes
// on sending keeps its entry alive, which leads to the old pod whatever the rules say by then: a
// hostPort that another pod took over, a NodePort, an address that was given to a new pod.
//
// A pod is gone once its address has no lease: the CNI plugins remove the port mappings first.
func (n *Network) forgetGone(self Node, removed bool) error {
	leases, err := readLeases(n.cfg.StateDir)
	if err != nil || leases == nil {
		return err
	}
	went := n.leases == nil || removed
	for ip := range n.leases {
		went = went || !leases[ip]
	}
	if !went {
		n.leases = leases
		return nil
	}
	gone := func(addr netip.Addr) bool {
		for _, r := range self.PodCIDRs {
			// The first two addresses are the overlay's and the bridge's.
			if network := r.Masked().Addr(); r.Contains(addr) && addr != network && addr != network.Next() {
				return !leases[addr]
			}
		}
		return false
	}
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		deleted, err := deleteEntries(family, goneFilter(gone))
		if err != nil {
			return err
		}
		if deleted > 0 {
			n.log.Debug("forgot connections of pods that are gone", zap.Uint("entries", deleted))
		}
	}
	n.leases = leases
	return nil
}

// goneFilter matches entries of protocols without a handshake that ends them, and with a gone
// address at either end. Entries of TCP end with the client's next packet: nobody answers, and a
// new connection has another port.
type goneFilter func(netip.Addr) bool

// MatchConntrackFlow implements netlink's interface of filters.
func (gone goneFilter) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	switch flow.Forward.Protocol {
	case unix.IPPROTO_UDP, unix.IPPROTO_UDPLITE, unix.IPPROTO_SCTP:
	default:
		return false
	}
	for _, ip := range []net.IP{flow.Reverse.SrcIP, flow.Forward.SrcIP, flow.Forward.DstIP} {
		if addr, ok := netip.AddrFromSlice(ip); ok && gone(addr.Unmap()) {
			return true
		}
	}
	return false
}

// deleteEntries deletes the matching entries, and tries again if the table changed while it was
// read.
func deleteEntries(family netlink.InetFamily, filter netlink.CustomConntrackFilter) (uint, error) {
	var total uint
	var err error
	for range dumpTries {
		var deleted uint
		deleted, err = netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, filter)
		total += deleted
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return total, fmt.Errorf("delete connection tracking entries of pods that are gone: %w", err)
	}
	return total, nil
}

// readLeases returns the addresses that pods have; nil if there never was one.
func readLeases(stateDir string) (map[netip.Addr]bool, error) {
	entries, err := os.ReadDir(filepath.Join(leaseRoot(stateDir), NetworkName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list leases: %w", err)
	}
	leases := make(map[netip.Addr]bool, len(entries))
	for _, e := range entries {
		if ip, ok := leased(e.Name()); ok {
			leases[ip] = true
		}
	}
	return leases, nil
}

// leased returns the address a file among the leases is for; ok is false for other files.
func leased(name string) (netip.Addr, bool) {
	ip, err := netip.ParseAddr(strings.ReplaceAll(name, "_", ":"))
	return ip, err == nil
}

// watchLeases calls changed whenever an address is given back, until ctx ends.
func (n *Network) watchLeases(ctx context.Context, changed func()) error {
	dir := filepath.Join(leaseRoot(n.cfg.StateDir), NetworkName)
	w, err := fsnotify.NewWatcher()
	if err == nil {
		defer w.Close()
		if err = os.MkdirAll(dir, 0o755); err == nil {
			err = w.Add(dir)
		}
	}
	if err != nil {
		// A pod's interface goes with it, which is noticed as well, if a little before its lease.
		n.log.Info("leases of pods are not watched", zap.Error(err))
		<-ctx.Done()
		return nil
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-w.Events:
			if e.Has(fsnotify.Remove) {
				changed()
			}
		case <-w.Errors:
			changed()
		}
	}
}
