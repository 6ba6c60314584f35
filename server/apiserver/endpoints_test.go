package apiserver

import (
	"net"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

func TestEndpointReconciler_FollowsTheAddresses(t *testing.T) {
	client := fake.NewClientset()
	var now []net.IP
	r := newEndpointReconciler(client, func() []net.IP { return now })
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
		slice, err := client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).Get(t.Context(), "kubernetes", metav1.GetOptions{})
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

func TestConfig_BuildsDocuments(t *testing.T) {
	for arg, want := range map[string]bool{"event-ttl=2h": false, "feature-gates=A=true": true, "--runtime-config=api/all=true": true} {
		if got := (Config{ExtraArgs: []string{arg}}).buildsDocuments(); got != want {
			t.Errorf("%s: %v, want %v", arg, got, want)
		}
	}
}
