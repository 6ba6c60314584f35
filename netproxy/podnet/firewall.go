package podnet

import "context"

// firewall writes and checks the node's own rules.
type firewall interface {
	// Apply makes the rules exactly r. Applying them again changes nothing.
	Apply(ctx context.Context, r Rules) error
	// Intact reports whether the rules are as Apply left them; false before the first Apply.
	Intact(ctx context.Context) (bool, error)
	// Remove deletes all our rules; it succeeds if there are none.
	Remove(ctx context.Context) error
}

// newFirewalls returns the firewalls to maintain for a tool. nftables needs the iptables guard as
// well: a host whose iptables policy drops forwarded packets drops them whatever an nftables chain
// accepts.
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
