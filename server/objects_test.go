package server

import (
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func TestServer_SystemObjects_AreRestoredAndPruned(t *testing.T) {
	dir := t.TempDir()
	first := startInstance(t, dir)
	ctx, roles, bindings := t.Context(), first.client.RbacV1().ClusterRoles(),
		first.client.RbacV1().ClusterRoleBindings()
	role, err := roles.Get(ctx, "mote:node", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	set, ok := role.Labels["applyset.kubernetes.io/part-of"]
	if !ok {
		t.Fatalf("mote:node belongs to no set: %v", role.Labels)
	}
	// A role that somebody emptied, one that an older mote had, and one of a user's.
	role.Rules = nil
	if _, err := roles.Update(ctx, role, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	for name, labels := range map[string]map[string]string{
		"mote:old":  {"applyset.kubernetes.io/part-of": set},
		"mote:user": nil,
	} {
		binding := bind(name, "view", "somebody")
		binding.Labels = labels
		if _, err := bindings.Create(ctx, binding, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	patch := []byte(`{"metadata":{"labels":{"team":"edge"}}}`)
	if _, err := first.client.CoreV1().Services(metav1.NamespaceSystem).Patch(ctx, "kube-dns", types.MergePatchType,
		patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	before := revisions(t, first)
	first.end(t)

	second := startInstance(t, dir)
	defer second.end(t)
	roles, bindings = second.client.RbacV1().ClusterRoles(), second.client.RbacV1().ClusterRoleBindings()
	if role, err = roles.Get(ctx, "mote:node", metav1.GetOptions{}); err != nil || len(role.Rules) == 0 {
		t.Errorf("the rules of mote:node are %v, %v; want them restored", role.Rules, err)
	}
	if _, err := bindings.Get(ctx, "mote:old", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("an object that the set has no more is still there: %v", err)
	}
	if _, err := bindings.Get(ctx, "mote:user", metav1.GetOptions{}); err != nil {
		t.Errorf("a user's object was removed: %v", err)
	}
	dns, err := second.client.CoreV1().Services(metav1.NamespaceSystem).Get(ctx, "kube-dns", metav1.GetOptions{})
	if err != nil || dns.Labels["team"] != "edge" || dns.Spec.ClusterIP != "10.43.0.10" {
		t.Errorf("kube-dns has labels %v and address %s, %v", dns.Labels, dns.Spec.ClusterIP, err)
	}
	// What is as declared is not written again.
	for name, was := range before {
		if now := revisions(t, second)[name]; now != was {
			t.Errorf("%s was written again: revision %s, before %s", name, now, was)
		}
	}
}

// A start that ends between the address and the service of kube-dns must not keep the next ones
// from starting.
func TestServer_SystemObjects_AddressWithoutItsService(t *testing.T) {
	dir := t.TempDir()
	first := startInstance(t, dir)
	services := first.client.CoreV1().Services(metav1.NamespaceSystem)
	addresses := first.client.NetworkingV1().IPAddresses()
	address, err := addresses.Get(t.Context(), "10.43.0.10", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := services.Delete(t.Context(), "kube-dns", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	address.ObjectMeta = metav1.ObjectMeta{Name: address.Name, Labels: address.Labels}
	if _, err := addresses.Create(t.Context(), address, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	first.end(t)

	second := startInstance(t, dir)
	defer second.end(t)
	services = second.client.CoreV1().Services(metav1.NamespaceSystem)
	dns, err := services.Get(t.Context(), "kube-dns", metav1.GetOptions{})
	if err != nil || dns.Spec.ClusterIP != "10.43.0.10" {
		t.Errorf("kube-dns has address %q, %v", dns.Spec.ClusterIP, err)
	}
}

// revisions are those of objects that nothing changes between two starts.
func revisions(t *testing.T, i *instance) map[string]string {
	t.Helper()
	out := map[string]string{}
	set, err := i.client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(t.Context(), systemSet, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	out["the set"] = set.ResourceVersion
	var binding *rbacv1.ClusterRoleBinding
	if binding, err = i.client.RbacV1().ClusterRoleBindings().Get(t.Context(), "mote:join",
		metav1.GetOptions{}); err != nil {
		t.Fatal(err)
	}
	out["mote:join"] = binding.ResourceVersion
	return out
}
