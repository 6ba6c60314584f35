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
	{"create, 64 clients, p99", "ms", true}, {"guarded update, 16 clients", "/s", false}, {"get, 16 clients", "/s", false},
	{"list of 500", "/s", false}, {"watch, p99", "ms", true}, {"resident, peak", "MB", true}, {"written to disk for an update", "bytes", true},
}

// workload measures one target.
func workload(ctx context.Context, r *running, c config) (map[string]float64, error) {
	res := map[string]float64{}
	var created atomic.Int64
	value := func() []byte {
		b := make([]byte, c.value)
		for i := range b {
			b[i] = byte('a' + rand.IntN(26))
		}
		return b
	}
	val := string(value())
	for _, clients := range []int{1, 16, 64} {
		rate, p99, err := load(ctx, c.each, clients, func(ctx context.Context, _ int) error {
			key := fmt.Sprintf("/registry/pods/bench/pod-%d", created.Add(1))
			t, err := r.client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).Then(clientv3.OpPut(key, val)).Commit()
			if err == nil && !t.Succeeded {
				err = errors.New("create: the key is there")
			}
			return err
		})
		if err != nil {
			return nil, err
		}
		name := fmt.Sprintf("create, %d clients", clients)
		if clients == 1 {
			name = "create, 1 client"
		}
		res[name] = rate
		if clients == 64 {
			res["create, 64 clients, p99"] = p99
		}
	}
	const updaters = 16
	var revs [updaters]int64
	update := func(ctx context.Context, w int, val string) error {
		key := fmt.Sprintf("/registry/leases/bench/lease-%d", w)
		t, err := r.client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", revs[w])).
			Then(clientv3.OpPut(key, val)).Else(clientv3.OpGet(key)).Commit()
		if err == nil && !t.Succeeded {
			err = errors.New("update: the key was changed")
		}
		if err == nil {
			revs[w] = t.Header.Revision
		}
		return err
	}
	rate, _, err := load(ctx, c.each, updaters, func(ctx context.Context, w int) error { return update(ctx, w, val) })
	if err != nil {
		return nil, err
	}
	res["guarded update, 16 clients"] = rate
	if rate, _, err = load(ctx, c.each, 16, func(ctx context.Context, w int) error {
		_, err := r.client.Get(ctx, fmt.Sprintf("/registry/leases/bench/lease-%d", w))
		return err
	}); err != nil {
		return nil, err
	}
	res["get, 16 clients"] = rate
	for i := range 500 {
		key := fmt.Sprintf("/registry/lists/bench/%03d", i)
		if _, err := r.client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).Then(clientv3.OpPut(key, string(value()))).Commit(); err != nil {
			return nil, err
		}
	}
	if rate, _, err = load(ctx, c.each, 2, func(ctx context.Context, _ int) error {
		g, err := r.client.Get(ctx, "/registry/lists/bench/", clientv3.WithPrefix(), clientv3.WithLimit(500))
		if err == nil && len(g.Kvs) != 500 {
			err = fmt.Errorf("list gave %d keys", len(g.Kvs))
		}
		return err
	}); err != nil {
		return nil, err
	}
	res["list of 500"] = rate
	if res["watch, p99"], err = watchLatency(ctx, r, c, updaters, update); err != nil {
		return nil, err
	}
	res["resident, peak"] = float64(procField(r.pid, "status", "VmHWM:")) / 1024
	before := procField(r.pid, "io", "write_bytes:")
	const heartbeats = 200
	for range heartbeats {
		if err := update(ctx, 0, val[:min(len(val), 400)]); err != nil {
			return nil, err
		}
	}
	res["written to disk for an update"] = float64(procField(r.pid, "io", "write_bytes:")-before) / heartbeats
	return res, nil
}

// load runs op from many clients for a while and gives its rate and the 99th percentile of its time in milliseconds.
func load(ctx context.Context, d time.Duration, clients int, op func(ctx context.Context, worker int) error) (rate, p99 float64, err error) {
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

// watchLatency is the time from just before a write until its event arrives, for one watcher of all that the writers do.
func watchLatency(ctx context.Context, r *running, c config, writers int, update func(context.Context, int, string) error) (float64, error) {
	wctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ch := r.client.Watch(clientv3.WithRequireLeader(wctx), "/registry/leases/bench/", clientv3.WithPrefix(), clientv3.WithPrevKV())
	var took []time.Duration
	done := make(chan struct{})
	base := time.Now()
	go func() {
		defer close(done)
		for w := range ch {
			now := time.Since(base)
			for _, ev := range w.Events {
				if len(ev.Kv.Value) >= 8 {
					if at := time.Duration(binary.LittleEndian.Uint64(ev.Kv.Value)); at > 0 && at <= now {
						took = append(took, now-at)
					}
				}
			}
		}
	}()
	buf := make([][]byte, writers)
	for i := range buf {
		buf[i] = make([]byte, c.value)
	}
	_, _, err := load(ctx, c.each, writers, func(ctx context.Context, w int) error {
		binary.LittleEndian.PutUint64(buf[w], uint64(time.Since(base)))
		return update(ctx, w, string(buf[w]))
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
