package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	wire "github.com/miekg/dns"
	"go.uber.org/zap"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"
)

// unreachableAPI fails every call to the fake API server.
func unreachableAPI(clienttesting.Action) (bool, runtime.Object, error) {
	return true, nil, errors.New("connection refused")
}

// testClock is a clock that only advances when told to.
type testClock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *testClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *testClock) move(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

var resolverA, resolverB = netip.MustParseAddrPort("192.0.2.1:53"), netip.MustParseAddrPort("192.0.2.2:53")

// aReply answers a question with one A record.
func aReply(t testing.TB, m *wire.Msg, ttl int, ip string) *wire.Msg {
	reply := new(wire.Msg).SetReply(m)
	reply.Answer = []wire.RR{record(t, fmt.Sprintf("%s %d IN A %s", m.Question[0].Name, ttl, ip))}
	return reply
}

// fakeForwarder returns a forwarder over a fake clock, and a function instead of a network.
func fakeForwarder(exchange func(network string, server netip.AddrPort, m *wire.Msg) (*wire.Msg, error)) (*forwarder,
	*testClock) {
	clock := &testClock{now: time.Unix(1e9, 0)}
	return newForwarder(1<<20,
		func(_ context.Context, network string, server netip.AddrPort, m *wire.Msg) (*wire.Msg, error) {
			return exchange(network, server, m)
		}, clock.Now, func(string) {}), clock
}

func TestForwarder_Resolve_CachesAndCountsDown(t *testing.T) {
	queries := 0
	f, clock := fakeForwarder(func(_ string, _ netip.AddrPort, m *wire.Msg) (*wire.Msg, error) {
		queries++
		return aReply(t, m, 60, "192.0.2.9"), nil
	})
	q := question{"x.example.", "x.example.", wire.TypeA}
	resolve := func() *wire.Msg { return f.resolve(context.Background(), q, []netip.AddrPort{resolverA}, false, false) }
	resolve()
	clock.move(20 * time.Second)
	m := resolve()
	if queries != 1 || m.Answer[0].Header().Ttl != 40 {
		t.Errorf("queried %d times, TTL %d", queries, m.Answer[0].Header().Ttl)
	}
	m.Answer[0].Header().Name = "spoilt."
	if again := resolve(); again.Answer[0].Header().Name != "x.example." {
		t.Error("a caller's change reached the cache")
	}
	clock.move(41 * time.Second)
	if resolve(); queries != 2 {
		t.Errorf("queried %d times after the TTL", queries)
	}
	clock.move(-time.Hour)
	if resolve(); queries != 3 {
		t.Errorf("queried %d times after the clock was set back", queries)
	}
}

func TestForwarder_Resolve_ServesStaleWhenNobodyAnswers(t *testing.T) {
	down := false
	f, clock := fakeForwarder(func(_ string, _ netip.AddrPort, m *wire.Msg) (*wire.Msg, error) {
		if down {
			return nil, errors.New("i/o timeout")
		}
		return aReply(t, m, 60, "192.0.2.9"), nil
	})
	q := question{"x.example.", "x.example.", wire.TypeA}
	servers := []netip.AddrPort{resolverA}
	f.resolve(context.Background(), q, servers, false, false)
	down = true
	for _, c := range []struct {
		after time.Duration
		rcode int
	}{{2 * time.Minute, wire.RcodeSuccess}, {time.Hour, wire.RcodeSuccess}, {25 * time.Hour, wire.RcodeServerFailure}} {
		clock.move(c.after)
		m := f.resolve(context.Background(), q, servers, false, false)
		if m.Rcode != c.rcode {
			t.Errorf("after %v more: %s", c.after, wire.RcodeToString[m.Rcode])
		}
		if m.Rcode == wire.RcodeSuccess && m.Answer[0].Header().Ttl != staleTTL {
			t.Errorf("stale TTL is %d", m.Answer[0].Header().Ttl)
		}
	}
	// The same without any resolver.
	if m := f.resolve(context.Background(), question{"y.example.", "y.example.", wire.TypeA}, nil, false,
		false); m.Rcode != wire.RcodeServerFailure {
		t.Errorf("no resolver: %s", wire.RcodeToString[m.Rcode])
	}
}

func TestForwarder_Resolve_NegativeAnswers(t *testing.T) {
	queries := 0
	f, clock := fakeForwarder(func(_ string, _ netip.AddrPort, m *wire.Msg) (*wire.Msg, error) {
		queries++
		reply := new(wire.Msg).SetRcode(m, wire.RcodeNameError)
		reply.Ns = []wire.RR{record(t, "example. 900 IN SOA a. b. 1 2 3 4 30")}
		return reply, nil
	})
	q := question{"no.example.", "no.example.", wire.TypeA}
	for range 2 {
		if m := f.resolve(context.Background(), q, []netip.AddrPort{resolverA}, false,
			false); m.Rcode != wire.RcodeNameError {
			t.Fatal(m.Rcode)
		}
	}
	if queries != 1 {
		t.Errorf("a denial was queried %d times", queries)
	}
	clock.move(31 * time.Second)
	if f.resolve(context.Background(), q, []netip.AddrPort{resolverA}, false, false); queries != 2 {
		t.Errorf("queried %d times after the denial's TTL", queries)
	}
}

func TestForwarder_Resolve_TriesTheNextAndRemembers(t *testing.T) {
	var queries []netip.AddrPort
	f, clock := fakeForwarder(func(_ string, server netip.AddrPort, m *wire.Msg) (*wire.Msg, error) {
		queries = append(queries, server)
		if server == resolverA {
			return nil, context.DeadlineExceeded
		}
		return aReply(t, m, 0, "192.0.2.9"), nil
	})
	both := []netip.AddrPort{resolverA, resolverB}
	for i := range 2 {
		q := question{fmt.Sprintf("n%d.example.", i), fmt.Sprintf("n%d.example.", i), wire.TypeA}
		if m := f.resolve(context.Background(), q, both, false, false); m.Rcode != wire.RcodeSuccess {
			t.Fatal(m.Rcode)
		}
	}
	if fmt.Sprint(queries) != fmt.Sprint([]netip.AddrPort{resolverA, resolverB, resolverB}) {
		t.Errorf("queried %v; the one that failed should have been last", queries)
	}
	clock.move(time.Minute)
	queries = nil
	f.resolve(context.Background(), question{"n9.example.", "n9.example.", wire.TypeA}, both, false, false)
	if len(queries) == 0 || queries[0] != resolverA {
		t.Errorf("queried %v; the first one should be tried again", queries)
	}
}

func TestForwarder_Resolve_OneQuestionForMany(t *testing.T) {
	var mu sync.Mutex
	queries := 0
	release, entered := make(chan struct{}), make(chan struct{}, 100)
	f, _ := fakeForwarder(func(_ string, _ netip.AddrPort, m *wire.Msg) (*wire.Msg, error) {
		mu.Lock()
		queries++
		mu.Unlock()
		entered <- struct{}{}
		<-release
		return aReply(t, m, 60, "192.0.2.9"), nil
	})
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			if m := f.resolve(context.Background(), question{"x.example.", "x.example.", wire.TypeA},
				[]netip.AddrPort{resolverA}, false, false); m.Rcode != wire.RcodeSuccess {
				t.Errorf("answer %d: %s", i, wire.RcodeToString[m.Rcode])
			}
		})
	}
	<-entered
	close(release)
	all.Wait()
	if queries != 1 {
		t.Errorf("queried %d times", queries)
	}
}

