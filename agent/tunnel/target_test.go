package tunnel

import (
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"testing"
)

type noServers struct{}

func (noServers) Servers() []string        { return nil }
func (noServers) Changed() <-chan struct{} { return nil }
func (noServers) Online() <-chan struct{}  { return nil }
func (noServers) Offline() <-chan struct{} { return nil }

// What a server, or an attacker who controls one, may reach through a node.
func TestTunnel_Target(t *testing.T) {
	var ranges []netip.Prefix
	tunnel, err := New(Config{
		Servers:  noServers{},
		TLS:      func() *tls.Config { return nil },
		Renewed:  func() <-chan struct{} { return nil },
		Kubelet:  "127.0.0.1:10250",
		PodCIDRs: func() []netip.Prefix { return ranges },
	})
	if err != nil {
		t.Fatal(err)
	}
	tunnel.own = func() ([]net.Addr, error) {
		return []net.Addr{
			&net.IPNet{IP: net.IPv4(10, 42, 1, 1), Mask: net.CIDRMask(24, 32)},
			&net.IPNet{IP: net.ParseIP("fd00:42::1"), Mask: net.CIDRMask(64, 128)},
		}, nil
	}
	if _, err := tunnel.target("10.42.1.5:80"); !errors.Is(err, errRefused) {
		t.Errorf("a pod before the ranges are known: %v", err)
	}
	ranges = []netip.Prefix{netip.MustParsePrefix("10.42.1.0/24"), netip.MustParsePrefix("fd00:42::/64")}
	for _, row := range []struct{ name, target, want string }{
		{"the kubelet", "kubelet", "127.0.0.1:10250"},
		{"a pod", "10.42.1.5:8080", "10.42.1.5:8080"},
		{"a pod, IPv6", "[fd00:42::5]:8080", "[fd00:42::5]:8080"},
		{"a pod, IPv4 as IPv6", "[::ffff:10.42.1.5]:8080", "10.42.1.5:8080"},
		{"the machine's address in the pod range", "10.42.1.1:22", ""},
		{"the same as IPv6", "[::ffff:10.42.1.1]:22", ""},
		{"the machine's IPv6 address in the pod range", "[fd00:42::1]:22", ""},
		{"with a zone", "[fd00:42::1%lo]:22", ""},
		{"another node's pod", "10.42.2.5:8080", ""},
		{"loopback", "127.0.0.1:2379", ""},
		{"the home's router", "192.168.1.1:80", ""},
		{"cloud credentials", "169.254.169.254:80", ""},
		{"everywhere", "0.0.0.0:10250", ""},
		{"a name", "localhost:10250", ""},
		{"a name of a pod", "pod.example.com:80", ""},
		{"the kubelet with a port", "kubelet:22", ""},
		{"no port", "10.42.1.5", ""},
		{"a path", "10.42.1.5:80/", ""},
		{"nothing", "", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			got, err := tunnel.target(row.target)
			if got != row.want || (row.want == "") != errors.Is(err, errRefused) {
				t.Errorf("target %q: %q, %v", row.target, got, err)
			}
		})
	}
}
