package informer

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/cache"
)

func pod(name string, phase corev1.PodPhase) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}, Status: corev1.PodStatus{Phase: phase}}
}

func TestView_HoldsEventsUntilOpened(t *testing.T) {
	shared := informers.NewSharedInformerFactory(fake.NewClientset(pod("a", corev1.PodRunning)), 0)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	shared.Core().V1().Pods().Informer()
	shared.StartWithContext(ctx)
	shared.WaitForCacheSync(ctx.Done())

	view := NewView(shared, nil)
	var heard atomic.Int32
	added := make(chan string, 1)
	registration, err := view.Core().V1().Pods().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: func(obj any) {
		heard.Add(1)
		added <- obj.(*corev1.Pod).Name
	}})
	if err != nil {
		t.Fatal(err)
	}
	// A second, ungated handler that has synced proves that the first could have.
	other, err := shared.Core().V1().Pods().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{})
	if err != nil {
		t.Fatal(err)
	}
	if !cache.WaitForCacheSync(ctx.Done(), other.HasSynced) {
		t.Fatal("the informer never synced")
	}
	if registration.HasSynced() || heard.Load() != 0 {
		t.Fatalf("a closed view let %d events through", heard.Load())
	}
	view.Open()
	if name := <-added; name != "a" {
		t.Errorf("heard of pod %q, want a", name)
	}
	if !cache.WaitForCacheSync(ctx.Done(), registration.HasSynced) {
		t.Error("the handler never synced")
	}
}

func TestView_FilteredObjectLeavesAsDeleted(t *testing.T) {
	client := fake.NewClientset(pod("a", corev1.PodRunning), pod("b", corev1.PodSucceeded))
	shared := informers.NewSharedInformerFactory(client, 0)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	view := NewView(shared, func(obj any) bool {
		p, ok := obj.(*corev1.Pod)
		return !ok || p.Status.Phase == corev1.PodRunning
	})
	events := make(chan string, 8)
	if _, err := view.Core().V1().Pods().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { events <- "add " + obj.(*corev1.Pod).Name },
		DeleteFunc: func(obj any) { events <- "delete " + obj.(*corev1.Pod).Name },
	}); err != nil {
		t.Fatal(err)
	}
	view.Open()
	shared.StartWithContext(ctx)
	expect := func(want string) {
		t.Helper()
		select {
		case got := <-events:
			if got != want {
				t.Fatalf("heard %q, want %q", got, want)
			}
		case <-ctx.Done():
			t.Fatalf("never heard %q", want)
		}
	}
	expect("add a")
	if _, err := client.CoreV1().Pods("default").UpdateStatus(ctx, pod("a", corev1.PodSucceeded), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	expect("delete a")
}