// A flood of queries for one name that no resolver answers must not use up the memory.
func TestForwarder_Resolve_BoundsWaitingClients(t *testing.T) {
	release := make(chan struct{})
	f, _ := fakeForwarder(func(_ string, _ netip.AddrPort, m *wire.Msg) (*wire.Msg, error) {
		<-release
		return aReply(t, m, 60, "192.0.2.9"), nil
	})
	resolve := func() int {
		q := question{"x.example.", "x.example.", wire.TypeA}
		return f.resolve(context.Background(), q, []netip.AddrPort{resolverA}, false, false).Rcode
	}
	var waiting sync.WaitGroup
	for range maxWaiting {
		waiting.Go(func() {
			if code := resolve(); code != wire.RcodeSuccess {
				t.Errorf("a client that waits gets %s", wire.RcodeToString[code])
			}
		})
	}
	eventually(t, func() string {
		if n := len(f.waiting); n != maxWaiting {
			return fmt.Sprintf("%d clients wait, want %d", n, maxWaiting)
		}
		return ""
	})
	if code := resolve(); code != wire.RcodeServerFailure {
		t.Errorf("one client more gets %s", wire.RcodeToString[code])
	}
	close(release)
	waiting.Wait()
	if code := resolve(); code != wire.RcodeSuccess {
		t.Errorf("after the flood a client gets %s", wire.RcodeToString[code])
	}
}

