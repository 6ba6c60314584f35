package server

import (
	"context"
	"errors"
)

// errEnded is the cause when a part that should run until it is stopped returned.
var errEnded = errors.New("ended by itself")

// layer is a part others stand on: it is stopped only after they have stopped,
// so its context is not the one that tells them to.
type layer struct {
	cancel context.CancelFunc
	done   chan struct{}
	err    error // set before done is closed
}

func startLayer(ctx context.Context, run func(context.Context) error) *layer {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	l := &layer{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(l.done)
		l.err = run(ctx)
	}()
	return l
}

// watch returns the layer's error if it ends before ctx does.
func (l *layer) watch(ctx context.Context) error {
	select {
	case <-l.done:
		if l.err != nil {
			return l.err
		}
		return errEnded
	case <-ctx.Done():
		return nil
	}
}

// stop ends the layer and waits for it.
func (l *layer) stop() error {
	l.cancel()
	<-l.done
	return l.err
}
