package podcidr

import (
	"errors"
	"fmt"
	"net"
	"slices"

	"k8s.io/kubernetes/pkg/controller/nodeipam/ipam/cidrset"
)

// pools are the cluster's ranges, cut into nodes' ranges. Upstream's sets count them in metrics.
type pools struct {
	cidrs    []*net.IPNet
	sets     []*cidrset.CidrSet
	reserved []*net.IPNet
}

func newPools(cidrs []*net.IPNet, maskSizes []int, reserved []*net.IPNet) (*pools, error) {
	if len(cidrs) == 0 || len(cidrs) != len(maskSizes) {
		return nil, fmt.Errorf("cut pod ranges: %d cluster ranges and %d mask sizes", len(cidrs), len(maskSizes))
	}
	p := &pools{cidrs: cidrs, reserved: reserved}
	for i, cidr := range cidrs {
		if ones, bits := cidr.Mask.Size(); maskSizes[i] < ones || maskSizes[i] > bits {
			return nil, fmt.Errorf("cut pod ranges: %s does not hold ranges of /%d", cidr, maskSizes[i])
		}
		set, err := cidrset.NewCIDRSet(cidr, maskSizes[i])
		if err != nil {
			return nil, fmt.Errorf("cut pod ranges of /%d from %s: %w", maskSizes[i], cidr, err)
		}
		p.sets = append(p.sets, set)
	}
	for _, r := range reserved {
		p.occupy(r)
	}
	return p, nil
}

// allocate returns a free range of each pool, or none if a pool has none left.
func (p *pools) allocate() ([]*net.IPNet, error) {
	var cidrs []*net.IPNet
	for i, set := range p.sets {
		cidr, err := set.AllocateNext()
		if err != nil {
			for _, c := range cidrs {
				p.release(c)
			}
			if errors.Is(err, cidrset.ErrCIDRRangeNoCIDRsRemaining) {
				return nil, fmt.Errorf(
					"no pod range is left in %s: delete nodes that are gone, or set up the cluster with a larger range",
					p.cidrs[i])
			}
			return nil, fmt.Errorf("allocate a pod range in %s: %w", p.cidrs[i], err)
		}
		cidrs = append(cidrs, cidr)
	}
	return cidrs, nil
}

// occupy marks a range as used, and reports whether any of it is in a pool.
func (p *pools) occupy(cidr *net.IPNet) (known bool) {
	for i, set := range p.sets {
		if overlap(p.cidrs[i], cidr) {
			// It refuses only what does not overlap.
			known = set.Occupy(cidr) == nil || known
		}
	}
	return known
}

// release marks a range as free, but for what is reserved.
func (p *pools) release(cidr *net.IPNet) {
	for i, set := range p.sets {
		if overlap(p.cidrs[i], cidr) {
			_ = set.Release(cidr)
		}
	}
	for _, r := range p.reserved {
		if overlap(r, cidr) {
			p.occupy(r)
		}
	}
}

func overlap(a, b *net.IPNet) bool { return a.Contains(b.IP) || b.Contains(a.IP) }

func overlapAny(a *net.IPNet, others []*net.IPNet) bool {
	return slices.ContainsFunc(others, func(b *net.IPNet) bool { return overlap(a, b) })
}

func equal(a, b []*net.IPNet) bool {
	return slices.EqualFunc(a, b, func(x, y *net.IPNet) bool { return x.String() == y.String() })
}
