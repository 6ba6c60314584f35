package informer

import (
	"context"
	"fmt"
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
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
		Status: corev1.PodStatus{Phase: phase}}
}

func openGate(t *testing.T, g *Gate) {
	t.Helper()
	if err := g.Open(); err != nil {
		t.Fatal(err)
	}
}

func TestDeferredGate_HandlersComeWhenOpened(t *testing.T) {
	client := fake.NewClientset(pod("gone", corev1.PodRunning), pod("stays", corev1.PodRunning))
	shared := informers.NewSharedInformerFactory(client, 0)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	gate := NewDeferredGate(shared)
	pods := gate.Core().V1().Pods().Informer()
	added, deleted := make(chan string, 8), make(chan string, 8)
	handler := cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { added <- obj.(*corev1.Pod).Name },
		DeleteFunc: func(any) { deleted <- "" },
	}
	registration, err := pods.AddEventHandler(handler)
	if err != nil {
		t.Fatal(err)
	}
	unwanted, err := pods.AddEventHandler(
		cache.ResourceEventHandlerFuncs{AddFunc: func(any) { t.Error("a removed handler got an event") }})
	if err != nil {
		t.Fatal(err)
	}
	if err := pods.RemoveEventHandler(unwanted); err != nil {
		t.Fatal(err)
	}
	heard := make(chan string, 8)
	if _, err := shared.Core().V1().Pods().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		UpdateFunc: func(any, any) { heard <- "" },
		DeleteFunc: func(any) { heard <- "" },
	}); err != nil {
		t.Fatal(err)
	}
	shared.StartWithContext(ctx)
	shared.WaitForCacheSync(ctx.Done())
	// The fake API loses a deletion between list and watch, but no change: once one is heard of,
	// there is the watch.
	if _, err := client.CoreV1().Pods("default").UpdateStatus(ctx, pod("gone", corev1.PodFailed),
		metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	<-heard
	if err := client.CoreV1().Pods("default").Delete(ctx, "gone", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	<-heard
	if registration.HasSynced() || len(added) > 0 {
		t.Fatalf("a closed gate let %d events through", len(added))
	}
	openGate(t, gate)
	if !cache.WaitFor(ctx, "", registration.HasSyncedChecker()) {
		t.Fatal("the handler never synced")
	}
	if !registration.HasSynced() {
		t.Error("it has synced and says it has not")
	}
	if name := <-added; name != "stays" || len(added) > 0 || len(deleted) > 0 {
		t.Errorf("heard of %s, %d more, %d deleted; want what is there", name, len(added), len(deleted))
	}
	if err := pods.RemoveEventHandler(registration); err != nil {
		t.Fatal(err)
	}
	after, err := pods.AddEventHandler(handler)
	if err != nil || !cache.WaitFor(ctx, "", after.HasSyncedChecker()) || <-added != "stays" {
		t.Errorf("a handler added to the open gate: %v", err)
	}
}

func TestGate_HoldsEventsUntilOpened(t *testing.T) {
	shared := informers.NewSharedInformerFactory(fake.NewClientset(pod("a", corev1.PodRunning)), 0)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	shared.Core().V1().Pods().Informer()
	shared.StartWithContext(ctx)
	shared.WaitForCacheSync(ctx.Done())

	gate := NewGate(shared, nil)
	var heard atomic.Int32
	added := make(chan string, 1)
	registration, err := gate.Core().V1().Pods().Informer().AddEventHandler(
		cache.ResourceEventHandlerFuncs{AddFunc: func(obj any) {
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
		t.Fatalf("a closed gate let %d events through", heard.Load())
	}
	openGate(t, gate)
	if name := <-added; name != "a" {
		t.Errorf("heard of pod %q, want a", name)
	}
	if !cache.WaitForCacheSync(ctx.Done(), registration.HasSynced) {
		t.Error("the handler never synced")
	}
}

func TestGate_FilteredObjectLeavesAsDeleted(t *testing.T) {
	client := fake.NewClientset(pod("a", corev1.PodRunning), pod("b", corev1.PodSucceeded))
	shared := informers.NewSharedInformerFactory(client, 0)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	gate := NewGate(shared, func(obj any) bool {
		p, ok := obj.(*corev1.Pod)
		return !ok || p.Status.Phase == corev1.PodRunning
	})
	events := make(chan string, 8)
	if _, err := gate.Core().V1().Pods().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { events <- "add " + obj.(*corev1.Pod).Name },
		DeleteFunc: func(obj any) { events <- "delete " + obj.(*corev1.Pod).Name },
	}); err != nil {
		t.Fatal(err)
	}
	openGate(t, gate)
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
	if _, err := client.CoreV1().Pods("default").UpdateStatus(ctx, pod("a", corev1.PodSucceeded),
		metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	expect("delete a")
}

func TestGate_Close_RemovesHandlers(t *testing.T) {
	for _, opened := range []bool{true, false} {
		t.Run(fmt.Sprintf("opened=%v", opened), func(t *testing.T) {
			ctx := timeout(t)
			client := fake.NewClientset(pod("a", corev1.PodRunning))
			shared := NewShared(informers.NewSharedInformerFactory(client, 0))
			stop := runShared(t, shared)
			gate := NewGate(shared, nil)
			var typed, generic atomic.Int32
			counting := func(n *atomic.Int32) cache.ResourceEventHandlerFuncs {
				return cache.ResourceEventHandlerFuncs{AddFunc: func(any) { n.Add(1) }}
			}
			first, err := gate.Core().V1().Pods().Informer().AddEventHandler(counting(&typed))
			if err != nil {
				t.Fatal(err)
			}
			informer, err := gate.ForResource(corev1.SchemeGroupVersion.WithResource("pods"))
			if err != nil {
				t.Fatal(err)
			}
			second, err := informer.Informer().AddEventHandler(counting(&generic))
			if err != nil {
				t.Fatal(err)
			}
			if opened {
				openGate(t, gate)
			}
			gate.Start(nil)
			shared.WaitForCacheSync(ctx.Done())
			want := int32(0)
			if opened {
				want = 1
				cache.WaitForCacheSync(ctx.Done(), first.HasSynced, second.HasSynced)
			}
			if err := gate.Close(); err != nil {
				t.Fatal(err)
			}
			if err := gate.Close(); err != nil {
				t.Errorf("closed again: %v", err)
			}
			if _, err := client.CoreV1().Pods("default").Create(ctx, pod("b", corev1.PodRunning),
				metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			if _, err := informer.Informer().AddEventHandler(counting(&generic)); err == nil {
				t.Error("a closed gate takes handlers")
			}
			stop() // hangs while a handler waits for the gate
			if typed.Load() != want || generic.Load() != want {
				t.Errorf("handlers got %d and %d events, want %d", typed.Load(), generic.Load(), want)
			}
		})
	}
}
