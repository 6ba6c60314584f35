package registry

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/zap/zaptest"
)

// world is a network of registries that serve each name with its own certificate, and what they
// were asked.
type world struct {
	dir string

	mu    sync.Mutex
	hosts map[string]*fakeRegistry // by HOST:PORT
	asked []string
}

// fakeRegistry serves one image under any name in repositories, or under all if there are none.
type fakeRegistry struct {
	world        *world
	name         string
	repositories []string
	// login is USER:PASSWORD; bearer asks for a token of the registry's own realm instead.
	login  string
	bearer bool
	server *httptest.Server
}

var (
	layer    = []byte("the layer of the image")
	manifest = must(json.Marshal(v1.Manifest{
		MediaType: v1.MediaTypeImageManifest,
		Layers: []v1.Descriptor{{
			MediaType: v1.MediaTypeImageLayer,
			Digest:    digest.FromBytes(layer),
			Size:      int64(len(layer)),
		}},
	}))
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// authority signs the certificates of the world.
var authority = sync.OnceValue(func() tls.Certificate { return issue("authority", nil) })

func issue(name string, parent *tls.Certificate) tls.Certificate {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(time.Now().UnixNano()),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		DNSNames:              []string{name},
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA:                  parent == nil,
		BasicConstraintsValid: true,
	}
	signer, signerKey := template, any(key)
	if parent != nil {
		signer, signerKey = must(x509.ParseCertificate(parent.Certificate[0])), parent.PrivateKey
	}
	der := must(x509.CreateCertificate(rand.Reader, template, signer, &key.PublicKey, signerKey))
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func writePEM(t *testing.T, file, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// newWorld makes a world without registries. Its folder holds ca.pem, client.pem and
// client-key.pem.
func newWorld(t *testing.T) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "registries-") // t.TempDir has the test's name, with commas
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	w := &world{dir: dir, hosts: map[string]*fakeRegistry{}}
	ca := authority()
	client := issue("client", &ca)
	writePEM(t, filepath.Join(w.dir, "ca.pem"), "CERTIFICATE", ca.Certificate[0])
	writePEM(t, filepath.Join(w.dir, "client.pem"), "CERTIFICATE", client.Certificate[0])
	writePEM(t, filepath.Join(w.dir, "client-key.pem"), "EC PRIVATE KEY",
		must(x509.MarshalECPrivateKey(client.PrivateKey.(*ecdsa.PrivateKey))))
	return w
}

// add serves a registry at HOST:PORT. The options are words: "http" for no TLS, "client" to want a
// client's certificate, "login=USER:PASSWORD", "bearer", "only=REPOSITORY".
func (w *world) add(t *testing.T, address string, options ...string) {
	t.Helper()
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	r := &fakeRegistry{world: w, name: address}
	r.server = httptest.NewUnstartedServer(r)
	ca := authority()
	r.server.TLS = &tls.Config{Certificates: []tls.Certificate{issue(host, &ca)}}
	plain := false
	for _, o := range options {
		key, value, _ := strings.Cut(o, "=")
		switch key {
		case "http":
			plain = true
		case "client":
			pool := x509.NewCertPool()
			pool.AddCert(must(x509.ParseCertificate(ca.Certificate[0])))
			r.server.TLS.ClientAuth, r.server.TLS.ClientCAs = tls.RequireAndVerifyClientCert, pool
		case "login":
			r.login = value
		case "bearer":
			r.bearer = true
		case "only":
			r.repositories = append(r.repositories, value)
		}
	}
	r.server.Config.ErrorLog = log.New(io.Discard, "", 0)
	if plain {
		r.server.Start()
	} else {
		r.server.StartTLS()
	}
	t.Cleanup(r.server.Close)
	w.hosts[address] = r
}

func (w *world) dial(ctx context.Context, network, address string) (net.Conn, error) {
	w.mu.Lock()
	r := w.hosts[address]
	w.mu.Unlock()
	if r != nil {
		address = r.server.Listener.Addr().String()
	} else if strings.HasPrefix(address, "127.0.0.1:") {
		// the proxy
	} else {
		return nil, fmt.Errorf("there is no %s", address)
	}
	var d net.Dialer
	return d.DialContext(ctx, network, address)
}

