package stopsignal

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// received has the first signal. Upstream's packages take a good part of a start to initialise; a
// signal that came before main would end the process as if it had failed. This package comes before
// them: Go initialises what is ready in the order of import paths.
var received = make(chan os.Signal, 1)

func init() { signal.Notify(received, syscall.SIGINT, syscall.SIGTERM) }

// Context returns a context that ends with the first signal. A second one ends the process at once,
// as it does once the function that is returned was called.
func Context() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer signal.Stop(received)
		defer cancel()
		select {
		case <-received:
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}
