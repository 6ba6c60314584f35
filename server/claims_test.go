package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/kubernetes"

	"github.com/mote-dev/mote/internal/joinapi"
)

// testClaims has a second machine join with the token and say of itself, with the node's
// certificate, what others would believe.
func testClaims(t *testing.T, s *Server, m *machine) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rogue := &machine{
		server: s,
		token:  m.token,
		name:   "rogue",
		secret: strings.Repeat("c3", 32),
		key:    key,
	}
	if code := rogue.ask(t, joinapi.PathJoin); code != "" {
		t.Fatalf("refused: %s", code)
	}
	admin, err := s.client(&user.DefaultInfo{Name: "admin", Groups: []string{user.SystemPrivilegedGroup}})
	if err != nil {
		t.Fatal(err)
	}
	t.Run("Registering", func(t *testing.T) { testClaimsOfNewNode(t, rogue.client(t), admin) })
	t.Run("Node", func(t *testing.T) { testClaimsOfNode(t, rogue.client(t), admin, s.addresses()[0].String()) })
	t.Run("Pods", func(t *testing.T) { testClaimsOfPods(t, rogue.client(t), admin) })
	t.Run("Others", func(t *testing.T) { testWritesForOthers(t, rogue.client(t)) })
}

// testClaimsOfNewNode registers the rogue with ranges of its own choice, then as a kubelet does.
// The range is given by the servers.
func testClaimsOfNewNode(t *testing.T, client, admin kubernetes.Interface) {
	ctx := t.Context()
	for _, ranges := range [][]string{
		{"10.42.9.0/24"}, {"10.42.0.0/24"}, {"10.42.0.0/16"}, {"198.18.0.0/15"}, {"127.77.4.0/24"}, {"0.0.0.0/0"},
		{"10.42.9.0/24", "fd00:42:9::/64"}, {"fd00:42:9::/64"},
	} {
		for _, spec := range []corev1.NodeSpec{{PodCIDR: ranges[0], PodCIDRs: ranges}, {PodCIDR: ranges[0]},
			{PodCIDRs: ranges}} {
			err := second(client.CoreV1().Nodes().Create(ctx,
				&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "rogue"}, Spec: spec}, metav1.CreateOptions{}))
			if !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err) {
				t.Errorf("a node registers with %+v: %v", spec, err)
			}
		}
	}
	for _, labels := range []map[string]string{
		{"node-role.kubernetes.io/control-plane": ""}, {"node-restriction.kubernetes.io/trusted": "true"},
		{"mote.dev/pool": "edge"},
	} {
		err := second(client.CoreV1().Nodes().Create(ctx,
			&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "rogue", Labels: labels}}, metav1.CreateOptions{}))
		if !apierrors.IsForbidden(err) {
			t.Errorf("a node registers with the labels %v: %v", labels, err)
		}
	}
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "rogue", Labels: map[string]string{corev1.LabelHostname: "rogue"}},
		Spec:       corev1.NodeSpec{ProviderID: "mote://rogue"},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeInternalIP, Address: "192.0.2.66"}, {Type: corev1.NodeHostName, Address: "rogue"},
		}},
	}
	if _, err := client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{}); err != nil {
		t.Fatalf("a node registers as kubelets do: %v", err)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err := wait.PollUntilContextCancel(ctx, 20*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		n, err := admin.CoreV1().Nodes().Get(ctx, "rogue", metav1.GetOptions{})
		return err == nil && strings.HasPrefix(n.Spec.PodCIDR, "10.42."), err
	})
	if err != nil {
		t.Errorf("the servers gave it no range: %v", err)
	}
}

