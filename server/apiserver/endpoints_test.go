package apiserver

import (
	"context"
	"net"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/client-go/kubernetes/fake"
)

func TestEndpointReconciler_FollowsTheAddresses(t *testing.T) {
	client := fake.NewClientset()
	var now []net.IP
	r := newEndpointReconciler(client, func() []net.IP { return now }, nil)
	ports := []corev1.EndpointPort{{Name: "https", Port: 6443, Protocol: corev1.ProtocolTCP}}
	for _, row := range []struct {
		name   string
		ips    []string
		want   []string
		writes int
	}{
		{"none yet", nil, nil, 2},
		{"the first", []string{"192.0.2.1"}, []string{"192.0.2.1"}, 2},
		{"the same", []string{"192.0.2.1"}, []string{"192.0.2.1"}, 0},
		{"another", []string{"192.0.2.9"}, []string{"192.0.2.9"}, 2},
		{"only ones the API refuses", []string{"127.0.0.1", "169.254.1.1"}, nil, 2},
		{"of the other family", []string{"2001:db8::1"}, []string{"2001:db8::1"}, 3},
	} {
		now = nil
		for _, ip := range row.ips {
			now = append(now, net.ParseIP(ip))
		}
		client.ClearActions()
		if err := r.ReconcileEndpoints("kubernetes", nil, ports, true); err != nil {
			t.Fatalf("%s: %v", row.name, err)
		}
		writes := 0
		for _, a := range client.Actions() {
			if a.GetVerb() != "get" {
				writes++
			}
		}
		if writes != row.writes {
			t.Errorf("%s: %d writes, want %d", row.name, writes, row.writes)
		}
		slice, err := client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).Get(t.Context(), "kubernetes",
			metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var have []string
		for _, e := range slice.Endpoints {
			have = append(have, e.Addresses...)
		}
		if len(have) != len(row.want) || (len(have) > 0 && have[0] != row.want[0]) {
			t.Errorf("%s: slice has %v, want %v", row.name, have, row.want)
		}
	}
	r.StopReconciling()
	client.ClearActions()
	if err := r.ReconcileEndpoints("kubernetes", nil, ports, true); err != nil || len(client.Actions()) != 0 {
		t.Errorf("after it was stopped: %v, %d requests", err, len(client.Actions()))
	}
}

// others are the servers of a store beside the one under test.
type others struct{ elsewhere, here []string }

func (o *others) Publish(_ context.Context, addresses []string) ([]string, error) {
	o.here = addresses
	all := slices.Concat(o.elsewhere, o.here)
	slices.Sort(all)
	return all, nil
}

func (o *others) Withdraw(context.Context) ([]string, error) {
	o.here = nil
	return o.elsewhere, nil
}

func TestEndpointReconciler_SeveralServers_Union(t *testing.T) {
	client := fake.NewClientset()
	o := &others{elsewhere: []string{"192.0.2.2", "192.0.2.3", "2001:db8::2"}}
	ours := func() []net.IP { return []net.IP{net.ParseIP("192.0.2.1"), net.ParseIP("2001:db8::1")} }
	r := newEndpointReconciler(client, ours, o)
	ports := []corev1.EndpointPort{{Name: "https", Port: 6443, Protocol: corev1.ProtocolTCP}}
	check := func(when string, want ...string) {
		t.Helper()
		slice, err := client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).Get(t.Context(), "kubernetes",
			metav1.GetOptions{})
		if err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		var have []string
		for _, e := range slice.Endpoints {
			have = append(have, e.Addresses...)
		}
		if !slices.Equal(have, want) {
			t.Errorf("%s: slice has %v, want %v", when, have, want)
		}
	}
	// Before it is ready the others serve, and nobody is to be warned of a crash.
	if err := r.RemoveEndpoints("kubernetes", nil, ports); !storage.IsNotFound(err) {
		t.Errorf("removed at start: %v", err)
	}
	check("at start", "192.0.2.2", "192.0.2.3")
	if err := r.ReconcileEndpoints("kubernetes", nil, ports, true); err != nil {
		t.Fatal(err)
	}
	check("with all", "192.0.2.1", "192.0.2.2", "192.0.2.3")
	client.ClearActions()
	if err := r.ReconcileEndpoints("kubernetes", nil, ports, true); err != nil {
		t.Fatal(err)
	}
	for _, a := range client.Actions() {
		if a.GetVerb() != "get" {
			t.Errorf("nothing changed, and it did %s", a.GetVerb())
		}
	}
	o.elsewhere = []string{"192.0.2.3"}
	if err := r.ReconcileEndpoints("kubernetes", nil, ports, true); err != nil {
		t.Fatal(err)
	}
	check("with one gone", "192.0.2.1", "192.0.2.3")
	if err := r.withdraw(); err != nil || o.here != nil {
		t.Errorf("withdrawn with %v, still at %v", err, o.here)
	}
	check("withdrawn", "192.0.2.3")
	client.ClearActions()
	if err := r.RemoveEndpoints("kubernetes", nil, ports); err != nil || len(client.Actions()) != 0 {
		t.Errorf("removed again: %v, %d requests", err, len(client.Actions()))
	}
}

func TestEndpointReconciler_LastServer_AddressesStay(t *testing.T) {
	client := fake.NewClientset()
	r := newEndpointReconciler(client, func() []net.IP { return []net.IP{net.ParseIP("192.0.2.1")} }, &others{})
	ports := []corev1.EndpointPort{{Name: "https", Port: 6443, Protocol: corev1.ProtocolTCP}}
	if err := r.ReconcileEndpoints("kubernetes", nil, ports, true); err != nil {
		t.Fatal(err)
	}
	client.ClearActions()
	if err := r.withdraw(); err != nil || len(client.Actions()) != 0 {
		t.Errorf("%v, %d requests", err, len(client.Actions()))
	}
}

func TestConfig_BuildsDocuments(t *testing.T) {
	for arg, want := range map[string]bool{"event-ttl=2h": false, "feature-gates=A=true": true,
		"--runtime-config=api/all=true": true} {
		if got := (Config{ExtraArgs: []string{arg}}).buildsDocuments(); got != want {
			t.Errorf("%s: %v, want %v", arg, got, want)
		}
	}
}
