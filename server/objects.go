package server

import (
	"context"
	"fmt"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/kubernetes"
	bootstrapapi "k8s.io/cluster-bootstrap/token/api"

	corev1 "k8s.io/api/core/v1"
)

// ensureSystemObjects makes what every cluster of mote has and leaves alone
// what is there already, unless this server was told what does not go with it.
func (s *Server) ensureSystemObjects(ctx context.Context) error {
	client, err := s.client(&user.DefaultInfo{Name: "system:mote", Groups: []string{user.SystemPrivilegedGroup, user.AllAuthenticated}})
	if err != nil {
		return fmt.Errorf("make client for system objects: %w", err)
	}
	if err := s.checkNodeRanges(ctx, client); err != nil {
		return err
	}
	// The API server makes this namespace as well, a moment after it says it is ready.
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: metav1.NamespaceSystem}}
	if _, err := client.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("keep namespace kube-system: %w", err)
	}
	if err := ensureNodeRole(ctx, client); err != nil {
		return fmt.Errorf("keep rights of nodes: %w", err)
	}
	for _, b := range joinBindings {
		if err := ensureBinding(ctx, client, b.name, b.role, b.group); err != nil {
			return fmt.Errorf("keep rights to join: %w", err)
		}
	}
	if err := s.ensureJoining(ctx, client); err != nil {
		return err
	}
	if err := s.ensureDNSService(ctx, client); err != nil {
		return fmt.Errorf("keep service kube-system/kube-dns: %w", err)
	}
	return nil
}

// nodeRole is what a node's service proxy, network policy and DNS read beside
// what upstream's Node authorizer lets its kubelet do. It is the same for all
// nodes, so it holds nothing secret.
var nodeRole = []rbacv1.PolicyRule{
	{APIGroups: []string{""}, Resources: []string{"services", "nodes", "namespaces", "pods"}, Verbs: []string{"get", "list", "watch"}},
	{APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}, Verbs: []string{"get", "list", "watch"}},
	{APIGroups: []string{"networking.k8s.io"}, Resources: []string{"networkpolicies", "servicecidrs"}, Verbs: []string{"get", "list", "watch"}},
	{APIGroups: []string{""}, Resources: []string{"configmaps"}, ResourceNames: []string{"mote-dns"}, Verbs: []string{"get", "list", "watch"}},
}

// ensureNodeRole gives nodeRole to all nodes, also after an upgrade changed it.
func ensureNodeRole(ctx context.Context, client kubernetes.Interface) error {
	const name = "mote:node"
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: nodeRole}
	roles := client.RbacV1().ClusterRoles()
	have, err := roles.Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		_, err = roles.Create(ctx, role, metav1.CreateOptions{})
	case err == nil && !equality.Semantic.DeepEqual(have.Rules, role.Rules):
		have.Rules = role.Rules
		_, err = roles.Update(ctx, have, metav1.UpdateOptions{})
	}
	if err != nil {
		return err
	}
	return ensureBinding(ctx, client, name, name, user.NodesGroup)
}

// joinBindings give upstream's roles to those who join, for server/join: who
// comes with a token may ask for a node's first certificate, and nodes for their
// next.
var joinBindings = []struct{ name, role, group string }{
	{"mote:join", "system:node-bootstrapper", bootstrapapi.BootstrapDefaultGroup},
	{"mote:join-approved", "system:certificates.k8s.io:certificatesigningrequests:nodeclient", bootstrapapi.BootstrapDefaultGroup},
	{"mote:renew-approved", "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient", user.NodesGroup},
}

// ensureBinding gives a role to a group.
func ensureBinding(ctx context.Context, client kubernetes.Interface, name, role, group string) error {
	_, err := client.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: group}},
	}, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// ensureDNSService makes the service people look for when they ask about
// cluster DNS. Each node answers on its address itself, so the service proxies
// are told to leave it alone.
func (s *Server) ensureDNSService(ctx context.Context, client kubernetes.Interface) error {
	if len(s.config.Cluster.ClusterDNS) == 0 {
		return nil
	}
	services := client.CoreV1().Services(metav1.NamespaceSystem)
	// Asked first: creating it again would fail on its address, not on its name.
	if _, err := services.Get(ctx, "kube-dns", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		return err
	}
	addresses := make([]string, len(s.config.Cluster.ClusterDNS))
	for i, ip := range s.config.Cluster.ClusterDNS {
		addresses[i] = ip.String()
	}
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Name: "kube-dns", Namespace: metav1.NamespaceSystem,
			Labels: map[string]string{
				"k8s-app":            "kube-dns",
				"kubernetes.io/name": "mote-dns",
				"service.kubernetes.io/service-proxy-name": "mote-dns",
			},
		},
		Spec: corev1.ServiceSpec{
			ClusterIP: addresses[0], ClusterIPs: addresses,
			Ports: []corev1.ServicePort{
				{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53, TargetPort: intstr.FromInt32(53)},
				{Name: "dns-tcp", Protocol: corev1.ProtocolTCP, Port: 53, TargetPort: intstr.FromInt32(53)},
			},
		},
	}
	if len(addresses) > 1 {
		// Two addresses are refused unless it says that it wants them.
		policy := corev1.IPFamilyPolicyPreferDualStack
		service.Spec.IPFamilyPolicy = &policy
	}
	_, err := services.Create(ctx, service, metav1.CreateOptions{})
	return err
}
