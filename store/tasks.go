package store

import (
	"context"
	"errors"
	"sync"
)

// tasks are the work in progress that Close ends and waits for: background loops, copies of the
// file and the goroutines behind in-process streams. Without it they could outlive the lock on the
// file. The zero value is ready.
type tasks struct {
	mu     sync.Mutex
	closed bool
	cancel map[*task]context.CancelCauseFunc
	wg     sync.WaitGroup
}

type task struct{ _ byte } // not empty, for each to have an address of its own

// begin returns a context that also ends with the store, and a function for the end of the task.
func (t *tasks) begin(ctx context.Context) (context.Context, func(), error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, nil, ErrClosed
	}
	ctx, cancel := context.WithCancelCause(ctx)
	if t.cancel == nil {
		t.cancel = map[*task]context.CancelCauseFunc{}
	}
	id := &task{}
	t.cancel[id] = cancel
	t.wg.Add(1)
	return ctx, func() {
		cancel(nil)
		t.mu.Lock()
		delete(t.cancel, id)
		t.mu.Unlock()
		t.wg.Done()
	}, nil
}

// close ends all tasks, refuses new ones and waits.
func (t *tasks) close() {
	t.mu.Lock()
	t.closed = true
	for _, cancel := range t.cancel {
		cancel(ErrClosed)
	}
	t.mu.Unlock()
	t.wg.Wait()
}

// closing returns ErrClosed if ctx, from begin, ended because the store closes.
func closing(ctx context.Context) error {
	if errors.Is(context.Cause(ctx), ErrClosed) {
		return ErrClosed
	}
	return nil
}
