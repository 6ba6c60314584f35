package apiserver

import (
	"context"
	"fmt"
	"maps"
	"net"
	"sync"
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

// endpointReconciler keeps the addresses behind the service "kubernetes" equal to the addresses
// this server has now, so a machine that gets its network late, or another address later, needs no
// restart. With several servers they are those of all that live. Upstream's reconcilers fix the
// address at start and, to agree among servers, write to the store every few seconds.
type endpointReconciler struct {
	client    kubernetes.Interface
	addresses func() []net.IP
	servers   Servers // nil for the only one
	stopped   atomic.Bool
	mu        sync.Mutex // held while servers and endpoints are made to agree; guards what follows
	withdrawn bool       // for good
	// service and ports are what was published last.
	service string
	ports   []corev1.EndpointPort
}

var _ reconcilers.EndpointReconciler = (*endpointReconciler)(nil)

// Servers knows the servers that share a store.
type Servers interface {
	// Publish says where this server's API is served, and returns the addresses of all servers. It
	// is repeated every ten seconds.
	Publish(ctx context.Context, addresses []string) ([]string, error)
	// Withdraw takes this server's addresses back, and returns those of the others.
	Withdraw(ctx context.Context) ([]string, error)
}

func newEndpointReconciler(client kubernetes.Interface, addresses func() []net.IP,
	servers Servers) *endpointReconciler {
	return &endpointReconciler{client: client, addresses: addresses, servers: servers}
}

// ValidateIP accepts every address: which ones can be published is decided each round.
func (r *endpointReconciler) ValidateIP(net.IP) error { return nil }

// ReconcileEndpoints writes Endpoints and EndpointSlice if they are not as they should be.
func (r *endpointReconciler) ReconcileEndpoints(service string, _ net.IP, ports []corev1.EndpointPort, _ bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped.Load() {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), endpointTimeout)
	defer cancel()
	addresses := r.own()
	if r.servers != nil {
		all, err := r.servers.Publish(ctx, addresses)
		if err != nil {
			return err
		}
		addresses = inOrder(all, addresses)
	}
	r.service, r.ports = service, ports
	return r.ensure(ctx, service, addresses, ports)
}

// own are the addresses of this server that can be published.
func (r *endpointReconciler) own() []string {
	var addresses []string
	for _, ip := range r.addresses() {
		// The API refuses these as endpoints.
		if !ip.IsLoopback() && !ip.IsLinkLocalUnicast() && !ip.IsUnspecified() {
			addresses = append(addresses, ip.String())
		}
	}
	return addresses
}

// inOrder puts the addresses of own's first family in front, and leaves the rest as it is, which is
// the same for all servers: the first decides what family the slice has.
func inOrder(all, own []string) []string {
	if len(own) == 0 {
		return all
	}
	isOurs := func(a string) bool { return isIPv4(a) == isIPv4(own[0]) }
	var first, rest []string
	for _, a := range all {
		if isOurs(a) {
			first = append(first, a)
		} else {
			rest = append(rest, a)
		}
	}
	return append(first, rest...)
}

func isIPv4(address string) bool { return net.ParseIP(address).To4() != nil }

// ensureTries bounds how often another server may be faster.
const ensureTries = 5

func (r *endpointReconciler) ensure(ctx context.Context, service string, addresses []string,
	ports []corev1.EndpointPort) error {
	for try := 1; ; try++ {
		err := r.ensureEndpoints(ctx, service, addresses, ports)
		if err == nil {
			err = r.ensureSlice(ctx, service, addresses, ports)
		}
		if (apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err)) && try < ensureTries {
			continue
		}
		if err != nil {
			return fmt.Errorf("keep endpoints of service %s: %w", service, err)
		}
		return nil
	}
}

// RemoveEndpoints takes this server's addresses away if others serve. Those of the last one stay:
// pods may keep the connections they have, and it comes back under the same ones. It is called
// before the server is ready, and when it stops.
func (r *endpointReconciler) RemoveEndpoints(service string, _ net.IP, ports []corev1.EndpointPort) error {
	// The caller takes nil for the traces of a crash and warns of them.
	nothing := storage.NewKeyNotFoundError(service, 0)
	if r.servers == nil {
		return nothing
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.withdrawn {
		return nil
	}
	if err := r.remove(service, ports); err != nil || r.stopped.Load() {
		return err
	}
	return nothing
}

// remove does what RemoveEndpoints says. The caller holds mu.
func (r *endpointReconciler) remove(service string, ports []corev1.EndpointPort) error {
	ctx, cancel := context.WithTimeout(context.Background(), endpointTimeout)
	defer cancel()
	rest, err := r.servers.Withdraw(ctx)
	if err != nil || len(rest) == 0 {
		return err
	}
	return r.ensure(ctx, service, inOrder(rest, r.own()), ports)
}

// withdraw removes this server's addresses for good. Upstream's shutdown would do so too late, when
// the loopback is closed.
func (r *endpointReconciler) withdraw() error {
	r.StopReconciling()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.servers == nil || r.withdrawn || r.service == "" {
		return nil
	}
	r.withdrawn = true
	return r.remove(r.service, r.ports)
}

// StopReconciling implements reconcilers.EndpointReconciler.
func (r *endpointReconciler) StopReconciling() { r.stopped.Store(true) }

// Destroy implements reconcilers.EndpointReconciler.
func (r *endpointReconciler) Destroy() { r.stopped.Store(true) }

func (r *endpointReconciler) ensureEndpoints(ctx context.Context, service string, addresses []string,
	ports []corev1.EndpointPort) error {
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

func (r *endpointReconciler) ensureSlice(ctx context.Context, service string, addresses []string,
	ports []corev1.EndpointPort) error {
	want := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Name: service, Namespace: metav1.NamespaceDefault,
			Labels: map[string]string{discoveryv1.LabelServiceName: service},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	if len(addresses) > 0 && !isIPv4(addresses[0]) {
		want.AddressType = discoveryv1.AddressTypeIPv6
	}
	ready := true
	for _, a := range addresses {
		if isIPv4(a) == (want.AddressType == discoveryv1.AddressTypeIPv4) {
			want.Endpoints = append(want.Endpoints,
				discoveryv1.Endpoint{Addresses: []string{a}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}})
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
	case equality.Semantic.DeepEqual(have.Endpoints, want.Endpoints) &&
		equality.Semantic.DeepEqual(have.Ports, want.Ports):
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
