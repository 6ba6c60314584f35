package policy

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	corev1 "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/mote-dev/mote/internal/netnstest"
	"github.com/mote-dev/mote/netproxy/nfttool"
	"github.com/mote-dev/mote/netproxy/reconcile"
)

func TestController_Run_ChangesWhileItFails_KeepTheBackoff(t *testing.T) {
	c, err := New("n1", informers.NewSharedInformerFactory(fake.NewClientset(), 0), zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		passes := 0
		c.loop = reconcile.New(c.passes(func(context.Context, bool) error {
			passes++
			return errors.New("no")
		}))
		done := make(chan error, 1)
		go func() { done <- c.loop.Run(ctx) }()
		for ctx.Err() == nil {
			c.Poke()
			time.Sleep(10 * time.Millisecond)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		// At 0, 1, 3, 7, 15, 25, 35, 45 and 55 seconds.
		if passes != 9 {
			t.Errorf("%d passes in a minute of failure, want 9", passes)
		}
	})
}

// A policy that cannot be rendered stays so until somebody changes it. It must not keep the others
// waiting for retries.
func TestController_Sync_InvalidPolicy_IsReportedOnceAndNotRetried(t *testing.T) {
	if !nfttool.Available() {
		t.Skip("needs nft")
	}
	if !netnstest.Enter(t) {
		return
	}
	bad := &networking.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "bad"},
		Spec: networking.NetworkPolicySpec{
			PolicyTypes: []networking.PolicyType{networking.PolicyTypeIngress},
			Ingress: []networking.NetworkPolicyIngressRule{{From: []networking.NetworkPolicyPeer{
				{IPBlock: &networking.IPBlock{CIDR: "not-a-range"}},
			}}},
		}}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p"},
		Spec:       corev1.PodSpec{NodeName: "n1"},
		Status:     corev1.PodStatus{PodIP: "10.42.0.2"},
	}
	factory := informers.NewSharedInformerFactory(fake.NewClientset(bad, pod), 0)
	core, logs := observer.New(zap.InfoLevel)
	c, err := New("n1", factory, zap.New(core))
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	for range 3 {
		if err := c.sync(ctx); err != nil {
			t.Errorf("sync: %v", err)
		}
	}
	if n := logs.FilterLevelExact(zap.ErrorLevel).Len(); n != 1 {
		t.Errorf("reported %d times, want once: %v", n, logs.All())
	}
	if ok, err := c.table.Intact(ctx); err != nil || !ok {
		t.Errorf("the policy forbids nothing: %v, %v", ok, err)
	}
}
