package podnet

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mote-dev/mote/internal/netnstest"
)

// setting reads a kernel setting.
func setting(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(procSys, name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

func TestEnsureKernelSettings(t *testing.T) {
	if !netnstest.Enter(t) {
		return
	}
	if _, err := os.Stat("/proc/net/if_inet6"); err != nil {
		t.Skip("needs IPv6")
	}
	run(t, "ip", "link", "add", "up0", "type", "bridge")
	run(t, "ip", "link", "add", "static0", "type", "bridge")
	if err := setSysctl("net/ipv6/conf/static0/accept_ra", "0"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := ensureKernelSettings(t.Context(), true, true); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{
		"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1",
		"net/bridge/bridge-nf-call-iptables": "1", "net/bridge/bridge-nf-call-ip6tables": "1",
		// The host goes on learning its routes where it did, and only there.
		"net/ipv6/conf/up0/accept_ra": "2", "net/ipv6/conf/static0/accept_ra": "0",
	} {
		if got := setting(t, name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	err := setSysctl("net/ipv4/ip_forward", "rubbish")
	if err == nil || !strings.Contains(err.Error(), "sysctl -w net.ipv4.ip_forward=rubbish") {
		t.Errorf("a setting that cannot be written: %v", err)
	}
	if err := setSysctl("net/no/such", "1"); err == nil {
		t.Error("a setting that does not exist: no error")
	}
}

func TestParseNFTEvent(t *testing.T) {
	// A deleted rule of table "mote": the header, an unrelated attribute, and the table's name.
	message := []byte{1, 0, 0, 0, 6, 0, 9, 0, 'x', 0, 0, 0, 9, 0, 1, 0, 'm', 'o', 't', 'e', 0, 0, 0, 0}
	for _, c := range []struct {
		name string
		kind uint16
		data []byte
		want nftEvent
		ok   bool
	}{
		{"rule", nftSubsystem<<8 | nftDelRule, message, nftEvent{nftDelRule, "mote"}, true},
		{"no table", nftSubsystem<<8 | nftDelRule, message[:12], nftEvent{kind: nftDelRule}, true},
		{"cut short", nftSubsystem<<8 | nftDelTable, message[:18], nftEvent{kind: nftDelTable}, true},
		{"too short", nftSubsystem<<8 | nftDelTable, message[:3], nftEvent{}, false},
		{"another subsystem", 1 << 8, message, nftEvent{}, false},
		{"impossible length", nftSubsystem<<8 | nftDelTable, []byte{0, 0, 0, 0, 1, 0, 1, 0},
			nftEvent{kind: nftDelTable}, true},
	} {
		if got, ok := parseNFTEvent(c.kind, c.data); got != c.want || ok != c.ok {
			t.Errorf("%s: %+v, %v", c.name, got, ok)
		}
	}
}
