package hostcheck

import (
	"fmt"
	"slices"
	"strings"

	"github.com/mote-dev/mote/internal/hostnets"
	"github.com/mote-dev/mote/internal/resolvconf"
)

// The controllers a node cannot do without.
var (
	controllersV1 = []string{"cpu", "cpuacct", "cpuset", "memory", "pids", "devices", "freezer"}
	controllersV2 = []string{"cpu", "cpuset", "memory", "pids"}
)

const memoryRemedy = "add cgroup_enable=memory to the kernel's command line (on a Raspberry Pi in " +
	"/boot/firmware/cmdline.txt) and reboot"

func checkCgroups(h Host, _ Options) []Result {
	version, have, err := cgroups(h)
	if err != nil {
		return unknown("cgroups", err)
	}
	want := controllersV2
	switch version {
	case 0:
		return fail("cgroups", "not mounted", "mount cgroup2 at /sys/fs/cgroup")
	case 1:
		want = controllersV1
	}
	var missing []string
	for _, c := range want {
		if !slices.Contains(have, c) {
			missing = append(missing, c)
		}
	}
	if len(missing) > 0 {
		remedy := "use a kernel with these controllers, and give them to the container if mote runs in one"
		if slices.Contains(missing, "memory") {
			remedy = memoryRemedy
		}
		return fail("cgroups", fmt.Sprintf("version %d without %s", version, strings.Join(missing, ", ")), remedy)
	}
	if version == 1 {
		return warn("cgroups", "version 1",
			"boot with systemd.unified_cgroup_hierarchy=1 for version 2: Kubernetes is about to drop version 1")
	}
	return ok("cgroups", "version 2")
}

// cgroups tells the version that has the controllers, and which these are.
func cgroups(h Host) (version int, controllers []string, err error) {
	// The file exists only at the top of a version 2 hierarchy.
	data, err := h.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	if err == nil {
		return 2, strings.Fields(string(data)), nil
	}
	if !missing(err) {
		return 0, nil, err
	}
	if data, err = h.ReadFile("/proc/self/mountinfo"); err != nil {
		return 0, nil, err
	}
	for line := range strings.Lines(string(data)) {
		_, after, found := strings.Cut(line, " - ")
		fields := strings.Fields(after)
		if found && len(fields) >= 3 && fields[0] == "cgroup" {
			version = 1
			controllers = append(controllers, strings.Split(fields[2], ",")...)
		}
	}
	return version, controllers, nil
}

func checkLinks(h Host, _ Options) []Result {
	errs := h.TryLinks("bridge", "veth", "vxlan")
	var results []Result
	for _, kind := range []string{"bridge", "veth"} {
		if err := errs[kind]; err != nil && !lacks(err) {
			results = append(results, unknown(kind, err)...)
			continue
		} else if err != nil {
			results = append(results, fail(kind, fmt.Sprintf("cannot be made (%v)", err),
				"load the module ("+kind+") or use a kernel that has it: pods are connected with it")...)
			continue
		}
		results = append(results, ok(kind, "works")...)
	}
	if err := errs["vxlan"]; err != nil && !lacks(err) {
		return append(results, unknown("vxlan", err)...)
	} else if err != nil {
		return append(results,
			warn("vxlan", fmt.Sprintf("cannot be made (%v)", err),
				"load the module (vxlan) before joining a second machine, as pods of several machines talk through "+
					"it, or give the server --network-backend=host-gw")...)
	}
	return append(results, ok("vxlan", "works")...)
}

func checkPacketFilter(h Host, _ Options) []Result {
	nft := h.TryNFTables()
	if nft == nil {
		return ok("packet filter", "nftables")
	}
	iptables := h.TryIPTables()
	for _, err := range []error{nft, iptables} {
		if err != nil && !lacks(err) {
			return unknown("packet filter", err)
		}
	}
	if iptables == nil {
		return warn("packet filter", fmt.Sprintf("iptables, as nftables does not work (%v)", nft),
			"install nftables (nft 1.0.1 or newer) for faster services")
	}
	return fail("packet filter", fmt.Sprintf("neither nftables (%v) nor iptables (%v) works", nft, iptables),
		"install the nftables package, or iptables")
}

func checkBridgeFilter(h Host, _ Options) []Result {
	there, err := h.Exists("/proc/sys/net/bridge/bridge-nf-call-iptables")
	if err != nil {
		return unknown("br_netfilter", err)
	}
	if !there {
		switch err := h.TryModule("br_netfilter"); {
		case err == nil:
			return ok("br_netfilter", "not loaded, will be")
		case !lacks(err):
			return unknown("br_netfilter", err)
		}
		return warn("br_netfilter", "not loaded",
			"run `modprobe br_netfilter`: without, a pod may not reach a service that leads to a pod of the same node")
	}
	return ok("br_netfilter", "there")
}

func checkForwarding(h Host, _ Options) []Result {
	const path = "/proc/sys/net/ipv4/ip_forward"
	n, err := readInt(h, path)
	if err != nil {
		return unknown("ip_forward", err)
	}
	if n == 1 {
		return ok("ip_forward", "on")
	}
	if err := h.Writable(path); err != nil && !lacks(err) {
		return unknown("ip_forward", err)
	} else if err != nil {
		return fail("ip_forward", fmt.Sprintf("off and cannot be set (%v)", err),
			"run `sysctl -w net.ipv4.ip_forward=1` on the host")
	}
	return ok("ip_forward", "off, can be set")
}

