package joinapi

import (
	"errors"
	"strings"
	"testing"
)

// A server without a port is on 6443, in each way of writing it.
func TestParseServer_WithoutPort_Is6443(t *testing.T) {
	for _, row := range []struct{ text, want string }{
		{"192.0.2.10", "192.0.2.10:6443"},
		{"https://192.0.2.10", "192.0.2.10:6443"},
		{"https://192.0.2.10/", "192.0.2.10:6443"},
		{"HTTPS://192.0.2.10", "192.0.2.10:6443"},
		{"192.0.2.10/", "192.0.2.10:6443"},
		{"server.example", "server.example:6443"},
		{"Server.Example.", "server.example.:6443"},
		{"https://server.example", "server.example:6443"},
		{"my_server", "my_server:6443"},
		{"xn--bcher-kva.example", "xn--bcher-kva.example:6443"},
		{"fd00::1", "[fd00::1]:6443"},
		{"FD00:0:0::1", "[fd00::1]:6443"},
		{"[fd00::1]", "[fd00::1]:6443"},
		{"https://fd00::1", "[fd00::1]:6443"},
		{"https://[fd00::1]", "[fd00::1]:6443"},
		{"https://[fd00::1]/", "[fd00::1]:6443"},
		{"::ffff:192.0.2.10", "192.0.2.10:6443"},
	} {
		if got, err := ParseServer(row.text); got != row.want || err != nil {
			t.Errorf("%s is read as %q, %v; want %s", row.text, got, err, row.want)
		}
	}
}

func TestParseServer_WithPort_KeepsIt(t *testing.T) {
	for _, row := range []struct{ text, want string }{
		{"192.0.2.10:443", "192.0.2.10:443"},
		{"https://192.0.2.10:443", "192.0.2.10:443"},
		{"https://192.0.2.10:443/", "192.0.2.10:443"},
		{"server.example:7443", "server.example:7443"},
		{"localhost:6443", "localhost:6443"},
		{"[fd00::1]:443", "[fd00::1]:443"},
		{"https://[fd00::1]:443/", "[fd00::1]:443"},
		{"https://192.0.2.10:06443", "192.0.2.10:6443"},
	} {
		if got, err := ParseServer(row.text); got != row.want || err != nil {
			t.Errorf("%s is read as %q, %v; want %s", row.text, got, err, row.want)
		}
	}
}

func TestParseServer_Refused(t *testing.T) {
	for _, row := range []struct{ text, want string }{
		{"", "host is missing"},
		{"https://", "host is missing"},
		{"https://:6443", "host is missing"},
		{":6443", "host is missing"},
		{"http://192.0.2.10:6443", "https://HOST:6443"},
		{"tcp://192.0.2.10:6443", "tcp is not https"},
		{"https:/192.0.2.10", "https://HOST:6443"},
		{"https://192.0.2.10:6443/api", "path"},
		{"192.0.2.10/api", "path"},
		{"https://192.0.2.10:6443?a=b", "path"},
		{"https://192.0.2.10:6443#a", "path"},
		{"https://me:secret@192.0.2.10:6443", "user name"},
		{"https://192.0.2.10:", "no TCP port"},
		{"192.0.2.10:0", "no TCP port"},
		{"192.0.2.10:65536", "no TCP port"},
		{"192.0.2.10:+6443", "no TCP port"},
		{"192.0.2.10:https", "no TCP port"},
		{"fd00::1:6443:", "IPv6"},
		{"fd00::12345", "IPv6"},
		{"[fd00::1]6443", "follows the brackets"},
		{"[192.0.2.10]:6443", "only those have brackets"},
		{"fe80::1%eth0", "interface"},
		{"https://[fe80::1%25eth0]:6443", "interface"},
		{"0.0.0.0:6443", "no machine's"},
		{"https://[::]:6443", "no machine's"},
		{"224.0.0.251", "no machine's"},
		{"10.0.0.256", "neither an IP address"},
		{"192.0.2", "neither an IP address"},
		{"two words", "letters"},
		{"bücher.example", "letters"},
		{"-a.example", "letters"},
		{"a..example", "letters"},
	} {
		got, err := ParseServer(row.text)
		if !errors.Is(err, ErrServerForm) || got != "" {
			t.Errorf("%q is read as %q, %v; want ErrServerForm", row.text, got, err)
			continue
		}
		if !strings.Contains(err.Error(), row.want) || strings.Contains(err.Error(), "secret") ||
			strings.Contains(err.Error(), "\n") {
			t.Errorf("message %q of %q lacks %q, quotes a secret, or has several lines", err, row.text, row.want)
		}
	}
}
