package clusterconfig

import (
	"net"
	"net/netip"
	"strings"
	"testing"
)

func ranges(texts ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(texts))
	for i, text := range texts {
		out[i] = netip.MustParsePrefix(text)
	}
	return out
}

func TestConfig_WithDefaults(t *testing.T) {
	c := Config{}.WithDefaults()
	if err := c.Validate(); err != nil {
		t.Errorf("the defaults are refused: %v", err)
	}
	if got := Join(c.ClusterDNS); got != "10.43.0.10" {
		t.Errorf("cluster DNS is %s", got)
	}
	if !c.HasIPv4() || c.HasIPv6() {
		t.Error("the defaults are IPv4 alone")
	}
	dual := Config{
		ClusterCIDRs: ranges("fd00:42::/56", "10.42.0.0/16"),
		ServiceCIDRs: ranges("fd00:43::/112", "10.43.0.0/16"),
	}.WithDefaults()
	if got := Join(dual.ClusterDNS); got != "fd00:43::a,10.43.0.10" || dual.Validate() != nil {
		t.Errorf("dual stack has DNS addresses %s, %v", got, dual.Validate())
	}
}

func TestConfig_Validate_NamesTheSetting(t *testing.T) {
	for _, row := range []struct {
		name   string
		change func(*Config)
		want   string // in the error, empty for none
	}{
		{"defaults", func(*Config) {}, ""},
		{"two of one family", func(c *Config) { c.ClusterCIDRs = ranges("10.1.0.0/16", "10.2.0.0/16") },
			"cluster-cidr takes at most one"},
		{"no range", func(c *Config) { c.ServiceCIDRs = make([]netip.Prefix, 1) },
			"service-cidr has a range that is none"},
		{"too few pods", func(c *Config) { c.ClusterCIDRs = ranges("10.42.0.0/25") },
			"too small: every node takes a /24"},
		{"too many nodes", func(c *Config) { c.ClusterCIDRs = ranges("128.0.0.0/1") }, "use /8 or narrower"},
		{"too few services", func(c *Config) { c.ServiceCIDRs = ranges("10.43.0.0/29") }, "use /28 or wider"},
		{"too many services", func(c *Config) { c.ServiceCIDRs = ranges("10.96.0.0/11") }, "use /12 or narrower"},
		{"overlap", func(c *Config) { c.ClusterCIDRs = ranges("10.42.0.0/15") }, "overlap"},
		{"one family more", func(c *Config) { c.ClusterCIDRs = ranges("10.42.0.0/16", "fd42::/56") },
			"has 2 ranges and service-cidr 1"},
		{"other family", func(c *Config) { c.ClusterCIDRs = ranges("fd42::/56") }, "different families"},
		{"DNS outside", func(c *Config) { c.ClusterDNS = []netip.Addr{netip.MustParseAddr("10.44.0.10")} },
			"cluster-dns 10.44.0.10 lies outside"},
		{"DNS of the API", func(c *Config) { c.ClusterDNS = []netip.Addr{netip.MustParseAddr("10.43.0.1")} },
			"reserved in service-cidr 10.43.0.0/16: choose 10.43.0.10"},
		{"domain", func(c *Config) { c.ClusterDomain = "?" }, "cluster-domain"},
		{"domain with a dot", func(c *Config) { c.ClusterDomain = "example.org." }, ""},
		{"backend", func(c *Config) { c.NetworkBackend = "pigeon" },
			`network-backend "pigeon" is unknown: the choices are vxlan, host-gw, none`},
		{"a part of a newer server", func(c *Config) { c.Disable = []string{"teleport"} }, ""},
	} {
		c := Config{}.WithDefaults()
		row.change(&c)
		err := c.Validate()
		if (err != nil) != (row.want != "") || err != nil && !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v, want %q", row.name, err, row.want)
		}
	}
}

func TestConfig_ValidateNode(t *testing.T) {
	c := Config{}.WithDefaults()
	err := c.ValidateNode([]netip.Addr{netip.MustParseAddr("10.42.7.7"), netip.MustParseAddr("10.43.7.7"),
		netip.MustParseAddr("192.0.2.1")})
	for _, want := range []string{"node-ip 10.42.7.7 lies in cluster-cidr 10.42.0.0/16",
		"node-ip 10.43.7.7 lies in service-cidr"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	if c.ValidateNode([]netip.Addr{netip.MustParseAddr("192.0.2.1")}) != nil {
		t.Error("an address outside of the cluster is refused")
	}
}

func TestConfig_Contains(t *testing.T) {
	c := Config{}.WithDefaults()
	for text, want := range map[string]bool{"10.42.1.1": true, "10.43.0.1": true, "10.44.0.1": false, "::1": false} {
		if got := c.Contains(net.ParseIP(text)); got != want {
			t.Errorf("%s: %v, want %v", text, got, want)
		}
	}
	if c.Contains(nil) {
		t.Error("no address is in a range")
	}
}

func TestNthAddress(t *testing.T) {
	for _, row := range []struct {
		r    string
		n    int
		want string
	}{{"10.43.0.0/16", 10, "10.43.0.10"}, {"10.43.0.0/16", 256, "10.43.1.0"}, {"fd00::/112", 10, "fd00::a"}} {
		if got := NthAddress(netip.MustParsePrefix(row.r), row.n); got.String() != row.want {
			t.Errorf("%d above %s is %s, want %s", row.n, row.r, got, row.want)
		}
	}
}