// testClaimsOfNode changes the rogue's own Node.
func testClaimsOfNode(t *testing.T, client, admin kubernetes.Interface, server string) {
	if _, err := admin.CoreV1().Nodes().Patch(t.Context(), "rogue", types.StrategicMergePatchType, []byte(`{
		"metadata":{"labels":{"mote.dev/kept":"out"}},
		"spec":{"unschedulable":true,"taints":[{"key":"kept","value":"out","effect":"NoSchedule"}]}}`),
		metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	before, err := client.CoreV1().Nodes().Get(t.Context(), "rogue", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	address := func(kind corev1.NodeAddressType, address string) string {
		return fmt.Sprintf(`{"status":{"addresses":[{"type":%q,"address":%q}]}}`, kind, address)
	}
	for _, row := range []struct {
		name, subresource, patch string
		allowed                  bool
	}{
		{name: "another range", patch: `{"spec":{"podCIDR":"10.42.99.0/24","podCIDRs":["10.42.99.0/24"]}}`},
		{name: "no range", patch: `{"spec":{"podCIDR":null,"podCIDRs":null}}`},
		{
			name:        "a range by status",
			subresource: "status",
			patch:       `{"spec":{"podCIDR":"10.42.99.0/24","podCIDRs":["10.42.99.0/24"]}}`,
			allowed:     true, // and ignored
		},
		{
			name:        "its address",
			subresource: "status",
			patch:       address("InternalIP", "192.0.2.67"),
			allowed:     true,
		},
		{name: "the server's address", subresource: "status", patch: address("InternalIP", server)},
		{name: "the server's address as external", subresource: "status", patch: address("ExternalIP", server)},
		{name: "a pod's address", subresource: "status", patch: address("InternalIP", "10.42.0.7")},
		{name: "a service's address", subresource: "status", patch: address("InternalIP", "10.43.0.1")},
		{name: "loopback", subresource: "status", patch: address("InternalIP", "127.0.0.1")},
		{name: "another node's name", subresource: "status", patch: address("Hostname", "server1")},
		{name: "the API server's name", subresource: "status", patch: address("InternalDNS", "kubernetes.default")},
		{name: "the proxy's address", subresource: "status", patch: address("mote.dev/ProxyHost", "192.0.2.12")},
		{name: "outside", patch: `{"metadata":{"annotations":{"mote.dev/outside-ip":"198.51.100.1"}}}`, allowed: true},
		{name: "multicast outside", patch: `{"metadata":{"annotations":{"mote.dev/outside-ip":"239.0.0.1"}}}`},
		{name: "a pod outside", subresource: "status",
			patch: `{"metadata":{"annotations":{"mote.dev/outside-ip":"10.42.0.7"}}}`},
		{name: "a role", patch: `{"metadata":{"labels":{"node-role.kubernetes.io/control-plane":""}}}`},
		{name: "a role by status", subresource: "status",
			patch: `{"metadata":{"labels":{"node-role.kubernetes.io/control-plane":""}}}`},
		{name: "a restricted label", patch: `{"metadata":{"labels":{"node-restriction.kubernetes.io/x":"y"}}}`},
		{name: "a label of mote", patch: `{"metadata":{"labels":{"mote.dev/pool":"edge"}}}`},
		{name: "without the administrator's taint", patch: `{"spec":{"taints":[{"$patch":"delete","key":"kept"}]}}`},
		{name: "without the administrator's label", patch: `{"metadata":{"labels":{"mote.dev/kept":null}}}`},
		{name: "schedulable again", patch: `{"spec":{"unschedulable":false}}`},
		{name: "a taint", patch: `{"spec":{"taints":[{"key":"k","effect":"NoSchedule"}]}}`},
	} {
		t.Run(row.name, func(t *testing.T) {
			var subresources []string
			if row.subresource != "" {
				subresources = append(subresources, row.subresource)
			}
			_, err := client.CoreV1().Nodes().Patch(t.Context(), "rogue", types.StrategicMergePatchType,
				[]byte(row.patch), metav1.PatchOptions{}, subresources...)
			if row.allowed && err != nil || !row.allowed && !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err) {
				t.Errorf("%s: %v", row.patch, err)
			}
		})
	}
	after, err := client.CoreV1().Nodes().Get(t.Context(), "rogue", metav1.GetOptions{})
	if err != nil || !slices.Equal(after.Spec.PodCIDRs, before.Spec.PodCIDRs) {
		t.Errorf("its ranges are %v and were %v (%v)", after.Spec.PodCIDRs, before.Spec.PodCIDRs, err)
	}
}

// testClaimsOfPods reports addresses of the rogue's pod, and touches a pod of another node.
func testClaimsOfPods(t *testing.T, client, admin kubernetes.Interface) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for name, node := range map[string]string{"own": "rogue", "others": "n1"} {
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "i"}}},
		}
		err := wait.PollUntilContextCancel(ctx, 50*time.Millisecond, true, func(ctx context.Context) (bool, error) {
			// Its service account may not exist yet.
			err := second(admin.CoreV1().Pods("default").Create(ctx, pod, metav1.CreateOptions{}))
			return err == nil || apierrors.IsAlreadyExists(err), nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	n, err := admin.CoreV1().Nodes().Get(ctx, "rogue", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	inRange := strings.TrimSuffix(n.Spec.PodCIDR, "0/24") + "7"
	pods := client.CoreV1().Pods("default")
	status := func(pod, ip string) error {
		patch := fmt.Appendf(nil, `{"status":{"podIP":%q,"podIPs":[{"ip":%q}]}}`, ip, ip)
		return second(pods.Patch(ctx, pod, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status"))
	}
	for what, err := range map[string]error{
		"say its pod has another node's address": status("own", "10.42.200.7"),
		"say its pod has a service's address":    status("own", "10.43.0.10"),
		"say another node's pod has its address": status("others", inRange),
		"label its pod": second(pods.Patch(ctx, "own", types.StrategicMergePatchType,
			[]byte(`{"metadata":{"labels":{"app":"web"}}}`), metav1.PatchOptions{}, "status")),
		"evict another node's pod": pods.EvictV1(ctx,
			&policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: "others", Namespace: "default"}}),
		"delete another node's pod": pods.Delete(ctx, "others", metav1.DeleteOptions{}),
		"make a pod": second(pods.Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "made"},
			Spec: corev1.PodSpec{NodeName: "rogue", Containers: []corev1.Container{{Name: "c", Image: "i"}}}},
			metav1.CreateOptions{})),
	} {
		if !apierrors.IsForbidden(err) {
			t.Errorf("a node may %s: %v", what, err)
		}
	}
	if err := status("own", inRange); err != nil {
		t.Errorf("its pod's address in its range: %v", err)
	}
}

