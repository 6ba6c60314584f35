package hostnets

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/mote-dev/mote/internal/clusterconfig"
)

// Use is an address of an interface, or a route.
type Use struct {
	// Interface is the name of the interface, which a route leads to.
	Interface string
	// Prefix is the route's destination, or the interface's address with the size of its network.
	Prefix netip.Prefix
	// Address tells addresses from routes.
	Address bool
	// Down is set for addresses of interfaces that are down, which lead nowhere yet.
	Down bool
	// Protocol is the kernel's number of what made a route.
	Protocol int
}

// Own is what a node makes itself.
type Own struct {
	Interfaces []string
	// Protocols mark the node's routes over other interfaces.
	Protocols []int
}

// dumpTries bounds how often a list is read again because it changed while being read.
const dumpTries = 5

// List reads what the machine uses from the kernel, but for what a node made itself. Default routes
// are left out: everything overlaps them.
func List(own Own) ([]Use, error) {
	uses, err := list()
	for i := 1; i < dumpTries && errors.Is(err, netlink.ErrDumpInterrupted); i++ {
		uses, err = list()
	}
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(uses, func(u Use) bool {
		return slices.Contains(own.Interfaces, u.Interface) || slices.Contains(own.Protocols, u.Protocol)
	}), nil
}

func list() ([]Use, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	names, down := make(map[int]string), make(map[int]bool)
	var uses []Use
	for _, l := range links {
		a := l.Attrs()
		names[a.Index], down[a.Index] = a.Name, a.Flags&net.FlagUp == 0
	}
	addresses, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addresses {
		if p, ok := prefix(a.IPNet); ok {
			uses = append(uses, Use{
				Interface: names[a.LinkIndex],
				Prefix:    p,
				Address:   true,
				Down:      down[a.LinkIndex],
			})
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		// All tables: VPNs use tables of their own, which come before the main one.
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC},
			netlink.RT_FILTER_TABLE)
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			p, ok := prefix(r.Dst)
			// The local table repeats the addresses. Routes of other types lead nowhere.
			if !ok || p.Bits() == 0 || r.Table == unix.RT_TABLE_LOCAL || r.Type != unix.RTN_UNICAST {
				continue
			}
			index := r.LinkIndex
			if index == 0 && len(r.MultiPath) > 0 {
				index = r.MultiPath[0].LinkIndex
			}
			uses = append(uses, Use{Interface: names[index], Prefix: p, Protocol: int(r.Protocol)})
		}
	}
	return uses, nil
}

func prefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	ip, ok := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(ip.Unmap(), ones), ok
}

// Overlap is a use that overlaps one of a cluster's ranges.
type Overlap struct {
	Use
	// Range is the cluster's, Setting the name of the setting it comes from.
	Range   netip.Prefix
	Setting string
	// Inside says that the use lies in the range, so that it wins over mote's own routes or is an
	// address mote may give to a pod. Else it is a wider route, which loses against mote's own.
	Inside bool
}

// Find returns what overlaps a cluster's ranges.
func Find(uses []Use, cluster clusterconfig.Config) []Overlap {
	var out []Overlap
	for _, r := range []struct {
		setting string
		ranges  []netip.Prefix
	}{{"cluster-cidr", cluster.ClusterCIDRs}, {"service-cidr", cluster.ServiceCIDRs}} {
		for _, each := range r.ranges {
			for _, u := range uses {
				if u.Address && slices.Contains(cluster.ClusterDNS, u.Prefix.Addr()) {
					continue // each node has the cluster's DNS on an interface
				}
				inside := each.Contains(u.Prefix.Addr()) && (u.Address || u.Prefix.Bits() >= each.Bits())
				// Without a backend of mote's, the user's own leads to the pods.
				users := cluster.NetworkBackend == clusterconfig.BackendNone && r.setting == "cluster-cidr" &&
					!u.otherMote()
				if users || !inside && (u.Address || !each.Overlaps(u.Prefix)) {
					continue
				}
				out = append(out, Overlap{
					Use:     u,
					Range:   each,
					Setting: r.setting,
					Inside:  inside,
				})
			}
		}
	}
	return withoutRepetitions(out)
}

// withoutRepetitions drops the routes the kernel makes for addresses that are in the list, and
// sorts the rest.
func withoutRepetitions(all []Overlap) []Overlap {
	out := slices.DeleteFunc(slices.Clone(all), func(o Overlap) bool {
		return !o.Address && slices.ContainsFunc(all, func(a Overlap) bool {
			return a.Address && a.Interface == o.Interface && o.Prefix.Contains(a.Prefix.Addr())
		})
	})
	slices.SortFunc(out, func(a, b Overlap) int {
		return cmp.Or(cmp.Compare(a.Interface, b.Interface), a.Prefix.Compare(b.Prefix), a.Range.Compare(b.Range))
	})
	return slices.Compact(out)
}

func (o Overlap) String() string {
	relation := "contains"
	if o.Inside {
		relation = "lies in"
	}
	what := fmt.Sprintf("route %s (interface %s)", o.Prefix, cmp.Or(o.Interface, "none"))
	switch {
	case o.Address && o.Down:
		what = fmt.Sprintf("address %s of interface %s, which is down,", o.Prefix, o.Interface)
	case o.Address:
		what = fmt.Sprintf("address %s of interface %s", o.Prefix, o.Interface)
	}
	return fmt.Sprintf("%s %s %s %s", what, relation, o.Setting, o.Range)
}

// moteInterface matches the bridge and the overlay of any data folder's node.
var moteInterface = regexp.MustCompile(`^mote(0|\.1|-[0-9a-f]{6}(\.1)?)$`)

// otherMote reports whether a node with another data folder made the interface.
func (u Use) otherMote() bool { return moteInterface.MatchString(u.Interface) }

// Breaks reports whether a node that has no pods yet must not start beside the overlap. A node that
// has pods goes on: most of them still work, and nobody may be there to act. But two nodes that
// share addresses on one machine never work.
func (o Overlap) Breaks(fresh bool) bool {
	return o.Inside && !o.Down && (fresh || o.otherMote())
}

// Remedy is what to do about the overlap.
func (o Overlap) Remedy() string {
	if o.otherMote() {
		folder := "DIR"
		if o.Interface == "mote0" || o.Interface == "mote.1" {
			folder = "/var/lib/mote"
		}
		return fmt.Sprintf("it is the pod network of a mote with another data folder: remove that with `mote "+
			"uninstall --data-dir %s --yes`, or with `ip link delete %s` if the folder is gone, or give the cluster "+
			"another %s", folder, o.Interface, o.Setting)
	}
	if o.Inside {
		return "remove it from this machine, or give the cluster another " + o.Setting
	}
	return "nothing, unless machines there have addresses of the range: these cannot be reached from here"
}
