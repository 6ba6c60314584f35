package podnet

import (
	"context"

	"github.com/mote-dev/mote/netproxy/nfttool"
)

// nftFirewall keeps the node's rules in one nftables table.
type nftFirewall struct{ table nfttool.Table }

func newNFTFirewall() *nftFirewall { return &nftFirewall{nfttool.Table{Name: Table}} }

// Apply implements [firewall].
func (f *nftFirewall) Apply(ctx context.Context, r Rules) error {
	return f.table.Apply(ctx, RenderNFTables(r))
}

// Intact implements [firewall].
func (f *nftFirewall) Intact(ctx context.Context) (bool, error) { return f.table.Intact(ctx) }

// Remove implements [firewall].
func (f *nftFirewall) Remove(ctx context.Context) error { return f.table.Remove(ctx) }
