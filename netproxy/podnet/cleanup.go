package podnet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
)

// portmapTable is the nftables table the portmap plugin shares with every CNI network of the host.
const portmapTable = "cni_hostport"

// Cleanup removes what a [Network] of this config made: rules, the bridge with the pods' interfaces, leases and the
// network list. It touches nothing else and can be repeated after it was interrupted.
func Cleanup(ctx context.Context, c Config) error {
	c = c.withDefaults()
	var errs []error
	for _, fw := range []firewall{&nftFirewall{}, &iptablesFirewall{}} {
		errs = append(errs, fw.Remove(ctx))
	}
	errs = append(errs, removeBridge(c.Bridge), removePortmapTables(ctx))
	if c.ConfDir != "" {
		if err := os.Remove(filepath.Join(c.ConfDir, ConflistName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove network list: %w", err))
		}
	}
	if c.StateDir != "" {
		for _, path := range []string{leaseRoot(c.StateDir), filepath.Join(c.StateDir, "boot-id")} {
			if err := os.RemoveAll(path); err != nil {
				errs = append(errs, fmt.Errorf("remove leases: %w", err))
			}
		}
	}
	return errors.Join(errs...)
}

// removeBridge deletes the bridge and the host's ends of the pods' interfaces attached to it.
func removeBridge(name string) error {
	bridge, err := netlink.LinkByName(name)
	if err != nil {
		var missing netlink.LinkNotFoundError
		if errors.As(err, &missing) {
			return nil
		}
		return fmt.Errorf("find bridge %s: %w", name, err)
	}
	if bridge.Type() != "bridge" {
		return fmt.Errorf("remove bridge %s: it is a %s, not made by mote", name, bridge.Type())
	}
	links, err := netlink.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
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

// removePortmapTables deletes the portmap plugin's tables if no network of the host has a port mapped in them.
func removePortmapTables(ctx context.Context) error {
	var errs []error
	for _, f := range families {
		listed, err := runNFT(ctx, "", "list", "table", f.nft, portmapTable)
		if err != nil || strings.Contains(listed, "dnat") {
			// No such table, no nft, or in use by somebody.
			continue
		}
		if _, err := runNFT(ctx, "", "delete", "table", f.nft, portmapTable); err != nil && !errors.Is(err, errNoTable) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
