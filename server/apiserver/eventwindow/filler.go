package eventwindow

import (
	"fmt"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/cacher"
)

const (
	// fillerKey is outside of every resource's keys, which begin with a slash.
	fillerKey = "mote.dev/filler"
	// smallest is how many events a cache has room for at least.
	smallest = 100
	// halvings are more than a cache of the largest size needs to become one of the smallest.
	halvings = 16
	// chunk events go out at a time. Each passes through the queue of every watcher, of which the
	// shortest holds ten; a watcher whose queue stays full is ended.
	chunk = 8
	// pause is the time between two chunks.
	pause = time.Millisecond
)

// filler is a watch that fills a cache's window and ends.
//
// The window is a ring. It halves when it is full and the events of its last quarter are older than
// 75 seconds before the one that arrives, and doubles when all of them are younger. So the events
// come from the future in two groups: first those that fill the ring, 75 seconds after all real
// ones, then those that halve it, 75 seconds after the first.
type filler struct {
	object runtime.Object
	events chan watch.Event
	stop   chan struct{}
	once   sync.Once
	work   sync.WaitGroup
}

var _ watch.Interface = (*filler)(nil)

func newFiller(c cacher.Config, version uint64, held int64) (*filler, error) {
	f := &filler{object: c.NewFunc(), events: make(chan watch.Event), stop: make(chan struct{})}
	if err := c.Versioner.UpdateObject(f.object, version); err != nil {
		return nil, fmt.Errorf("make an event for the watch cache of %s: %w", c.GroupResource, err)
	}
	filling := time.Now().Add(c.EventsHistoryWindow)
	f.work.Go(func() { f.send(held+smallest, filling, filling.Add(c.EventsHistoryWindow+time.Second)) })
	return f, nil
}

// ResultChan implements watch.Interface.
func (f *filler) ResultChan() <-chan watch.Event { return f.events }

// Stop implements watch.Interface.
func (f *filler) Stop() {
	f.once.Do(func() { close(f.stop) })
	f.work.Wait()
}

func (f *filler) send(count int64, filling, halving time.Time) {
	defer close(f.events)
	timer := time.NewTimer(pause)
	defer timer.Stop()
	e := watch.Event{Type: watch.Modified, Object: &timed{f.object, filling}}
	for i := range count + halvings {
		if i == count {
			e.Object = &timed{f.object, halving}
		}
		if i == count+halvings-1 {
			// Nothing of it stays.
			e.Type = watch.Deleted
		}
		select {
		case f.events <- e:
		case <-f.stop:
			return
		}
		if i%chunk < chunk-1 {
			continue
		}
		timer.Reset(pause)
		select {
		case <-timer.C:
		case <-f.stop:
			return
		}
	}
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
