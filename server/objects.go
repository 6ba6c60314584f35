package server

import (
	"context"
	"fmt"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	bootstrapapi "k8s.io/cluster-bootstrap/token/api"

	"github.com/mote-dev/mote/server/applyset"
)

// systemSet names the set of the objects that every cluster of mote has, in kube-system.
const systemSet = "mote-system"

// ensureSystemObjects makes what every cluster of mote has, unless this server's settings
// contradict what the cluster was made with.
func (s *Server) ensureSystemObjects(ctx context.Context) error {
	client, err := s.client(system)
	if err != nil {
		return fmt.Errorf("make client for system objects: %w", err)
	}
	if err := s.checkNodeRanges(ctx, client); err != nil {
		return err
	}
	// The API server makes this namespace as well, a moment after it says it is ready.
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: metav1.NamespaceSystem}}
	if _, err := client.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{}); err != nil &&
		!apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create namespace kube-system: %w", err)
	}
	objects := systemObjects()
	dns, err := s.dnsService(ctx, client)
	if err != nil {
		return err
	}
	if dns != nil {
		objects = append(objects, dns)
	}
	writer, err := dynamic.NewForConfig(s.loopback.Config(system))
	if err != nil {
		return fmt.Errorf("make client for system objects: %w", err)
	}
	applier := applyset.Applier{Client: writer, Mapper: systemKinds(), Manager: "mote"}
	if err := applier.Apply(ctx, metav1.NamespaceSystem, systemSet, objects); err != nil {
		return err
	}
	return s.ensureJoining(ctx, client)
}

// system is who mote itself is to its API.
var system = &user.DefaultInfo{Name: "system:mote", Groups: []string{user.SystemPrivilegedGroup, user.AllAuthenticated}}

// systemKinds knows the kinds of system objects. Asking the API for all of its kinds would cost a
// start more than applying them.
func systemKinds() meta.RESTMapper {
	mapper := meta.NewDefaultRESTMapper([]schema.GroupVersion{corev1.SchemeGroupVersion, rbacv1.SchemeGroupVersion})
	mapper.Add(corev1.SchemeGroupVersion.WithKind("Service"), meta.RESTScopeNamespace)
	mapper.Add(corev1.SchemeGroupVersion.WithKind("ConfigMap"), meta.RESTScopeNamespace)
	mapper.Add(rbacv1.SchemeGroupVersion.WithKind("ClusterRole"), meta.RESTScopeRoot)
	mapper.Add(rbacv1.SchemeGroupVersion.WithKind("ClusterRoleBinding"), meta.RESTScopeRoot)
	return mapper
}

// systemObjects are the rights of nodes and of those that join. A version of mote that drops one
// removes it from the cluster.
func systemObjects() []runtime.Object {
	read := []string{"get", "list", "watch"}
	return []runtime.Object{
		// What a node's service proxy, network policy and DNS read beside what upstream's Node
		// authorizer lets its kubelet read. It is the same for all nodes, so it has nothing secret.
		&rbacv1.ClusterRole{
			ObjectMeta: metav1.ObjectMeta{Name: "mote:node"},
			Rules: []rbacv1.PolicyRule{
				{APIGroups: []string{""}, Resources: []string{"services", "nodes", "namespaces", "pods"}, Verbs: read},
				{APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}, Verbs: read},
				{APIGroups: []string{"networking.k8s.io"}, Resources: []string{"networkpolicies", "servicecidrs"},
					Verbs: read},
				{
					APIGroups:     []string{""},
					Resources:     []string{"configmaps"},
					ResourceNames: []string{"mote-dns"},
					Verbs:         read,
				},
			},
		},
		bind("mote:node", "mote:node", user.NodesGroup),
		// For server/join: whoever has a token may request a node's first certificate, and nodes
		// may request their next.
		bind("mote:join", "system:node-bootstrapper", bootstrapapi.BootstrapDefaultGroup),
		bind("mote:join-approved", "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
			bootstrapapi.BootstrapDefaultGroup),
		bind("mote:renew-approved", "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
			user.NodesGroup),
	}
}

// bind gives a cluster role to a group.
func bind(name, role, group string) *rbacv1.ClusterRoleBinding {
	return &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: group}},
	}
}

// freeAddresses removes what a start left that ended in the middle of making kube-dns. The API
// server allocates a service's addresses before it writes the service, and frees them a minute
// later if it never did; until then it refuses them to everybody.
func freeAddresses(ctx context.Context, client kubernetes.Interface, addresses []string) error {
	for _, a := range addresses {
		have, err := client.NetworkingV1().IPAddresses().Get(ctx, a, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read IP address %s: %w", a, err)
		}
		if of := have.Spec.ParentRef; of == nil || of.Group != "" || of.Resource != "services" ||
			of.Namespace != metav1.NamespaceSystem || of.Name != "kube-dns" {
			continue // another service's: applying kube-dns says so
		}
		err = client.NetworkingV1().IPAddresses().Delete(ctx, a,
			metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(have.UID))})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			return fmt.Errorf("free IP address %s of a service that was never made: %w", a, err)
		}
	}
	return nil
}

// dnsService is the service that charts look for when they need the address of cluster DNS; nil if
// the cluster has none. Each node answers on that address itself, so service proxies are told to
// leave it alone.
func (s *Server) dnsService(ctx context.Context, client kubernetes.Interface) (runtime.Object, error) {
	addresses := s.config.Cluster.ClusterDNS
	if len(addresses) == 0 {
		return nil, nil
	}
	texts := make([]string, len(addresses))
	for i, ip := range addresses {
		texts[i] = ip.String()
	}
	// The first address of a service never changes. If the cluster was made with another one, the
	// service keeps what it has.
	have, err := client.CoreV1().Services(metav1.NamespaceSystem).Get(ctx, "kube-dns", metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("read service kube-system/kube-dns: %w", err)
	}
	if apierrors.IsNotFound(err) {
		if err := freeAddresses(ctx, client, texts); err != nil {
			return nil, err
		}
	}
	if err == nil && have.Spec.ClusterIP != "" && have.Spec.ClusterIP != texts[0] {
		s.config.Logger.Warn(
			"service kube-system/kube-dns keeps its address: delete it to give it the one of cluster-dns",
			zap.Strings("has", have.Spec.ClusterIPs), zap.Strings("cluster-dns", texts))
		texts = have.Spec.ClusterIPs
	}
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Name:      "kube-dns",
			Namespace: metav1.NamespaceSystem,
			Labels: map[string]string{
				"k8s-app":            "kube-dns",
				"kubernetes.io/name": "mote-dns",
				"service.kubernetes.io/service-proxy-name": "mote-dns",
			},
		},
		Spec: corev1.ServiceSpec{
			ClusterIP:  texts[0],
			ClusterIPs: texts,
			Ports: []corev1.ServicePort{
				{
					Name:       "dns",
					Protocol:   corev1.ProtocolUDP,
					Port:       53,
					TargetPort: intstr.FromInt32(53),
				},
				{
					Name:       "dns-tcp",
					Protocol:   corev1.ProtocolTCP,
					Port:       53,
					TargetPort: intstr.FromInt32(53),
				},
			},
		},
	}
	if len(texts) > 1 {
		// Two addresses are refused unless the service asks for both families.
		policy := corev1.IPFamilyPolicyPreferDualStack
		service.Spec.IPFamilyPolicy = &policy
	}
	return service, nil
}
