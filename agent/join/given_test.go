package join

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// joinedTo joins f's cluster, and returns the config of later starts: without a token.
func joinedTo(t *testing.T, f *fakeServer) Config {
	t.Helper()
	c := configFor(t, f.token(), f.URL)
	if _, err := Join(quick(t), c); err != nil {
		t.Fatal(err)
	}
	c.Token, c.Servers = "", nil
	return c
}

// A server that does not answer, given to a node that has joined, is reported once, does not
// become the one in use, and is forgotten with the process.
func TestJoin_JoinedNode_GivenServerIsSilent(t *testing.T) {
	plain := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(plain.Close)
	for _, row := range []struct{ name, server, want string }{
		{"unknown name", "https://nohost.invalid:6443", "nohost.invalid"},
		{"closed port", "https://127.0.0.1:1", "127.0.0.1:1"},
		{"plain HTTP", strings.Replace(plain.URL, "http:", "https:", 1), "plain HTTP"},
	} {
		t.Run(row.name, func(t *testing.T) {
			f := newFakeServer(t)
			c := joinedTo(t, f)
			core, logs := observer.New(zap.InfoLevel)
			c.Logger, c.Servers = zap.New(core), []string{row.server}
			m, err := Join(quick(t), c)
			if err != nil {
				t.Fatal(err)
			}
			got := logs.FilterLevelExact(zap.WarnLevel).All()
			if len(got) != 1 || !strings.Contains(got[0].Message, row.want) ||
				strings.Contains(got[0].Message, "\n") {
				t.Errorf("warnings are %v, want one with %q", got, row.want)
			}
			if err := m.Refresh(quick(t)); err != nil {
				t.Fatal(err)
			}
			if used, err := m.Balancer().Used(); "https://"+used != f.URL || err != nil {
				t.Errorf("in use is %q, %v; want %s", used, err, f.URL)
			}
			given := strings.TrimPrefix(row.server, "https://")
			if all := m.Balancer().Servers(); !slices.Contains(all, given) || all[0] == given {
				t.Errorf("servers are %v; want %s among them, as it may answer later, and not first", all, given)
			}
			if s, _, err := folder(c.Dir).load(); err != nil || slices.Contains(s.Cluster.Servers, given) {
				t.Errorf("stored servers are %v, %v; want none that was never seen", s.Cluster.Servers, err)
			}
		})
	}
}

// A server of another cluster, given to a node that has joined, is refused: the node would go on in
// a cluster that its user means to leave.
func TestJoin_JoinedNode_GivenServerIsOfAnotherCluster(t *testing.T) {
	f, other := newFakeServer(t), newFakeServer(t)
	elsewhere := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(elsewhere.Close)
	second := f.listen(t)
	for _, row := range []struct {
		name    string
		servers []string
		refused bool
		used    string
	}{
		{"alone", []string{other.URL}, true, ""},
		{"some HTTPS server", []string{elsewhere.URL}, true, ""},
		{"beside one that does not answer", []string{"https://127.0.0.1:1", other.URL}, true, ""},
		{"beside the known one", []string{other.URL, f.URL}, false, f.URL},
		{"beside a new one of this cluster", []string{other.URL, second.URL}, false, second.URL},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := joinedTo(t, f)
			before, err := os.ReadFile(folder(c.Dir).path(clusterName))
			if err != nil {
				t.Fatal(err)
			}
			core, logs := observer.New(zap.WarnLevel)
			c.Logger, c.Servers = zap.New(core), row.servers
			m, err := Join(quick(t), c)
			if row.refused {
				if !errors.Is(err, ErrWrongServer) || !strings.Contains(err.Error(), "mote uninstall --yes") ||
					strings.Contains(err.Error(), "\n") {
					t.Errorf("error is %v, want one line that says what to do", err)
				}
				after, err := os.ReadFile(folder(c.Dir).path(clusterName))
				if err != nil || string(after) != string(before) {
					t.Errorf("the identity changed: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if n := logs.FilterMessageSnippet("wrong server").Len(); n != 1 {
				t.Errorf("%d warnings, want one", n)
			}
			if err := m.Refresh(quick(t)); err != nil {
				t.Fatal(err)
			}
			if used, err := m.Balancer().Used(); "https://"+used != row.used || err != nil {
				t.Errorf("in use is %q, %v; want %s", used, err, row.used)
			}
		})
	}
}

// An address that was this cluster's and is another's by now, as after the network gave it to
// another machine, keeps no node from starting.
func TestJoin_JoinedNode_KnownServerIsOfAnotherClusterByNow(t *testing.T) {
	f, other := newFakeServer(t), newFakeServer(t)
	c := joinedTo(t, f)
	s, _, err := folder(c.Dir).load()
	if err != nil {
		t.Fatal(err)
	}
	s.Cluster.Servers = append([]string{strings.TrimPrefix(other.URL, "https://")}, s.Cluster.Servers...)
	if err := folder(c.Dir).save(s); err != nil {
		t.Fatal(err)
	}
	c.Servers = []string{other.URL}
	m, err := Join(quick(t), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Refresh(quick(t)); err != nil {
		t.Fatal(err)
	}
	if used, err := m.Balancer().Used(); "https://"+used != f.URL || err != nil {
		t.Errorf("in use is %q, %v; want %s", used, err, f.URL)
	}
}

// With a clock in 1970 no certificate is valid, and the server given is this cluster's all the
// same.
func TestJoin_JoinedNode_GivenServerWithClockIn1970(t *testing.T) {
	f := newFakeServer(t)
	second := f.listen(t)
	c := joinedTo(t, f)
	core, logs := observer.New(zap.WarnLevel)
	c.Logger, c.Servers = zap.New(core), []string{second.URL}
	c.Now = func() time.Time { return time.Unix(60, 0) }
	m, err := Join(quick(t), c)
	if err != nil || logs.Len() > 0 {
		t.Fatalf("error is %v, warnings %v; want none", err, logs.All())
	}
	if err := m.Refresh(quick(t)); err != nil {
		t.Fatal(err)
	}
	if used, err := m.Balancer().Used(); "https://"+used != second.URL || err != nil {
		t.Errorf("in use is %q, %v; want %s", used, err, second.URL)
	}
}