func (r *fakeRegistry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.URL.Path == "/token" {
		user, password, _ := req.BasicAuth()
		if req.Method == http.MethodPost {
			user, password = req.FormValue("username"), req.FormValue("password")
			if refresh := req.FormValue("refresh_token"); refresh != "" {
				user, password = "token", refresh
			}
		}
		if user+":"+password != r.login {
			http.Error(w, "wrong login", http.StatusUnauthorized)
			return
		}
		scope := req.FormValue("scope")
		// A client that hangs up shows in what the test pulls.
		_ = json.NewEncoder(w).Encode(map[string]string{"token": "for " + scope, "access_token": "for " + scope})
		return
	}
	if r.login != "" && !r.authorized(w, req) {
		return
	}
	r.world.mu.Lock()
	r.world.asked = append(r.world.asked, r.name+req.URL.Path)
	r.world.mu.Unlock()
	served := len(r.repositories) == 0
	for _, repository := range r.repositories {
		served = served || strings.Contains(req.URL.Path, repository+"/manifests/") ||
			strings.Contains(req.URL.Path, repository+"/blobs/")
	}
	switch {
	case !served:
		http.NotFound(w, req)
	case strings.Contains(req.URL.Path, "/manifests/"):
		w.Header().Set("Content-Type", v1.MediaTypeImageManifest)
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(manifest).String())
		w.Header().Set("Content-Length", fmt.Sprint(len(manifest)))
		if req.Method == http.MethodGet {
			_, _ = w.Write(manifest)
		}
	case strings.Contains(req.URL.Path, "/blobs/"):
		_, _ = w.Write(layer)
	default:
		http.NotFound(w, req)
	}
}

func (r *fakeRegistry) authorized(w http.ResponseWriter, req *http.Request) bool {
	if user, password, ok := req.BasicAuth(); ok && !r.bearer && user+":"+password == r.login {
		return true
	}
	repository, _ := splitRepository(strings.TrimPrefix(req.URL.Path, "/v2/"))
	scope := "repository:" + repository + ":pull"
	if r.bearer && strings.Contains(req.Header.Get("Authorization"), scope) {
		return true
	}
	challenge := `Basic realm="test"`
	if r.bearer {
		challenge = fmt.Sprintf(`Bearer realm="https://%s/token",service="test",scope=%q`, r.name, scope)
	}
	w.Header().Set("WWW-Authenticate", challenge)
	w.WriteHeader(http.StatusUnauthorized)
	return false
}

// read writes a registries file, in which DIR is the world's folder, and reads it.
func (w *world) read(t *testing.T, text string) (Config, error) {
	t.Helper()
	file := filepath.Join(w.dir, "registries.yaml")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(text, "DIR", w.dir)), 0o600); err != nil {
		t.Fatal(err)
	}
	return Read(file)
}

// pull fetches an image as containerd's CRI service does with these settings, with the secret of a
// pod if it has one, and returns what was asked.
func (w *world) pull(t *testing.T, text, image string, secret ...string) ([]string, error) {
	t.Helper()
	c, err := w.read(t, text)
	if err != nil {
		t.Fatal(err)
	}
	p, err := c.Listen(zaptest.NewLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	done := make(chan error, 1)
	if p != nil {
		p.dial = w.dial
	}
	certs := filepath.Join(w.dir, "hosts")
	if err := c.Write(ctx, certs, p); err != nil {
		t.Fatal(err)
	}
	go func() { done <- p.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	logins := c.Credentials(p)
	resolver := docker.NewResolver(docker.ResolverOptions{Hosts: config.ConfigureHosts(ctx, config.HostOptions{
		HostDir: config.HostDirFromRoot(certs),
		Credentials: func(host string) (string, string, error) {
			if len(secret) > 0 {
				return secret[0], secret[1], nil
			}
			l := logins[host]
			if l.IdentityToken != "" {
				return "", l.IdentityToken, nil
			}
			return l.Username, l.Password, nil
		},
		UpdateClient: func(client *http.Client) error {
			client.Transport.(*http.Transport).DialContext = w.dial
			return nil
		},
	})})
	w.asked = nil
	name, d, err := resolver.Resolve(ctx, image)
	if err != nil {
		return w.asked, err
	}
	fetcher, err := resolver.Fetcher(ctx, name)
	if err != nil {
		return w.asked, err
	}
	for _, d := range []v1.Descriptor{d, {MediaType: v1.MediaTypeImageLayer, Digest: digest.FromBytes(layer),
		Size: int64(len(layer))}} {
		body, err := fetcher.Fetch(ctx, d)
		if err != nil {
			return w.asked, err
		}
		data, err := io.ReadAll(body)
		body.Close()
		if err != nil {
			return w.asked, err
		}
		if digest.FromBytes(data) != d.Digest {
			t.Errorf("%s is %q", d.Digest, data)
		}
	}
	return w.asked, nil
}
