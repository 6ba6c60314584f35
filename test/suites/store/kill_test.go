package store

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// The operations that histories are made of.
const (
	opGet = iota
	opPut
	opCAS // put if the key was last changed at a revision
	opDelete
)

type input struct {
	kind     int
	key, val string
	rev      int64 // what opCAS compares with
}

type output struct {
	unknown bool // the call failed, so it may have happened or may yet
	found   bool
	val     string
	rev     int64 // mod revision read, or revision of the write
	swapped bool
}

// register is the state of one key as a client can know it.
type register struct {
	found bool
	val   string
	rev   int64 // 0 when the write's revision is not known
}

// model says which histories of one key are linearizable. A write whose answer was lost may have
// any revision.
var model = porcupine.NondeterministicModel{
	Partition: func(h []porcupine.Operation) [][]porcupine.Operation {
		by := map[string][]porcupine.Operation{}
		for _, op := range h {
			by[op.Input.(input).key] = append(by[op.Input.(input).key], op)
		}
		var parts [][]porcupine.Operation
		for _, p := range by {
			parts = append(parts, p)
		}
		return parts
	},
	Init: func() []any { return []any{register{}} },
	Step: func(state, in, out any) []any {
		s, i, o := state.(register), in.(input), out.(output)
		switch i.kind {
		case opGet:
			if o.unknown {
				return []any{s}
			}
			if o.found != s.found || o.found && (o.val != s.val || s.rev != 0 && o.rev != s.rev) {
				return nil
			}
			if s.found {
				s.rev = o.rev
			}
			return []any{s}
		case opPut:
			next := register{true, i.val, o.rev}
			if o.unknown {
				return []any{s, next}
			}
			return []any{next}
		case opCAS:
			next := register{true, i.val, o.rev}
			must := s.found && i.rev != 0 && s.rev == i.rev || !s.found && i.rev == 0
			could := must || s.found && i.rev != 0 && s.rev == 0
			switch {
			case o.unknown && could:
				return []any{s, next}
			case o.unknown:
				return []any{s}
			case o.swapped && could:
				return []any{next}
			case !o.swapped && !must:
				return []any{s}
			}
			return nil
		default:
			if o.unknown {
				return []any{s, register{}}
			}
			if o.swapped != s.found {
				return nil
			}
			return []any{register{}}
		}
	},
	Equal: func(a, b any) bool { return a.(register) == b.(register) },
}

// recorder makes a history of what several clients do and what they are told.
type recorder struct {
	start time.Time
	mu    sync.Mutex
	ops   []porcupine.Operation
	// writes are the acknowledged ones by revision: what history must show.
	writes map[int64]input
	// mayLose is set once a crash may have lost deferred writes.
	mayLose bool
}

// deferredPrefix is the prefix of the keys whose writes storeproc may defer. Now and then all
// clients write nothing else.
const deferredPrefix = "deferred/"

func (in input) deferrable() bool { return strings.HasPrefix(in.key, deferredPrefix) }

func newRecorder() *recorder { return &recorder{start: time.Now(), writes: map[int64]input{}} }

func (r *recorder) add(client int, in input, call time.Duration, out output) {
	ret := time.Since(r.start)
	r.mu.Lock()
	defer r.mu.Unlock()
	if out.unknown {
		ret = 1 << 62 // it may take effect at any later time
	} else if in.kind == opPut || in.kind != opGet && out.swapped {
		r.writes[out.rev] = in
	}
	r.ops = append(r.ops, porcupine.Operation{
		ClientId: client,
		Input:    in,
		Call:     int64(call),
		Output:   out,
		Return:   int64(ret),
	})
}

// load has clients work on a few keys until ctx ends or one call fails, as all do once the server
// is dead.
func (r *recorder) load(ctx context.Context, c *clientv3.Client, round, workers int) {
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(round), uint64(w)))
			known := map[string]int64{}
			for n := 0; ctx.Err() == nil; n++ {
				in := input{kind: rnd.IntN(4), key: fmt.Sprintf("k%d-%d", round/4, rnd.IntN(4)),
					val: fmt.Sprintf("%d/%d/%d", round, w, n)}
				if in.kind == opDelete && rnd.IntN(3) > 0 {
					in.kind = opPut
				}
				call := time.Since(r.start)
				if call/(20*time.Millisecond)%2 == 0 {
					in.kind, in.key = opPut, fmt.Sprint(deferredPrefix, w)
				}
				in.rev = known[in.key]
				out, err := do(ctx, c, in)
				out.unknown = err != nil
				// Each client of the history does one thing at a time, so one whose call is open
				// does nothing more.
				r.add(round*workers+w, in, call, out)
				if err != nil {
					return
				}
				if out.found || out.swapped || in.kind == opPut {
					known[in.key] = out.rev
				} else {
					known[in.key] = 0
				}
			}
		})
	}
	wg.Wait()
}

