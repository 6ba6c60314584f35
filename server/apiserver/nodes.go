package apiserver

import (
	"context"
	"slices"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	genericapirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/storage/storagebackend/factory"
	"k8s.io/client-go/tools/cache"
	api "k8s.io/kubernetes/pkg/apis/core"
)

// proxyHost is a type of address that nodes have for the proxy subresource only.
const proxyHost api.NodeAddressType = "mote.dev/ProxyHost"

var nodeResource = schema.GroupResource{Resource: "nodes"}

// reachable is a generic.StorageDecorator for nodes that are dialled by name.
func (g *restOptions) reachable(
	config *storagebackend.ConfigForResource, resourcePrefix string, keyFunc func(runtime.Object) (string, error),
	newFunc, newListFunc func() runtime.Object, attrs storage.AttrFunc, triggers storage.IndexerFuncs,
	indexers *cache.Indexers,
) (storage.Interface, factory.DestroyFunc, error) {
	next, destroy, err := g.cached(config, resourcePrefix, keyFunc, newFunc, newListFunc, attrs, triggers, indexers)
	if err != nil {
		return nil, nil, err
	}
	return proxiedNodes{Interface: next, network: g.network}, destroy, nil
}

// proxiedNodes gives nodes an address of type proxyHost when they are read for nodes/proxy. That
// subresource alone asks the machine's resolver for an address before it dials a kubelet. It
// refuses names that the resolver does not know, as those of most nodes, and names of loopback
// addresses, as the machine's own name often is.
type proxiedNodes struct {
	storage.Interface
	network Network
}

// Get implements storage.Interface.
func (s proxiedNodes) Get(ctx context.Context, key string, opts storage.GetOptions, into runtime.Object) error {
	if err := s.Interface.Get(ctx, key, opts, into); err != nil {
		return err
	}
	node, ok := into.(*api.Node)
	info, known := genericapirequest.RequestInfoFrom(ctx)
	if !ok || !known || info.Resource != nodeResource.Resource || info.Subresource != "proxy" {
		return nil
	}
	if host := s.network.HostOf(node.Name); host != "" {
		// Not appended to: the slice is the watch cache's.
		node.Status.Addresses = slices.Concat([]api.NodeAddress{{Type: proxyHost, Address: host}},
			node.Status.Addresses)
	}
	return nil
}
