package podnet

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// bootIDFile holds the kernel's random ID of this boot.
const bootIDFile = "/proc/sys/kernel/random/boot_id"

// leaseRoot is the folder given to the address plugin, which creates a subfolder named after the
// network.
func leaseRoot(stateDir string) string { return filepath.Join(stateDir, "networks") }

// dropStaleLeases deletes the address leases of an earlier boot. A power cut leaves them behind,
// and a node that loses power often enough would run out of addresses. No pod survives a reboot, so
// none of them can be in use. Boots are recognised by the kernel's boot ID, because clocks may be
// wrong. It must run before the first pod of a boot starts.
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
		// A lease is a file named after its address. The plugin's lock and its record of the last
		// address stay.
		if _, ok := leased(e.Name()); !ok {
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
