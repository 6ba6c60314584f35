package podnet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coreos/go-iptables/iptables"
	"github.com/vishvananda/netlink"

	"github.com/mote-dev/mote/netproxy/nfttool"
)

// portmapTable is the nftables table of the portmap plugin, shared by all CNI networks of the host.
const portmapTable = "cni_hostport"

// Cleanup removes what a [Network] of this config created: rules, the bridge with the pods'
// interfaces, the overlay, leases and the network list. It touches nothing else, and an interrupted
// Cleanup can be repeated.
func Cleanup(ctx context.Context, c Config) error {
	c = c.withDefaults()
	var errs []error
	for _, fw := range []firewall{newNFTFirewall(), &iptablesFirewall{}} {
		errs = append(errs, fw.Remove(ctx))
	}
	errs = append(errs,
		removeBridge(c.Bridge), removeOverlay(overlayName(c.Bridge)),
		ensureDirectRoutes(nil), ensureServiceRoutes(c.Bridge, nil, hostLinks{}),
		removePortmapTables(ctx), removePortmapChains(ctx), removeKubeletChains(ctx))
	if c.ConfDir != "" {
		if err := os.Remove(filepath.Join(c.ConfDir, ConflistName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove network list: %w", err))
		}
	}
	if c.StateDir != "" {
		for _, path := range []string{leaseRoot(c.StateDir), filepath.Join(c.StateDir, "boot-id"),
			rememberedPath(c.StateDir)} {
			if err := os.RemoveAll(path); err != nil {
				errs = append(errs, fmt.Errorf("remove leases: %w", err))
			}
		}
	}
	return errors.Join(errs...)
}

// removeOverlay deletes the VXLAN interface, but no other kind of interface of that name.
func removeOverlay(name string) error {
	link, err := netlink.LinkByName(name)
	switch {
	case isNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("find overlay %s: %w", name, err)
	case link.Type() != "vxlan":
		return nil // not made by mote
	}
	return removeLink(name)
}

// removeBridge deletes the bridge and the veth interfaces of pods attached to it.
func removeBridge(name string) error {
	bridge, err := netlink.LinkByName(name)
	switch {
	case isNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("find bridge %s: %w", name, err)
	case bridge.Type() != "bridge":
		return fmt.Errorf("remove bridge %s: it is a %s, not made by mote", name, bridge.Type())
	}
	links, err := dump(netlink.LinkList)
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	var errs []error
	for _, l := range links {
		if l.Attrs().MasterIndex == bridge.Attrs().Index && l.Type() == "veth" {
			errs = append(errs, removeLink(l.Attrs().Name))
		}
	}
	return errors.Join(append(errs, removeLink(name))...)
}

// removePortmapTables deletes the portmap plugin's tables unless a network of the host maps a port
// in them.
func removePortmapTables(ctx context.Context) error {
	var errs []error
	for _, f := range families {
		listed, err := nfttool.Run(ctx, "", "list", "table", f.nft, portmapTable)
		switch {
		case errors.Is(err, nfttool.ErrNotFound), errors.Is(err, nfttool.ErrUnsupported):
			continue
		case err != nil:
			errs = append(errs, err)
			continue
		case strings.Contains(listed, "dnat"):
			continue // in use by another network
		}
		if _, err := nfttool.Run(ctx, "", "delete", "table", f.nft, portmapTable); err != nil &&
			!errors.Is(err, nfttool.ErrNotFound) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Chains the portmap plugin keeps in the nat table of iptables for all networks of the host.
const (
	portmapDNAT = "CNI-HOSTPORT-DNAT"
	portmapMasq = "CNI-HOSTPORT-MASQ"
	portmapMark = "CNI-HOSTPORT-SETMARK"
)

// removePortmapChains does the same for the plugin's iptables chains.
func removePortmapChains(ctx context.Context) error {
	if !IPTablesInUse(ctx) {
		return nil
	}
	var errs []error
	for _, f := range families {
		ipt, err := iptablesFor(f)
		if err != nil || ipt == nil {
			errs = append(errs, err)
			continue
		}
		rules, err := ipt.List("nat", portmapDNAT)
		switch {
		case isNotExist(err):
			continue
		case err != nil:
			errs = append(errs, fmt.Errorf("list chain %s: %w", portmapDNAT, err))
			continue
		case len(rules) > 1:
			continue // in use by another network; the first line of a listing declares the chain
		}
		for _, parent := range []string{"PREROUTING", "OUTPUT", "POSTROUTING"} {
			errs = append(errs, removeJumps(ipt, "nat", parent, portmapDNAT, portmapMasq))
		}
		for _, chain := range []string{portmapDNAT, portmapMasq, portmapMark} {
			ok, err := chainExists(ipt, "nat", chain)
			if ok {
				err = ipt.ClearAndDeleteChain("nat", chain)
			}
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// removeJumps deletes the rules of a chain that jump to one of the targets. It deletes by number,
// as the rules' text depends on the plugin's version.
func removeJumps(ipt *iptables.IPTables, table, parent string, targets ...string) error {
	rules, err := ipt.List(table, parent)
	if err != nil {
		return fmt.Errorf("list chain %s: %w", parent, err)
	}
	// From the end, so that the remaining numbers stay valid. The listing starts with the policy.
	for i := len(rules) - 1; i > 0; i-- {
		if !slices.ContainsFunc(targets, func(t string) bool { return strings.HasSuffix(rules[i], " -j "+t) }) {
			continue
		}
		if err := ipt.DeleteById(table, parent, i); err != nil {
			return fmt.Errorf("unlink chain from %s: %w", parent, err)
		}
	}
	return nil
}

// removeKubeletChains deletes auxiliary chains of the kubelet and the iptables proxier that
// upstream leaves behind. Another kubelet on the host recreates its own within seconds.
func removeKubeletChains(ctx context.Context) error {
	if !IPTablesInUse(ctx) {
		return nil
	}
	var errs []error
	for _, f := range families {
		ipt, err := iptablesFor(f)
		if err != nil || ipt == nil {
			errs = append(errs, err)
			continue
		}
		for _, c := range []struct {
			table, chain string
			parents      []string
		}{
			{"filter", "KUBE-FIREWALL", []string{"INPUT", "OUTPUT"}},
			{"filter", "KUBE-KUBELET-CANARY", nil}, {"nat", "KUBE-KUBELET-CANARY", nil},
			{"mangle", "KUBE-KUBELET-CANARY", nil},
			{"mangle", "KUBE-IPTABLES-HINT", nil},
		} {
			if ok, err := chainExists(ipt, c.table, c.chain); err != nil || !ok {
				errs = append(errs, err)
				continue
			}
			for _, parent := range c.parents {
				errs = append(errs, removeJumps(ipt, c.table, parent, c.chain))
			}
			errs = append(errs, ipt.ClearAndDeleteChain(c.table, c.chain))
		}
	}
	return errors.Join(errs...)
}