// testWritesForOthers writes what other nodes, or the servers, would say.
func testWritesForOthers(t *testing.T, client kubernetes.Interface) {
	ctx, name := t.Context(), "n1"
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for what, err := range map[string]error{
		"renew another's lease": second(client.CoordinationV1().Leases(corev1.NamespaceNodeLease).Create(ctx, lease,
			metav1.CreateOptions{})),
		"take a leader's lease": second(client.CoordinationV1().Leases("kube-system").Create(ctx, lease,
			metav1.CreateOptions{})),
		"report another's status": second(client.CoreV1().Nodes().PatchStatus(ctx, name, []byte(`{"status":{}}`))),
		"change another's Node": second(client.CoreV1().Nodes().Patch(ctx, name, types.MergePatchType,
			[]byte(`{"metadata":{"annotations":{"mote.dev/outside-ip":"192.0.2.66"}}}`), metav1.PatchOptions{})),
		"delete its Node, and with it what an administrator put there": client.CoreV1().Nodes().Delete(ctx, "rogue",
			metav1.DeleteOptions{}),
		"delete another's Node": client.CoreV1().Nodes().Delete(ctx, name, metav1.DeleteOptions{}),
		"say where the API servers are": second(client.DiscoveryV1().EndpointSlices("default").Patch(ctx, "kubernetes",
			types.MergePatchType, []byte(`{"endpoints":[]}`), metav1.PatchOptions{})),
		"change the DNS settings": second(client.CoreV1().ConfigMaps("kube-system").Create(ctx,
			&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "mote-dns"}}, metav1.CreateOptions{})),
	} {
		if !apierrors.IsForbidden(err) {
			t.Errorf("a node may %s: %v", what, err)
		}
	}
}
