package hostaddr

import (
	"context"
	"errors"
	"net"
	"testing"
)

func TestAll_HoldsOnlyAddressesOthersCanUse(t *testing.T) {
	for _, ip := range All() {
		if ip.IsLoopback() || ip.IsLinkLocalUnicast() || ip.IsUnspecified() || ip.Equal(Dummy) {
			t.Errorf("%s is among them", ip)
		}
	}
	if preferred := Preferred(); preferred == nil {
		t.Error("there is no preferred address")
	}
}

func TestOwn(t *testing.T) {
	for name, want := range map[string]bool{"mote0": true, "mote-dns": true, "veth12ab": true, "eth0": false,
		"wlan0": false, "br-lan": false} {
		if own(name) != want {
			t.Errorf("%s counts as made by mote: %v", name, !want)
		}
	}
}

// An address the machine never loses is never reported as changed.
func TestWaitChanged_EndsWithItsContext(t *testing.T) {
	address := net.IPv4(127, 0, 0, 1)
	if all := All(); len(all) > 0 {
		address = all[0]
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- WaitChanged(ctx, address) }()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
}
