package podnet

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Protocol numbers that mark our routes. /etc/iproute2/rt_protos assigns them to nobody.
const (
	// routeProtocol marks direct routes to other nodes.
	routeProtocol = 109
	// serviceProtocol marks routes to services.
	serviceProtocol = 110
)

// ensureOverlay applies the plan to the VXLAN interface, its addresses, forwarding entries,
// neighbours and routes, and deletes whatever else is there.
func ensureOverlay(name string, p plan, mtu int) error {
	link, err := ensureOverlayLink(name, p, mtu)
	if err != nil {
		return fmt.Errorf("make overlay %s: %w", name, err)
	}
	index := link.Attrs().Index
	if err := errors.Join(ensureOverlayAddrs(link, p.addrs), ensureLinks(index, p.links),
		ensureHops(index, p.hops)); err != nil {
		return fmt.Errorf("set up overlay %s: %w", name, err)
	}
	wanted := make(map[netip.Prefix]netlink.Route, len(p.routes))
	for _, r := range p.routes {
		wanted[r.dst] = netlink.Route{
			LinkIndex: index,
			Dst:       ipNet(r.dst),
			Gw:        r.via.AsSlice(),
			Scope:     netlink.SCOPE_UNIVERSE,
			Flags:     int(netlink.FLAG_ONLINK),
		}
	}
	return ensureRoutes(wanted, &netlink.Route{LinkIndex: index}, netlink.RT_FILTER_OIF)
}

// ensureOverlayLink returns the interface. It recreates it if attributes differ, as the kernel
// cannot change most of them.
func ensureOverlayLink(name string, p plan, mtu int) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	switch {
	case isNotFound(err):
		link = nil
	case err != nil:
		return nil, err
	}
	if link != nil {
		v, ok := link.(*netlink.Vxlan)
		if !ok {
			return nil, fmt.Errorf("there is a %s of that name, not made by mote", link.Type())
		}
		have, _ := netip.AddrFromSlice(v.SrcAddr)
		if have.Unmap() != p.local || v.VxlanId != vxlanID || v.Port != vxlanPort ||
			!bytes.Equal(v.HardwareAddr, p.mac) {
			if err := netlink.LinkDel(link); err != nil {
				return nil, err
			}
			link = nil
		}
	}
	if link == nil {
		err := netlink.LinkAdd(&netlink.Vxlan{
			LinkAttrs: netlink.LinkAttrs{Name: name, HardwareAddr: p.mac, MTU: mtu},
			VxlanId:   vxlanID,
			SrcAddr:   p.local.AsSlice(),
			Port:      vxlanPort,
			PortLow:   vxlanPort,
			PortHigh:  vxlanPort + 1,
			Learning:  false,
		})
		if err != nil {
			return nil, err
		}
		if link, err = netlink.LinkByName(name); err != nil {
			return nil, err
		}
	}
	if link.Attrs().MTU != mtu {
		if err := netlink.LinkSetMTU(link, mtu); err != nil {
			return nil, err
		}
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		if err := netlink.LinkSetUp(link); err != nil {
			return nil, err
		}
	}
	return link, nil
}

// ensureOverlayAddrs makes the interface have exactly the wanted addresses besides its link-local
// one.
func ensureOverlayAddrs(link netlink.Link, wanted []netip.Addr) error {
	have, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	var errs []error
	missing := make(map[netip.Addr]bool)
	for _, ip := range wanted {
		missing[ip] = true
	}
	for _, a := range have {
		ip, _ := netip.AddrFromSlice(a.IP)
		ip = ip.Unmap()
		ones, _ := a.Mask.Size()
		if missing[ip] && ones == ip.BitLen() {
			delete(missing, ip)
			continue
		}
		if !ip.IsLinkLocalUnicast() {
			errs = append(errs, netlink.AddrDel(link, &a))
		}
	}
	for ip := range missing {
		addr := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(ip, ip.BitLen()))}
		if ip.Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		errs = append(errs, netlink.AddrReplace(link, addr))
	}
	return errors.Join(errs...)
}

// ensureLinks writes the forwarding entries: at which node each hardware address is.
func ensureLinks(index int, wanted []peerLink) error {
	have, err := dump(func() ([]netlink.Neigh, error) { return netlink.NeighList(index, unix.AF_BRIDGE) })
	if err != nil {
		return fmt.Errorf("list forwarding entries: %w", err)
	}
	missing := make(map[string]peerLink)
	for _, l := range wanted {
		missing[l.mac.String()] = l
	}
	var errs []error
	for _, e := range have {
		ip, _ := netip.AddrFromSlice(e.IP)
		l, ok := missing[e.HardwareAddr.String()]
		if ok && ip.Unmap() == l.outer {
			delete(missing, e.HardwareAddr.String())
			continue
		}
		errs = append(errs, ignoreMissing(netlink.NeighDel(&e)))
	}
	for _, l := range missing {
		errs = append(errs, netlink.NeighSet(&netlink.Neigh{
			LinkIndex:    index,
			Family:       unix.AF_BRIDGE,
			State:        netlink.NUD_PERMANENT,
			Flags:        netlink.NTF_SELF,
			IP:           l.outer.AsSlice(),
			HardwareAddr: l.mac,
		}))
	}
	return errors.Join(errs...)
}

