package kubelet

import (
	"errors"
	"fmt"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/pkg/kubelet/cm"
)

// fakePods answers for one pod's cgroup.
type fakePods struct {
	cm.PodContainerManager
	exists bool
	err    error
}

func (p fakePods) Exists(*corev1.Pod) bool { return p.exists }

func (p fakePods) GetPodCgroupConfig(*corev1.Pod, corev1.ResourceName) (*cm.ResourceConfig, error) {
	if p.err != nil {
		return nil, p.err
	}
	return &cm.ResourceConfig{}, nil
}

func TestQuietPods_GetPodCgroupConfig(t *testing.T) {
	unwrapped := errors.New("failed to read memory.limit_in_bytes")
	for _, row := range []struct {
		name   string
		exists bool
		err    error
		want   error
		config bool
	}{
		{name: "running", exists: true, config: true},
		{name: "ended", err: fmt.Errorf("read: %w", syscall.ENOENT)},
		{name: "ended, cause not wrapped", err: unwrapped},
		{name: "kernel without the file", exists: true, err: fmt.Errorf("read: %w", syscall.ENOENT)},
		{
			name:   "unreadable",
			exists: true,
			err:    unwrapped,
			want:   unwrapped,
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			config, err := quietPods{fakePods{exists: row.exists, err: row.err}}.GetPodCgroupConfig(nil,
				corev1.ResourceCPU)
			if !errors.Is(err, row.want) || (config != nil) != row.config {
				t.Errorf("config %v, error %v; want %v", config, err, row.want)
			}
		})
	}
}
