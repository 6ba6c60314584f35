package controllers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apiserver/pkg/server/healthz"
	cacheddiscovery "k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/util/keyutil"
	"k8s.io/controller-manager/pkg/informerfactory"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app/config"
	"k8s.io/kubernetes/cmd/kube-controller-manager/names"
	"k8s.io/kubernetes/pkg/controller/garbagecollector"
	serviceaccountcontroller "k8s.io/kubernetes/pkg/controller/serviceaccount"
	"k8s.io/kubernetes/pkg/serviceaccount"

	controllersmetrics "k8s.io/component-base/metrics/prometheus/controllers"

	"github.com/mote-dev/mote/internal/clusterconfig"
	"github.com/mote-dev/mote/internal/informer"
	"github.com/mote-dev/mote/server/loopback"
	"github.com/mote-dev/mote/server/pki"
)

const (
	// resync is the base of the controllers' own resync periods.
	resync = 12 * time.Hour
	// shutdownTimeout is how long controllers get to end their current work.
	shutdownTimeout = 3 * time.Second
	// mapperReset is how often the mapping of kinds to resources is read again, so that the garbage
	// collector sees custom resources that appeared since.
	mapperReset = 30 * time.Second
)

// Config is what the controllers need. No field may be zero unless it says so.
type Config struct {
	PKI       *pki.Set
	Loopback  *loopback.Server
	Informers informers.SharedInformerFactory
	// Cluster has the pod ranges that nodes get theirs out of, and the service ranges.
	Cluster clusterconfig.Config
	// ExtraArgs are "flag=value" settings for kube-controller-manager's own flags.
	ExtraArgs []string
	// Built is called once the controllers of volumes are made. Upstream's CSI volume plugin keeps
	// its state in package variables, which whoever is made last sets. That must be the kubelet in
	// this process: it waits for Built, even where the controllers wait for the lead.
	Built func()
	// Lead calls work once this process is the one that shall run controllers, see
	// server/cluster/election. nil means that it always is.
	Lead func(ctx context.Context, work func(context.Context) error) error
	// Logger is for the controllers that are mote's own; nil drops what they log.
	Logger *zap.Logger
}

// volumes are the controllers that use volume plugins.
var volumes = []string{names.PersistentVolumeBinderController, names.PersistentVolumeAttachDetachController,
	names.PersistentVolumeExpanderController}

// Run makes the controllers of volumes at once, makes all others and runs them once this process
// leads, and blocks until ctx ends and they have stopped.
func Run(ctx context.Context, c Config) (err error) {
	componentConfig, err := c.componentConfig(nil)
	if err != nil {
		return err
	}
	builder := clientBuilder{c.Loopback}
	rest := app.NewControllerDescriptors()
	// Upstream's constructor of this one is private and bound to its command line.
	delete(rest, names.ServiceAccountTokenController)
	// Replaced by podcidr.
	nodeIPAM := rest[names.NodeIpamController]
	delete(rest, names.NodeIpamController)
	early := map[string]*app.ControllerDescriptor{}
	for _, name := range volumes {
		early[name] = rest[name]
		delete(rest, name)
	}
	deferred := informer.NewDeferredGate(c.Informers)
	defer func() { err = errors.Join(err, deferred.Close()) }()
	volumeContext, err := c.controllerContext(componentConfig, builder, deferred, nil)
	if err != nil {
		return err
	}
	forVolumes, err := app.BuildControllers(ctx, volumeContext, early, nil, noHealthChecks{})
	if err != nil {
		return fmt.Errorf("build controllers of volumes: %w", err)
	}
	c.Built()
	work := func(leading context.Context) error {
		if err := deferred.Open(); err != nil {
			return err
		}
		return c.run(leading, componentConfig, builder, rest, forVolumes, nodeIPAM)
	}
	if c.Lead == nil {
		return work(ctx)
	}
	return c.Lead(ctx, work)
}

