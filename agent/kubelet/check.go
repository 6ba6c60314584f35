package kubelet

import (
	"errors"
	"fmt"
	"os"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	cloudprovider "k8s.io/cloud-provider"
	cliflag "k8s.io/component-base/cli/flag"
	nodeutil "k8s.io/component-helpers/node/util"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/cmd/kubelet/app/options"
	"k8s.io/kubernetes/pkg/kubelet/cm"
	"k8s.io/kubernetes/pkg/kubelet/cm/cpumanager"
	"k8s.io/kubernetes/pkg/kubelet/cm/topologymanager"
	"k8s.io/kubernetes/pkg/kubelet/eviction"
)

// Check tries settings that a kubelet would only refuse once it runs: labels and taints to register
// with, and "flag=value" settings for its own flags. It uses upstream's checks, which read the
// process's feature gates, and changes nothing. An error says what is wrong in one line.
func Check(labels map[string]string, taints []corev1.Taint, args []string) error {
	// Labels have a setting of mote's, whose name an error should have.
	var errs []error
	for key, value := range labels {
		if options.ValidateKubeletFlags(&options.KubeletFlags{NodeLabels: map[string]string{key: value}}) != nil {
			errs = append(errs, fmt.Errorf("node-label %q: a node must not give itself this label of Kubernetes' own: "+
				"set it with `mote kubectl label node` once the node has joined, or use one below node.kubernetes.io/",
				key+"="+value))
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	c := Config{
		RootDir:       "/",
		StaticPodsDir: "/",
		PodLogsDir:    "/",
		NodeName:      "node",
		RuntimeSocket: "/",
		CgroupRoot:    "/",
		Labels:        labels,
		Taints:        taints,
		ExtraArgs:     args,
	}
	s, err := c.server()
	if err != nil {
		return err
	}
	if err := options.ValidateKubeletServer(s); err != nil {
		return fmt.Errorf("kubelet-arg: %w", err)
	}
	return checkLate(s)
}

// checkLate checks what upstream's kubelet parses only when it makes the part that uses it, some of
// it right before it ends the process.
func checkLate(s *options.KubeletServer) error {
	var errs []error
	fault := func(flag string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("kubelet-arg %s: %w", flag, err))
		}
	}
	_, invalid, err := nodeutil.ParseNodeIPArgument(s.NodeIP, s.CloudProvider)
	if err == nil && len(invalid) > 0 {
		err = fmt.Errorf("%q is no address", invalid[0])
	}
	fault("node-ip", err)
	if s.CloudProvider != "" && !cloudprovider.IsExternal(s.CloudProvider) {
		fault("cloud-provider", fmt.Errorf("%q is no longer part of Kubernetes: use external", s.CloudProvider))
	}
	_, err = cliflag.TLSCipherSuites(s.TLSCipherSuites)
	fault("tls-cipher-suites", err)
	_, err = cliflag.TLSVersion(s.TLSMinVersion)
	fault("tls-min-version", err)
	errs = append(errs, checkReserved(s))
	_, err = eviction.ParseThresholdConfig(s.EnforceNodeAllocatable, s.EvictionHard, s.EvictionSoft,
		s.EvictionSoftGracePeriod, s.EvictionMinimumReclaim)
	fault("eviction-hard, eviction-soft or eviction-minimum-reclaim", err)
	_, err = resource.ParseQuantity(s.ContainerLogMaxSize)
	fault("container-log-max-size", err)
	if s.ContainerLogMaxFiles <= 1 {
		fault("container-log-max-files", fmt.Errorf("%d is too few: use 2 or more", s.ContainerLogMaxFiles))
	}
	if s.SyncFrequency.Duration <= 0 {
		fault("sync-frequency", fmt.Errorf("%v is no period: use one such as 1m", s.SyncFrequency.Duration))
	}
	if s.CgroupDriver != "cgroupfs" && s.CgroupDriver != "systemd" {
		fault("cgroup-driver", fmt.Errorf("%q is unknown: use cgroupfs or systemd", s.CgroupDriver))
	}
	for flag, file := range map[string]string{
		"image-credential-provider-config":  s.ImageCredentialProviderConfigPath,
		"image-credential-provider-bin-dir": s.ImageCredentialProviderBinDir,
		"tls-cert-file":                     s.TLSCertFile,
		"tls-private-key-file":              s.TLSPrivateKeyFile,
		"client-ca-file":                    s.Authentication.X509.ClientCAFile,
	} {
		if file != "" {
			_, err := os.Stat(file)
			fault(flag, err)
		}
	}
	return errors.Join(errs...)
}

// checkReserved checks what is kept for the system, and the policies that need it.
func checkReserved(s *options.KubeletServer) error {
	kubeReserved, err := resources("kube-reserved", s.KubeReserved)
	if err != nil {
		return err
	}
	systemReserved, err := resources("system-reserved", s.SystemReserved)
	if err != nil {
		return err
	}
	if _, err := cm.ParseQOSReserved(s.QOSReserved); err != nil {
		return fmt.Errorf("kubelet-arg qos-reserved: %w", err)
	}
	if err := reservedCPUs(s); err != nil {
		return err
	}
	if _, err := topologymanager.NewPolicyOptions(klog.Background(), s.TopologyManagerPolicyOptions); err != nil {
		return fmt.Errorf("kubelet-arg topology-manager-policy-options: %w", err)
	}
	switch s.CPUManagerPolicy {
	case string(cpumanager.PolicyNone):
		if _, err := cpumanager.NewNonePolicy(s.CPUManagerPolicyOptions); err != nil {
			return fmt.Errorf("kubelet-arg cpu-manager-policy-options: %w", err)
		}
	case string(cpumanager.PolicyStatic):
		if _, err := cpumanager.NewStaticPolicyOptions(s.CPUManagerPolicyOptions); err != nil {
			return fmt.Errorf("kubelet-arg cpu-manager-policy-options: %w", err)
		}
		if kubeReserved.Cpu().IsZero() && systemReserved.Cpu().IsZero() {
			return errors.New("kubelet-arg cpu-manager-policy=static: it needs CPU that no pod gets: give " +
				"system-reserved=cpu=N too")
		}
	default:
		return fmt.Errorf("kubelet-arg cpu-manager-policy: %q is unknown: use %s or %s", s.CPUManagerPolicy,
			cpumanager.PolicyNone, cpumanager.PolicyStatic)
	}
	return nil
}

// reservedCPUs refuses a setting that mote's composition of the kubelet has no use for.
func reservedCPUs(s *options.KubeletServer) error {
	if s.ReservedSystemCPUs != "" {
		return errors.New("kubelet-arg reserved-cpus is not supported: reserve CPU with system-reserved=cpu=N")
	}
	return nil
}
