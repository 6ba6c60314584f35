package apiserver

import (
	"fmt"
	"sync"
	"sync/atomic"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/features"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/cacher"
	"k8s.io/apiserver/pkg/storage/etcd3"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/storage/storagebackend/factory"
	"k8s.io/apiserver/pkg/storage/value/encrypt/identity"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/tools/cache"

	etcdkubernetes "go.etcd.io/etcd/client/v3/kubernetes"

	"github.com/mote-dev/mote/server/apiserver/eventwindow"
)

// restOptions makes every resource use one etcd client. Upstream makes one gRPC client a resource,
// which costs memory and a socket each.
type restOptions struct {
	next    generic.RESTOptionsGetter
	client  *etcdkubernetes.Client
	history *history
	// network may be nil.
	network Network
}

// history tells every watch cache how far the store is compacted, so that it forgets with the
// store: without it a cache keeps the old states that clients read a list's next pages from, and
// answers from them forever. The compactor starts when the server runs, long after the caches were
// made.
type history struct {
	compactor atomic.Pointer[etcd3.Compactor]
	// windows lets go of what the caches keep of a burst of events.
	windows eventwindow.Windows
}

var _ etcd3.Compactor = (*history)(nil)

func (h *history) follow(c etcd3.Compactor) { h.compactor.Store(&c) }

// CompactRevision implements etcd3.Compactor; 0 means that nothing is known to be compacted.
func (h *history) CompactRevision() int64 {
	if c := h.compactor.Load(); c != nil {
		return (*c).CompactRevision()
	}
	return 0
}

// GetRESTOptions implements generic.RESTOptionsGetter.
func (g *restOptions) GetRESTOptions(resource schema.GroupResource, example runtime.Object) (generic.RESTOptions,
	error) {
	o, err := g.next.GetRESTOptions(resource, example)
	if err != nil {
		return o, err
	}
	o.Decorator = g.cached
	if resource == nodeResource && g.network != nil {
		o.Decorator = g.reachable
	}
	if resource.Resource == "events" {
		// As upstream: events are many, written once and hardly read.
		o.Decorator = g.plain
	}
	return o, nil
}

// plain is a generic.StorageDecorator without a watch cache.
func (g *restOptions) plain(
	config *storagebackend.ConfigForResource, resourcePrefix string, _ func(runtime.Object) (string, error),
	newFunc, newListFunc func() runtime.Object, _ storage.AttrFunc, _ storage.IndexerFuncs, _ *cache.Indexers,
) (storage.Interface, factory.DestroyFunc, error) {
	transformer := config.Transformer
	if transformer == nil {
		transformer = identity.NewEncryptCheckTransformer()
	}
	versioner := storage.APIObjectVersioner{}
	decoder := etcd3.NewDefaultDecoder(config.Codec, versioner)
	unsafeDeletion := utilfeature.DefaultFeatureGate.Enabled(features.AllowUnsafeMalformedObjectDeletion)
	if unsafeDeletion {
		transformer = etcd3.WithCorruptObjErrorHandlingTransformer(transformer)
		decoder = etcd3.WithCorruptObjErrorHandlingDecoder(decoder)
	}
	store, err := etcd3.New(g.client, g.history, config.Codec, newFunc, newListFunc, config.Prefix, resourcePrefix,
		config.GroupResource, transformer, config.LeaseManagerConfig, decoder, versioner)
	if err != nil {
		return nil, nil, fmt.Errorf("open storage of %s: %w", config.GroupResource, err)
	}
	var result storage.Interface = store
	if unsafeDeletion {
		result = etcd3.NewStoreWithUnsafeCorruptObjectDeletion(store, config.GroupResource)
	}
	// The client is shared and outlives every resource, so only the store is closed.
	return result, sync.OnceFunc(store.Close), nil
}

// cached is a generic.StorageDecorator with upstream's watch cache.
func (g *restOptions) cached(
	config *storagebackend.ConfigForResource, resourcePrefix string, keyFunc func(runtime.Object) (string, error),
	newFunc, newListFunc func() runtime.Object, attrs storage.AttrFunc, triggers storage.IndexerFuncs,
	indexers *cache.Indexers,
) (storage.Interface, factory.DestroyFunc, error) {
	raw, destroy, err := g.plain(config, resourcePrefix, keyFunc, newFunc, newListFunc, attrs, triggers, indexers)
	if err != nil {
		return nil, nil, err
	}
	windowed, forget := g.history.windows.Add(cacher.Config{
		Storage:             raw,
		Versioner:           storage.APIObjectVersioner{},
		GroupResource:       config.GroupResource,
		EventsHistoryWindow: config.EventsHistoryWindow,
		ResourcePrefix:      resourcePrefix,
		KeyFunc:             keyFunc,
		NewFunc:             newFunc,
		NewListFunc:         newListFunc,
		GetAttrsFunc:        attrs,
		IndexerFuncs:        triggers,
		Indexers:            indexers,
		Codec:               config.Codec,
	})
	c, err := cacher.NewCacherFromConfig(windowed)
	if err != nil {
		forget()
		destroy()
		return nil, nil, fmt.Errorf("open watch cache of %s: %w", config.GroupResource, err)
	}
	delegator := cacher.NewCacheDelegator(c, raw)
	return delegator, sync.OnceFunc(func() {
		delegator.Stop()
		c.Stop()
		forget()
		destroy()
	}), nil
}
