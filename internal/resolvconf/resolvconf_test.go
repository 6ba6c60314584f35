package resolvconf

import (
	"fmt"
	"net/netip"
	"testing"
)

func TestParse(t *testing.T) {
	for _, row := range []struct{ name, text, want string }{
		{"empty", "", "[] [] []"},
		{"all there is", "nameserver 192.0.2.1\nsearch a.example b.example\noptions ndots:2 edns0\n",
			"[192.0.2.1] [a.example b.example] [ndots:2 edns0]"},
		{"comments and nonsense",
			"# nameserver 192.0.2.9\n; search x\nnameserver\nnameserver home\nsortlist 192.0.2.0\n", "[] [] []"},
		{"tabs, no newline at the end", "nameserver\t192.0.2.1\nsearch\ta.example", "[192.0.2.1] [a.example] []"},
		{"repeated", "nameserver 192.0.2.1\nnameserver ::ffff:192.0.2.1\n", "[192.0.2.1] [] []"},
		{"link-local with its interface", "nameserver fe80::1%eth0\n", "[fe80::1%eth0] [] []"},
		{"the last search line counts", "search a.example\ndomain b.example c.example\n", "[] [b.example] []"},
		{"the root is no search domain", "search . a.example.\n", "[] [a.example] []"},
		{"options add up", "options edns0\noptions trust-ad\n", "[] [] [edns0 trust-ad]"},
	} {
		c := Parse([]byte(row.text))
		if got := fmt.Sprint(c.Servers, c.Search, c.Options); got != row.want {
			t.Errorf("%s: got %s, want %s", row.name, got, row.want)
		}
	}
}

func TestReachable(t *testing.T) {
	for text, want := range map[string]bool{
		"192.0.2.1": true, "2001:db8::1": true, "fe80::1%eth0": true, "10.43.0.10": true,
		"127.0.0.1": false, "127.0.0.53": false, "127.1.2.3": false, "::1": false, "0.0.0.0": false, "::": false,
		"224.0.0.251": false,
	} {
		if got := Reachable(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
}

func TestFiles(t *testing.T) {
	for file, want := range map[string]string{
		"": "[/etc/resolv.conf /run/systemd/resolve/resolv.conf]", "/etc/mote/dns": "[/etc/mote/dns " + systemd + "]",
		systemd: "[" + systemd + "]",
	} {
		if got := fmt.Sprint(Files(file)); got != want {
			t.Errorf("%q: %s, want %s", file, got, want)
		}
	}
}