func TestForwarder_QueryOne_RefusesForeignReplies(t *testing.T) {
	for name, spoil := range map[string]func(*wire.Msg){
		"another name": func(m *wire.Msg) { m.Question[0].Name = "evil.example." },
		"another type": func(m *wire.Msg) { m.Question[0].Qtype = wire.TypeTXT },
		"another id":   func(m *wire.Msg) { m.Id++ },
		"a question":   func(m *wire.Msg) { m.Response = false },
		"no question":  func(m *wire.Msg) { m.Question = nil },
	} {
		f, _ := fakeForwarder(func(_ string, _ netip.AddrPort, m *wire.Msg) (*wire.Msg, error) {
			reply := aReply(t, m, 60, "192.0.2.66")
			spoil(reply)
			return reply, nil
		})
		m := f.resolve(context.Background(), question{"x.example.", "x.example.", wire.TypeA},
			[]netip.AddrPort{resolverA}, false, false)
		if m.Rcode != wire.RcodeServerFailure || len(m.Answer) != 0 {
			t.Errorf("%s: %v", name, m)
		}
	}
}

func TestAnswerCache_StaysWithinItsBytes(t *testing.T) {
	clock := &testClock{now: time.Unix(1e9, 0)}
	const limit = 20000
	c := newAnswerCache(limit, clock.Now)
	for i := range 1000 {
		q := fmt.Sprintf("name-%d.example.", i)
		m := new(wire.Msg).SetQuestion(q, wire.TypeA)
		c.put(cacheKey{name: q, qtype: wire.TypeA}, aReply(t, m, 60, "192.0.2.9"))
		if _, bytes := c.size(); bytes > limit {
			t.Fatalf("%d bytes after %d answers", bytes, i)
		}
	}
	entries, _ := c.size()
	if entries < 20 {
		t.Errorf("only %d answers are cached", entries)
	}
	if c.get(cacheKey{name: "name-999.example.", qtype: wire.TypeA}, false) == nil {
		t.Error("the newest answer is gone")
	}
	if c.get(cacheKey{name: "name-0.example.", qtype: wire.TypeA}, false) != nil {
		t.Error("the oldest answer is still there")
	}
}

func TestServer_Reply_SizesAndTruncation(t *testing.T) {
	up := startUpstream(t)
	up.answer(func(m *wire.Msg, udp bool) *wire.Msg {
		reply := new(wire.Msg).SetReply(m)
		for i := range 60 {
			reply.Answer = append(reply.Answer,
				record(t, fmt.Sprintf("%s 60 IN TXT %q", m.Question[0].Name, strings.Repeat("x", 60)+fmt.Sprint(i))))
		}
		if udp {
			reply.Truncate(ednsSize)
		}
		return reply
	})
	s, _ := startServer(t, nil, settingsMap(map[string]string{"upstreams": up.addr.String()}))
	waitForUpstream(t, s)
	for _, c := range []struct {
		name, network string
		size          uint16
		whole         bool
		limit         int
	}{
		{"without EDNS", "udp", 0, false, 512}, {"with EDNS", "udp", 1232, false, 1232},
		{"with huge EDNS", "udp", 65000, false, 1232},
		{"with tiny EDNS", "udp", 100, false, 512}, {"over TCP", "tcp", 0, true, 65535},
	} {
		m := query(t, s, c.network, "big.example.org", "TXT", func(m *wire.Msg) {
			if c.size > 0 {
				m.SetEdns0(c.size, true)
			}
		})
		m.Compress = true
		if m.Truncated == c.whole || m.Len() > c.limit || (c.whole && len(m.Answer) != 60) {
			t.Errorf("%s: truncated %v, %d bytes, %d records", c.name, m.Truncated, m.Len(), len(m.Answer))
		}
		if opt := m.IsEdns0(); (opt != nil) != (c.size > 0) ||
			(opt != nil && (!opt.Do() || opt.UDPSize() != ednsSize)) {
			t.Errorf("%s: EDNS %v", c.name, opt)
		}
	}
}

