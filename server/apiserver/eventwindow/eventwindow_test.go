package eventwindow

import (
	"context"
	"fmt"
	goruntime "runtime"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/cacher"
	"k8s.io/apiserver/pkg/storage/cacher/metrics"
	"k8s.io/client-go/tools/cache"
)

const prefix = "/configmaps/"

var codec = func() runtime.Codec {
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		panic(err)
	}
	return serializer.NewCodecFactory(scheme).LegacyCodec(corev1.SchemeGroupVersion)
}()

// objects is a storage of ConfigMaps, without content: a cache watches it, and a test says what
// happens.
type objects struct {
	storage.Interface

	mu      sync.Mutex
	version uint64
	lists   int
	watches map[*events]struct{}
}

// events is a watch of objects.
type events struct {
	*watch.RaceFreeFakeWatcher
	from *objects
}

func (e *events) Stop() {
	e.from.mu.Lock()
	delete(e.from.watches, e)
	e.from.mu.Unlock()
	e.RaceFreeFakeWatcher.Stop()
}

func (*objects) Versioner() storage.Versioner                        { return storage.APIObjectVersioner{} }
func (*objects) ReadinessCheck() error                               { return nil }
func (*objects) RequestWatchProgress(context.Context) error          { return nil }
func (*objects) EnableResourceSizeEstimation(storage.KeysFunc) error { return nil }
func (*objects) CompactRevision() int64                              { return 0 }
func (o *objects) GetCurrentResourceVersion(context.Context) (uint64, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.version, nil
}

func (o *objects) GetList(_ context.Context, _ string, _ storage.ListOptions, into runtime.Object) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.lists++
	into.(*corev1.ConfigMapList).ResourceVersion = strconv.FormatUint(o.version, 10)
	return nil
}

func (o *objects) Watch(_ context.Context, _ string, opts storage.ListOptions) (watch.Interface, error) {
	if opts.SendInitialEvents != nil {
		return nil, apierrors.NewInvalid(schema.GroupKind{}, "", nil) // as a storage that cannot: the cache lists
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	e := &events{watch.NewRaceFreeFake(), o}
	o.watches[e] = struct{}{}
	return e, nil
}

// update makes one event, of a new object or a known one.
func (o *objects) update(name string) *corev1.ConfigMap {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.version++
	m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name,
		ResourceVersion: strconv.FormatUint(o.version, 10)}}
	for e := range o.watches {
		e.Action(watch.Modified, m)
	}
	return m
}

// cached is a watch cache whose window is let go, over objects.
type cached struct {
	*objects
	*cacher.Cacher
	windows *Windows
}

// start must be called in a bubble of synctest.
func start(t *testing.T) cached {
	t.Helper()
	metrics.Register()
	o := &objects{version: 1, watches: map[*events]struct{}{}}
	attributes := func(object runtime.Object) (labels.Set, fields.Set, error) {
		m := object.(*corev1.ConfigMap)
		return m.Labels, fields.Set{"metadata.name": m.Name, "metadata.namespace": m.Namespace}, nil
	}
	windows := &Windows{}
	config, forget := windows.Add(cacher.Config{
		Storage:             o,
		Versioner:           storage.APIObjectVersioner{},
		GroupResource:       corev1.Resource("configmaps"),
		EventsHistoryWindow: cacher.DefaultEventFreshDuration,
		ResourcePrefix:      prefix,
		KeyFunc: func(object runtime.Object) (string, error) {
			m := object.(*corev1.ConfigMap)
			return prefix + m.Namespace + "/" + m.Name, nil
		},
		NewFunc:      func() runtime.Object { return &corev1.ConfigMap{} },
		NewListFunc:  func() runtime.Object { return &corev1.ConfigMapList{} },
		GetAttrsFunc: attributes,
		Codec:        codec,
		Indexers:     &cache.Indexers{"all": func(any) ([]string, error) { return []string{"yes"}, nil }},
	})
	c, err := cacher.NewCacherFromConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var work sync.WaitGroup
	work.Go(func() { windows.Run(ctx) })
	t.Cleanup(func() {
		c.Stop()
		forget()
		cancel()
		work.Wait()
		if len(windows.all) > 0 {
			t.Error("a cache that has stopped is not forgotten")
		}
	})
	if err := c.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	return cached{o, c, windows}
}

// burst makes n events of ten objects, 500 a second, and returns them without keeping them alive.
// watcher, if there is one, reads them.
func (c cached) burst(t *testing.T, n int, watcher watch.Interface) []weak.Pointer[corev1.ConfigMap] {
	t.Helper()
	past := make([]weak.Pointer[corev1.ConfigMap], n)
	for i := range past {
		past[i] = weak.Make(c.update(fmt.Sprintf("object-%d", i%10)))
		if i%chunk < chunk-1 && i < n-1 {
			continue
		}
		time.Sleep(16 * time.Millisecond)
		if watcher == nil {
			continue
		}
		if all, open := drain(watcher); !open || len(all) != i%chunk+1 {
			t.Fatalf("the watcher got %d events, open %t", len(all), open)
		}
	}
	synctest.Wait()
	return past
}

