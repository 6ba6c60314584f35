package podnet

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/mote-dev/mote/internal/clusterconfig"
)

const (
	// minMTU is the least an IPv6 link must carry.
	minMTU = 1280
	maxMTU = 65535
	// fallbackMTU is assumed for the network that is not there yet: Ethernet's.
	fallbackMTU = 1500
	// vxlanOverhead4 and vxlanOverhead6 are the bytes the overlay adds over IPv4 and IPv6.
	vxlanOverhead4, vxlanOverhead6 = 50, 70
)

// hostLinks is what the node's interfaces look like to the pod network.
type hostLinks struct {
	// uplink is the interface of the default route with the lowest metric; empty when there is no default route.
	uplink string
	// routed4 and routed6 tell whether there is a default route of each family.
	routed4, routed6 bool
	// mtu is the uplink's MTU, or without one the least MTU of the physical interfaces that are up, or 0.
	mtu int
}

// readHostLinks asks the kernel for the default route's interface.
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

// dumpTries bounds how often a list is read anew because it changed meanwhile.
const dumpTries = 5

// dump reads a list from the kernel, and again if it changed meanwhile: what such a list lacks would count as gone.
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

// isPhysical tells interfaces a node could be reached by from those the pod network and its like make.
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

// podMTU returns the MTU for pods: explicit if set, else the link's less what the backend adds.
func podMTU(explicit, link int, backend clusterconfig.Backend, nodeIP netip.Addr) int {
	if explicit != 0 {
		return explicit
	}
	if link == 0 {
		link = fallbackMTU
	}
	// A loopback-like uplink has an MTU no real network has.
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

// removeLink deletes an interface; one that is not there is fine.
func removeLink(name string) error {
	l, err := netlink.LinkByName(name)
	if isNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find interface %s: %w", name, err)
	}
	// Its namespace's other end may take it away in between.
	if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete interface %s: %w", name, err)
	}
	return nil
}
