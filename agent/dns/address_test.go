package dns

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	wire "github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"go.uber.org/zap/zaptest"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/mote-dev/mote/internal/netnstest"
)

func TestServer_Run_KeepsItsAddress(t *testing.T) {
	if !netnstest.Enter(t) {
		return
	}
	s, err := New(Config{
		Client:      fake.NewClientset(clusterObjects()...),
		NodeName:    "n1",
		ListenAddrs: []string{"10.43.0.10", "fd00:43::a"},
		Logger:      zaptest.NewLogger(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	stop := runServer(t, s)
	answers := func() string {
		for _, server := range []string{"10.43.0.10:53", "[fd00:43::a]:53"} {
			for _, network := range []string{"udp", "tcp"} {
				client := wire.Client{Net: network, Timeout: time.Second}
				reply, _, err := client.Exchange(new(wire.Msg).SetQuestion("kubernetes.default.svc.cluster.local.",
					wire.TypeA), server)
				if err != nil || len(reply.Answer) != 1 {
					return fmt.Sprintf("%s over %s: %v, %v", server, network, err, reply)
				}
			}
		}
		return ""
	}
	eventually(t, answers)

	// Something takes the addresses away, one and then all with their interface.
	link, err := netlink.LinkByName(DefaultInterface)
	if err != nil {
		t.Fatal(err)
	}
	addr, err := netlink.ParseAddr("10.43.0.10/32")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrDel(link, addr); err != nil {
		t.Fatal(err)
	}
	eventually(t, answers)
	if err := netlink.LinkDel(link); err != nil {
		t.Fatal(err)
	}
	eventually(t, answers)

	stop()
	for range 2 {
		if err := Cleanup(""); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := netlink.LinkByName(DefaultInterface); err == nil {
		t.Error("interface is left")
	}
}

func TestServer_Run_AddressTaken(t *testing.T) {
	packets, streams := listenBoth(t)
	defer packets.Close()
	defer streams.Close()
	s, err := New(Config{
		Client:      fake.NewClientset(),
		NodeName:    "n1",
		ListenAddrs: []string{packets.LocalAddr().String()},
		Interface:   "-",
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err = s.Run(ctx)
	if err == nil || !strings.Contains(err.Error(), "listen on "+s.listen[0].String()) {
		t.Errorf("error is %v", err)
	}
}

func TestConfig_Validate(t *testing.T) {
	good := Config{Client: fake.NewClientset(), ListenAddrs: []string{"10.43.0.10"}}
	if err := good.Validate(); err != nil {
		t.Errorf("good config: %v", err)
	}
	err := Config{
		ListenAddrs:    []string{"dns"},
		ClusterDomain:  "a..b",
		CheckpointFile: "x",
		Interface:      "a-very-long-interface",
	}.Validate()
	for _, want := range []string{"neither client", `"dns"`, "a..b", `"x"`, "a-very-long-interface"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error does not name %s: %v", want, err)
		}
	}
}

func TestDashed(t *testing.T) {
	for _, text := range []string{"10.42.0.5", "fd00::1", "::1", "fd00::", "::", "fd00:1:2:3:4:5:6:7"} {
		ip := netip.MustParseAddr(text)
		label := dashed(ip)
		if strings.HasPrefix(label, "-") || strings.HasSuffix(label, "-") {
			t.Errorf("%s: label %q begins or ends with a dash", text, label)
		}
		if back, ok := undashed(label); !ok || back != ip {
			t.Errorf("%s: label %q reads as %v", text, label, back)
		}
	}
	for _, label := range []string{"web", "1-2-3", "1-2-3-400", "", "-", "a-b-c-d-e"} {
		if ip, ok := undashed(label); ok {
			t.Errorf("%q reads as %v", label, ip)
		}
	}
}
