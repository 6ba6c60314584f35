package hostaddr

import (
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
)

// Dummy is the address a machine without any network goes by until it has one: the IPv4 dummy
// address (RFC 7600, section 4.8), which is never used outside a host. A node must have an address
// that is not loopback.
var Dummy = net.IPv4(192, 0, 0, 8)

// All returns the addresses of this machine that others can use: global unicast addresses of
// interfaces that are up and not mote's own, the one the kernel sends from to other networks first.
// It is empty without a network, and if the kernel does not list its interfaces.
func All() []net.IP {
	found, err := list()
	if err != nil {
		return nil
	}
	return found
}

// Preferred returns the first of All, or Dummy.
func Preferred() net.IP {
	if all := All(); len(all) > 0 {
		return all[0]
	}
	return Dummy
}

// Current is Preferred for callers that must not take an unknown address for none: it returns an
// error if the kernel does not list its interfaces.
func Current() (net.IP, error) {
	found, err := list()
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return Dummy, nil
	}
	return found[0], nil
}

// list returns the addresses of All.
func list() ([]net.IP, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var found []net.IP
	for _, i := range interfaces {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 || own(i.Name) {
			continue
		}
		addresses, err := i.Addrs()
		if err != nil {
			return nil, fmt.Errorf("list addresses of interface %s: %w", i.Name, err)
		}
		for _, a := range addresses {
			if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
				found = append(found, n.IP)
			}
		}
	}
	// IPv4 first where no route decides: clusters here are usually addressed by it.
	slices.SortStableFunc(found, func(a, b net.IP) int { return len(normal(a)) - len(normal(b)) })
	if source := routeSource(); source != nil && slices.ContainsFunc(found, source.Equal) {
		found = slices.DeleteFunc(found, source.Equal)
		found = slices.Insert(found, 0, source)
	}
	return found, nil
}

// EnsureDummy gives the loopback interface the address Dummy. It is harmless to repeat.
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

// RemoveDummy removes Dummy from the loopback interface if it is there.
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

// routeSource is the address the kernel would send from to reach other networks; nil without a
// default route. Nothing is sent: connecting a UDP socket only looks the route up.
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

// own reports whether mote or its pod network made an interface.
func own(name string) bool {
	return strings.HasPrefix(name, "mote") || strings.HasPrefix(name, "veth") || strings.HasPrefix(name, "cni")
}
