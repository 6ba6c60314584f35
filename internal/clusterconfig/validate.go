package clusterconfig

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
)

// Limits that follow from how the upstream allocators keep their state.
const (
	// The node allocator keeps one bit per node, at most 2^16 of them.
	maxNodeBits = 16
	// The API server refuses service ranges wider than 2^20 addresses. The cluster DNS address is
	// the tenth, so fewer than 16 cannot work.
	minServiceHostBits = 4
	maxServiceHostBits = 20
)

// Validate joins every fault of a config whose defaults are filled in. Each is one line that names
// the setting and says what would be right. The names in Disable are not checked: an older node
// must accept those of a newer server.
func (c Config) Validate() error {
	errs := c.validateRanges()
	if domain := strings.TrimSuffix(c.ClusterDomain, "."); len(validation.IsDNS1123Subdomain(domain)) > 0 {
		errs = append(errs,
			fmt.Errorf("cluster-domain %q is no DNS domain: use one such as %s", c.ClusterDomain, DefaultClusterDomain))
	}
	return errors.Join(append(errs, c.NetworkBackend.Validate())...)
}

// Validate refuses a backend that is none of Backends.
func (b Backend) Validate() error {
	if slices.Contains(Backends, b) {
		return nil
	}
	return fmt.Errorf("network-backend %q is unknown: the choices are %s", b, Choices())
}

// ValidateNode reports the addresses of a node that lie in the cluster's own ranges.
func (c Config) ValidateNode(addresses []netip.Addr) error {
	var errs []error
	for _, set := range []struct {
		setting string
		ranges  []netip.Prefix
	}{{"cluster-cidr", c.ClusterCIDRs}, {"service-cidr", c.ServiceCIDRs}} {
		for _, r := range set.ranges {
			for _, a := range addresses {
				if r.Contains(a) {
					errs = append(errs,
						fmt.Errorf("node-ip %s lies in %s %s: choose a --%s the host's network does not use", a,
							set.setting, r, set.setting))
				}
			}
		}
	}
	return errors.Join(errs...)
}

// ValidateFamilies refuses more than one value per address family.
func ValidateFamilies(setting string, addresses []netip.Addr) error {
	if len(addresses) > 2 || (len(addresses) == 2 && addresses[0].Is4() == addresses[1].Is4()) {
		return fmt.Errorf("%s takes at most one value of each address family, IPv4 and IPv6", setting)
	}
	return nil
}

// validateRanges checks the ranges and the DNS addresses against each other.
func (c Config) validateRanges() []error {
	var errs []error
	for _, set := range []struct {
		setting string
		ranges  []netip.Prefix
	}{{"cluster-cidr", c.ClusterCIDRs}, {"service-cidr", c.ServiceCIDRs}} {
		starts := make([]netip.Addr, len(set.ranges))
		for i, r := range set.ranges {
			starts[i] = r.Addr()
			if !r.IsValid() {
				errs = append(errs, fmt.Errorf("%s has a range that is none: write it as ADDRESS/BITS", set.setting))
			}
		}
		if err := ValidateFamilies(set.setting, starts); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		// What is checked below takes valid ranges, one per family.
		return errs
	}
	errs = append(errs, c.validateSizes()...)
	errs = append(errs, c.validatePairs()...)
	return append(errs, c.validateDNS()...)
}

func (c Config) validateSizes() []error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for _, r := range c.ClusterCIDRs {
		perNode := NodeMaskIPv6
		if isIPv4(r) {
			perNode = NodeMaskIPv4
		}
		if r.Bits() > perNode {
			fault("cluster-cidr %s is too small: every node takes a /%d of it, so use /%d or wider", r, perNode,
				perNode)
		} else if perNode-r.Bits() > maxNodeBits {
			fault("cluster-cidr %s is too wide: use /%d or narrower", r, perNode-maxNodeBits)
		}
	}
	for _, r := range c.ServiceCIDRs {
		bits := r.Addr().BitLen()
		if bits-r.Bits() < minServiceHostBits {
			fault("service-cidr %s is too small: use /%d or wider", r, bits-minServiceHostBits)
		} else if bits-r.Bits() > maxServiceHostBits {
			fault("service-cidr %s is too wide: use /%d or narrower", r, bits-maxServiceHostBits)
		}
	}
	return errs
}

func (c Config) validatePairs() []error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for _, pods := range c.ClusterCIDRs {
		for _, services := range c.ServiceCIDRs {
			if pods.Overlaps(services) {
				fault("cluster-cidr %s and service-cidr %s overlap: choose two separate ranges", pods, services)
			}
		}
	}
	if len(c.ClusterCIDRs) != len(c.ServiceCIDRs) {
		fault("cluster-cidr has %d ranges and service-cidr %d: give one of each family to both", len(c.ClusterCIDRs),
			len(c.ServiceCIDRs))
		return errs
	}
	for i, pods := range c.ClusterCIDRs {
		if isIPv4(pods) != isIPv4(c.ServiceCIDRs[i]) {
			fault("cluster-cidr %s and service-cidr %s are of different families: list both in the same order", pods,
				c.ServiceCIDRs[i])
		}
	}
	return errs
}

func (c Config) validateDNS() []error {
	var errs []error
	if err := ValidateFamilies("cluster-dns", c.ClusterDNS); err != nil {
		errs = append(errs, err)
	}
	for _, ip := range c.ClusterDNS {
		if !slices.ContainsFunc(c.ServiceCIDRs, func(r netip.Prefix) bool { return r.Contains(ip) }) {
			errs = append(errs, fmt.Errorf("cluster-dns %s lies outside service-cidr %s: choose an address inside it",
				ip, Join(c.ServiceCIDRs)))
			continue
		}
		for _, r := range c.ServiceCIDRs {
			if ip == r.Masked().Addr() || ip == NthAddress(r, 1) {
				errs = append(errs,
					fmt.Errorf("cluster-dns %s is reserved in service-cidr %s: choose %s", ip, r, NthAddress(r, 10)))
			}
		}
	}
	return errs
}

// Join writes values as settings are written: separated by commas.
func Join[T any](values []T) string {
	texts := make([]string, len(values))
	for i, v := range values {
		texts[i] = fmt.Sprint(v)
	}
	return strings.Join(texts, ",")
}
