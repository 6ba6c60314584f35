package server

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/cert"

	"github.com/mote-dev/mote/server/pki"
	"github.com/mote-dev/mote/server/revocation"
)

// TestServer_KeepAdmin_WritesTheFileHoweverLate revokes the administrator while the file cannot be
// written: the owner must get in all the same, a little later.
func TestServer_KeepAdmin_WritesTheFileHoweverLate(t *testing.T) {
	dir := t.TempDir()
	set, err := pki.Open(filepath.Join(dir, "tls"), pki.Names{}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	old, err := set.AdminCertificate()
	if err != nil {
		t.Fatal(err)
	}
	// A file where the folder should be.
	folder := filepath.Join(dir, "etc")
	if err := os.WriteFile(folder, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	core, logs := observer.New(zap.InfoLevel)
	client := fake.NewClientset()
	guard, err := revocation.New(revocation.Config{Client: client, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{config: Config{KubeconfigOutput: filepath.Join(folder, "kubeconfig.yaml"), HTTPSListenPort: 6443,
		Logger: zap.New(core)}, pki: set}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() { _ = guard.Run(ctx) })
	running.Go(func() {
		if err := s.keepAdmin(ctx, guard); err != nil {
			t.Error(err)
		}
	})
	logged := func(message string) {
		t.Helper()
		tick, timeout := time.NewTicker(5*time.Millisecond), time.After(30*time.Second)
		defer tick.Stop()
		for logs.FilterMessageSnippet(message).Len() == 0 {
			select {
			case <-tick.C:
			case <-timeout:
				t.Fatalf("%q was not logged; %v", message, logs.All())
			}
		}
	}
	// By name: what is made instead has to be excepted.
	if err := revocation.Add(ctx, client, revocation.ForUser(old.Subject.CommonName, time.Now())); err != nil {
		t.Fatal(err)
	}
	logged("there is no new kubeconfig yet")
	if err := os.Remove(folder); err != nil {
		t.Fatal(err)
	}
	logged("wrote a new administrator's kubeconfig")
	config, err := clientcmd.LoadFromFile(s.config.KubeconfigOutput)
	if err != nil {
		t.Fatal(err)
	}
	written, err := cert.ParseCertsPEM(config.AuthInfos["admin"].ClientCertificateData)
	if err != nil {
		t.Fatal(err)
	}
	if why, is, err := guard.Revoked(ctx, written[0]); is || err != nil {
		t.Errorf("the certificate in the new file is refused: %s, %v", why, err)
	}
	if _, is, err := guard.Revoked(ctx, old); !is || err != nil {
		t.Errorf("the old certificate is let in (%v)", err)
	}
	if n := logs.FilterMessageSnippet("no new kubeconfig yet").Len(); n != 1 {
		t.Errorf("the same fault was logged %d times", n)
	}
}
