package informer

import (
	"context"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/cache"
)

// runShared runs shared until the returned function is called, which waits for its end.
func runShared(t *testing.T, shared *Shared) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- shared.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run shared informers: %v", err)
		}
	}
	t.Cleanup(stop)
	return stop
}

func timeout(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestShared_UserEnds_InformersGoOn(t *testing.T) {
	ctx := timeout(t)
	client := fake.NewClientset(pod("a", corev1.PodRunning))
	shared := NewShared(informers.NewSharedInformerFactory(client, 0))
	runShared(t, shared)
	updated := make(chan string, 8)
	pods := shared.Core().V1().Pods().Informer()
	if _, err := pods.AddEventHandler(cache.ResourceEventHandlerFuncs{
		UpdateFunc: func(_, obj any) { updated <- obj.(*corev1.Pod).Name },
	}); err != nil {
		t.Fatal(err)
	}
	userContext, endUser := context.WithCancel(ctx)
	shared.Start(userContext.Done())
	if synced := shared.WaitForCacheSync(userContext.Done()); len(synced) != 1 {
		t.Fatalf("synced %v, want pods", synced)
	}
	endUser()
	shared.Shutdown()
	// Nothing comes from an informer that has stopped, however long one waits.
	for {
		if _, err := client.CoreV1().Pods("default").UpdateStatus(ctx, pod("a", corev1.PodFailed),
			metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		select {
		case <-updated:
			if pods.IsStopped() {
				t.Error("the informer ended with the user that started it")
			}
			return
		case <-time.After(50 * time.Millisecond): // the fake watch may not have begun
		case <-ctx.Done():
			t.Fatal("no event after the user that started the informer ended")
		}
	}
}

func TestShared_StartBeforeRun_StartsWithRun(t *testing.T) {
	ctx := timeout(t)
	shared := NewShared(informers.NewSharedInformerFactory(fake.NewClientset(pod("a", corev1.PodRunning)), 0))
	pods := shared.Core().V1().Pods()
	pods.Informer()
	shared.Start(ctx.Done())
	ended, end := context.WithCancel(ctx)
	end()
	for _, synced := range shared.WaitForCacheSync(ended.Done()) {
		if synced {
			t.Error("informers that wait for Run are reported as synced")
		}
	}
	if len(shared.WaitForCacheSync(ended.Done())) == 0 {
		t.Error("informers that wait for Run are left out, which upstream takes for synced")
	}
	runShared(t, shared)
	if err := shared.WaitForCacheSyncWithContext(ctx).Err; err != nil {
		t.Fatal(err)
	}
	if _, err := pods.Lister().Pods("default").Get("a"); err != nil {
		t.Error(err)
	}
}

func TestShared_InformerRequestedLater_IsStarted(t *testing.T) {
	ctx := timeout(t)
	shared := NewShared(informers.NewSharedInformerFactory(fake.NewClientset(pod("a", corev1.PodRunning)), 0))
	runShared(t, shared)
	shared.Core().V1().Pods().Informer()
	shared.Ensure()
	first := shared.WaitForCacheSync(ctx.Done())
	shared.Core().V1().Nodes().Informer()
	NewGate(shared, nil).Start(nil)
	if all := shared.WaitForCacheSync(ctx.Done()); len(first) != 1 || len(all) != 2 {
		t.Errorf("synced %v, then %v; want pods, then nodes as well", first, all)
	}
}

func TestShared_Run_ReturnsAfterAllHaveEnded(t *testing.T) {
	ctx := timeout(t)
	shared := NewShared(informers.NewSharedInformerFactory(fake.NewClientset(pod("a", corev1.PodRunning)), 0))
	handling, release := make(chan struct{}), make(chan struct{})
	pods := shared.Core().V1().Pods().Informer()
	if _, err := pods.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: func(any) {
		close(handling)
		<-release
	}}); err != nil {
		t.Fatal(err)
	}
	shared.Start(ctx.Done())
	running, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- shared.Run(running) }()
	<-handling
	cancel()
	select {
	case <-done:
		t.Error("Run returned while a handler still ran")
	default:
	}
	close(release)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if !pods.IsStopped() {
		t.Error("Run returned before its informer ended")
	}
	late := shared.Core().V1().Nodes().Informer()
	shared.Start(ctx.Done())
	if late.IsStopped() || late.HasSynced() {
		t.Error("an informer was started after Run had ended")
	}
	if err := shared.Run(ctx); err == nil {
		t.Error("a second Run is not refused")
	}
}
