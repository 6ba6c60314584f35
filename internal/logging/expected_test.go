package logging

import (
	"errors"
	"fmt"
	"testing"

	"github.com/go-logr/zapr"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/kubernetes/pkg/controller/util/consistency"
)

func TestExpectedFilter_Write(t *testing.T) {
	const update = "Error updating node status, will retry"
	const mirror = "No need to create a mirror pod, since failed to get node info from the cluster"
	const limits = "failed to read memory cgroup limits for the pod" // of pkg/kubelet/kubelet_pods.go, also for CPU
	// As pkg/kubelet/kubelet_node_status.go (v1.37.2) wraps it.
	wrapped := func(err error) error { return fmt.Errorf("error getting node %q: %v", "n1", err) }
	budgets := policyv1.Resource("poddisruptionbudgets")
	behind := &consistency.ConsistencyError{WroteRV: "7", ReadRV: "5"}
	for _, row := range []struct {
		name    string
		err     error
		message string
		lines   int
	}{
		{"cache behind a controller's write", fmt.Errorf("sync %q failed with %v", "default/web", behind),
			"Unhandled Error", 0},
		{"a controller fails", fmt.Errorf("sync %q failed with %v", "default/web", errors.New("quota exceeded")),
			"Unhandled Error", 1},
		{"an object changed since a controller read it",
			apierrors.NewConflict(budgets, "web", errors.New(registry.OptimisticLockErrorMsg)),
			"Error syncing PodDisruptionBudget, requeuing", 0},
		{"another conflict", apierrors.NewConflict(budgets, "web", errors.New("the UID in the precondition differs")),
			"Error syncing PodDisruptionBudget, requeuing", 1},
		{"cAdvisor looks at a container that ended", nil, "Failed to process watch event {EventType:0}: not found: " +
			`rpc error: code = NotFound desc = container "70fd" in namespace "k8s.io": not found`, 0},
		{"cAdvisor looks at a task that ended", nil, "Failed to process watch event {EventType:0}: not found: " +
			"rpc error: code = NotFound desc = task 5049 not found", 0},
		{"cAdvisor cannot ask", nil, "Failed to process watch event {EventType:0}: connection refused", 1},
		{"the kubelet looks at a container that ended",
			status.Error(codes.NotFound, `an error occurred when try to find container "70fd": not found`),
			"ContainerStatus from runtime service failed", 0},
		{"an image does not exist", status.Error(codes.NotFound,
			`failed to pull and unpack image "example.org/none:1": failed to resolve reference: not found`),
			"PullImage from image service failed", 1},
		{"a client went away", nil, "Timeout or abort while handling", 0},
		{"expected in any case", errors.New("x"), "Error getting the current node from lister", 0},
		{"the informer has not seen the node", wrapped(apierrors.NewNotFound(corev1.Resource("node"), "n1")), update,
			0},
		{"the API server has no such node", wrapped(apierrors.NewNotFound(corev1.Resource("nodes"), "n1")), update, 1},
		{"the API server does not answer", wrapped(errors.New("connection refused")), update, 1},
		{"no error", nil, update, 1},
		{"a static pod before the node", apierrors.NewNotFound(corev1.Resource("node"), "n1"), mirror, 0},
		{"a static pod, another cause", errors.New("connection refused"), mirror, 1},
		{"the pod's cgroup is gone", fmt.Errorf("failed to read CPU quota for cgroup /kubepods/pod1: %w", unix.ENOENT),
			limits, 0},
		{"the pod's cgroup cannot be read",
			fmt.Errorf("failed to read CPU quota for cgroup /kubepods/pod1: %w", unix.EIO), limits, 1},
	} {
		t.Run(row.name, func(t *testing.T) {
			core, logs := observer.New(zap.WarnLevel)
			zapr.NewLogger(zap.New(expectedFilter{core})).Error(row.err, row.message, "node", "n1")
			if n := logs.FilterLevelExact(zapcore.ErrorLevel).Len(); n != row.lines {
				t.Errorf("%d lines are written, want %d", n, row.lines)
			}
		})
	}
}