func do(ctx context.Context, c *clientv3.Client, in input) (output, error) {
	// Padding makes some values span pages.
	pad := func(v string) string { return v + string(make([]byte, len(v)%3*3000)) }
	switch in.kind {
	case opGet:
		g, err := c.Get(ctx, in.key)
		if err != nil || len(g.Kvs) == 0 {
			return output{}, err
		}
		return output{found: true, val: trim(g.Kvs[0].Value), rev: g.Kvs[0].ModRevision}, nil
	case opPut:
		p, err := c.Put(ctx, in.key, pad(in.val))
		if err != nil {
			return output{}, err
		}
		return output{rev: p.Header.Revision}, nil
	case opCAS:
		t, err := c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(in.key), "=", in.rev)).Then(clientv3.OpPut(in.key,
			pad(in.val))).Commit()
		if err != nil {
			return output{}, err
		}
		return output{swapped: t.Succeeded, rev: t.Header.Revision}, nil
	default:
		d, err := c.Delete(ctx, in.key)
		if err != nil {
			return output{}, err
		}
		return output{swapped: d.Deleted > 0, rev: d.Header.Revision}, nil
	}
}

func trim(v []byte) string {
	for i, b := range v {
		if b == 0 {
			return string(v[:i])
		}
	}
	return string(v)
}

// check compares the whole history of the store with what its clients were told: every acknowledged
// write is there at its revision, and the history is linearizable.
func (r *recorder) check(t *testing.T, c *clientv3.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	p, err := c.Put(ctx, "end", "")
	if err != nil {
		t.Fatal(err)
	}
	type shown struct {
		val  string
		dead bool
	}
	have := map[int64]shown{}
	for w := range c.Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(1)) {
		if err := w.Err(); err != nil {
			t.Fatal(err)
		}
		for _, ev := range w.Events {
			have[ev.Kv.ModRevision] = shown{trim(ev.Kv.Value), ev.Type == mvccpb.Event_DELETE}
		}
		if w.Events[len(w.Events)-1].Kv.ModRevision == p.Header.Revision {
			break
		}
	}
	lost := 0
	for rev, in := range r.writes {
		got, ok := have[rev]
		if !ok && r.mayLose && in.deferrable() {
			lost++
			continue
		}
		if !ok || got.dead != (in.kind == opDelete) || !got.dead && got.val != in.val {
			t.Errorf("revision %d was acknowledged as %+v; the store has %+v (there: %v)", rev, in, got, ok)
		}
	}
	if r.mayLose {
		t.Logf("%d deferred writes were lost", lost)
	}
	for _, part := range model.Partition(r.ops) {
		if r.mayLose && part[0].Input.(input).deferrable() {
			continue
		}
		if res := porcupine.CheckOperationsTimeout(model.ToModel(), part, 2*time.Minute); res != porcupine.Ok {
			t.Errorf("history of %d operations on one key is not linearizable (%s):", len(part), res)
			slices.SortFunc(part, func(a, b porcupine.Operation) int { return int(a.Call - b.Call) })
			for _, op := range part {
				t.Logf("%12d %12d client %d %+v -> %+v", op.Call, op.Return, op.ClientId, op.Input, op.Output)
			}
			return
		}
	}
}

func rounds(t *testing.T, env string, few int) int {
	t.Helper()
	if v := os.Getenv(env); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	t.Logf("%d; a longer run is left out, %s sets how many (docs/store.md)", few, env)
	return few
}

// TestKill kills the store with -9 under load again and again, and starts it again over the same
// file.
func TestKill(t *testing.T) {
	n := rounds(t, "MOTE_TEST_KILLS", 25)
	path := filepath.Join(t.TempDir(), "state.db")
	r := newRecorder()
	rnd := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	for round := range n {
		r.interrupt(t, path, round, time.Duration(20+rnd.IntN(150))*time.Millisecond, func() {})
	}
	r.finish(t, path)
	r.report(t, n, "kills")
}

// interrupt starts the store, loads it for a while and kills it under load, after what else ends at
// that moment.
func (r *recorder) interrupt(t *testing.T, path string, round int, after time.Duration, first func()) {
	t.Helper()
	// A small log makes checkpoints part of what is interrupted.
	p, err := startStore(t, path, "-wal-bytes", "65536", "-deferred", deferredPrefix)
	if err != nil {
		t.Fatalf("start after %d interruptions: %v", round, err)
	}
	c := dial(t, p.addr)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.load(ctx, c, round, 6)
	}()
	<-time.After(after)
	first()
	r.mayLose = true
	p.kill()
	cancel()
	<-done
	c.Close()
}

// finish starts the store once more, and checks what it has against the history.
func (r *recorder) finish(t *testing.T, path string) {
	t.Helper()
	p, err := startStore(t, path)
	if err != nil {
		t.Fatal(err)
	}
	r.check(t, dial(t, p.addr))
	if err := p.stop(); err != nil {
		t.Errorf("stop: %v: %s", err, p.output())
	}
}

func (r *recorder) report(t *testing.T, n int, what string) {
	t.Helper()
	unknown := slices.DeleteFunc(slices.Clone(r.ops),
		func(op porcupine.Operation) bool { return !op.Output.(output).unknown })
	t.Logf("%d %s, %d operations, %d writes acknowledged, %d operations without an answer", n, what, len(r.ops),
		len(r.writes), len(unknown))
}
