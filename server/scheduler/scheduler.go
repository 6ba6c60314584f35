package scheduler

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
	basecompatibility "k8s.io/component-base/compatibility"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/cmd/kube-scheduler/app/options"
	"k8s.io/kubernetes/pkg/scheduler"
	"k8s.io/kubernetes/pkg/scheduler/apis/config"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/latest"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins"
	"k8s.io/kubernetes/pkg/scheduler/profile"

	"github.com/mote-dev/mote/internal/informer"
	"github.com/mote-dev/mote/internal/upstream"
	"github.com/mote-dev/mote/internal/upstreamflag"
	"github.com/mote-dev/mote/server/loopback"
)

// Config is what the scheduler needs.
type Config struct {
	Loopback  *loopback.Server
	Informers informers.SharedInformerFactory
	// ExtraArgs are "flag=value" settings for kube-scheduler's own flags.
	ExtraArgs []string
	// Lead calls work once this process is the one that shall schedule, see
	// server/cluster/election. nil means that it always is.
	Lead func(ctx context.Context, work func(context.Context) error) error
}

var self = &user.DefaultInfo{
	Name:   user.KubeScheduler,
	Groups: []string{user.AllAuthenticated},
}

// Run schedules pods until ctx ends, once this process leads.
func Run(ctx context.Context, c Config) error {
	component, err := c.component(ctx, nil)
	if err != nil {
		return err
	}
	if c.Lead == nil {
		return c.schedule(ctx, component)
	}
	return c.Lead(ctx, func(leading context.Context) error { return c.schedule(leading, component) })
}

// Check tries "flag=value" settings for kube-scheduler's own flags without making a scheduler. It
// uses upstream's checks, which read the process's feature gates, and changes nothing.
func Check(args []string) error {
	trial, err := upstream.NewTrial()
	if err != nil {
		return err
	}
	component, err := Config{ExtraArgs: args}.component(context.Background(), trial)
	if err != nil {
		return err
	}
	known := plugins.NewInTreeRegistry()
	for _, profile := range component.Profiles {
		if profile.Plugins == nil {
			continue
		}
		for _, name := range profile.Plugins.Names() {
			if _, ok := known[name]; !ok {
				return fmt.Errorf("kube-scheduler-arg config: profile %s has the plugin %q, which upstream's "+
					"scheduler does not have", profile.SchedulerName, name)
			}
		}
	}
	return nil
}

// component takes upstream's defaults and flags, or the file they name. gates are those that
// upstream's flags for feature gates reach; nil means the process's.
func (c Config) component(ctx context.Context,
	gates basecompatibility.ComponentGlobalsRegistry) (*config.KubeSchedulerConfiguration, error) {
	o := options.NewOptions()
	if gates != nil {
		o = options.NewOptionsWithComponentGlobalsRegistry(gates)
	}
	component, err := latest.Default()
	if err != nil {
		return nil, fmt.Errorf("make scheduler configuration: %w", err)
	}
	o.ComponentConfig = component
	all := pflag.NewFlagSet("kube-scheduler", pflag.ContinueOnError)
	for _, section := range o.Flags.FlagSets {
		all.AddFlagSet(section)
	}
	if err := unusedFlags(*o.Flags).Refuse("kube-scheduler-arg", c.ExtraArgs); err != nil {
		return nil, err
	}
	if err := upstreamflag.Apply(all, "kube-scheduler-arg", c.ExtraArgs); err != nil {
		return nil, err
	}
	if gates != nil {
		if err := gates.Set(); err != nil {
			return nil, fmt.Errorf("kube-scheduler-arg: %w", err)
		}
	}
	if o.ConfigFile != "" {
		if err := refuseUnused(o.ConfigFile); err != nil {
			return nil, fmt.Errorf("kube-scheduler-arg config: %w", err)
		}
		if component, err = options.LoadConfigFromFile(klog.FromContext(ctx), o.ConfigFile); err != nil {
			return nil, fmt.Errorf("kube-scheduler-arg %q: %w", "config="+o.ConfigFile, err)
		}
		o.ComponentConfig = component
	}
	if err := errors.Join(o.Validate()...); err != nil {
		return nil, fmt.Errorf("kube-scheduler-arg: %w", err)
	}
	return component, nil
}

// schedule schedules pods while leading lasts.
func (c Config) schedule(leading context.Context, component *config.KubeSchedulerConfiguration) (err error) {
	client, err := kubernetes.NewForConfig(c.Loopback.Config(self))
	if err != nil {
		return fmt.Errorf("make scheduler client: %w", err)
	}
	broadcaster := events.NewEventBroadcasterAdapterWithContext(leading, client)
	recorders := profile.RecorderFactory(
		func(name string) events.EventRecorderLogger { return broadcaster.NewRecorder(name) })
	gate := informer.NewGate(c.Informers, relevant)
	defer func() { err = errors.Join(err, gate.Close()) }()
	s, err := scheduler.New(leading, client, gate, nil, recorders,
		scheduler.WithComponentConfigVersion(component.TypeMeta.APIVersion),
		scheduler.WithKubeConfig(c.Loopback.Config(self)),
		scheduler.WithProfiles(component.Profiles...),
		scheduler.WithPercentageOfNodesToScore(component.PercentageOfNodesToScore),
		scheduler.WithPodMaxBackoffSeconds(component.PodMaxBackoffSeconds),
		scheduler.WithPodInitialBackoffSeconds(component.PodInitialBackoffSeconds),
		scheduler.WithExtenders(component.Extenders...),
		scheduler.WithParallelism(component.Parallelism),
	)
	if err != nil {
		return fmt.Errorf("make scheduler: %w", err)
	}
	broadcaster.StartRecordingToSink(leading.Done())
	defer broadcaster.Shutdown()
	if err := gate.Open(); err != nil {
		return err
	}
	c.Informers.Start(leading.Done())
	c.Informers.WaitForCacheSync(leading.Done())
	if err := s.WaitForHandlersSync(leading); err != nil {
		if leading.Err() != nil {
			return nil
		}
		return errors.Join(errors.New("wait for the scheduler's caches"), err)
	}
	s.Run(leading)
	return nil
}

// relevant leaves finished pods out. Upstream's scheduler has a pod informer of its own with a
// field selector for that (scheduler.NewInformerFactory) and counts on it: a finished pod it hears
// of would keep its node's resources taken.
func relevant(obj any) bool {
	if tombstone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = tombstone.Obj
	}
	pod, ok := obj.(*corev1.Pod)
	return !ok || (pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed)
}
