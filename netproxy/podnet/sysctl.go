package podnet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// procSys is the root of the kernel settings.
const procSys = "/proc/sys"

// modprobeTimeout bounds the loading of a kernel module.
const modprobeTimeout = 30 * time.Second

// HostHasIPv6 reports whether the kernel was started with IPv6. It may still be switched off on
// interfaces.
func HostHasIPv6() (bool, error) {
	switch _, err := os.Stat("/proc/net/if_inet6"); {
	case err == nil:
		return true, nil
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	default:
		return false, fmt.Errorf("look for IPv6: %w", err)
	}
}

// setSysctl writes a kernel setting unless it already has the value. With a read-only /proc/sys
// (containers) it still succeeds if the host has been prepared.
func setSysctl(name, value string) error {
	path := filepath.Join(procSys, filepath.FromSlash(name))
	old, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read kernel setting %s: %w", name, err)
	}
	if strings.TrimSpace(string(old)) == value {
		return nil
	}
	if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
		return fmt.Errorf("set kernel setting %s to %s (set it on the host with: sysctl -w %s=%s): %w", name, value,
			strings.ReplaceAll(name, "/", "."), value, err)
	}
	return nil
}

// ensureKernelSettings makes the kernel forward packets and pass bridged packets through the packet
// filter. Without the latter, replies between two pods on one bridge bypass the reverse translation
// of service addresses.
func ensureKernelSettings(ctx context.Context, ipv4, ipv6 bool) error {
	var errs []error
	if ipv4 {
		errs = append(errs, setSysctl("net/ipv4/ip_forward", "1"))
	}
	if ipv6 {
		errs = append(errs, keepRouterAdvertisements(), setSysctl("net/ipv6/conf/all/forwarding", "1"))
	}
	errs = append(errs, ensureBridgeFilter(ctx, ipv4, ipv6))
	return errors.Join(errs...)
}

// keepRouterAdvertisements lets interfaces keep accepting router advertisements. By default the
// kernel stops accepting them when forwarding is on, and the host would lose its IPv6 default route
// when its lifetime expires.
func keepRouterAdvertisements() error {
	paths, err := filepath.Glob(filepath.Join(procSys, "net/ipv6/conf/*/accept_ra"))
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	var errs []error
	for _, path := range paths {
		old, err := os.ReadFile(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue // the interface is gone
		case err != nil:
			errs = append(errs, fmt.Errorf("read kernel setting: %w", err))
			continue
		case strings.TrimSpace(string(old)) != "1":
			continue
		}
		name, err := filepath.Rel(procSys, path)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if err := setSysctl(name, "2"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// ensureBridgeFilter loads br_netfilter if it is a module and enables it.
func ensureBridgeFilter(ctx context.Context, ipv4, ipv6 bool) error {
	if _, err := os.Stat(filepath.Join(procSys, "net/bridge")); err != nil {
		// The settings show whether it worked; there is nothing to load if the code is built in.
		loadCtx, cancel := context.WithTimeout(ctx, modprobeTimeout)
		defer cancel()
		out, loadErr := exec.CommandContext(loadCtx, "modprobe", "br_netfilter").CombinedOutput()
		if _, err := os.Stat(filepath.Join(procSys, "net/bridge")); err != nil {
			if loadErr != nil {
				err = fmt.Errorf("%w: %s", loadErr, strings.TrimSpace(string(out)))
			}
			return fmt.Errorf("kernel module br_netfilter is not available (load it with: modprobe br_netfilter): %w",
				err)
		}
	}
	var errs []error
	if ipv4 {
		errs = append(errs, setSysctl("net/bridge/bridge-nf-call-iptables", "1"))
	}
	if ipv6 {
		errs = append(errs, setSysctl("net/bridge/bridge-nf-call-ip6tables", "1"))
	}
	return errors.Join(errs...)
}
