package kubelet

import (
	"context"
	"fmt"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/kubernetes"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/cmd/kubelet/app"
	"k8s.io/kubernetes/cmd/kubelet/app/options"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/kubelet"
	"k8s.io/kubernetes/pkg/kubelet/cadvisor"
	"k8s.io/kubernetes/pkg/kubelet/cm"
	"k8s.io/kubernetes/pkg/kubelet/eviction"
	evictionapi "k8s.io/kubernetes/pkg/kubelet/eviction/api"
	kubeletutil "k8s.io/kubernetes/pkg/kubelet/util"
	"k8s.io/kubernetes/pkg/kubelet/watchdog"

	"github.com/mote-dev/mote/internal/hostcheck"
	"github.com/mote-dev/mote/internal/upstream"
)

// Run runs a kubelet until ctx ends. It follows the order of upstream's cmd/kubelet/app.run
// (v1.37.2), which cannot be called itself: it always connects to the runtime through a socket,
// whatever dependencies it gets. Upstream's kubelet cannot be waited for, so some of its goroutines
// may outlive Run.
func Run(ctx context.Context, c Config) error {
	s, err := c.server()
	if err != nil {
		return err
	}
	if err := options.ValidateKubeletServer(s); err != nil {
		return fmt.Errorf("check kubelet options: %w", err)
	}
	if err := c.makeFolders(); err != nil {
		return err
	}
	if err := upstream.SetStatisticsSocket(c.RuntimeSocket); err != nil {
		return err
	}
	if s.ServerTLSBootstrap {
		if err := dropFutureServing(s.CertDirectory, time.Now()); err != nil {
			return err
		}
	}
	deps, err := c.dependencies(ctx, s)
	if err != nil {
		return err
	}
	if err := app.RunKubelet(ctx, s, deps); err != nil {
		return fmt.Errorf("start kubelet: %w", err)
	}
	<-ctx.Done()
	return nil
}

func (c Config) makeFolders() error {
	if err := os.MkdirAll(c.StaticPodsDir, 0o755); err != nil {
		return fmt.Errorf("create folder of static pods: %w", err)
	}
	if err := os.MkdirAll(c.PodLogsDir, 0o755); err != nil {
		return fmt.Errorf("create folder of pod logs: %w", err)
	}
	return nil
}

func (c Config) dependencies(ctx context.Context, s *options.KubeletServer) (*kubelet.Dependencies, error) {
	deps, err := app.UnsecuredDependencies(ctx, s, utilfeature.DefaultFeatureGate)
	if err != nil {
		return nil, fmt.Errorf("create kubelet dependencies: %w", err)
	}
	health, err := watchdog.NewHealthChecker(klog.FromContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("create watchdog: %w", err)
	}
	health.Start(ctx)
	deps.HealthChecker = health
	deps.RemoteRuntimeService, deps.RemoteImageService = c.Runtime, c.Images
	if err := c.clients(deps, s); err != nil {
		return nil, err
	}
	auth, runReload, err := app.BuildAuth(types.NodeName(c.NodeName), deps.KubeClient, s.KubeletConfiguration)
	if err != nil {
		return nil, fmt.Errorf("create kubelet authentication: %w", err)
	}
	runReload(ctx.Done())
	deps.Auth = certificatesOfServers{auth}

	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: deps.EventClient.Events("")})
	deps.Recorder = broadcaster.NewRecorder(legacyscheme.Scheme,
		corev1.EventSource{Component: "kubelet", Host: c.NodeName})

	if err := c.cgroupDriver(ctx, s); err != nil {
		return nil, err
	}
	if deps.CAdvisorInterface, err = c.statistics(ctx, s); err != nil {
		return nil, err
	}
	if deps.ContainerManager, err = c.containerManager(ctx, s, deps); err != nil {
		return nil, err
	}
	deps.PodStartupLatencyTracker = kubeletutil.NewPodStartupLatencyTracker()
	deps.NodeStartupLatencyTracker = kubeletutil.NewNodeStartupLatencyTracker(klog.FromContext(ctx))
	if err := deps.OOMAdjuster.ApplyOOMScoreAdj(0, int(s.OOMScoreAdj)); err != nil {
		// This fails without CAP_SYS_RESOURCE, and the node works without it.
		c.Logger.Debug("OOM score of the process not changed: " + err.Error())
	}
	return deps, nil
}

// clients creates the kubelet's three API clients: heartbeats must neither queue behind other
// requests nor block for longer than their period.
func (c Config) clients(deps *kubelet.Dependencies, s *options.KubeletServer) error {
	main := rest.CopyConfig(c.REST)
	client, err := kubernetes.NewForConfig(main)
	if err != nil {
		return fmt.Errorf("create kubelet client: %w", err)
	}
	events := rest.CopyConfig(c.REST)
	events.QPS, events.Burst = float32(s.EventRecordQPS), int(s.EventBurst)
	if s.EventRecordQPS == 0 {
		events.QPS = -1
	}
	eventClient, err := typedcorev1.NewForConfig(events)
	if err != nil {
		return fmt.Errorf("create event client: %w", err)
	}
	heartbeat := rest.CopyConfig(c.REST)
	heartbeat.QPS = -1
	heartbeat.Timeout = min(s.NodeStatusUpdateFrequency.Duration, time.Duration(s.NodeLeaseDurationSeconds)*time.Second)
	heartbeatClient, err := kubernetes.NewForConfig(heartbeat)
	if err != nil {
		return fmt.Errorf("create heartbeat client: %w", err)
	}
	deps.KubeClient, deps.EventClient, deps.HeartbeatClient = client, eventClient, heartbeatClient
	deps.OnHeartbeatFailure = func() {
		if c.CloseAll != nil {
			c.CloseAll()
		}
	}
	return nil
}

