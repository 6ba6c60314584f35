package scheduler

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/mote-dev/mote/internal/informer"
	"github.com/mote-dev/mote/server/loopback"
)

// newConfig returns what a scheduler needs, with an API server that never answers.
func newConfig(t *testing.T, args ...string) Config {
	t.Helper()
	api := loopback.NewServer()
	t.Cleanup(api.Close)
	client, err := kubernetes.NewForConfig(api.Config(self))
	if err != nil {
		t.Fatal(err)
	}
	return Config{Loopback: api, Informers: informer.NewShared(informers.NewSharedInformerFactory(client, 0)),
		ExtraArgs: args}
}

func TestRun_BeforeLeading_NothingRuns(t *testing.T) {
	c := newConfig(t)
	ctx, cancel := context.WithCancel(t.Context())
	lost := errors.New("never led")
	c.Lead = func(ctx context.Context, _ func(context.Context) error) error {
		cancel()
		<-ctx.Done()
		return lost
	}
	if err := Run(ctx, c); !errors.Is(err, lost) {
		t.Errorf("run: %v, want what Lead returned", err)
	}
	if n := len(c.Informers.WaitForCacheSync(ctx.Done())); n != 0 {
		t.Errorf("%d informers were requested", n)
	}
}

func TestRun_UnknownFlag_IsRefused(t *testing.T) {
	err := Run(t.Context(), newConfig(t, "no-such-flag=1"))
	if err == nil || !strings.Contains(err.Error(), "kube-scheduler-arg") ||
		!strings.Contains(err.Error(), "no-such-flag") {
		t.Errorf("run: %v, want the name of the setting and of the flag", err)
	}
}

func TestRun_LeadEndsBeforeTheCachesSync_ReturnsNil(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	c := newConfig(t)
	c.Loopback.Close() // upstream asks which events API there is
	c.Lead = func(ctx context.Context, work func(context.Context) error) error {
		leading, lose := context.WithCancel(ctx)
		lose()
		return work(leading)
	}
	if err := Run(ctx, c); err != nil {
		t.Error(err)
	}
	cancel()
}

func TestConfig_Component_TakesTheFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "scheduler.yaml")
	text := "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\nprofiles:\n- schedulerName: packed\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	component, err := newConfig(t, "config="+file).component(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(component.Profiles) != 1 || component.Profiles[0].SchedulerName != "packed" {
		t.Errorf("profiles %+v, want the file's", component.Profiles)
	}
	missing := file + ".missing"
	if _, err := newConfig(t, "config="+missing).component(t.Context(), nil); !errors.Is(err, os.ErrNotExist) ||
		!strings.Contains(err.Error(), missing) {
		t.Errorf("missing file: %v, want its name", err)
	}
}

func TestRelevant_LeavesFinishedPodsOut(t *testing.T) {
	for phase, want := range map[corev1.PodPhase]bool{corev1.PodPending: true, corev1.PodRunning: true,
		corev1.PodSucceeded: false, corev1.PodFailed: false} {
		p := &corev1.Pod{Status: corev1.PodStatus{Phase: phase}}
		if relevant(p) != want || relevant(cache.DeletedFinalStateUnknown{Obj: p}) != want {
			t.Errorf("a pod that is %s is relevant: %v, want %v", phase, !want, want)
		}
	}
	if !relevant(&corev1.Node{}) {
		t.Error("a node is left out")
	}
}
