package join

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/mote-dev/mote/internal/joinapi"
)

// quick returns a context that bounds the attempts of a test.
func quick(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func configFor(t *testing.T, token string, servers ...string) Config {
	t.Helper()
	return Config{
		Dir:      filepath.Join(t.TempDir(), "pki"),
		Servers:  servers,
		Token:    token,
		NodeName: "n1",
	}
}

func TestJoin_FirstAndSecondStart(t *testing.T) {
	f := newFakeServer(t)
	c := configFor(t, f.token(), f.URL)
	m, err := Join(quick(t), c)
	if err != nil {
		t.Fatal(err)
	}
	if got := m.Cluster().ClusterDNS; len(got) != 1 || got[0].String() != "10.43.0.10" {
		t.Errorf("cluster DNS is %v", got)
	}
	if own := m.certificate.Load(); own == nil || own.Leaf.Subject.CommonName != "system:node:n1" {
		t.Errorf("certificate is %+v", own)
	}
	err = filepath.WalkDir(c.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && d.Name() != caName && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s is %v: others can read it", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	secret := f.seen(joinapi.PathJoin)[0].NodeSecret

	// Neither a token nor a server is needed any more.
	f.Close()
	again := c
	again.Token, again.Servers = "", nil
	if m, err = Join(quick(t), again); err != nil {
		t.Fatal(err)
	}
	if m.certificate.Load() == nil || len(m.Balancer().Servers()) == 0 {
		t.Error("the second start knows no certificate or no server")
	}
	if kept, err := folder(c.Dir).secret(); err != nil || kept != secret {
		t.Errorf("secret changed: %v", err)
	}
}

func TestJoin_Refused(t *testing.T) {
	f, other := newFakeServer(t), newFakeServer(t)
	plain := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(plain.Close)
	elsewhere := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(elsewhere.Close)
	for _, row := range []struct {
		name   string
		server string
		token  string
		code   joinapi.Code
		want   error
		says   []string
	}{
		{
			name:   "another cluster's server",
			server: other.URL,
			token:  f.token(),
			want:   ErrWrongServer,
			says:   []string{"token", "check the address"},
		},
		{
			name:   "plain HTTP",
			server: strings.Replace(plain.URL, "http:", "https:", 1),
			token:  f.token(),
			want:   ErrNotMote,
			says:   []string{"plain HTTP", "https://HOST:6443"},
		},
		{
			name:   "another service's port",
			server: elsewhere.URL,
			token:  f.token(),
			want:   ErrNotMote,
			says:   []string{"404", "https://HOST:6443"},
		},
		{
			name:   "token cut in half",
			server: f.URL,
			token:  f.token()[:40],
			want:   joinapi.ErrTokenForm,
			says:   []string{"cut short", "again"},
		},
		{
			name:   "wrong token",
			server: f.URL,
			token:  "abcdef.aaaaaaaaaaaaaaaa",
			says:   []string{"no such token"},
		},
		{
			name:   "name taken",
			server: f.URL,
			token:  f.token(),
			code:   joinapi.CodeNameTaken,
			says:   []string{"refused as NameTaken"},
		},
		{
			name:   "version too far",
			server: f.URL,
			token:  f.token(),
			code:   joinapi.CodeVersionSkew,
			says:   []string{"refused as VersionSkew"},
		},
		{
			name:   "no token",
			server: f.URL,
			want:   ErrNoToken,
			says:   []string{"--token"},
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			if row.code != "" {
				f.refuse(joinapi.PathJoin, row.code)
			}
			c := configFor(t, row.token, row.server)
			_, err := Join(quick(t), c)
			if err == nil || (row.want != nil && !errors.Is(err, row.want)) {
				t.Fatalf("error is %v, want %v", err, row.want)
			}
			if row.code != "" && !refused(err, row.code) {
				t.Errorf("error is %v, want the server's code %s", err, row.code)
			}
			for _, part := range row.says {
				if !strings.Contains(err.Error(), part) || strings.Contains(err.Error(), "\n") {
					t.Errorf("message %q lacks %q or has several lines", err, part)
				}
			}
			if _, err := os.Stat(filepath.Join(c.Dir, clusterName)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("a refused node counts as joined: %v", err)
			}
		})
	}
}

func TestJoin_WaitsWhereItHelps(t *testing.T) {
	f := newFakeServer(t)
	f.refuse(joinapi.PathJoin, joinapi.CodeNotReady, joinapi.CodeTooManyRequests)
	core, logs := observer.New(zap.InfoLevel)
	c := configFor(t, f.token(), "https://127.0.0.1:1", f.URL)
	c.Logger = zap.New(core)
	if _, err := Join(quick(t), c); err != nil {
		t.Fatal(err)
	}
	if got := logs.FilterMessageSnippet("cannot be reached").Len(); got == 0 || got > 2 {
		t.Errorf("%d lines about the server that is away, want one for each change", got)
	}
}

func TestJoin_WithoutPin_TrustsTheFirst(t *testing.T) {
	f := newFakeServer(t)
	core, logs := observer.New(zap.InfoLevel)
	c := configFor(t, testToken, f.URL)
	c.Logger = zap.New(core)
	if _, err := Join(quick(t), c); err != nil {
		t.Fatal(err)
	}
	if got := logs.FilterMessageSnippet("first server is trusted").Len(); got != 1 {
		t.Errorf("%d warnings that the first server is trusted, want one", got)
	}
	c.Token = newFakeServer(t).token()
	if _, err := Join(quick(t), c); !errors.Is(err, ErrWrongServer) ||
		!strings.Contains(err.Error(), "mote uninstall") {
		t.Errorf("a token of another cluster afterwards: %v", err)
	}
}

func TestJoin_OtherName(t *testing.T) {
	f := newFakeServer(t)
	c := configFor(t, f.token(), f.URL)
	if _, err := Join(quick(t), c); err != nil {
		t.Fatal(err)
	}
	c.NodeName = "n2"
	if _, err := Join(quick(t), c); !errors.Is(err, ErrOtherIdentity) || !strings.Contains(err.Error(), "n1") {
		t.Errorf("another name: %v", err)
	}
	if name, err := Name(c.Dir); name != "n1" || err != nil {
		t.Errorf("name is %q, %v", name, err)
	}
}

func TestJoin_ClockSaysBothTimes(t *testing.T) {
	f := newFakeServer(t)
	core, logs := observer.New(zap.InfoLevel)
	c := configFor(t, f.token(), f.URL)
	c.Logger = zap.New(core)
	ctx, cancel := context.WithCancel(quick(t))
	calls := 0
	c.Now = func() time.Time {
		if calls++; calls > 1 {
			// The clock is set while the node waits.
			return time.Now()
		}
		return time.Unix(0, 0)
	}
	defer cancel()
	today := time.Now().UTC().Format("2006-01-02")
	if _, err := Join(ctx, c); err != nil {
		t.Fatal(err)
	}
	line := logs.FilterMessageSnippet("clock is far off").All()
	if len(line) != 1 || !strings.Contains(line[0].Message, "1970-01-01") || !strings.Contains(line[0].Message, today) {
		t.Errorf("lines about the clock: %v", line)
	}
}
