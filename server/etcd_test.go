package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/mote-dev/mote/store/storetest"
)

// serveEtcd serves the built-in store as an etcd and returns its port.
func serveEtcd(t *testing.T, o ...grpc.ServerOption) string {
	t.Helper()
	s := storetest.Open(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	g := grpc.NewServer(o...)
	s.RegisterGRPC(g)
	go func() { served <- g.Serve(listener) }()
	t.Cleanup(func() {
		g.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// certificate returns one for 127.0.0.1 that net/http/httptest has, and its file as an authority.
func certificate(t *testing.T) (tls.Certificate, string) {
	t.Helper()
	s := httptest.NewTLSServer(http.NotFoundHandler())
	defer s.Close()
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}),
		0o600); err != nil {
		t.Fatal(err)
	}
	return s.TLS.Certificates[0], file
}

func etcdConfig(t *testing.T, endpoint string) Config {
	t.Helper()
	c, err := Config{
		NodeName:          "n1",
		DataDir:           t.TempDir(),
		DatastoreEndpoint: endpoint,
		Token:             "abcdef.0123456789abcdef",
	}.WithDefaults()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestOpenEtcd_AnyOfTheEndpoints(t *testing.T) {
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := "http://" + gone.Addr().String()
	_ = gone.Close()
	d, err := openDatastore(t.Context(), etcdConfig(t, nobody+", http://127.0.0.1:"+serveEtcd(t)+"/"))
	if err != nil {
		t.Fatal(err)
	}
	if got := d.transport.ServerList; len(got) != 2 || strings.HasSuffix(got[1], "/") {
		t.Errorf("upstream's clients are sent to %v", got)
	}
	if err := d.close(); err != nil {
		t.Error(err)
	}
}

func TestOpenEtcd_TLS(t *testing.T) {
	cert, ca := certificate(t)
	port := serveEtcd(t,
		grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2"}})))
	c := etcdConfig(t, "https://127.0.0.1:"+port)
	c.DatastoreCAFile = ca
	d, err := openDatastore(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if d.transport.TrustedCAFile != ca {
		t.Error("upstream's clients are not told of the authority")
	}
	if err := d.close(); err != nil {
		t.Error(err)
	}
}

// What waiting does not mend is refused at once, in one line that says what to do.
func TestOpenEtcd_Refused(t *testing.T) {
	cert, ca := certificate(t)
	pool := x509.NewCertPool()
	pool.AddCert(cert.Leaf)
	secure := serveEtcd(t, grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{cert}})))
	mutual := serveEtcd(t,
		grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: pool,
			ClientAuth: tls.RequireAndVerifyClientCert})))
	empty := grpc.NewServer()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- empty.Serve(listener) }()
	web := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(func() {
		web.Close()
		empty.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	garbage := filepath.Join(t.TempDir(), "garbage")
	if err := os.WriteFile(garbage, []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name, endpoint string
		change         func(*Config)
		words          []string
	}{
		{"an authority it does not know", "https://127.0.0.1:" + secure, nil,
			[]string{"not trusted", "--datastore-cafile"}},
		{"no certificate of its own", "https://127.0.0.1:" + mutual, func(c *Config) { c.DatastoreCAFile = ca },
			[]string{"does not accept", "--datastore-certfile"}},
		{"a web server", web.URL, nil, []string{"no etcd"}},
		{"another gRPC server", "http://" + listener.Addr().String(), nil, []string{"not as an etcd", "Unimplemented"}},
		{"no file", "https://127.0.0.1:" + secure, func(c *Config) { c.DatastoreCAFile = "/nowhere/ca" },
			[]string{"datastore-cafile", "/nowhere/ca"}},
		{"no authority in the file", "https://127.0.0.1:" + secure, func(c *Config) { c.DatastoreCAFile = garbage },
			[]string{"datastore-cafile", garbage}},
		{"no key in the file", "https://127.0.0.1:" + secure,
			func(c *Config) { c.DatastoreCertFile, c.DatastoreKeyFile = ca, garbage },
			[]string{"datastore-certfile and datastore-keyfile"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := etcdConfig(t, row.endpoint)
			if row.change != nil {
				row.change(&c)
			}
			ctx, cancel := context.WithTimeout(t.Context(), etcdPatience/2)
			defer cancel()
			d, err := openDatastore(ctx, c)
			if err == nil {
				_ = d.close()
				t.Fatal("it was opened")
			}
			if ctx.Err() != nil {
				t.Errorf("only time ended it: %v", err)
			}
			for _, w := range row.words {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not say %q", err, w)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("%q is more than a line", err)
			}
		})
	}
}

// An etcd that stops ends connections, too, so this is waited for.
func TestOpenEtcd_HTTPWhereThereIsTLS(t *testing.T) {
	cert, _ := certificate(t)
	port := serveEtcd(t, grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{cert}})))
	// Its end lies between two attempts.
	ctx, cancel := context.WithTimeout(t.Context(), etcdRetry*3/2)
	defer cancel()
	_, err := openDatastore(ctx, etcdConfig(t, "http://127.0.0.1:"+port))
	if !errors.Is(err, ErrEtcd) || !strings.Contains(err.Error(), "http or https") {
		t.Errorf("%v", err)
	}
}

func TestServer_Open_SecondServer_SameCluster(t *testing.T) {
	port := serveEtcd(t)
	pins := map[string]bool{}
	for _, name := range []string{"n1", "n2"} {
		c := etcdConfig(t, "http://127.0.0.1:"+port)
		c.NodeName, c.BindAddress = name, net.IPv4(127, 0, 0, 1)
		s, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		// Any free port; the two say the same of it, as two machines would.
		s.config.HTTPSListenPort = 0
		if err := s.Open(t.Context()); err != nil {
			t.Fatal(err)
		}
		pins[s.Pin()] = true
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if len(pins) != 1 {
		t.Errorf("the two have %d authorities", len(pins))
	}
}
