package hostaddr

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
)

// Dummy is the address a machine without any network goes by until it has one:
// the IPv4 dummy address (RFC 7600, section 4.8), which is never used outside a
// host. A node must have an address that is not loopback.
var Dummy = net.IPv4(192, 0, 0, 8)

// settle is how long an address must have been gone before it counts as
// changed: leases are renewed and cables plugged in again.
const settle = 5 * time.Second

// All are the addresses of this machine that others can use: global unicast
// ones of interfaces that are up and not mote's own, the one the kernel sends
// from to other networks first. It is empty without a network.
func All() []net.IP {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil
	}
	var found []net.IP
	for _, i := range interfaces {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 || own(i.Name) {
			continue
		}
		addresses, err := i.Addrs()
		if err != nil {
			continue
		}
		for _, a := range addresses {
			if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
				found = append(found, n.IP)
			}
		}
	}
	// IPv4 first where no route decides: it is what clusters are addressed by here.
	slices.SortStableFunc(found, func(a, b net.IP) int { return len(normal(a)) - len(normal(b)) })
	if source := routeSource(); source != nil && slices.ContainsFunc(found, source.Equal) {
		found = slices.DeleteFunc(found, source.Equal)
		found = slices.Insert(found, 0, source)
	}
	return found
}

// Preferred is the first of All, or Dummy without a network.
func Preferred() net.IP {
	if all := All(); len(all) > 0 {
		return all[0]
	}
	return Dummy
}

// EnsureDummy gives the loopback interface the address Dummy. It is harmless to
// repeat.
func EnsureDummy() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback interface: %w", err)
	}
	err = netlink.AddrReplace(lo, &netlink.Addr{IPNet: &net.IPNet{IP: Dummy, Mask: net.CIDRMask(32, 32)}})
	if err != nil {
		return fmt.Errorf("give loopback interface address %s: %w", Dummy, err)
	}
	return nil
}

// RemoveDummy takes Dummy away again; that it is not there is no error.
func RemoveDummy() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback interface: %w", err)
	}
	addresses, err := netlink.AddrList(lo, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list addresses of loopback interface: %w", err)
	}
	for _, a := range addresses {
		if a.IP.Equal(Dummy) {
			if err := netlink.AddrDel(lo, &a); err != nil {
				return fmt.Errorf("remove address %s: %w", Dummy, err)
			}
		}
	}
	return nil
}

// WaitChanged blocks until old is no longer an address of this machine while it
// has another one, for some seconds, or until ctx ends. A machine that only
// lost its network keeps its old address: pods on it go on as they are.
func WaitChanged(ctx context.Context, old net.IP) error {
	changes := make(chan netlink.AddrUpdate)
	failed := make(chan error, 1)
	err := netlink.AddrSubscribeWithOptions(changes, ctx.Done(), netlink.AddrSubscribeOptions{ErrorCallback: func(err error) {
		select {
		case failed <- err:
		default:
		}
	}})
	if err != nil {
		return fmt.Errorf("watch addresses: %w", err)
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for since := (time.Time{}); ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-failed:
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("watch addresses: %w", err)
		case _, open := <-changes:
			if !open {
				return errors.Join(errors.New("watch of addresses ended"), ctx.Err())
			}
		case <-timer.C:
		}
		all := All()
		switch {
		case len(all) == 0 || slices.ContainsFunc(all, old.Equal):
			since = time.Time{}
		case since.IsZero():
			since = time.Now()
			timer.Reset(settle)
		case time.Since(since) >= settle:
			return nil
		default:
			timer.Reset(settle - time.Since(since))
		}
	}
}

// routeSource is the address the kernel would send from to reach other
// networks; nil without a default route. Nothing is sent: connecting a UDP
// socket only looks the route up.
func routeSource() net.IP {
	conn, err := net.Dial("udp4", "198.51.100.1:9")
	if err != nil {
		return nil
	}
	defer func() { _ = conn.Close() }()
	address, ok := conn.LocalAddr().(*net.UDPAddr)
	if !ok || !address.IP.IsGlobalUnicast() {
		return nil
	}
	return address.IP
}

func normal(ip net.IP) net.IP {
	if v4 := ip.To4(); v4 != nil {
		return v4
	}
	return ip
}

// own tells whether mote, or its pods' network, made an interface.
func own(name string) bool {
	return strings.HasPrefix(name, "mote") || strings.HasPrefix(name, "veth") || strings.HasPrefix(name, "cni")
}
