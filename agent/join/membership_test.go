package join

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/mote-dev/mote/internal/clusterconfig"
	"github.com/mote-dev/mote/internal/joinapi"
)

// member joins and runs a membership until the test ends.
func member(t *testing.T, f *fakeServer, change func(*Config)) *Membership {
	t.Helper()
	c := configFor(t, f.token(), f.URL)
	if change != nil {
		change(&c)
	}
	m, err := Join(quick(t), c)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func run(t *testing.T, m *Membership) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// eventually waits for a condition that another goroutine brings about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx := quick(t)
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatal("never: " + what)
		case <-ticker.C:
		}
	}
}

func TestMembership_Run_RejoinsAfterExpiry(t *testing.T) {
	f := newFakeServer(t)
	f.lifetime = -30 * time.Minute
	m := member(t, f, nil)
	first := m.certificate.Load()
	if time.Now().Before(first.Leaf.NotAfter) {
		t.Fatal("the certificate has not expired")
	}
	f.mu.Lock()
	f.lifetime = time.Hour
	f.mu.Unlock()
	// Like a node that was off for a long time: nothing in memory, no token.
	c := m.config
	c.Token = ""
	m, err := Join(quick(t), c)
	if err != nil {
		t.Fatal(err)
	}
	renewed := m.Renewed()
	run(t, m)
	eventually(t, "a certificate that is valid",
		func() bool { return time.Now().Before(m.certificate.Load().Leaf.NotAfter) })
	select {
	case <-renewed:
	case <-time.After(10 * time.Second):
		t.Error("Renewed did not fire")
	}
	got := f.seen(joinapi.PathRejoin)
	if len(got) != 1 || got[0].NodeSecret != f.seen(joinapi.PathJoin)[0].NodeSecret {
		t.Errorf("%d rejoins, want one with the secret of the join", len(got))
	}
	if kept, err := folder(c.Dir).certificate(zap.NewNop()); err != nil || kept == nil ||
		!kept.Leaf.Equal(m.certificate.Load().Leaf) {
		t.Error("the new certificate is not on disk")
	}
}

func TestMembership_Run_RejoinsWhenTheServerSaysSo(t *testing.T) {
	f := newFakeServer(t)
	m := member(t, f, nil)
	f.refuse(joinapi.PathConfig, joinapi.CodeCertificateInvalid)
	run(t, m)
	eventually(t, "a rejoin", func() bool { return len(f.seen(joinapi.PathRejoin)) == 1 })
}

func TestMembership_Run_JoinsAgainOnceForgotten(t *testing.T) {
	f := newFakeServer(t)
	f.lifetime = -30 * time.Minute
	m := member(t, f, nil)
	f.mu.Lock()
	f.lifetime = time.Hour
	f.mu.Unlock()
	f.refuse(joinapi.PathRejoin, joinapi.CodeNodeUnknown)
	run(t, m)
	eventually(t, "a second join", func() bool { return len(f.seen(joinapi.PathJoin)) == 2 })
}

func TestMembership_Run_FailsOverAndLearnsServers(t *testing.T) {
	f := newFakeServer(t)
	second := f.listen(t)
	address := strings.TrimPrefix(second.URL, "https://")
	f.cluster.Servers = []string{strings.TrimPrefix(f.URL, "https://"), address}
	m := member(t, f, nil)
	run(t, m)
	eventually(t, "the second server is known", func() bool { return slices.Contains(m.Balancer().Servers(), address) })
	f.Close()
	m.Balancer().CloseAll()
	// The first request may still go out on the connection that was just closed.
	eventually(t, "an answer with one of two servers left", func() bool { return m.Refresh(quick(t)) == nil })
	if s, _, err := folder(m.config.Dir).load(); err != nil || !slices.Contains(s.Cluster.Servers, address) {
		t.Errorf("stored servers are %v, %v", s.Cluster.Servers, err)
	}
}

func TestMembership_RefreshSoon_LearnsAServerOfLater(t *testing.T) {
	f := newFakeServer(t)
	f.cluster.Servers = []string{strings.TrimPrefix(f.URL, "https://")}
	m := member(t, f, nil)
	run(t, m)
	eventually(t, "the settings were requested", func() bool { return len(m.Cluster().ClusterDNS) > 0 })
	later := f.listen(t)
	address := strings.TrimPrefix(later.URL, "https://")
	f.mu.Lock()
	f.cluster.Servers = append(slices.Clone(f.cluster.Servers), address)
	f.mu.Unlock()
	m.RefreshSoon()
	eventually(t, "the later server is known", func() bool { return slices.Contains(m.Balancer().Servers(), address) })
}