func TestServer_Reply_OddMessages(t *testing.T) {
	s, _ := startServer(t, nil, clusterObjects()...)
	for _, c := range []struct {
		name   string
		change func(*wire.Msg)
		rcode  int
	}{
		{"notify", func(m *wire.Msg) { m.Opcode = wire.OpcodeStatus }, wire.RcodeNotImplemented},
		{"class", func(m *wire.Msg) { m.Question[0].Qclass = wire.ClassCHAOS }, wire.RcodeRefused},
		{"transfer", func(m *wire.Msg) { m.Question[0].Qtype = wire.TypeAXFR }, wire.RcodeRefused},
		{"version", func(m *wire.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetVersion(1) }, wire.RcodeBadVers},
		{"no recursion", func(m *wire.Msg) { m.Question[0].Name = "www.example.com."; m.RecursionDesired = false },
			wire.RcodeRefused},
		{"no upstream", func(m *wire.Msg) { m.Question[0].Name = "www.example.com." }, wire.RcodeServerFailure},
		{"any", func(m *wire.Msg) { m.Question[0].Qtype = wire.TypeANY }, wire.RcodeSuccess},
	} {
		m := new(wire.Msg).SetQuestion("kubernetes.default.svc.cluster.local.", wire.TypeA)
		c.change(m)
		reply, _ := s.reply(context.Background(), request{msg: m, udp: true, edns: m.IsEdns0()})
		packed, err := reply.Pack()
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		back := new(wire.Msg)
		if err := back.Unpack(packed); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if back.Rcode != c.rcode || !back.Response || back.Id != m.Id {
			t.Errorf("%s: %s", c.name, wire.RcodeToString[back.Rcode])
		}
	}
}

func TestServer_Settings(t *testing.T) {
	general, corp := startUpstream(t), startUpstream(t)
	corp.answer(func(m *wire.Msg, _ bool) *wire.Msg { return aReply(t, m, 60, "198.51.100.1") })
	s, client := startServer(t, nil, append(clusterObjects(), settingsMap(map[string]string{
		"upstreams":    general.addr.String() + " # home\n",
		"stub-domains": "corp.example " + corp.addr.String() + "\n",
		"hosts":        "192.0.2.44 nas.home nas\n",
	}))...)
	waitForUpstream(t, s)
	check := func(name, qtype, want string) {
		t.Helper()
		if got := brief(query(t, s, "udp", name, qtype, nil)); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	checkAll := func() {
		t.Helper()
		check("www.example.com", "A", "NOERROR\nwww.example.com. A 192.0.2.80")
		check("intra.corp.example", "A", "NOERROR\nintra.corp.example. A 198.51.100.1")
		check("NAS.home", "A", "NOERROR aa\nNAS.home. A 192.0.2.44")
		check("44.2.0.192.in-addr.arpa", "PTR", "NOERROR aa\n44.2.0.192.in-addr.arpa. PTR nas.home.")
		check("notcorp.example", "A", "NXDOMAIN soa")
	}
	checkAll()

	// An invalid version is reported and changes nothing.
	ctx := context.Background()
	invalid := settingsMap(map[string]string{"upstreams": "not-an-address", "forwarders": "1.1.1.1"})
	invalid.ResourceVersion = "8"
	if _, err := client.CoreV1().ConfigMaps(SettingsNamespace).Update(ctx, invalid,
		metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		events, err := client.CoreV1().Events(SettingsNamespace).List(ctx, metav1.ListOptions{})
		if err != nil || len(events.Items) != 1 {
			return fmt.Sprintf("events: %v, %v", events, err)
		}
		if e := events.Items[0]; e.Reason != "InvalidDNSSettings" || !strings.Contains(e.Message, "not-an-address") ||
			!strings.Contains(e.Message, "forwarders") {
			return fmt.Sprintf("event: %+v", e)
		}
		return ""
	})
	checkAll()

	// Without the ConfigMap the host's resolvers are back: there are none here.
	if err := client.CoreV1().ConfigMaps(SettingsNamespace).Delete(ctx, SettingsName,
		metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		if got := brief(query(t, s, "udp", "nas.home", "A", nil)); got != "SERVFAIL" {
			return got
		}
		return ""
	})
	check("kubernetes.default.svc.cluster.local", "A", "NOERROR aa\nkubernetes.default.svc.cluster.local. A 10.43.0.1")
}

func TestParseSettings_Invalid(t *testing.T) {
	own := []netip.AddrPort{netip.MustParseAddrPort("10.43.0.10:53")}
	for name, data := range map[string]map[string]string{
		"unknown key":         {"upstream": "1.1.1.1"},
		"ourselves":           {"upstreams": "10.43.0.10"},
		"no address":          {"upstreams": "dns.google"},
		"stub without server": {"stub-domains": "corp.example"},
		"stub of the cluster": {"stub-domains": "x.cluster.local 1.1.1.1"},
		"host without name":   {"hosts": "192.0.2.1"},
		"host without addr":   {"hosts": "nas 192.0.2.1"},
		"host of the cluster": {"hosts": "192.0.2.1 kubernetes.default.svc.cluster.local"},
	} {
		if got, err := parseSettings(data, "cluster.local.", own); err == nil {
			t.Errorf("%s: accepted as %+v", name, got)
		}
	}
}