// cgroupDriver uses the driver of the runtime: the two must agree.
func (c Config) cgroupDriver(ctx context.Context, s *options.KubeletServer) error {
	response, err := c.Runtime.RuntimeConfig(ctx)
	if err != nil {
		return fmt.Errorf("query cgroup driver of container runtime: %w", err)
	}
	if linux := response.GetLinux(); linux != nil {
		s.CgroupDriver = "cgroupfs"
		if linux.GetCgroupDriver() == runtimeapi.CgroupDriver_SYSTEMD {
			s.CgroupDriver = "systemd"
		}
	}
	return nil
}

func (c Config) statistics(ctx context.Context, s *options.KubeletServer) (cadvisor.Interface, error) {
	logger := klog.FromContext(ctx)
	roots := []string{cm.NodeAllocatableRoot(s.CgroupRoot, s.CgroupsPerQOS, s.CgroupDriver)}
	if own, err := cm.GetKubeletContainer(logger, s.KubeletCgroups); err == nil && own != "" {
		roots = append(roots, own)
	}
	stats, err := cadvisor.New(logger, cadvisor.NewImageFsInfoProvider(s.ContainerRuntimeEndpoint), s.RootDirectory,
		roots,
		cadvisor.UsingLegacyCadvisorStats(s.ContainerRuntimeEndpoint), s.LocalStorageCapacityIsolation, false)
	if err != nil {
		return nil, fmt.Errorf("create statistics collector: %w", err)
	}
	// The runtime is there already. Started by the kubelet, a collector that finds no inotify
	// instance or watch left would end the process, without a word about the limit.
	if err := stats.Start(); err != nil {
		return nil, fmt.Errorf("start statistics collector: %w", hostcheck.WithLimit(err))
	}
	return startedStatistics{stats}, nil
}

// startedStatistics are statistics that are collected already.
type startedStatistics struct{ cadvisor.Interface }

func (startedStatistics) Start() error { return nil }

func (c Config) containerManager(ctx context.Context, s *options.KubeletServer,
	deps *kubelet.Dependencies) (cm.ContainerManager, error) {
	kubeReserved, err := resources("kube-reserved", s.KubeReserved)
	if err != nil {
		return nil, err
	}
	systemReserved, err := resources("system-reserved", s.SystemReserved)
	if err != nil {
		return nil, err
	}
	var hard []evictionapi.Threshold
	if !s.ExperimentalNodeAllocatableIgnoreEvictionThreshold {
		if hard, err = eviction.ParseThresholdConfig(nil, s.EvictionHard, nil, nil, nil); err != nil {
			return nil, fmt.Errorf("parse eviction thresholds: %w", err)
		}
	}
	qos, err := cm.ParseQOSReserved(s.QOSReserved)
	if err != nil {
		return nil, fmt.Errorf("parse qos-reserved: %w", err)
	}
	if err := reservedCPUs(s); err != nil {
		return nil, err
	}
	manager, err := cm.NewContainerManager(ctx, deps.Mounter, deps.CAdvisorInterface, cm.NodeConfig{
		NodeName:              types.NodeName(c.NodeName),
		RuntimeCgroupsName:    s.RuntimeCgroups,
		SystemCgroupsName:     s.SystemCgroups,
		KubeletCgroupsName:    s.KubeletCgroups,
		KubeletOOMScoreAdj:    s.OOMScoreAdj,
		CgroupsPerQOS:         s.CgroupsPerQOS,
		CgroupRoot:            s.CgroupRoot,
		CgroupDriver:          s.CgroupDriver,
		KubeletRootDir:        s.RootDirectory,
		ProtectKernelDefaults: s.ProtectKernelDefaults,
		NodeAllocatableConfig: cm.NodeAllocatableConfig{
			KubeReservedCgroupName:   s.KubeReservedCgroup,
			SystemReservedCgroupName: s.SystemReservedCgroup,
			EnforceNodeAllocatable:   sets.New(s.EnforceNodeAllocatable...),
			KubeReserved:             kubeReserved,
			SystemReserved:           systemReserved,
			HardEvictionThresholds:   hard,
		},
		QOSReserved:                  *qos,
		CPUManagerPolicy:             s.CPUManagerPolicy,
		CPUManagerPolicyOptions:      s.CPUManagerPolicyOptions,
		CPUManagerReconcilePeriod:    s.CPUManagerReconcilePeriod.Duration,
		MemoryManagerPolicy:          s.MemoryManagerPolicy,
		MemoryManagerReservedMemory:  s.ReservedMemory,
		MemoryReservationPolicy:      s.MemoryReservationPolicy,
		MemoryThrottlingFactor:       s.MemoryThrottlingFactor,
		PodPidsLimit:                 s.PodPidsLimit,
		EnforceCPULimits:             s.CPUCFSQuota,
		CPUCFSQuotaPeriod:            s.CPUCFSQuotaPeriod.Duration,
		TopologyManagerPolicy:        s.TopologyManagerPolicy,
		TopologyManagerScope:         s.TopologyManagerScope,
		TopologyManagerPolicyOptions: s.TopologyManagerPolicyOptions,
	}, s.FailSwapOn, deps.Recorder, deps.KubeClient)
	if err != nil {
		return nil, fmt.Errorf("create container manager: %w", err)
	}
	return quietManager{manager}, nil
}
