package server

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/kubernetes"

	corev1 "k8s.io/api/core/v1"
)

// ensureSystemObjects makes what every cluster of mote has and leaves alone
// what is there already.
func (s *Server) ensureSystemObjects(ctx context.Context) error {
	client, err := kubernetes.NewForConfig(s.loopback.Config(&user.DefaultInfo{
		Name: "system:mote", Groups: []string{user.SystemPrivilegedGroup, user.AllAuthenticated},
	}))
	if err != nil {
		return fmt.Errorf("make client for system objects: %w", err)
	}
	// The API server makes this namespace as well, a moment after it says it is ready.
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: metav1.NamespaceSystem}}
	if _, err := client.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("keep namespace kube-system: %w", err)
	}
	if err := s.ensureDNSService(ctx, client); err != nil {
		return fmt.Errorf("keep service kube-system/kube-dns: %w", err)
	}
	return nil
}

// ensureDNSService makes the service people look for when they ask about
// cluster DNS. Each node answers on its address itself, so the service proxies
// are told to leave it alone.
func (s *Server) ensureDNSService(ctx context.Context, client kubernetes.Interface) error {
	if len(s.config.ClusterDNS) == 0 {
		return nil
	}
	services := client.CoreV1().Services(metav1.NamespaceSystem)
	// Asked first: creating it again would fail on its address, not on its name.
	if _, err := services.Get(ctx, "kube-dns", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		return err
	}
	addresses := make([]string, len(s.config.ClusterDNS))
	for i, ip := range s.config.ClusterDNS {
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
	_, err := services.Create(ctx, service, metav1.CreateOptions{})
	return err
}
