package podnet

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// bootIDFile is where the kernel says which boot this is.
const bootIDFile = "/proc/sys/kernel/random/boot_id"

// leaseRoot is the folder given to the address plugin; it makes a folder named for the network in it.
func leaseRoot(stateDir string) string { return filepath.Join(stateDir, "networks") }

// dropStaleLeases deletes the address leases of an earlier boot. After a power cut nobody gives them back, and a node that
// loses power often enough would run out of addresses. No pod survives a boot, so none of them can be in use; the boot is
// told by the kernel's boot id because clocks are not to be trusted. It has to run before the first pod of a boot starts.
func dropStaleLeases(stateDir string) (dropped int, err error) {
	current, err := os.ReadFile(bootIDFile)
	if err != nil {
		return 0, fmt.Errorf("read boot id: %w", err)
	}
	marker := filepath.Join(stateDir, "boot-id")
	old, err := os.ReadFile(marker)
	switch {
	case err == nil && string(old) == string(current):
		return 0, nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		// Leases may be in use.
		return 0, fmt.Errorf("read the boot id of the leases: %w", err)
	}
	dir := filepath.Join(leaseRoot(stateDir), NetworkName)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("list leases: %w", err)
	}
	for _, e := range entries {
		// Leases are files named for their address. The plugin's lock and its note of the last address stay.
		if _, err := netip.ParseAddr(strings.ReplaceAll(e.Name(), "_", ":")); err != nil {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return dropped, fmt.Errorf("drop lease: %w", err)
		}
		dropped++
	}
	if _, err := writeFile(marker, current); err != nil {
		return dropped, err
	}
	return dropped, nil
}
