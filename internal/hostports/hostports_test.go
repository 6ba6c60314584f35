package hostports

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

var (
	lan   = netip.MustParseAddr("192.0.2.1")
	other = netip.MustParseAddr("192.0.2.2")
)

func TestFormat_SameListenersSameText(t *testing.T) {
	ssh := Listener{Port: 22, Protocol: corev1.ProtocolTCP, Owner: "sshd"}
	dns := Listener{Port: 53, Protocol: corev1.ProtocolUDP, Address: lan}
	a, err := Format([]Listener{dns, ssh, dns})
	if err != nil {
		t.Fatal(err)
	}
	b, err := Format([]Listener{ssh, dns})
	if err != nil || a != b {
		t.Errorf("%q and %q (%v), want the same", a, b, err)
	}
	const want = `[{"port":22,"protocol":"TCP","owner":"sshd"},{"port":53,"protocol":"UDP","address":"192.0.2.1"}]`
	if a != want {
		t.Errorf("written as %s, want %s", a, want)
	}
	back, err := Parse(a)
	if err != nil || !reflect.DeepEqual(back, []Listener{ssh, dns}) {
		t.Errorf("read back as %v, %v", back, err)
	}
}

func TestFormat_NoneIsAnEmptyList(t *testing.T) {
	text, err := Format(nil)
	if err != nil || text != "[]" {
		t.Errorf("%q, %v: a host without listeners must not look like one that does not report", text, err)
	}
}

func TestFormat_IsBounded(t *testing.T) {
	many := make([]Listener, 3*maxListeners)
	for i := range many {
		many[i] = Listener{Port: uint16(i + 1), Protocol: corev1.ProtocolTCP}
	}
	text, err := Format(many)
	if err != nil {
		t.Fatal(err)
	}
	if back, err := Parse(text); err != nil || len(back) != maxListeners || back[0].Port != 1 {
		t.Errorf("%d listeners, %v", len(back), err)
	}
}

func TestParse_Refuses(t *testing.T) {
	for _, text := range []string{"", "22", `{"port":22}`, `[{"port":70000}]`, `[{"address":"nowhere"}]`} {
		if got, err := Parse(text); err == nil {
			t.Errorf("%q is read as %v", text, got)
		}
	}
}

// A node that writes the annotation itself fills no events and no memory.
func TestParse_BoundsWhatANodeSays(t *testing.T) {
	long := `{"port":22,"protocol":"TCP","owner":"` + strings.Repeat(`x\n`, 5000) + `"}`
	got, err := Parse("[" + strings.Repeat(long+",", 5000) + long + "]")
	if err != nil || len(got) != maxListeners {
		t.Fatalf("%d listeners, %v", len(got), err)
	}
	if owner := got[0].Owner; len(owner) > maxOwner || strings.Contains(owner, "\n") {
		t.Errorf("owner is %q", owner)
	}
}

func TestFind(t *testing.T) {
	listeners := []Listener{
		{Port: 22, Protocol: corev1.ProtocolTCP},
		{Port: 53, Protocol: corev1.ProtocolUDP, Address: lan},
	}
	for _, row := range []struct {
		address  netip.Addr
		port     uint16
		protocol corev1.Protocol
		want     bool
	}{
		{lan, 22, corev1.ProtocolTCP, true},
		{other, 22, corev1.ProtocolTCP, true},
		{lan, 22, corev1.ProtocolUDP, false},
		{lan, 53, corev1.ProtocolUDP, true},
		{other, 53, corev1.ProtocolUDP, false},
	} {
		if _, got := Find(listeners, row.address, row.port, row.protocol); got != row.want {
			t.Errorf("%s port %d/%s: found %v", row.address, row.port, row.protocol, got)
		}
	}
}
