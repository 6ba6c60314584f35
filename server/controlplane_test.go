package server

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// registerNode creates a node as a kubelet does, and makes it ready for pods.
func (i *instance) registerNode(ctx context.Context, name string) error {
	nodes := i.client.CoreV1().Nodes()
	if _, err := nodes.Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}},
		metav1.CreateOptions{}); err != nil {
		return err
	}
	// A kubelet reports several times in its first seconds.
	for n := range 5 {
		status := fmt.Appendf(nil, `{"status":{"nodeInfo":{"bootID":"%d"},"capacity":{"pods":"110","cpu":"1","memory":"1Gi"},
			"conditions":[{"type":"Ready","status":"True","reason":"KubeletReady","lastHeartbeatTime":%q}]}}`, n, time.Now().UTC().Format(time.RFC3339))
		if _, err := nodes.PatchStatus(ctx, name, status); err != nil {
			return err
		}
	}
	return nil
}

// A control plane gives nodes that join at once one pod range each, and binds a pod to one of them.
func TestServer_NodesJoinAtOnce_OneRangeEach(t *testing.T) {
	quietKlog(t)
	i := startInstance(t, t.TempDir())
	defer i.end(t)
	config := rest.CopyConfig(i.rest)
	config.QPS = -1 // the default of 5 a second would let them join one by one
	var err error
	if i.client, err = kubernetes.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	const joining = 50
	var kubelets sync.WaitGroup
	for n := range joining {
		kubelets.Go(func() {
			if err := i.registerNode(ctx, fmt.Sprintf("node%d", n)); err != nil {
				t.Errorf("register node: %v", err)
			}
		})
	}
	kubelets.Wait()
	given := make(map[string]string)
	err = wait.PollUntilContextCancel(ctx, 50*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		list, err := i.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return false, err
		}
		clear(given)
		for _, n := range list.Items {
			if other, taken := given[n.Spec.PodCIDR]; taken && n.Spec.PodCIDR != "" {
				return false, fmt.Errorf("nodes %s and %s both have %s", n.Name, other, n.Spec.PodCIDR)
			}
			given[n.Spec.PodCIDR] = n.Name
		}
		return len(given) == joining && given[""] == "", nil
	})
	if err != nil {
		t.Fatalf("%d of %d nodes have a range: %v", len(given), joining, err)
	}
	for n := range joining {
		if cidr := fmt.Sprintf("10.42.%d.0/24", n); given[cidr] == "" {
			t.Errorf("range %s was skipped", cidr)
		}
	}
	list, err := i.client.CoreV1().Events("").List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list.Items {
		if e.Reason == "CIDRAssignmentFailed" || e.Reason == "CIDRNotAvailable" {
			t.Errorf("event on %s: %s", e.InvolvedObject.Name, e.Message)
		}
	}

	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p"},
		Spec: corev1.PodSpec{
			Containers:  []corev1.Container{{Name: "c", Image: "i"}},
			Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
		},
	}
	pods := i.client.CoreV1().Pods(metav1.NamespaceDefault)
	err = wait.PollUntilContextCancel(ctx, 50*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		_, err := pods.Create(ctx, pod, metav1.CreateOptions{}) // its service account may not exist yet
		return err == nil, nil
	})
	if err == nil {
		err = wait.PollUntilContextCancel(ctx, 50*time.Millisecond, true, func(ctx context.Context) (bool, error) {
			p, err := pods.Get(ctx, pod.Name, metav1.GetOptions{})
			return err == nil && p.Spec.NodeName != "", err
		})
	}
	if err != nil {
		t.Errorf("the pod was not bound: %v", err)
	}
}
