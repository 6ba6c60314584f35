package main

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/mote-dev/mote/test/bench/measure"
)

// counters are what a server says under /metrics, by name; those of requests also by verb and
// resource.
type counters map[string]float64

// Names of counters, as the server has them.
const (
	goroutines = "go_goroutines"
	stacks     = "go_memstats_stack_inuse_bytes"
	heap       = "go_memstats_heap_inuse_bytes"
	revision   = "etcd_debugging_mvcc_current_revision"
	commits    = "etcd_disk_backend_commit_duration_seconds_count"
	watches    = "etcd_debugging_mvcc_watcher_total"
	requests   = "apiserver_request_total"
	responses  = "apiserver_response_sizes_sum"
	events     = "apiserver_watch_events_sizes_sum"
)

func countersOf(ctx context.Context, c *measure.Cluster) (counters, error) {
	data, err := c.Client().RESTClient().Get().AbsPath("/metrics").DoRaw(ctx)
	if err != nil {
		return nil, fmt.Errorf("read counters of the server: %w", err)
	}
	all := counters{}
	for line := range bytes.Lines(data) {
		text := strings.TrimSpace(string(line))
		series, value, ok := cutLast(text)
		if !ok || strings.HasPrefix(text, "#") {
			continue
		}
		n, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return nil, fmt.Errorf("read counters of the server: %q: %w", text, err)
		}
		name, labels, _ := strings.Cut(series, "{")
		all[name] += n
		if name == requests || name == responses || name == events {
			all[name+" "+label(labels, "verb")+" "+label(labels, "resource")+" "+label(labels, "subresource")] += n
		}
	}
	return all, nil
}

func cutLast(text string) (before, after string, ok bool) {
	i := strings.LastIndexByte(text, ' ')
	if i < 0 {
		return "", "", false
	}
	return text[:i], text[i+1:], true
}

// label reads one label of a series. Those looked for hold no quotes.
func label(labels, name string) string {
	_, rest, ok := strings.Cut(","+labels, ","+name+`="`)
	if !ok {
		return ""
	}
	value, _, _ := strings.Cut(rest, `"`)
	return value
}

// profileJoining keeps what the server does while the first nodes join, in a file beside the logs.
func profileJoining(ctx context.Context, c *measure.Cluster, dir string) error {
	return c.KeepProfile(ctx, filepath.Join(dir, "joining.pprof"), "/debug/pprof/profile", "seconds", "30")
}

// profileIdle keeps what the server does during a span, and what it holds, in files beside the
// logs.
func profileIdle(ctx context.Context, c *measure.Cluster, dir string, span time.Duration) error {
	seconds := strconv.Itoa(max(1, int(span.Seconds())-1))
	if err := c.KeepProfile(ctx, filepath.Join(dir, "idle.pprof"), "/debug/pprof/profile", "seconds",
		seconds); err != nil {
		return err
	}
	if err := c.KeepProfile(ctx, filepath.Join(dir, "heap.pprof"), "/debug/pprof/heap", "gc", "1"); err != nil {
		return err
	}
	return c.KeepProfile(ctx, filepath.Join(dir, "goroutines.txt"), "/debug/pprof/goroutine", "debug", "1")
}
