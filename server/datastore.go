package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	etcdkubernetes "go.etcd.io/etcd/client/v3/kubernetes"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apiserver/pkg/server/egressselector"
	"k8s.io/apiserver/pkg/storage"
	etcdfeature "k8s.io/apiserver/pkg/storage/feature"
	"k8s.io/apiserver/pkg/storage/storagebackend"

	"github.com/mote-dev/mote/internal/datadir"
	"github.com/mote-dev/mote/internal/upstream"
	"github.com/mote-dev/mote/store"
)

const (
	// pipeBuffer is the size of the in-memory connection to the store, in bytes.
	pipeBuffer = 64 << 10
	// snapshotEvery is the time between automatic snapshots of the built-in store.
	snapshotEvery = 12 * time.Hour
	// storeAddress stands for the store where upstream insists on an address.
	storeAddress = "store.mote.in-process:2379"
)

// datastore is where the API server keeps its objects: the built-in store or a real etcd.
type datastore struct {
	client *etcdkubernetes.Client
	// transport leads the few parts of upstream that make an etcd client of their own (the node
	// port allocator) to the same data.
	transport storagebackend.TransportConfig
	// run blocks until ctx ends; close comes after it.
	run   func(context.Context) error
	close func() error
}

func openDatastore(ctx context.Context, c Config) (*datastore, error) {
	if c.DatastoreEndpoint != "" {
		return openEtcd(ctx, c)
	}
	return openStore(ctx, c)
}

// heartbeats are written every ten seconds by each node and each server, and mean nothing after a
// power cut: whoever is alive writes the next. The leases that elect leaders are not among them.
var heartbeats = []string{"/registry/leases/kube-node-lease/", "/registry/leases/kube-system/apiserver-"}

func openStore(ctx context.Context, c Config) (*datastore, error) {
	file := datadir.At(c.DataDir).StoreFile()
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return nil, fmt.Errorf("create folder of the store: %w", err)
	}
	s, err := store.Open(ctx, store.Options{
		Path:          file,
		Logger:        c.Logger.Named("store"),
		Durability:    store.Durability(c.DatastoreDurability),
		DeferredKeys:  heartbeats,
		SnapshotDir:   datadir.At(c.DataDir).Snapshots(),
		SnapshotEvery: snapshotEvery,
	})
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", file, err)
	}
	// Upstream asks a client's endpoints what they can do, and an in-process client has none.
	// Without this, the watch cache would not answer reads.
	etcdfeature.DefaultFeatureSupportChecker.CheckClient(ctx, s.Endpoint(ctx), storage.RequestWatchProgress)
	listener := bufconn.Listen(pipeBuffer)
	grpcServer := grpc.NewServer()
	s.RegisterGRPC(grpcServer)
	return &datastore{
		client: s.KubernetesClient(context.WithoutCancel(ctx)),
		transport: storagebackend.TransportConfig{
			ServerList: []string{"http://" + storeAddress},
			EgressLookup: func(egressselector.NetworkContext) (utilnet.DialFunc, error) {
				return func(ctx context.Context, _, _ string) (net.Conn, error) { return listener.DialContext(ctx) },
					nil
			},
		},
		run: func(ctx context.Context) error {
			// Served by the API server, under /metrics.
			var metrics upstream.Metrics
			defer metrics.Close()
			if err := metrics.Register(s); err != nil {
				return fmt.Errorf("register metrics of the store: %w", err)
			}
			g, ctx := errgroup.WithContext(ctx)
			g.Go(func() error { return s.Run(ctx) })
			g.Go(func() error {
				if err := grpcServer.Serve(listener); !errors.Is(err, grpc.ErrServerStopped) {
					return err
				}
				return nil
			})
			g.Go(func() error {
				<-ctx.Done()
				grpcServer.Stop()
				return nil
			})
			return g.Wait()
		},
		close: s.Close,
	}, nil
}
