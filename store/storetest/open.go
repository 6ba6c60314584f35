package storetest

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/mote-dev/mote/store"
)

// Open returns an empty store that runs, in a folder of the test's. When the test ends, after what
// it registers from then on has been cleaned up, the store is closed; a fault it met by then fails
// the test.
func Open(t *testing.T) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), store.Options{Path: filepath.Join(t.TempDir(), "state.db")})
	if err != nil {
		t.Fatal(err)
	}
	// Not the test's own context, which ends before the cleaning up.
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-ran, s.Close()); err != nil {
			t.Error(err)
		}
	})
	return s
}

// Client returns a client of an empty etcd: of a store that Open opened.
func Client(t *testing.T) *clientv3.Client {
	t.Helper()
	s := Open(t)
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	return s.Client(ctx)
}