// run makes all controllers but those of volumes, which are in made, and runs all of them while
// leading lasts. They are made no earlier, because some read the cluster's state when they are made
// and take it for the state when they start.
func (c Config) run(leading context.Context, componentConfig *config.Config, builder clientBuilder,
	descriptors map[string]*app.ControllerDescriptor, made []app.Controller,
	nodeIPAM *app.ControllerDescriptor) (err error) {
	gate := informer.NewGate(c.Informers, nil)
	defer func() { err = errors.Join(err, gate.Close()) }()
	metadataClient, err := metadata.NewForConfig(c.Loopback.Config(manager))
	if err != nil {
		return fmt.Errorf("make metadata client: %w", err)
	}
	metadataInformers := metadatainformer.NewSharedInformerFactoryWithOptions(metadataClient, resync)
	// Registered first, so run last: upstream starts these informers on contexts that end with
	// leading.
	defer metadataInformers.Shutdown()
	leading, end := context.WithCancel(leading)
	defer end()
	controllerContext, err := c.controllerContext(componentConfig, builder, gate, metadataInformers)
	if err != nil {
		return err
	}
	if componentConfig.ComponentConfig.GarbageCollectorController.EnableGarbageCollector {
		controllerContext.GraphBuilder = graphBuilder(leading, controllerContext, metadataClient)
	}
	built, err := app.BuildControllers(leading, controllerContext, descriptors, nil, noHealthChecks{})
	if err != nil {
		return fmt.Errorf("build controllers: %w", err)
	}
	built = append(built, made...)
	if controllerContext.IsControllerEnabled(nodeIPAM) {
		ranges, err := c.podCIDRs(controllerContext)
		if err != nil {
			return err
		}
		if ranges != nil {
			built = append(built, ranges)
		}
	}
	tokens, err := c.tokensController(leading, builder, gate)
	if err != nil {
		return err
	}

	if err := gate.Open(); err != nil {
		return err
	}
	controllerContext.ObjectOrMetadataInformerFactory.Start(leading.Done())
	close(controllerContext.InformersStarted)

	g, leading := errgroup.WithContext(leading)
	g.Go(func() error {
		if !app.RunControllers(leading, controllerContext, built, 0, shutdownTimeout) {
			return errors.New("stop controllers: some did not end in time")
		}
		return nil
	})
	g.Go(func() error {
		tokens.Run(leading, int(componentConfig.ComponentConfig.SAController.ConcurrentSATokenSyncs))
		return nil
	})
	g.Go(func() error {
		wait.UntilWithContext(leading, func(context.Context) { controllerContext.RESTMapper.Reset() }, mapperReset)
		return nil
	})
	return g.Wait()
}

// controllerContext is upstream's app.CreateControllerContext on the shared informers instead of a
// second set, without the garbage collector's graph.
func (c Config) controllerContext(component *config.Config, builder clientBuilder,
	shared informers.SharedInformerFactory,
	metadataInformers metadatainformer.SharedInformerFactory) (app.ControllerContext, error) {
	discoveryClient, err := builder.DiscoveryClient("controller-discovery")
	if err != nil {
		return app.ControllerContext{}, err
	}
	controllersmetrics.Register()
	return app.ControllerContext{
		ClientBuilder:                   builder,
		InformerFactory:                 shared,
		ObjectOrMetadataInformerFactory: informerfactory.NewInformerFactory(shared, metadataInformers),
		ComponentConfig:                 component.ComponentConfig,
		RESTMapper: restmapper.NewDeferredDiscoveryRESTMapper(
			cacheddiscovery.NewMemCacheClient(discoveryClient)),
		InformersStarted:         make(chan struct{}),
		ResyncPeriod:             func() time.Duration { return resync },
		ControllerManagerMetrics: controllersmetrics.NewControllerManagerMetrics("kube-controller-manager"),
	}, nil
}

// graphBuilder makes what watches all that the garbage collector may collect.
func graphBuilder(ctx context.Context, c app.ControllerContext,
	client metadata.Interface) *garbagecollector.GraphBuilder {
	ignored := make(map[schema.GroupResource]struct{})
	for _, r := range c.ComponentConfig.GarbageCollectorController.GCIgnoredResources {
		ignored[schema.GroupResource{Group: r.Group, Resource: r.Resource}] = struct{}{}
	}
	return garbagecollector.NewDependencyGraphBuilder(ctx, client, c.RESTMapper, ignored,
		c.ObjectOrMetadataInformerFactory, c.InformersStarted)
}

// tokensController fills Secrets of type service-account-token.
func (c Config) tokensController(ctx context.Context, builder clientBuilder,
	shared informers.SharedInformerFactory) (*serviceaccountcontroller.TokensController, error) {
	key, err := keyutil.PrivateKeyFromFile(c.PKI.ServiceAccountKeyFile)
	if err != nil {
		return nil, fmt.Errorf("read service account key: %w", err)
	}
	ca, err := os.ReadFile(c.PKI.CAFile)
	if err != nil {
		return nil, fmt.Errorf("read cluster CA: %w", err)
	}
	generator, err := serviceaccount.JWTTokenGenerator(serviceaccount.LegacyIssuer, key)
	if err != nil {
		return nil, fmt.Errorf("make token generator: %w", err)
	}
	// As upstream, this controller has its own account with full rights on secrets.
	client, err := builder.Client("tokens-controller")
	if err != nil {
		return nil, err
	}
	controller, err := serviceaccountcontroller.NewTokensController(klog.FromContext(ctx),
		shared.Core().V1().ServiceAccounts(), shared.Core().V1().Secrets(), client,
		serviceaccountcontroller.TokensControllerOptions{TokenGenerator: generator, RootCA: ca})
	if err != nil {
		return nil, fmt.Errorf("make service account token controller: %w", err)
	}
	return controller, nil
}

// noHealthChecks drops the controllers' checks: all but two of them always pass, and a controller
// that ends ends the process.
type noHealthChecks struct{}

func (noHealthChecks) AddHealthChecker(...healthz.HealthChecker) {}
