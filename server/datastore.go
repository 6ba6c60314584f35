package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	etcdkubernetes "go.etcd.io/etcd/client/v3/kubernetes"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"
	"k8s.io/apiserver/pkg/storage"
	etcdfeature "k8s.io/apiserver/pkg/storage/feature"

	"github.com/mote-dev/mote/store"
)

const (
	// pipeBuffer is the size of the in-memory connection to the store, in bytes.
	pipeBuffer = 64 << 10
	// snapshotEvery is the time between automatic snapshots of the built-in store.
	snapshotEvery = 12 * time.Hour
	// etcdDialTimeout is how long a real etcd may take to answer at start.
	etcdDialTimeout = 20 * time.Second
)

// datastore is where the API server keeps its objects: the built-in store or a
// real etcd.
type datastore struct {
	client *etcdkubernetes.Client
	// dial makes a gRPC connection to the same data.
	dial func(context.Context) (net.Conn, error)
	// run blocks until ctx ends; close comes after it.
	run   func(context.Context) error
	close func() error
}

func openDatastore(ctx context.Context, c Config) (*datastore, error) {
	if c.DatastoreEndpoint != "" {
		return openEtcd(ctx, strings.Split(c.DatastoreEndpoint, ","))
	}
	return openStore(ctx, c)
}

func openStore(ctx context.Context, c Config) (*datastore, error) {
	file := filepath.Join(c.DataDir, "server", "db", "state.db")
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return nil, fmt.Errorf("create folder of the store: %w", err)
	}
	s, err := store.Open(ctx, store.Options{
		Path: file, Logger: c.Logger.Named("store"), Durability: store.Durability(c.DatastoreDurability),
		SnapshotDir: SnapshotDir(c.DataDir), SnapshotEvery: snapshotEvery,
	})
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", file, err)
	}
	// Upstream asks a client's endpoints what they can do, and an in-process
	// client has none. Without this, the watch cache would not answer reads.
	etcdfeature.DefaultFeatureSupportChecker.CheckClient(ctx, s.Endpoint(ctx), storage.RequestWatchProgress)
	listener := bufconn.Listen(pipeBuffer)
	grpcServer := grpc.NewServer()
	s.RegisterGRPC(grpcServer)
	return &datastore{
		client: s.KubernetesClient(context.WithoutCancel(ctx)),
		dial:   listener.DialContext,
		run: func(ctx context.Context) error {
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

func openEtcd(ctx context.Context, endpoints []string) (*datastore, error) {
	client, err := etcdkubernetes.New(clientv3.Config{
		Context: context.WithoutCancel(ctx), Endpoints: endpoints, DialTimeout: etcdDialTimeout,
		DialKeepAliveTime: 30 * time.Second, DialKeepAliveTimeout: 10 * time.Second,
	})
	if err != nil {
		return nil, fmt.Errorf("connect to etcd at %s: %w", strings.Join(endpoints, ","), err)
	}
	probe, cancel := context.WithTimeout(ctx, etcdDialTimeout)
	defer cancel()
	if _, err := client.Client.Get(probe, "/registry/health"); err != nil {
		_ = client.Close()
		return nil, fmt.Errorf("read from etcd at %s: %w", strings.Join(endpoints, ","), err)
	}
	return &datastore{
		client: client,
		dial: func(ctx context.Context) (net.Conn, error) {
			host := strings.TrimPrefix(strings.TrimPrefix(endpoints[0], "http://"), "https://")
			return (&net.Dialer{}).DialContext(ctx, "tcp", host)
		},
		run: func(ctx context.Context) error {
			<-ctx.Done()
			return nil
		},
		close: client.Close,
	}, nil
}
