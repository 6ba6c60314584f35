package eventwindow

import (
	"fmt"
	"sync"
	"time"

	dto "github.com/prometheus/client_model/go"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/cacher"
	"k8s.io/apiserver/pkg/storage/cacher/metrics"
)

const (
	// fillerKey is outside of every resource's keys, which begin with a slash.
	fillerKey = "mote.dev/filler"
	// smallest is how many events a cache has room for at least.
	smallest = 100
	// chunk events go out at a time. Each passes through the queue of every watcher, of which the
	// shortest holds ten; a watcher whose queue stays full is ended.
	chunk = 8
	// pause is the time between two chunks.
	pause = time.Millisecond
)

// filler is a watch that empties a cache's window and ends.
//
// The window is a ring. When it is full, an event that arrives halves it if the events of its last
// quarter are more than 75 seconds older, and doubles it if all of them are younger. So events come
// in two groups. The first fills the ring, at most the half that is free: it must not meet itself.
// Real events are older by 75 seconds, so the ring may be full and halved before. The second group
// pretends to come 76 seconds later. Each of its events halves the ring, down to the smallest, and
// they are as many as that has room for.
type filler struct {
	object   runtime.Object
	youngest time.Time // when the last event pretends to have come
	events   chan watch.Event
	stop     chan struct{}
	once     sync.Once
	work     sync.WaitGroup
}

var _ watch.Interface = (*filler)(nil)

// newFiller returns a filler whose events are younger than those of the one before, which were as
// young as before says.
func newFiller(c cacher.Config, version uint64, before time.Time) (*filler, error) {
	f := &filler{object: c.NewFunc(), events: make(chan watch.Event), stop: make(chan struct{})}
	if err := c.Versioner.UpdateObject(f.object, version); err != nil {
		return nil, fmt.Errorf("make an event for the watch cache of %s: %w", c.GroupResource, err)
	}
	step := c.EventsHistoryWindow + time.Second
	filling := time.Now()
	if next := before.Add(step); next.After(filling) {
		filling = next
	}
	f.youngest = filling.Add(step)
	f.work.Go(func() { f.send(func() int { return capacity(c.GroupResource) }, filling, f.youngest) })
	return f, nil
}

// ResultChan implements watch.Interface.
func (f *filler) ResultChan() <-chan watch.Event { return f.events }

// Stop implements watch.Interface.
func (f *filler) Stop() {
	f.once.Do(func() { close(f.stop) })
	f.work.Wait()
}

func (f *filler) send(capacity func() int, filling, halving time.Time) {
	defer close(f.events)
	pauses := time.NewTicker(pause)
	defer pauses.Stop()
	sent := 0
	put := func(kind watch.EventType, object runtime.Object) bool {
		if sent++; sent%chunk == 0 {
			select {
			case <-pauses.C:
			case <-f.stop:
				return false
			}
		}
		select {
		case f.events <- watch.Event{Type: kind, Object: object}:
			return true
		case <-f.stop:
			return false
		}
	}
	first, second := &timed{f.object, filling}, &timed{f.object, halving}
	before := capacity()
	for i := 0; i <= before/2 && capacity() >= before; i++ {
		if !put(watch.Modified, first) {
			return
		}
	}
	for range smallest - 1 {
		if !put(watch.Modified, second) {
			return
		}
	}
	// Nothing of it stays.
	put(watch.Deleted, second)
}

// capacity is the room in a cache's window, which upstream tells as a metric only.
func capacity(resource schema.GroupResource) int {
	var m dto.Metric
	if err := metrics.WatchCacheCapacity.WithLabelValues(resource.Group, resource.Resource).Write(&m); err != nil {
		return 0
	}
	return int(m.GetGauge().GetValue())
}

// timed is an object of an event with the time at which the cache is to take it for received.
type timed struct {
	runtime.Object
	at time.Time
}

var _ storage.WatchEventWithRecordTime = (*timed)(nil)

// RecordTime implements storage.WatchEventWithRecordTime.
func (t *timed) RecordTime() time.Time { return t.at }

// Unwrap implements storage.WatchEventWithRecordTime.
func (t *timed) Unwrap() runtime.Object { return t.Object }

// GetObjectMeta implements metav1.ObjectMetaAccessor.
func (t *timed) GetObjectMeta() metav1.Object {
	accessor, err := meta.Accessor(t.Object)
	if err != nil {
		return nil
	}
	return accessor
}

// DeepCopyObject implements runtime.Object.
func (t *timed) DeepCopyObject() runtime.Object { return &timed{t.Object.DeepCopyObject(), t.at} }