func TestHostResolvers_Get(t *testing.T) {
	dir := t.TempDir()
	main, systemd := filepath.Join(dir, "resolv.conf"), filepath.Join(dir, "systemd")
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	clock := &testClock{now: time.Unix(1e9, 0)}
	h := newHostResolvers([]string{main, systemd}, []netip.Addr{netip.MustParseAddr("10.43.0.10")},
		clock.Now, zap.NewNop())
	want := func(texts ...string) {
		t.Helper()
		clock.move(rereadAfter)
		got, _ := h.get()
		if fmt.Sprint(got) != fmt.Sprint(texts) {
			t.Errorf("resolvers are %v, want %v", got, texts)
		}
	}
	want()
	write(main, "nameserver 127.0.0.53\nsearch lan\n")
	want()
	write(systemd, "# comment\nnameserver 192.0.2.7\nnameserver fe80::1%eth0\n")
	want("192.0.2.7:53", "[fe80::1%eth0]:53")
	write(main,
		"nameserver 10.43.0.10\nnameserver ::1\nnameserver 192.0.2.8\nnameserver 192.0.2.8\nnameserver rubbish\n")
	want("192.0.2.8:53")
	if err := os.Remove(main); err != nil {
		t.Fatal(err)
	}
	want("192.0.2.7:53", "[fe80::1%eth0]:53")

	// A file that exists and cannot be read says nothing about the host's resolvers.
	if err := os.Mkdir(main, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(systemd); err != nil {
		t.Fatal(err)
	}
	want("192.0.2.7:53", "[fe80::1%eth0]:53")
	if err := os.Remove(main); err != nil {
		t.Fatal(err)
	}
	want()
}

func FuzzServer_Reply(f *testing.F) {
	x := newIndex(func() {})
	x.setNamespace("default", true)
	x.setService(key{"default", "kubernetes"},
		&service{IPs: []netip.Addr{netip.MustParseAddr("10.43.0.1")}, Ports: []port{{"https", "tcp", 443}}})
	x.setService(key{"default", "headless"}, &service{})
	x.setSlice(key{"default", "headless"}, "s",
		&slice{Endpoints: []endpoint{{"db-0", netip.MustParseAddr("10.42.0.1"), true}},
			Ports: []port{{"http", "tcp", 80}}})
	for _, c := range specification {
		m := new(wire.Msg).SetQuestion(wire.Fqdn(c.name), wire.StringToType[c.qtype])
		m.SetEdns0(600, true)
		packed, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(packed)
	}
	listen := []netip.AddrPort{netip.MustParseAddrPort("10.43.0.10:53")}
	s := &Server{listen: listen, metrics: newCounters(), resolvers: newHostResolvers(nil, nil, time.Now, zap.NewNop())}
	s.zone = newZone(Config{ClusterDomain: "cluster.local.",
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}}, listen, func() *index { return x })
	s.settings.Store(&settings{})
	s.forward = newForwarder(1<<16, func(context.Context, string, netip.AddrPort, *wire.Msg) (*wire.Msg, error) {
		return nil, errors.New("nobody")
	}, time.Now, func(string) {})
	f.Fuzz(func(t *testing.T, data []byte) {
		m := new(wire.Msg)
		if m.Unpack(data) != nil {
			return
		}
		edns := m.IsEdns0()
		reply, _ := s.reply(context.Background(), request{msg: m, udp: true, edns: edns})
		packed, err := reply.Pack()
		if err != nil {
			t.Fatalf("reply cannot be packed: %v\n%v", err, reply)
		}
		limit := wire.MinMsgSize
		if edns != nil {
			limit = ednsSize
		}
		if len(packed) > limit {
			t.Fatalf("reply has %d bytes", len(packed))
		}
		back := new(wire.Msg)
		if err := back.Unpack(packed); err != nil {
			t.Fatalf("reply cannot be read: %v", err)
		}
		if back.Id != m.Id || !back.Response {
			t.Fatalf("reply does not belong to the query: %v", back)
		}
	})
}