// alive counts those that something still holds.
func alive(past []weak.Pointer[corev1.ConfigMap]) int {
	goruntime.GC()
	n := 0
	for _, p := range past {
		if p.Value() != nil {
			n++
		}
	}
	return n
}

func (c cached) follow(t *testing.T, version uint64) watch.Interface {
	t.Helper()
	w, err := c.Cacher.Watch(t.Context(), prefix, storage.ListOptions{
		ResourceVersion: strconv.FormatUint(version, 10),
		Predicate:       storage.Everything,
		Recursive:       true,
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// drain reads what has arrived, and reports whether the watch goes on.
func drain(w watch.Interface) (all []watch.Event, open bool) {
	for {
		synctest.Wait()
		select {
		case e, ok := <-w.ResultChan():
			if !ok {
				return all, false
			}
			all = append(all, e)
		default:
			return all, true
		}
	}
}

func (c cached) list(t *testing.T) (names []string, version uint64) {
	t.Helper()
	var list corev1.ConfigMapList
	if err := c.Cacher.GetList(t.Context(), prefix,
		storage.ListOptions{ResourceVersion: "0", Predicate: storage.Everything, Recursive: true}, &list); err != nil {
		t.Fatal(err)
	}
	for _, m := range list.Items {
		names = append(names, m.Name)
	}
	version, err := storage.APIObjectVersioner{}.ParseResourceVersion(list.ResourceVersion)
	if err != nil {
		t.Fatal(err)
	}
	return names, version
}

func TestWindows_AfterABurst_EventsAreLetGo(t *testing.T) {
	for name, row := range map[string]struct {
		events int
		// trickle is the time between events that go on after the burst.
		trickle time.Duration
	}{
		"half of the window's size is in use": {events: 12_800 + 100},
		"all of it":                           {events: 12_800},
		"a few":                               {events: 700},
		"largest":                             {events: 120_000},
		"a little goes on":                    {events: 5_000, trickle: 20 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := start(t)
				watcher := c.follow(t, 1)
				past := c.burst(t, row.events, watcher)
				if n := alive(past); n < min(row.events, 100_000)/3 {
					t.Fatalf("only %d of %d objects are alive after the burst: nothing to let go", n, len(past))
				}
				namesBefore, versionBefore := c.list(t)

				for begin := time.Now(); time.Since(begin) < 2*time.Minute; {
					if row.trickle > 0 {
						c.update("trickle")
					}
					time.Sleep(max(row.trickle, 20*time.Second))
				}
				if n := capacity(corev1.Resource("configmaps")); n < smallest || n > 2*smallest {
					t.Errorf("the window has room for %d events, want %d as a new one", n, smallest)
				}
				// Ten objects are current. The cache may hold the event it sent last.
				if n := alive(past); n > 12 {
					t.Errorf("two minutes after the burst %d of %d objects are alive", n, len(past))
				}

				if all, open := drain(watcher); !open || row.trickle == 0 && len(all) > 0 {
					t.Errorf("the watcher saw %v, open %t", all, open)
				}
				names, version := c.list(t)
				if want := len(namesBefore) + min(1, int(row.trickle)); len(names) != want || version < versionBefore {
					t.Errorf("the list has %v at %d, before %v at %d", names, version, namesBefore, versionBefore)
				}
				if c.lists != 1 {
					t.Errorf("the cache listed %d times", c.lists)
				}
				returned := c.follow(t, version)
				c.update("after")
				for _, w := range []watch.Interface{watcher, returned} {
					if all, open := drain(w); !open || len(all) != 1 {
						t.Errorf("a watcher got %d events of one, open %t", len(all), open)
					}
				}
				late := c.follow(t, 2)
				all, _ := drain(late)
				if len(all) != 1 || all[0].Type != watch.Error ||
					!apierrors.IsResourceExpired(apierrors.FromObject(all[0].Object)) {
					t.Errorf("a watcher from before the burst got %v, want to be told to list again", all)
				}
				for _, w := range []watch.Interface{watcher, returned, late} {
					w.Stop()
				}
			})
		})
	}
}

// A second burst must not keep more than the first.
func TestWindows_BurstsOnAndOn_KeepNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t)
		var past []weak.Pointer[corev1.ConfigMap]
		for range 3 {
			past = append(past, c.burst(t, 3_000, nil)...)
			time.Sleep(2 * time.Minute)
			if n := alive(past); n > 12 {
				t.Errorf("%d of %d objects are alive", n, len(past))
			}
		}
		if c.lists != 1 {
			t.Errorf("the cache listed %d times", c.lists)
		}
	})
}

// What watchers that come back rely on stays as upstream has it.
func TestWindows_WhileEventsCome_WindowStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t)
		// A minute of 10 events a second, on and on.
		var from uint64
		for range 5 {
			for range 12 {
				from, _ = c.objects.GetCurrentResourceVersion(t.Context())
				c.burst(t, 50, nil)
				time.Sleep(5 * time.Second)
			}
			w := c.follow(t, from-300)
			if all, open := drain(w); !open || len(all) != 350 {
				t.Errorf("a watcher that was away for half a minute got %d events, open %t", len(all), open)
			}
			w.Stop()
		}
	})
}
