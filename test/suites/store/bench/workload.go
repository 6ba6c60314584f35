package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// line is a row of the table.
type line struct {
	key, unit string
	// lower says that less is better.
	lower bool
}

var lines = []line{
	{"create, 1 client", "/s", false}, {"create, 16 clients", "/s", false}, {"create, 64 clients", "/s", false},
	{"create, 64 clients, p99", "ms", true}, {"guarded update, 16 clients", "/s", false},
	{"get, 16 clients", "/s", false},
	{"list of 500", "/s", false}, {"watch, p99", "ms", true}, {"resident, peak", "MB", true},
	{"written to disk for an update", "bytes", true},
}

// workload is what one target is put to.
type workload struct {
	running
	c       config
	res     map[string]float64
	value   string
	created atomic.Int64
	revs    [updaters]int64 // what each updater's key was last changed at
}

const updaters = 16

// measureAll measures one target.
func measureAll(ctx context.Context, r *running, c config) (map[string]float64, error) {
	w := &workload{
		running: *r,
		c:       c,
		res:     map[string]float64{},
		value:   randomValue(c.value),
	}
	for _, phase := range []struct {
		name string
		run  func(context.Context) error
	}{{"create", w.creates}, {"update", w.updates}, {"get", w.gets}, {"list", w.lists}, {"watch", w.watch}} {
		if !wants(c.phases, phase.name) {
			continue
		}
		if err := phase.run(ctx); err != nil {
			return nil, fmt.Errorf("%s: %w", phase.name, err)
		}
	}
	w.res["resident, peak"] = float64(procField(r.pid, "status", "VmHWM:")) / 1024
	if wants(c.phases, "heartbeat") {
		if err := w.heartbeats(ctx); err != nil {
			return nil, fmt.Errorf("heartbeat: %w", err)
		}
	}
	return w.res, nil
}

func randomValue(n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte('a' + rand.IntN(26))
	}
	return string(b)
}

// create makes a key that must not be there yet.
func (w *workload) create(ctx context.Context, key, val string) error {
	t, err := w.client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).Then(clientv3.OpPut(key,
		val)).Commit()
	if err == nil && !t.Succeeded {
		err = errors.New("create: the key is there")
	}
	return err
}

func (w *workload) creates(ctx context.Context) error {
	for _, clients := range []int{1, 16, 64} {
		rate, p99, err := load(ctx, w.c.each, clients, func(ctx context.Context, _ int) error {
			return w.create(ctx, fmt.Sprintf("/registry/pods/bench/pod-%d", w.created.Add(1)), w.value)
		})
		if err != nil {
			return err
		}
		name := fmt.Sprintf("create, %d clients", clients)
		if clients == 1 {
			name = "create, 1 client"
		}
		w.res[name] = rate
		if clients == 64 {
			w.res["create, 64 clients, p99"] = p99
		}
	}
	return nil
}

func leaseKey(updater int) string { return fmt.Sprintf("/registry/leases/bench/lease-%d", updater) }

// update changes an updater's own key, as the API server does, if nobody else has.
func (w *workload) update(ctx context.Context, updater int, val string) error {
	key := leaseKey(updater)
	t, err := w.client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", w.revs[updater])).
		Then(clientv3.OpPut(key, val)).Else(clientv3.OpGet(key)).Commit()
	if err == nil && !t.Succeeded {
		err = errors.New("update: the key was changed")
	}
	if err == nil {
		w.revs[updater] = t.Header.Revision
	}
	return err
}

func (w *workload) updates(ctx context.Context) (err error) {
	w.res["guarded update, 16 clients"], _, err = load(ctx, w.c.each, updaters,
		func(ctx context.Context, i int) error { return w.update(ctx, i, w.value) })
	return err
}

func (w *workload) gets(ctx context.Context) (err error) {
	w.res["get, 16 clients"], _, err = load(ctx, w.c.each, updaters, func(ctx context.Context, i int) error {
		_, err := w.client.Get(ctx, leaseKey(i))
		return err
	})
	return err
}

func (w *workload) lists(ctx context.Context) (err error) {
	for i := range 500 {
		if err := w.create(ctx, fmt.Sprintf("/registry/lists/bench/%03d", i), randomValue(w.c.value)); err != nil {
			return err
		}
	}
	w.res["list of 500"], _, err = load(ctx, w.c.each, 2, func(ctx context.Context, _ int) error {
		g, err := w.client.Get(ctx, "/registry/lists/bench/", clientv3.WithPrefix(), clientv3.WithLimit(500))
		if err == nil && len(g.Kvs) != 500 {
			err = fmt.Errorf("list gave %d keys", len(g.Kvs))
		}
		return err
	})
	return err
}

