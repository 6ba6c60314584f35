package podnet

import "context"

// firewall writes the node's own rules and looks after them.
type firewall interface {
	// Apply makes the rules be exactly r. Applying what is there changes nothing.
	Apply(ctx context.Context, r Rules) error
	// Intact reports whether the rules are as Apply left them; false before the first Apply.
	Intact(ctx context.Context) (bool, error)
	// Remove takes all rules of ours away; it succeeds where there are none.
	Remove(ctx context.Context) error
}

// newFirewalls returns what has to be kept up for the wanted tool. Next to nftables the iptables guard stays needed: a
// host whose iptables policy is to drop forwarded packets drops them whatever an nftables chain accepts.
func newFirewalls(kind Firewall) []firewall {
	if kind == FirewallIPTables {
		return []firewall{&iptablesFirewall{masquerade: true}}
	}
	return []firewall{newNFTFirewall(), &iptablesFirewall{onlyIfDropping: true}}
}

var (
	_ firewall = (*nftFirewall)(nil)
	_ firewall = (*iptablesFirewall)(nil)
)
