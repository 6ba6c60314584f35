package kubelet

import (
	"errors"
	"io/fs"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/pkg/kubelet/cm"
)

// quietManager is upstream's container manager, except that a pod without a cgroup has no limits.
//
// When upstream writes the status of a pod that the API still calls running, it reads the limits
// off the pod's cgroup (convertToAPIPodLevelResourcesStatus in pkg/kubelet/kubelet_pods.go,
// v1.37.2). A pod that has just ended no longer has one, and upstream logs two errors, although it
// then uses the limits of the pod's spec.
type quietManager struct{ cm.ContainerManager }

// NewPodContainerManager implements cm.ContainerManager.
func (m quietManager) NewPodContainerManager() cm.PodContainerManager {
	return quietPods{m.ContainerManager.NewPodContainerManager()}
}

type quietPods struct{ cm.PodContainerManager }

// GetPodCgroupConfig implements cm.PodContainerManager.
func (p quietPods) GetPodCgroupConfig(pod *corev1.Pod, resource corev1.ResourceName) (*cm.ResourceConfig, error) {
	config, err := p.PodContainerManager.GetPodCgroupConfig(pod, resource)
	// Some of upstream's errors do not wrap their cause, so the cgroup itself is looked for too.
	if err != nil && (errors.Is(err, fs.ErrNotExist) || !p.Exists(pod)) {
		return nil, nil
	}
	return config, err
}