// ensureHops writes the neighbour entries: the hardware address of each route's next hop.
func ensureHops(index int, wanted map[netip.Addr]net.HardwareAddr) error {
	have, err := dump(func() ([]netlink.Neigh, error) { return netlink.NeighList(index, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list neighbours: %w", err)
	}
	done := make(map[netip.Addr]bool)
	var errs []error
	for _, e := range have {
		ip, _ := netip.AddrFromSlice(e.IP)
		ip = ip.Unmap()
		if e.State&netlink.NUD_PERMANENT == 0 {
			continue
		}
		if mac, ok := wanted[ip]; ok && bytes.Equal(mac, e.HardwareAddr) {
			done[ip] = true
			continue
		}
		if !ip.IsMulticast() {
			errs = append(errs, ignoreMissing(netlink.NeighDel(&e)))
		}
	}
	for ip, mac := range wanted {
		if !done[ip] {
			errs = append(errs, netlink.NeighSet(&netlink.Neigh{
				LinkIndex:    index,
				State:        netlink.NUD_PERMANENT,
				Type:         unix.RTN_UNICAST,
				IP:           ip.AsSlice(),
				HardwareAddr: mac,
			}))
		}
	}
	return errors.Join(errs...)
}

// ensureDirectRoutes makes the routes over the nodes' common link exactly the planned ones.
func ensureDirectRoutes(routes []peerRoute) error {
	wanted := make(map[netip.Prefix]netlink.Route, len(routes))
	var errs []error
	for _, r := range routes {
		paths, err := netlink.RouteGet(r.via.AsSlice())
		if err != nil {
			errs = append(errs, fmt.Errorf("find the route to node at %s: %w", r.via, err))
			continue
		}
		if len(paths) == 0 {
			errs = append(errs, fmt.Errorf("find the route to node at %s: there is none", r.via))
			continue
		}
		if len(paths[0].Gw) > 0 {
			errs = append(errs,
				fmt.Errorf("node at %s is behind a router: the host-gw network needs all nodes on one link; use vxlan",
					r.via))
			continue
		}
		wanted[r.dst] = netlink.Route{
			LinkIndex: paths[0].LinkIndex,
			Dst:       ipNet(r.dst),
			Gw:        r.via.AsSlice(),
			Protocol:  routeProtocol,
		}
	}
	return errors.Join(append(errs,
		ensureRoutes(wanted, &netlink.Route{Protocol: routeProtocol}, netlink.RT_FILTER_PROTOCOL))...)
}

// ensureServiceRoutes lets the host itself reach services without a default route: the kernel looks
// up a route before it translates the address, and fails without one. Only the route's source
// address matters; pods can answer the bridge's.
func ensureServiceRoutes(bridge string, services []netip.Prefix, links hostLinks) error {
	wanted := make(map[netip.Prefix]netlink.Route)
	link, err := netlink.LinkByName(bridge)
	if err != nil && !isNotFound(err) {
		return fmt.Errorf("find bridge %s: %w", bridge, err)
	}
	for _, p := range services {
		routed := links.routed4
		if p.Addr().Is6() {
			routed = links.routed6
		}
		if routed || err != nil || link.Attrs().Flags&net.FlagUp == 0 {
			continue
		}
		wanted[p.Masked()] = netlink.Route{
			LinkIndex: link.Attrs().Index,
			Dst:       ipNet(p.Masked()),
			Scope:     netlink.SCOPE_LINK,
			Protocol:  serviceProtocol,
		}
	}
	return ensureRoutes(wanted, &netlink.Route{Protocol: serviceProtocol}, netlink.RT_FILTER_PROTOCOL)
}

// ensureRoutes makes the routes that match the filter exactly the wanted ones.
func ensureRoutes(wanted map[netip.Prefix]netlink.Route, filter *netlink.Route, mask uint64) error {
	done := make(map[netip.Prefix]bool)
	var errs []error
	for _, fam := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		have, err := dump(func() ([]netlink.Route, error) { return netlink.RouteListFiltered(fam, filter, mask) })
		if err != nil {
			return fmt.Errorf("list routes: %w", err)
		}
		for _, r := range have {
			dst, ok := prefixOf(r.Dst)
			want, wantIt := wanted[dst]
			switch {
			case !ok, dst.Addr().IsLinkLocalUnicast(), dst.Addr().IsMulticast(), r.Protocol == unix.RTPROT_KERNEL:
				// The kernel maintains these itself.
			case wantIt && want.LinkIndex == r.LinkIndex && want.Gw.Equal(r.Gw):
				done[dst] = true
			case !wantIt:
				errs = append(errs, ignoreMissing(netlink.RouteDel(&r)))
			}
		}
	}
	for dst, r := range wanted {
		if done[dst] {
			continue
		}
		if err := netlink.RouteReplace(&r); err != nil {
			errs = append(errs, fmt.Errorf("add route to %s: %w", dst, err))
		}
	}
	return errors.Join(errs...)
}

// ignoreMissing drops the error of deleting something that does not exist.
func ignoreMissing(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	ip, ok := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(ip.Unmap(), ones), ok
}
