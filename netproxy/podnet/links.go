package podnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/mote-dev/mote/internal/clusterconfig"
)

const (
	// minMTU is the minimum MTU of IPv6.
	minMTU = 1280
	maxMTU = 65535
	// fallbackMTU, Ethernet's, is assumed until there is a network.
	fallbackMTU = 1500
	// vxlanOverhead4 and vxlanOverhead6 are the bytes the overlay adds over IPv4 and IPv6.
	vxlanOverhead4, vxlanOverhead6 = 50, 70
)

// hostLinks is what the pod network needs to know about the node's interfaces.
type hostLinks struct {
	// uplink is the interface of the default route with the lowest metric; empty when there is no
	// default route.
	uplink string
	// routed4 and routed6 report whether each family has a default route.
	routed4, routed6 bool
	// mtu is the uplink's MTU, else the smallest MTU of the physical interfaces that are up,
	// else 0.
	mtu int
}

// readHostLinks reads routes and interfaces from the kernel.
func readHostLinks() (hostLinks, error) {
	best := struct{ index, metric int }{-1, 0}
	var out hostLinks
	for _, fam := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := dump(func() ([]netlink.Route, error) { return netlink.RouteList(nil, fam) })
		if err != nil {
			return hostLinks{}, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			if !isDefaultRoute(r) || r.LinkIndex <= 0 {
				continue
			}
			out.routed4 = out.routed4 || fam == netlink.FAMILY_V4
			out.routed6 = out.routed6 || fam == netlink.FAMILY_V6
			// IPv6 counts only on hosts without an IPv4 default route.
			if fam == netlink.FAMILY_V6 && out.routed4 {
				break
			}
			if best.index < 0 || r.Priority < best.metric {
				best.index, best.metric = r.LinkIndex, r.Priority
			}
		}
	}
	links, err := dump(netlink.LinkList)
	if err != nil {
		return hostLinks{}, fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range links {
		a := l.Attrs()
		if a.Index == best.index {
			out.uplink, out.mtu = a.Name, a.MTU
			return out, nil
		}
		if isPhysical(l) && (out.mtu == 0 || a.MTU < out.mtu) {
			out.mtu = a.MTU
		}
	}
	return out, nil
}

// machines returns the addresses that must not be routed to pods: this machine's, those of its
// gateways, and those of servers.
func (n *Network) machines(servers []netip.Addr) ([]machine, error) {
	var all []machine
	add := func(ip net.IP, of string) {
		if a, ok := netip.AddrFromSlice(ip); ok && a.Unmap().IsGlobalUnicast() {
			all = append(all, machine{a.Unmap(), of})
		}
	}
	links, err := dump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	// The bridge may still have an address of a range that is another node's by now.
	pods := make(map[int]bool)
	for _, l := range links {
		a := l.Attrs()
		pods[a.Index] = a.Name == n.cfg.Bridge || a.Name == overlayName(n.cfg.Bridge)
	}
	addrs, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		if !pods[a.LinkIndex] {
			add(a.IP, thisMachine)
		}
	}
	routes, err := dump(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if !pods[r.LinkIndex] && r.Protocol != routeProtocol {
			add(r.Gw, aGateway)
		}
	}
	for _, s := range servers {
		all = append(all, machine{s.Unmap(), aServer})
	}
	return all, nil
}

// dumpTries bounds how often a list is read again because it changed while being read.
const dumpTries = 5

// dump reads a list from the kernel, and again if it changed while being read: entries missing from
// it would count as gone.
func dump[T any](read func() ([]T, error)) ([]T, error) {
	var list []T
	var err error
	for range dumpTries {
		if list, err = read(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	return list, nil
}

// isNotFound reports whether an interface does not exist.
func isNotFound(err error) bool {
	var missing netlink.LinkNotFoundError
	return errors.As(err, &missing)
}

func isDefaultRoute(r netlink.Route) bool {
	if r.Dst == nil {
		return true
	}
	ones, _ := r.Dst.Mask.Size()
	return ones == 0 && r.Dst.IP.IsUnspecified()
}

// isPhysical reports whether a node could be reached through an interface, unlike those that pod
// networks create.
func isPhysical(l netlink.Link) bool {
	a := l.Attrs()
	if a.OperState != netlink.OperUp {
		return false
	}
	switch l.Type() {
	case "device":
		_, err := os.Stat(filepath.Join("/sys/class/net", a.Name, "device"))
		return err == nil
	case "vlan", "bond":
		return true
	}
	return false
}

// podMTU returns the MTU for pods: explicit if set, else the link's MTU less the backend's
// overhead.
func podMTU(explicit, link int, backend clusterconfig.Backend, nodeIP netip.Addr) int {
	if explicit != 0 {
		return explicit
	}
	if link == 0 {
		link = fallbackMTU
	}
	// No real network has such an MTU; loopback does.
	if link > 9216 {
		link = fallbackMTU
	}
	if backend == clusterconfig.BackendVXLAN {
		if nodeIP.Is6() {
			link -= vxlanOverhead6
		} else {
			link -= vxlanOverhead4
		}
	}
	return max(link, minMTU)
}

// removeLink deletes an interface if it exists.
func removeLink(name string) error {
	l, err := netlink.LinkByName(name)
	if isNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find interface %s: %w", name, err)
	}
	// It may disappear meanwhile together with its peer in another namespace.
	if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete interface %s: %w", name, err)
	}
	return nil
}