// A server stays known by the name that the user gave, even after it has sent its addresses: the
// name stays right when the server moves.
func TestMembership_Learn_KeepsServersAsGiven(t *testing.T) {
	f := newFakeServer(t)
	f.cluster.Servers = []string{strings.TrimPrefix(f.URL, "https://")}
	const name = "mote.example.test:6443"
	c := configFor(t, f.token(), f.URL, "https://"+name)
	m, err := Join(quick(t), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Refresh(quick(t)); err != nil {
		t.Fatal(err)
	}
	if got := m.Balancer().Servers(); !slices.Contains(got, name) {
		t.Errorf("servers are %v, want %s among them", got, name)
	}
	c.Token, c.Servers = "", nil
	if m, err = Join(quick(t), c); err != nil {
		t.Fatal(err)
	}
	if got := m.Balancer().Servers(); !slices.Contains(got, name) {
		t.Errorf("after a start without the flag, servers are %v, want %s among them", got, name)
	}
}

// A changed backend fires Learned, is stored for a start without a server, and survives a response
// of a server that does not know the setting. A change of any other setting logs a warning.
func TestMembership_Learn_NetworkBackend(t *testing.T) {
	core, logs := observer.New(zap.WarnLevel)
	f := newFakeServer(t)
	m := member(t, f, func(c *Config) { c.Logger = zap.New(core) })
	if err := m.Refresh(quick(t)); err != nil {
		t.Fatal(err)
	}
	logs.TakeAll() // about settings that this fake server does not send
	for _, row := range []struct {
		name   string
		change func(*joinapi.Cluster)
		want   clusterconfig.Backend
		fired  bool
		lines  int
	}{
		{"the first value", func(c *joinapi.Cluster) { c.NetworkBackend = clusterconfig.BackendVXLAN }, "vxlan", true,
			0},
		{"the same", func(*joinapi.Cluster) {}, "vxlan", false, 0},
		{"another", func(c *joinapi.Cluster) { c.NetworkBackend = clusterconfig.BackendHostGW }, "host-gw", true, 0},
		{"an older server", func(c *joinapi.Cluster) { c.NetworkBackend = "" }, "host-gw", false, 0},
		{"another setting", func(c *joinapi.Cluster) { c.Disable = []string{"dns"} }, "host-gw", true, 1},
	} {
		learned := m.Learned()
		f.mu.Lock()
		row.change(&f.cluster)
		f.mu.Unlock()
		if err := m.Refresh(quick(t)); err != nil {
			t.Fatal(err)
		}
		fired := false
		select {
		case <-learned:
			fired = true
		default:
		}
		if got := m.Cluster().NetworkBackend; got != row.want || fired != row.fired {
			t.Errorf("%s: the backend is %q, want %s; fired of it: %v, want %v", row.name, got, row.want, fired,
				row.fired)
		}
		if n := len(logs.TakeAll()); n != row.lines {
			t.Errorf("%s: %d warnings, want %d", row.name, n, row.lines)
		}
		if s, _, err := folder(m.config.Dir).load(); err != nil || s.Cluster.NetworkBackend != row.want {
			t.Errorf("%s: %q is stored, %v; want %s", row.name, s.Cluster.NetworkBackend, err, row.want)
		}
	}
}

func TestMembership_Clock1970StillConnects(t *testing.T) {
	f := newFakeServer(t)
	m := member(t, f, nil)
	c := m.config
	c.Now = func() time.Time { return time.Unix(100, 0) }
	m, err := Join(quick(t), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Refresh(quick(t)); err != nil {
		t.Errorf("with a clock in 1970, after an earlier join: %v", err)
	}
}

// A server whose clock was ahead has sent a time in the future. Once its clock is right again, that
// time must not make its new certificates look expired.
func TestMembership_ServerWasAheadOnce(t *testing.T) {
	f := newFakeServer(t)
	m := member(t, f, nil)
	m.stored.Cluster.Time = time.Now().AddDate(3, 0, 0)
	if err := m.folder.save(m.stored); err != nil {
		t.Fatal(err)
	}
	m, err := Join(quick(t), m.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Refresh(quick(t)); err != nil {
		t.Errorf("after the clocks were set back: %v", err)
	}
}

func TestMembership_Run_RejoinsWhenNotValidYet(t *testing.T) {
	f := newFakeServer(t)
	// It dates certificates back by an hour, as Kubernetes does by five minutes.
	f.clock = func() time.Time { return time.Now().Add(90 * time.Minute) }
	c := configFor(t, f.token(), f.URL)
	c.Now = f.clock
	m, err := Join(quick(t), c)
	if err != nil {
		t.Fatal(err)
	}
	m.config.Now = time.Now
	if got := m.certificate.Load().Leaf; !m.now().Before(got.NotBefore) {
		t.Fatalf("the certificate is valid from %v, before %v", got.NotBefore, m.now())
	}
	run(t, m)
	eventually(t, "a rejoin", func() bool { return len(f.seen(joinapi.PathRejoin)) > 0 })
}

func TestRenewal_AThirdBeforeTheEnd(t *testing.T) {
	f := newFakeServer(t)
	f.lifetime = 2 * time.Hour
	own := member(t, f, nil).certificate.Load()
	// From an hour ago to two hours from now: one of three is left.
	if left := own.Leaf.NotAfter.Sub(renewal(own)); left != time.Hour {
		t.Errorf("renewed %v before the end, want an hour", left)
	}
}