func checkIPv6(h Host, o Options) []Result {
	const conf = "/proc/sys/net/ipv6/conf/"
	if !o.IPv6 {
		return nil
	}
	// The bridge of the pods begins with the default.
	for _, which := range []string{"all", "default"} {
		off, err := readInt(h, conf+which+"/disable_ipv6")
		switch {
		case err != nil && !missing(err):
			return unknown("ipv6", err)
		case err != nil:
			return fail("ipv6", "the kernel has none",
				"boot it without ipv6.disable=1, or leave the IPv6 ranges out of --cluster-cidr and --service-cidr")
		case off != 0:
			return fail("ipv6", "switched off (net.ipv6.conf."+which+".disable_ipv6)",
				"run `sysctl -w net.ipv6.conf."+which+
					".disable_ipv6=0`, or leave the IPv6 ranges out of --cluster-cidr and --service-cidr")
		}
	}
	n, err := readInt(h, conf+"all/forwarding")
	if err != nil {
		return unknown("ipv6", err)
	}
	if n == 1 {
		return ok("ipv6", "there, forwarding is on")
	}
	if err := h.Writable(conf + "all/forwarding"); err != nil && !lacks(err) {
		return unknown("ipv6", err)
	} else if err != nil {
		return fail("ipv6", fmt.Sprintf("forwarding is off and cannot be set (%v)", err),
			"run `sysctl -w net.ipv6.conf.all.forwarding=1` on the host")
	}
	return ok("ipv6", "there, forwarding can be set")
}

func checkConntrack(h Host, _ Options) []Result {
	there, err := h.Exists("/proc/sys/net/netfilter/nf_conntrack_max")
	if err != nil {
		return unknown("conntrack", err)
	}
	if !there {
		switch err := h.TryModule("nf_conntrack"); {
		case err == nil:
			return ok("conntrack", "not loaded, comes with the first rule")
		case !lacks(err):
			return unknown("conntrack", err)
		}
		return warn("conntrack", "not loaded",
			"run `modprobe nf_conntrack`: services need it, and the kernel loads it with the first rule only if it "+
				"has the module")
	}
	return ok("conntrack", "there")
}

func checkNetworks(h Host, o Options) []Result {
	cluster, unknown := o.Cluster, len(o.Cluster.ClusterCIDRs) == 0
	if unknown {
		cluster = cluster.WithDefaults()
	}
	uses, err := h.Networks(o.Own)
	if err != nil {
		return warn("networks", fmt.Sprintf("not known (%v)", err), "nothing: they are looked at again at start")
	}
	var results []Result
	for _, overlap := range hostnets.Find(uses, cluster) {
		switch {
		case unknown:
			results = append(results, warn("networks", overlap.String()+", if the cluster has the default ranges",
				overlap.Remedy())...)
		case overlap.Breaks(!o.Existing):
			results = append(results, fail("networks", overlap.String(), overlap.Remedy())...)
		default:
			results = append(results, warn("networks", overlap.String(), overlap.Remedy())...)
		}
	}
	if len(results) == 0 {
		return ok("networks", "none overlaps the cluster's ranges")
	}
	return results
}

// checkNodeIPs looks for the node's addresses on the interfaces, as the kubelet does at each status
// report: without them it reports none, and the node is Ready all the same. It only warns, because
// the network may set an address after mote's start.
func checkNodeIPs(h Host, o Options) []Result {
	if len(o.NodeIPs) == 0 {
		return nil
	}
	uses, err := h.Networks(hostnets.Own{})
	if err != nil {
		return unknown("node-ip", err)
	}
	var there, missing []string
	for _, ip := range o.NodeIPs {
		if slices.ContainsFunc(uses, func(u hostnets.Use) bool {
			return u.Address && ip.Equal(u.Prefix.Addr().AsSlice())
		}) {
			there = append(there, ip.String())
		} else {
			missing = append(missing, ip.String())
		}
	}
	if len(missing) == 0 {
		return ok("node-ip", "%s", strings.Join(there, ", "))
	}
	results := warn("node-ip", "no interface has "+strings.Join(missing, ", "),
		"give --node-ip an address of this machine: until an interface has this one, the node has no address, and "+
			"pods of other nodes do not reach its pods")
	results[0].Urgent = true
	return results
}

func checkResolvers(h Host, o Options) []Result {
	var found, local []string
	for i, file := range resolvconf.Files(o.ResolvConf) {
		text, err := h.ReadFile(file)
		if err != nil && i == 0 && o.ResolvConf != "" {
			return fail("resolvers", fmt.Sprintf("--resolv-conf cannot be read (%v)", err),
				"give a file that names the host's resolvers, or leave the setting out")
		}
		for _, ip := range resolvconf.Parse(text).Servers {
			if resolvconf.Reachable(ip) {
				found = append(found, ip.String())
			} else {
				local = append(local, ip.String())
			}
		}
		if len(found) > 0 {
			return ok("resolvers", "%s", strings.Join(found, ", "))
		}
	}
	if len(local) == 0 {
		return ok("resolvers", "none yet, followed once there are")
	}
	return warn("resolvers",
		fmt.Sprintf("only on loopback (%s), where pods cannot reach them", strings.Join(local, ", ")),
		"name another one in a file given with --resolv-conf, or under upstreams in the ConfigMap "+
			"kube-system/mote-dns: names outside of the cluster do not resolve in pods")
}
