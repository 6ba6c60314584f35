package podnet

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/mote-dev/mote/netproxy/nfttool"
)

// Table is the nftables table (of family inet) that holds the node's own rules.
const Table = "mote"

// Chains of the node's own rules in the tables of iptables.
const (
	chainPostrouting = "MOTE-POSTROUTING"
	chainForward     = "MOTE-FORWARD"
	chainInput       = "MOTE-INPUT"
)

// Rules is everything the node's own packet filter rules depend on.
type Rules struct {
	// Bridge is the name of the pods' bridge.
	Bridge string
	// ClusterCIDRs hold all pods. Between them nothing is masqueraded.
	ClusterCIDRs []netip.Prefix
	// LocalServiceIPs are served by the node itself, on port 53.
	LocalServiceIPs []netip.Addr
}

// family is what differs between IPv4 and IPv6 in rule texts.
type family struct {
	v6        bool
	nft       string
	nftType   string
	set       string
	multicast string
}

var families = []family{
	{
		v6:        false,
		nft:       "ip",
		nftType:   "ipv4_addr",
		set:       "pods4",
		multicast: "224.0.0.0/4",
	},
	{
		v6:        true,
		nft:       "ip6",
		nftType:   "ipv6_addr",
		set:       "pods6",
		multicast: "ff00::/8",
	},
}

// prefixes returns the sorted ranges of the family, overlaps merged: an interval set rejects them.
func (f family) prefixes(all []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range all {
		p = p.Masked()
		if p.Addr().Is6() == f.v6 {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	kept := out[:0]
	for _, p := range out {
		if len(kept) == 0 || !kept[len(kept)-1].Contains(p.Addr()) {
			kept = append(kept, p)
		}
	}
	return kept
}

// RenderNFTables returns the script that replaces the node's table as a whole.
func RenderNFTables(r Rules) string {
	var b strings.Builder
	b.WriteString("\tcomment \"mote: the pod network of this node\"\n")
	var masquerade strings.Builder
	for _, f := range families {
		cidrs := f.prefixes(r.ClusterCIDRs)
		if len(cidrs) == 0 {
			continue
		}
		fmt.Fprintf(&b, "\n\tset %s {\n\t\ttype %s\n\t\tflags interval\n\t\telements = { %s }\n\t}\n", f.set, f.nftType,
			join(cidrs))
		// Pod-to-pod traffic keeps its source address; other traffic gets the address of the node.
		fmt.Fprintf(&masquerade, "\t\t%s saddr @%s %s daddr != @%s %s daddr != %s masquerade fully-random\n", f.nft,
			f.set, f.nft, f.set, f.nft, f.multicast)
	}
	b.WriteString("\n\tchain postrouting {\n\t\ttype nat hook postrouting priority srcnat; policy accept;\n")
	fmt.Fprintf(&b, "\t\toifname %q return\n", r.Bridge)
	b.WriteString(masquerade.String())
	b.WriteString("\t}\n")
	return (&nfttool.Table{Name: Table}).Script(b.String())
}

// iptablesChain is one chain of ours, the built-in chain that jumps to it, and its rules in order.
type iptablesChain struct {
	table, parent, name string
	rules               [][]string
}

// jump is the rule in the built-in chain.
func (c iptablesChain) jump() []string {
	return []string{"-m", "comment", "--comment", "mote pod network", "-j", c.name}
}

// masqueradeChain renders the rules of one family that give traffic from pods to the outside the
// node's address.
func masqueradeChain(r Rules, f family) iptablesChain {
	c := iptablesChain{table: "nat", parent: "POSTROUTING", name: chainPostrouting}
	cidrs := f.prefixes(r.ClusterCIDRs)
	if len(cidrs) == 0 {
		return c
	}
	c.rules = append(c.rules, []string{"-o", r.Bridge, "-j", "RETURN"})
	for _, p := range cidrs {
		c.rules = append(c.rules, []string{"-d", p.String(), "-j", "RETURN"})
	}
	for _, p := range cidrs {
		c.rules = append(c.rules,
			[]string{"-s", p.String(), "!", "-d", f.multicast, "-j", "MASQUERADE", "--random-fully"})
	}
	return c
}

// acceptChains renders the rules that accept pod traffic on hosts whose own policy is to drop.
func acceptChains(r Rules, f family) []iptablesChain {
	forward := iptablesChain{table: "filter", parent: "FORWARD", name: chainForward}
	for _, p := range f.prefixes(r.ClusterCIDRs) {
		forward.rules = append(forward.rules, []string{"-s", p.String(), "-j", "ACCEPT"},
			[]string{"-d", p.String(), "-j", "ACCEPT"})
	}
	input := iptablesChain{table: "filter", parent: "INPUT", name: chainInput}
	for _, ip := range r.LocalServiceIPs {
		if ip.Is6() != f.v6 {
			continue
		}
		for _, proto := range []string{"udp", "tcp"} {
			input.rules = append(input.rules, []string{"-i", r.Bridge, "-d", netip.PrefixFrom(ip, ip.BitLen()).String(),
				"-p", proto, "-m", proto, "--dport", "53", "-j", "ACCEPT"})
		}
	}
	return []iptablesChain{forward, input}
}

// renderIPTables prints chains in the form of iptables-save, for tests and logs.
func renderIPTables(chains []iptablesChain) string {
	var b strings.Builder
	for _, c := range chains {
		fmt.Fprintf(&b, "*%s\n:%s\n", c.table, c.name)
		fmt.Fprintf(&b, "-I %s %s\n", c.parent, strings.Join(c.jump(), " "))
		for _, rule := range c.rules {
			fmt.Fprintf(&b, "-A %s %s\n", c.name, strings.Join(rule, " "))
		}
	}
	return b.String()
}

func join(ps []netip.Prefix) string {
	texts := make([]string, len(ps))
	for i, p := range ps {
		texts[i] = p.String()
	}
	return strings.Join(texts, ", ")
}
