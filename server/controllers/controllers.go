package controllers

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
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
	"k8s.io/kubernetes/cmd/kube-controller-manager/app/options"
	"k8s.io/kubernetes/cmd/kube-controller-manager/names"
	"k8s.io/kubernetes/pkg/controller/garbagecollector"
	serviceaccountcontroller "k8s.io/kubernetes/pkg/controller/serviceaccount"
	"k8s.io/kubernetes/pkg/serviceaccount"

	controllersmetrics "k8s.io/component-base/metrics/prometheus/controllers"

	"github.com/mote-dev/mote/server/informer"
	"github.com/mote-dev/mote/server/loopback"
	"github.com/mote-dev/mote/server/pki"
)

const (
	// resync is the base of the controllers' own resync periods.
	resync = 12 * time.Hour
	// shutdownTimeout is how long controllers get to end their current work.
	shutdownTimeout = 3 * time.Second
	// mapperReset is how often the mapping of kinds to resources is read
	// again, so that the garbage collector learns of new custom resources.
	mapperReset = 30 * time.Second
)

// Config is what the controllers need. No field may be zero unless it says so.
type Config struct {
	PKI       *pki.Set
	Loopback  *loopback.Server
	Informers informers.SharedInformerFactory
	// ClusterCIDRs are cut into the nodes' pod ranges of NodeMaskV4 and NodeMaskV6 bits.
	ClusterCIDRs           []*net.IPNet
	NodeMaskV4, NodeMaskV6 int
	ServiceCIDRs           []*net.IPNet
	// ExtraArgs are "flag=value" settings for kube-controller-manager's own flags.
	ExtraArgs []string
	// Built is called once all controllers are made. Upstream's CSI volume
	// plugin keeps its state in package variables that its last user sets: a
	// kubelet in this process has to come after the controllers.
	Built  func()
	Logger *zap.Logger
}

// Run starts all controllers, once the informers' first lists may be made, and
// blocks until ctx ends and they have stopped.
func Run(ctx context.Context, c Config) error {
	componentConfig, err := c.componentConfig(ctx)
	if err != nil {
		return err
	}
	builder := clientBuilder{c.Loopback}
	view := informer.NewView(c.Informers, nil)
	controllerContext, refresh, err := c.controllerContext(ctx, componentConfig, builder, view)
	if err != nil {
		return err
	}
	descriptors := app.NewControllerDescriptors()
	// Upstream's constructor of this one is private and bound to its command line.
	delete(descriptors, names.ServiceAccountTokenController)
	built, err := app.BuildControllers(ctx, controllerContext, descriptors, nil, noHealthChecks{})
	if err != nil {
		return fmt.Errorf("build controllers: %w", err)
	}
	c.Built()
	tokens, err := c.tokensController(ctx, builder, view)
	if err != nil {
		return err
	}

	view.Open()
	controllerContext.InformerFactory.Start(ctx.Done())
	controllerContext.ObjectOrMetadataInformerFactory.Start(ctx.Done())
	close(controllerContext.InformersStarted)

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if !app.RunControllers(ctx, controllerContext, built, 0, shutdownTimeout) {
			return errors.New("stop controllers: some did not end in time")
		}
		return nil
	})
	g.Go(func() error {
		tokens.Run(ctx, int(componentConfig.ComponentConfig.SAController.ConcurrentSATokenSyncs))
		return nil
	})
	g.Go(func() error {
		wait.UntilWithContext(ctx, func(context.Context) { refresh() }, mapperReset)
		return nil
	})
	return g.Wait()
}

