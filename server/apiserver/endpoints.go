package apiserver

import (
	"context"
	"fmt"
	"maps"
	"net"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/client-go/kubernetes"
	"k8s.io/kubernetes/pkg/controlplane/reconcilers"
)

// endpointTimeout bounds one round of the endpoint reconciler.
const endpointTimeout = 5 * time.Second

// endpointReconciler keeps the addresses behind the service "kubernetes" equal
// to the addresses this server has now, so a machine that gets its network
// late, or another address later, needs no restart. Upstream's reconcilers
// fix the address at start and, to agree among servers, write to the store
// every few seconds.
type endpointReconciler struct {
	client    kubernetes.Interface
	addresses func() []net.IP
	stopped   atomic.Bool
}

var _ reconcilers.EndpointReconciler = (*endpointReconciler)(nil)

func newEndpointReconciler(client kubernetes.Interface, addresses func() []net.IP) *endpointReconciler {
	return &endpointReconciler{client: client, addresses: addresses}
}

// ValidateIP accepts every address: which ones can be published is decided each round.
func (r *endpointReconciler) ValidateIP(net.IP) error { return nil }

// ReconcileEndpoints writes Endpoints and EndpointSlice if they are not as they should be.
func (r *endpointReconciler) ReconcileEndpoints(service string, _ net.IP, ports []corev1.EndpointPort, _ bool) error {
	if r.stopped.Load() {
		return nil
	}
	var addresses []string
	for _, ip := range r.addresses() {
		// The API refuses these as endpoints.
		if !ip.IsLoopback() && !ip.IsLinkLocalUnicast() && !ip.IsUnspecified() {
			addresses = append(addresses, ip.String())
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), endpointTimeout)
	defer cancel()
	if err := r.ensureEndpoints(ctx, service, addresses, ports); err != nil {
		return fmt.Errorf("keep endpoints %s: %w", service, err)
	}
	if err := r.ensureSlice(ctx, service, addresses, ports); err != nil {
		return fmt.Errorf("keep endpoint slice %s: %w", service, err)
	}
	return nil
}

// RemoveEndpoints leaves the addresses in place: pods may keep the connections
// they have, and the server comes back under the same ones.
func (r *endpointReconciler) RemoveEndpoints(service string, _ net.IP, _ []corev1.EndpointPort) error {
	// The caller takes nil for the traces of a crash and warns of them.
	return storage.NewKeyNotFoundError(service, 0)
}

// StopReconciling implements reconcilers.EndpointReconciler.
func (r *endpointReconciler) StopReconciling() { r.stopped.Store(true) }

// Destroy implements reconcilers.EndpointReconciler.
func (r *endpointReconciler) Destroy() { r.stopped.Store(true) }

func (r *endpointReconciler) ensureEndpoints(ctx context.Context, service string, addresses []string, ports []corev1.EndpointPort) error {
	//nolint:staticcheck // Endpoints is deprecated, yet older clients in pods read it to find the API server.
	want := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{
		Name: service, Namespace: metav1.NamespaceDefault,
		Labels: map[string]string{discoveryv1.LabelSkipMirror: "true"},
	}}
	if len(addresses) > 0 {
		subset := corev1.EndpointSubset{Ports: ports}
		for _, a := range addresses {
			subset.Addresses = append(subset.Addresses, corev1.EndpointAddress{IP: a})
		}
		want.Subsets = []corev1.EndpointSubset{subset}
	}
	api := r.client.CoreV1().Endpoints(metav1.NamespaceDefault)
	have, err := api.Get(ctx, service, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		_, err = api.Create(ctx, want, metav1.CreateOptions{})
		return err
	case err != nil:
		return err
	case equality.Semantic.DeepEqual(have.Subsets, want.Subsets) && have.Labels[discoveryv1.LabelSkipMirror] == "true":
		return nil
	}
	have.Subsets, have.Labels = want.Subsets, merge(have.Labels, want.Labels)
	_, err = api.Update(ctx, have, metav1.UpdateOptions{})
	return err
}

func (r *endpointReconciler) ensureSlice(ctx context.Context, service string, addresses []string, ports []corev1.EndpointPort) error {
	want := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Name: service, Namespace: metav1.NamespaceDefault,
			Labels: map[string]string{discoveryv1.LabelServiceName: service},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	if len(addresses) > 0 && net.ParseIP(addresses[0]).To4() == nil {
		want.AddressType = discoveryv1.AddressTypeIPv6
	}
	ready := true
	for _, a := range addresses {
		if (net.ParseIP(a).To4() == nil) == (want.AddressType == discoveryv1.AddressTypeIPv6) {
			want.Endpoints = append(want.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}})
		}
	}
	for _, p := range ports {
		want.Ports = append(want.Ports, discoveryv1.EndpointPort{Name: &p.Name, Port: &p.Port, Protocol: &p.Protocol})
	}
	api := r.client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault)
	have, err := api.Get(ctx, service, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		_, err = api.Create(ctx, want, metav1.CreateOptions{})
		return err
	case err != nil:
		return err
	case have.AddressType != want.AddressType:
		// The family of a slice cannot be changed.
		if err := api.Delete(ctx, service, metav1.DeleteOptions{}); err != nil {
			return err
		}
		_, err = api.Create(ctx, want, metav1.CreateOptions{})
		return err
	case equality.Semantic.DeepEqual(have.Endpoints, want.Endpoints) && equality.Semantic.DeepEqual(have.Ports, want.Ports):
		return nil
	}
	have.Endpoints, have.Ports, have.Labels = want.Endpoints, want.Ports, merge(have.Labels, want.Labels)
	_, err = api.Update(ctx, have, metav1.UpdateOptions{})
	return err
}

func merge(into, from map[string]string) map[string]string {
	merged := maps.Clone(into)
	if merged == nil {
		merged = make(map[string]string, len(from))
	}
	maps.Copy(merged, from)
	return merged
}
