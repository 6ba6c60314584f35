package apiserver

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/discovery/aggregated"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/egressselector"
	"k8s.io/apiserver/pkg/server/filters"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/controlplane"
	controlplaneapiserver "k8s.io/kubernetes/pkg/controlplane/apiserver"
	"k8s.io/kubernetes/pkg/kubeapiserver"

	"github.com/mote-dev/mote/server/loopback"
)

// informerResync is how often informers replay what they hold to their handlers. Handlers here are
// driven by watches; the replay is only a safety net.
const informerResync = 12 * time.Hour

// self is who the API server is to itself.
var self = &user.DefaultInfo{
	Name:   user.APIServerUser,
	Groups: []string{user.AllAuthenticated, user.SystemPrivilegedGroup},
}

// NewInformers makes the informer factory that the API server, controllers and scheduler of this
// process share: one cache of each resource instead of one per component. Managed fields are
// dropped: nothing that reads a cache needs them.
func NewInformers(l *loopback.Server) (informers.SharedInformerFactory, error) {
	client, err := kubernetes.NewForConfig(l.Config(self))
	if err != nil {
		return nil, fmt.Errorf("make client of the shared informers: %w", err)
	}
	return informers.NewSharedInformerFactoryWithOptions(client, informerResync, informers.WithTransform(Trim)), nil
}

// Trim removes from an object what no cache needs.
func Trim(obj any) (any, error) {
	if accessor, err := meta.Accessor(obj); err == nil && accessor.GetManagedFields() != nil {
		accessor.SetManagedFields(nil)
	}
	return obj, nil
}

// serverID is the name of a server's identity lease. Upstream makes it of the host's name, which
// two machines may share; names of nodes are checked.
func serverID(name string) string {
	sum := sha256.Sum256([]byte(name))
	return "apiserver-" + hex.EncodeToString(sum[:16])
}

// genericConfig makes what the three API servers of the chain have in common. It follows the order
// of controlplaneapiserver.BuildGenericConfig (v1.37.2): several steps read what earlier ones set.
func (c Config) genericConfig(o options.CompletedOptions, h *history) (*genericapiserver.Config,
	*serverstorage.DefaultStorageFactory, error) {
	g := genericapiserver.NewConfig(legacyscheme.Codecs)
	if c.Servers != nil {
		g.APIServerID = serverID(c.Name)
	}
	g.MergedResourceConfig = controlplane.DefaultAPIResourceConfigSource()

	if err := o.GenericServerRunOptions.ApplyTo(g); err != nil {
		return nil, nil, fmt.Errorf("apply general options: %w", err)
	}
	if err := o.SecureServing.SecureServingOptions.ApplyTo(&g.SecureServing); err != nil {
		return nil, nil, fmt.Errorf("apply serving options: %w", err)
	}
	g.LoopbackClientConfig = c.Loopback.Config(self)
	client, err := kubernetes.NewForConfig(g.LoopbackClientConfig)
	if err != nil {
		return nil, nil, fmt.Errorf("make loopback client: %w", err)
	}

	if err := o.Features.ApplyTo(g, client, c.Informers); err != nil {
		return nil, nil, fmt.Errorf("apply features: %w", err)
	}
	if err := o.APIEnablement.ApplyTo(g, controlplane.DefaultAPIResourceConfigSource(),
		legacyscheme.Scheme); err != nil {
		return nil, nil, fmt.Errorf("apply enabled APIs: %w", err)
	}
	if err := o.EgressSelector.ApplyTo(g); err != nil {
		return nil, nil, fmt.Errorf("apply egress selector: %w", err)
	}
	if g.EgressSelector == nil && c.Network != nil {
		// One hook for all that dials into the cluster. A selector that the user configures takes
		// its place.
		g.EgressSelector = egressselector.NewEgressSelectorWithMap(map[egressselector.EgressType]utilnet.DialFunc{
			egressselector.Cluster: c.Network.DialContext,
		})
	}
	if err := o.Traces.ApplyTo(g.EgressSelector, g); err != nil {
		return nil, nil, fmt.Errorf("apply tracing: %w", err)
	}

	securityOf := c.openAPI(g)

	g.LongRunningFunc = filters.BasicLongRunningRequestCheck(
		sets.NewString("watch", "proxy"),
		sets.NewString("attach", "exec", "proxy", "log", "portforward"),
	)

	o.Etcd.StorageConfig.Transport.TracerProvider = g.TracerProvider
	storageConfig := kubeapiserver.NewStorageFactoryConfigEffectiveVersion(g.EffectiveVersion)
	storageConfig.APIResourceConfig = g.MergedResourceConfig
	storageConfig.DefaultResourceEncoding.SetEffectiveVersion(g.EffectiveVersion)
	storageFactory, err := storageConfig.Complete(o.Etcd).New()
	if err != nil {
		return nil, nil, fmt.Errorf("make storage factory: %w", err)
	}
	storageFactory.StorageConfig.StorageObjectCountTracker = g.StorageObjectCountTracker
	if err := o.Etcd.ApplyWithStorageFactoryTo(storageFactory, g); err != nil {
		return nil, nil, fmt.Errorf("apply storage options: %w", err)
	}
	g.RESTOptionsGetter = &restOptions{
		next:    g.RESTOptionsGetter,
		client:  c.Etcd,
		history: h,
		network: c.Network,
	}
	g.AddHealthChecks(c.storeCheck())

	ctx := wait.ContextForChannel(g.DrainedNotify())
	if err := o.Authentication.ApplyTo(ctx, &g.Authentication, g.SecureServing, g.EgressSelector, securityOf,
		g.OpenAPIV3Config, client, c.Informers, g.APIServerID); err != nil {
		return nil, nil, fmt.Errorf("apply authentication options: %w", err)
	}
	g.Authentication.Authenticator = loopback.Authenticator(g.Authentication.Authenticator)

	g.Authorization.Authorizer, g.RuleResolver, _, err = controlplaneapiserver.BuildAuthorizer(ctx, o.CompletedOptions,
		g.EgressSelector, g.APIServerID, c.Informers)
	if err != nil {
		return nil, nil, fmt.Errorf("apply authorization options: %w", err)
	}
	g.Authorization.Authorizer = nodeAuthorizer{g.Authorization.Authorizer}
	if err := o.Audit.ApplyTo(g); err != nil {
		return nil, nil, fmt.Errorf("apply audit options: %w", err)
	}
	g.AggregatedDiscoveryGroupManager = aggregated.NewResourceManager("apis")
	return g, storageFactory, nil
}
