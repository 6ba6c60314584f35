package scheduler

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/pflag"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/cmd/kube-scheduler/app/options"
	"k8s.io/kubernetes/pkg/scheduler"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/latest"
	"k8s.io/kubernetes/pkg/scheduler/profile"

	"github.com/mote-dev/mote/server/informer"
	"github.com/mote-dev/mote/server/loopback"
)

// Config is what the scheduler needs.
type Config struct {
	Loopback  *loopback.Server
	Informers informers.SharedInformerFactory
	// ExtraArgs are "flag=value" settings for kube-scheduler's own flags.
	ExtraArgs []string
	Logger    *zap.Logger
}

var self = &user.DefaultInfo{
	Name:   user.KubeScheduler,
	Groups: []string{user.AllAuthenticated},
}

// Run schedules pods until ctx ends.
func Run(ctx context.Context, c Config) error {
	o := options.NewOptions()
	component, err := latest.Default()
	if err != nil {
		return fmt.Errorf("make scheduler configuration: %w", err)
	}
	o.ComponentConfig = component
	all := pflag.NewFlagSet("kube-scheduler", pflag.ContinueOnError)
	for _, section := range o.Flags.FlagSets {
		all.AddFlagSet(section)
	}
	for _, arg := range c.ExtraArgs {
		name, value, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		if err := all.Set(name, value); err != nil {
			return fmt.Errorf("kube-scheduler-arg %q: %w", arg, err)
		}
	}
	if o.ConfigFile != "" {
		if component, err = options.LoadConfigFromFile(klog.FromContext(ctx), o.ConfigFile); err != nil {
			return fmt.Errorf("read scheduler configuration %s: %w", o.ConfigFile, err)
		}
	}
	client, err := kubernetes.NewForConfig(c.Loopback.Config(self))
	if err != nil {
		return fmt.Errorf("make scheduler client: %w", err)
	}
	broadcaster := events.NewEventBroadcasterAdapterWithContext(ctx, client)
	recorders := profile.RecorderFactory(func(name string) events.EventRecorderLogger { return broadcaster.NewRecorder(name) })
	view := informer.NewView(c.Informers, relevant)
	s, err := scheduler.New(ctx, client, view, nil, recorders,
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
	broadcaster.StartRecordingToSink(ctx.Done())
	defer broadcaster.Shutdown()
	view.Open()
	c.Informers.Start(ctx.Done())
	c.Informers.WaitForCacheSync(ctx.Done())
	if err := s.WaitForHandlersSync(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return errors.Join(errors.New("wait for the scheduler's caches"), err)
	}
	s.Run(ctx)
	return nil
}

// relevant leaves finished pods out. Upstream's scheduler has a pod informer of
// its own with a field selector for that (scheduler.NewInformerFactory) and
// counts on it: a finished pod it hears of would keep its node's resources taken.
func relevant(obj any) bool {
	if tombstone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = tombstone.Obj
	}
	pod, ok := obj.(*corev1.Pod)
	return !ok || (pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed)
}