func (w *workload) watch(ctx context.Context) (err error) {
	w.res["watch, p99"], err = w.watchLatency(ctx)
	return err
}

// heartbeats are small updates that come alone.
func (w *workload) heartbeats(ctx context.Context) error {
	before := procField(w.pid, "io", "write_bytes:")
	const n = 200
	for range n {
		if err := w.update(ctx, 0, w.value[:min(len(w.value), 400)]); err != nil {
			return err
		}
	}
	w.res["written to disk for an update"] = float64(procField(w.pid, "io", "write_bytes:")-before) / n
	return nil
}

// load runs op from many clients for a while and gives its rate and the 99th percentile of its time
// in milliseconds.
func load(ctx context.Context, d time.Duration, clients int, op func(ctx context.Context, worker int) error) (rate,
	p99 float64, err error) {
	end := time.Now().Add(d)
	var mu sync.Mutex
	var took []time.Duration
	var first error
	var wg sync.WaitGroup
	start := time.Now()
	for w := range clients {
		wg.Go(func() {
			var mine []time.Duration
			for time.Now().Before(end) {
				t := time.Now()
				if err := op(ctx, w); err != nil {
					mu.Lock()
					first = err
					mu.Unlock()
					return
				}
				mine = append(mine, time.Since(t))
			}
			mu.Lock()
			took = append(took, mine...)
			mu.Unlock()
		})
	}
	wg.Wait()
	if first != nil || len(took) == 0 {
		return 0, 0, errors.Join(first, ctx.Err())
	}
	return float64(len(took)) / time.Since(start).Seconds(), percentile(took, 0.99), nil
}

func percentile(d []time.Duration, p float64) float64 {
	slices.Sort(d)
	return float64(d[int(float64(len(d)-1)*p)].Microseconds()) / 1000
}

// watchLatency is the time from just before a write until its event arrives, for one watcher of all
// that the writers do.
func (w *workload) watchLatency(ctx context.Context) (float64, error) {
	wctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ch := w.client.Watch(clientv3.WithRequireLeader(wctx), "/registry/leases/bench/", clientv3.WithPrefix(),
		clientv3.WithPrevKV())
	var took []time.Duration
	done := make(chan struct{})
	base := time.Now()
	go func() {
		defer close(done)
		for resp := range ch {
			now := time.Since(base)
			for _, ev := range resp.Events {
				if len(ev.Kv.Value) >= 8 {
					if at := time.Duration(binary.LittleEndian.Uint64(ev.Kv.Value)); at > 0 && at <= now {
						took = append(took, now-at)
					}
				}
			}
		}
	}()
	buf := make([][]byte, updaters)
	for i := range buf {
		buf[i] = make([]byte, w.c.value)
	}
	_, _, err := load(ctx, w.c.each, updaters, func(ctx context.Context, i int) error {
		binary.LittleEndian.PutUint64(buf[i], uint64(time.Since(base)))
		return w.update(ctx, i, string(buf[i]))
	})
	cancel()
	<-done
	if err == nil && len(took) == 0 {
		err = errors.New("watch gave no events")
	}
	if err != nil {
		return 0, err
	}
	return percentile(took, 0.99), nil
}

// procField reads a number of a process from /proc.
func procField(pid int, file, field string) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
	if err != nil {
		return 0
	}
	for _, l := range strings.Split(string(b), "\n") {
		if rest, ok := strings.CutPrefix(l, field); ok {
			n, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return n
		}
	}
	return 0
}

// table prints what was measured, and how mote does over a connection compared with the others.
func table(names []string, results map[string]map[string]float64) {
	fmt.Printf("%-32s", "")
	for _, n := range names {
		fmt.Printf("%14s", n)
	}
	mote, both := results["mote"], len(results["mote"]) > 0
	if both {
		for _, n := range names {
			if n != "mote" {
				fmt.Printf("%18s", "mote:"+n)
			}
		}
	}
	fmt.Println()
	for _, l := range lines {
		fmt.Printf("%-32s", l.key+" ["+l.unit+"]")
		for _, n := range names {
			fmt.Printf("%14.*f", digits(results[n][l.key]), results[n][l.key])
		}
		for _, n := range names {
			if !both || n == "mote" {
				continue
			}
			a, b := mote[l.key], results[n][l.key]
			if l.lower {
				a, b = b, a
			}
			fmt.Printf("%17.2fx", a/b)
		}
		fmt.Println()
	}
	fmt.Println("a ratio above 1 means mote over gRPC does better")
}

func digits(v float64) int {
	if v < 100 {
		return 1
	}
	return 0
}
