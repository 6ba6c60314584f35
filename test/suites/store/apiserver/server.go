package testserver

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"go.etcd.io/etcd/server/v3/embed"
	storagetesting "k8s.io/apiserver/pkg/storage/testing"

	"github.com/mote-dev/mote/store"
)

// NewTestConfig gives the part of an etcd's configuration that the tests change.
func NewTestConfig(testing.TB) *embed.Config { return embed.NewConfig() }

// RunEtcd runs a store until the test ends and gives a client of it. MOTE_TEST_CLIENT says which:
// "grpc" is etcd's own over a connection; "local" is etcd's Kubernetes client on the in-process
// client; "direct" is the store's own.
func RunEtcd(t testing.TB, cfg *embed.Config) *kubernetes.Client {
	t.Helper()
	// Not synced, as the etcd these tests come with is not: some wait for 100 ms only.
	o := store.Options{Path: filepath.Join(t.TempDir(), "state.db"), Durability: store.DurabilityRelaxed}
	if cfg != nil {
		o.ProgressInterval = cfg.WatchProgressNotifyInterval
	}
	s, err := store.Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	var client *kubernetes.Client
	switch mode := os.Getenv("MOTE_TEST_CLIENT"); mode {
	case "grpc":
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() { ran <- s.Serve(ctx, l) }()
		if client, err = kubernetes.New(
			clientv3.Config{Endpoints: []string{"http://" + l.Addr().String()}}); err != nil {
			t.Fatal(err)
		}
	case "local":
		go func() { ran <- s.Run(ctx) }()
		client = &kubernetes.Client{Client: s.Client(ctx)}
		client.Kubernetes = client
	case "direct":
		go func() { ran <- s.Run(ctx) }()
		client = s.KubernetesClient(ctx)
	default:
		t.Fatalf("MOTE_TEST_CLIENT is %q", mode)
	}
	t.Cleanup(func() {
		cancel()
		if err := <-ran; err != nil {
			t.Errorf("run store: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("close store: %v", err)
		}
	})
	recorder := storagetesting.NewKubernetesRecorder(client.Kubernetes)
	client.KV = storagetesting.NewKVRecorder(client.KV, recorder)
	client.Kubernetes = recorder
	return client
}