// componentConfig takes upstream's defaults and flags and fills in ours.
func (c Config) componentConfig(ctx context.Context) (*config.Config, error) {
	o, err := options.NewKubeControllerManagerOptions()
	if err != nil {
		return nil, fmt.Errorf("make controller options: %w", err)
	}
	known, disabled, aliases := app.KnownControllers(), app.ControllersDisabledByDefault(), app.ControllerAliases()
	// Declaring the flags comes first: it sets some fields to the flags' defaults.
	all := pflag.NewFlagSet("kube-controller-manager", pflag.ContinueOnError)
	sections := o.Flags(known, disabled, aliases)
	for _, section := range sections.FlagSets {
		all.AddFlagSet(section)
	}
	o.KubeCloudShared.AllocateNodeCIDRs = true
	o.KubeCloudShared.ClusterCIDR = join(c.ClusterCIDRs)
	o.KubeCloudShared.ConfigureCloudRoutes = false
	o.KubeCloudShared.UseServiceAccountCredentials = true
	o.NodeIPAMController.ServiceCIDR = join(c.ServiceCIDRs)
	if slices.ContainsFunc(c.ClusterCIDRs, func(n *net.IPNet) bool { return n.IP.To4() != nil }) {
		o.NodeIPAMController.NodeCIDRMaskSizeIPv4 = int32(c.NodeMaskV4)
	}
	if slices.ContainsFunc(c.ClusterCIDRs, func(n *net.IPNet) bool { return n.IP.To4() == nil }) {
		o.NodeIPAMController.NodeCIDRMaskSizeIPv6 = int32(c.NodeMaskV6)
	}
	o.SAController.RootCAFile = c.PKI.CAFile
	o.SAController.ServiceAccountKeyFile = c.PKI.ServiceAccountKeyFile
	o.CSRSigningController.ClusterSigningCertFile = c.PKI.CAFile
	o.CSRSigningController.ClusterSigningKeyFile = c.PKI.CAKeyFile
	o.Generic.LeaderElection.LeaderElect = false
	// The API server's port serves everything; there is no second listener.
	o.SecureServing.BindPort = 0
	// Upstream spreads the start of controllers to spare a busy API server of a
	// large cluster; here it would only delay the first pod.
	o.Generic.ControllerStartInterval.Duration = 0

	for _, arg := range c.ExtraArgs {
		name, value, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		if err := all.Set(name, value); err != nil {
			return nil, fmt.Errorf("kube-controller-manager-arg %q: %w", arg, err)
		}
	}
	if err := o.Validate(known, disabled, aliases); err != nil {
		return nil, fmt.Errorf("check controller options: %w", err)
	}
	result := &config.Config{}
	if err := o.ApplyTo(result, known, disabled, aliases); err != nil {
		return nil, fmt.Errorf("apply controller options: %w", err)
	}
	return result, nil
}

// controllerContext is upstream's app.CreateControllerContext on the shared
// informers instead of a second set. The returned function makes the garbage
// collector see resources that appeared since.
func (c Config) controllerContext(ctx context.Context, component *config.Config, builder clientBuilder, shared informers.SharedInformerFactory) (app.ControllerContext, func(), error) {
	rootConfig := c.Loopback.Config(manager)
	metadataClient, err := metadata.NewForConfig(rootConfig)
	if err != nil {
		return app.ControllerContext{}, nil, fmt.Errorf("make metadata client: %w", err)
	}
	discoveryClient, err := builder.DiscoveryClient("controller-discovery")
	if err != nil {
		return app.ControllerContext{}, nil, err
	}
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(cacheddiscovery.NewMemCacheClient(discoveryClient))
	metadataInformers := metadatainformer.NewSharedInformerFactoryWithOptions(metadataClient, resync)
	controllerContext := app.ControllerContext{
		ClientBuilder:                   builder,
		InformerFactory:                 shared,
		ObjectOrMetadataInformerFactory: informerfactory.NewInformerFactory(shared, metadataInformers),
		ComponentConfig:                 component.ComponentConfig,
		RESTMapper:                      mapper,
		InformersStarted:                make(chan struct{}),
		ResyncPeriod:                    func() time.Duration { return resync },
		ControllerManagerMetrics:        controllersmetrics.NewControllerManagerMetrics("kube-controller-manager"),
	}
	if component.ComponentConfig.GarbageCollectorController.EnableGarbageCollector {
		ignored := make(map[schema.GroupResource]struct{})
		for _, r := range component.ComponentConfig.GarbageCollectorController.GCIgnoredResources {
			ignored[schema.GroupResource{Group: r.Group, Resource: r.Resource}] = struct{}{}
		}
		controllerContext.GraphBuilder = garbagecollector.NewDependencyGraphBuilder(ctx, metadataClient, mapper, ignored,
			controllerContext.ObjectOrMetadataInformerFactory, controllerContext.InformersStarted)
	}
	controllersmetrics.Register()
	return controllerContext, mapper.Reset, nil
}

// tokensController fills Secrets of type service-account-token.
func (c Config) tokensController(ctx context.Context, builder clientBuilder, shared informers.SharedInformerFactory) (*serviceaccountcontroller.TokensController, error) {
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

// noHealthChecks drops the controllers' checks: all but two of them always
// pass, and a controller that ends ends the process.
type noHealthChecks struct{}

func (noHealthChecks) AddHealthChecker(...healthz.HealthChecker) {}

func join(nets []*net.IPNet) string {
	s := make([]string, len(nets))
	for i, n := range nets {
		s[i] = n.String()
	}
	return strings.Join(s, ",")
}
