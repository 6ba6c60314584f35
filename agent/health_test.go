package agent

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/mote-dev/mote/netproxy"
)

// The node's condition is read from the informers of the node, which keep little of each object.
func TestReadiness_OfTrimmedNodes(t *testing.T) {
	condition := func(status corev1.ConditionStatus) []corev1.NodeCondition {
		return []corev1.NodeCondition{
			{Type: corev1.NodeMemoryPressure, Status: corev1.ConditionFalse},
			{
				Type:              corev1.NodeReady,
				Status:            status,
				Reason:            "Why",
				Message:           "so",
				LastHeartbeatTime: metav1.NewTime(time.Unix(1, 0)),
			},
		}
	}
	for _, row := range []struct {
		name       string
		conditions []corev1.NodeCondition
		want       bool
		reason     string
	}{
		{"ready", condition(corev1.ConditionTrue), true, ""},
		{"not", condition(corev1.ConditionFalse), false, "Why: so"},
		{"lost", condition(corev1.ConditionUnknown), false, "Why: so"},
		{"new", nil, false, "the kubelet has not said yet"},
		{"", nil, false, "the API has no such node yet"},
	} {
		store := cache.NewIndexer(cache.MetaNamespaceKeyFunc, nil)
		if row.name != "" {
			node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: row.name}}
			node.Status.Conditions = row.conditions
			kept, err := netproxy.Trim(node)
			if err != nil {
				t.Fatal(err)
			}
			if err := store.Add(kept); err != nil {
				t.Fatal(err)
			}
		}
		ready, reason := readiness(corelisters.NewNodeLister(store), row.name)
		if ready != row.want || reason != row.reason {
			t.Errorf("%q: %v, %q; want %v, %q", row.name, ready, reason, row.want, row.reason)
		}
	}
}
