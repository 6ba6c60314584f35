package revocation

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// backdate is how far upstream's signer dates certificates back.
const backdate = 5 * time.Minute

// authority signs certificates for tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{key: newKey(t)}
	a.cert = a.make(t, &x509.Certificate{
		Subject:               pkix.Name{CommonName: "ca"},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}, a.key)
	return a
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (a *authority) make(t testing.TB, template *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	var err error
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100)); err != nil {
		t.Fatal(err)
	}
	if template.NotBefore.IsZero() {
		template.NotBefore = time.Now().Add(-backdate)
	}
	template.NotAfter = time.Now().Add(time.Hour)
	parent := a.cert
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// issue makes a client certificate as upstream's signer would at a moment.
func (a *authority) issue(t testing.TB, user string, at time.Time) tls.Certificate {
	t.Helper()
	key := newKey(t)
	cert := a.make(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: user}, NotBefore: at.Add(-backdate),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, key)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
}

// guarded is a running guard and the list it follows.
type guarded struct {
	*Guard
	t      testing.TB
	client kubernetes.Interface
	logs   *observer.ObservedLogs
	change chan struct{}
}

// guard runs a guard over a list that may exist before.
func guard(t testing.TB, data map[string]string) *guarded {
	t.Helper()
	g := idle(t, data)
	g.run()
	<-g.Loaded()
	return g
}

// idle makes a guard that has not read the list.
func idle(t testing.TB, data map[string]string) *guarded {
	t.Helper()
	client := fake.NewClientset()
	if data != nil {
		object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: Name}, Data: data}
		if _, err := client.CoreV1().ConfigMaps(Namespace).Create(t.Context(), object,
			metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	core, logs := observer.New(zap.DebugLevel)
	g, err := New(Config{Client: client, Logger: zap.New(core), Wait: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	out := &guarded{
		Guard:  g,
		t:      t,
		client: client,
		logs:   logs,
		change: make(chan struct{}, 100),
	}
	g.OnChange(func() { out.change <- struct{}{} })
	return out
}

func (g *guarded) run() {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := g.Run(ctx); err != nil {
			g.t.Error(err)
		}
	})
	g.t.Cleanup(func() {
		cancel()
		running.Wait()
	})
}

// until waits for changes until check is true.
func (g *guarded) until(what string, check func() bool) {
	g.t.Helper()
	timeout := time.After(10 * time.Second)
	for !check() {
		select {
		case <-g.change:
		case <-timeout:
			g.t.Fatalf("%s: not within 10 s", what)
		}
	}
}

func (g *guarded) add(entries ...Entry) {
	g.t.Helper()
	if err := Add(g.t.Context(), g.client, entries...); err != nil {
		g.t.Fatal(err)
	}
}

// revoke puts an entry on the list and waits until the guard has heard of it.
func (g *guarded) revoke(e Entry, cert *x509.Certificate) {
	g.t.Helper()
	e.Time = time.Now()
	g.add(e)
	g.until(e.Subject()+" refused", func() bool { return g.revoked(cert) })
}

func (g *guarded) revoked(cert *x509.Certificate) bool {
	g.t.Helper()
	_, revoked, err := g.Revoked(g.t.Context(), cert)
	if err != nil {
		g.t.Error(err)
	}
	return revoked
}

func (g *guarded) nodeRevoked(name string) bool {
	g.t.Helper()
	revoked, err := g.NodeRevoked(g.t.Context(), name)
	if err != nil {
		g.t.Error(err)
	}
	return revoked
}

// put replaces what the object says under one key.
func (g *guarded) put(key, value string) {
	g.t.Helper()
	if _, err := edit(g.t.Context(), g.client, func(data map[string]string) error {
		data[key] = value
		return nil
	}); err != nil {
		g.t.Fatal(err)
	}
}

func (g *guarded) lines(text string) int {
	n := 0
	for _, l := range g.logs.All() {
		if strings.Contains(l.Message, text) {
			n++
		}
	}
	return n
}

func TestGuard_Revoked_SerialMeansOneCertificate(t *testing.T) {
	ca, g := newAuthority(t), guard(t, nil)
	one, other := ca.issue(t, "erika", time.Now()), ca.issue(t, "erika", time.Now())
	g.revoke(ForCertificate(one.Leaf), one.Leaf)
	if g.revoked(other.Leaf) {
		t.Error("another certificate of the same user is refused")
	}
	if _, err := Remove(t.Context(), g.client, func(e Entry) bool { return e.Serial == Serial(one.Leaf) }); err != nil {
		t.Fatal(err)
	}
	g.until("let in again", func() bool { return !g.revoked(one.Leaf) })
}

func TestGuard_Revoked_UserMeansWhatWasIssuedBefore(t *testing.T) {
	ca, g := newAuthority(t), guard(t, nil)
	now := time.Now()
	before, later := ca.issue(t, "erika", now.Add(-time.Hour)), ca.issue(t, "erika", now.Add(backdate+2*time.Second))
	// Issued after the revocation, and yet dated before it.
	after, another := ca.issue(t, "erika", now.Add(time.Second)), ca.issue(t, "erika", now.Add(time.Second))
	stranger := ca.issue(t, "max", now.Add(-time.Hour))
	g.revoke(ForUser("erika", now), before.Leaf)
	for _, row := range []struct {
		name    string
		cert    *x509.Certificate
		revoked bool
	}{
		{"issued before", before.Leaf, true},
		{"dated after", later.Leaf, false},
		{"dated back", after.Leaf, true},
		{"another user", stranger.Leaf, false},
	} {
		if got := g.revoked(row.cert); got != row.revoked {
			t.Errorf("%s: revoked is %v", row.name, got)
		}
	}
	if err := g.Admit(t.Context(), after.Leaf); err != nil {
		t.Fatal(err)
	}
	// At once, not when the watch has brought it: the certificate is about to be used.
	if g.revoked(after.Leaf) {
		t.Error("an admitted certificate is refused")
	}
	if !g.revoked(before.Leaf) || !g.revoked(another.Leaf) {
		t.Error("admitting one certificate let others in")
	}
	// A second revocation means what was admitted after the first.
	g.revoke(ForUser("erika", now.Add(time.Minute)), after.Leaf)
	// With an earlier moment, by a clock that is behind, it takes nothing back.
	for len(g.change) > 0 {
		<-g.change
	}
	g.add(ForUser("erika", now.Add(-24*time.Hour)))
	heard := false
	g.until("list read", func() bool {
		was := heard
		heard = true
		return was
	})
	if !g.revoked(before.Leaf) || !g.revoked(after.Leaf) {
		t.Error("a clock that is behind let certificates in")
	}
}

func TestGuard_Admit_LeavesTheListAloneWithoutNeed(t *testing.T) {
	ca, g := newAuthority(t), guard(t, nil)
	if err := g.Admit(t.Context(), ca.issue(t, "system:node:a", time.Now()).Leaf); err != nil {
		t.Fatal(err)
	}
	for _, action := range g.client.(*fake.Clientset).Actions() {
		if verb := action.GetVerb(); verb == "create" || verb == "update" {
			t.Errorf("the list was written: %v", action)
		}
	}
}

func TestGuard_NodeRevoked_UntilForgotten(t *testing.T) {
	ca, g := newAuthority(t), guard(t, nil)
	old := ca.issue(t, NodeUser("pi"), time.Now().Add(-time.Hour))
	if again, err := Readmit(t.Context(), g.client, "pi"); err != nil || again {
		t.Errorf("readmit a node that is not revoked: %v, %v", again, err)
	}
	g.revoke(ForUser(NodeUser("pi"), time.Now()), old.Leaf)
	if !g.nodeRevoked("pi") || g.nodeRevoked("pie") {
		t.Error("the revoked node may join, or another may not")
	}
	if again, err := Readmit(t.Context(), g.client, "pi"); err != nil || !again {
		t.Fatalf("readmit: %v, %v", again, err)
	}
	g.until("node may join", func() bool { return !g.nodeRevoked("pi") })
	if !g.revoked(old.Leaf) {
		t.Error("a forgotten node's old certificate is let in")
	}
	fresh := ca.issue(t, NodeUser("pi"), time.Now())
	if err := g.Admit(t.Context(), fresh.Leaf); err != nil {
		t.Fatal(err)
	}
	if g.revoked(fresh.Leaf) {
		t.Error("the certificate of the node that came back is refused")
	}
	g.revoke(ForUser(NodeUser("pi"), time.Now()), fresh.Leaf)
	if !g.nodeRevoked("pi") {
		t.Error("a node that was revoked again may join")
	}
}

func TestGuard_Run_KeepsWhatItCouldReadOfABrokenList(t *testing.T) {
	ca := newAuthority(t)
	good, bad := ca.issue(t, "erika", time.Now()), ca.issue(t, "max", time.Now())
	text, err := ForCertificate(good.Leaf).encode()
	if err != nil {
		t.Fatal(err)
	}
	g := guard(t, map[string]string{"serial-good": text, "serial-bad": `{"serial": "xyz"}`})
	if !g.revoked(good.Leaf) || g.revoked(bad.Leaf) {
		t.Error("at the start: what can be read is not refused, or more than that")
	}
	if n := g.lines(`"serial-bad"`); n != 1 {
		t.Errorf("the broken entry is named in %d lines, want 1", n)
	}
	// Mended, broken again: what it said last still counts.
	g.revoke(ForCertificate(bad.Leaf), bad.Leaf)
	for _, broken := range []string{"", "{", `{"serial":"1"} {}`, `{"user":"max"}`, `{"sreial":"12"}`} {
		g.put(ForCertificate(bad.Leaf).key(), broken)
		g.until("broken entry logged", func() bool { return g.lines(ForCertificate(bad.Leaf).key()) > 0 })
		if !g.revoked(bad.Leaf) {
			t.Errorf("%q let a revoked certificate in", broken)
		}
		g.logs.TakeAll()
	}
	// Others are heard of meanwhile.
	third := ca.issue(t, "moritz", time.Now())
	g.revoke(ForCertificate(third.Leaf), third.Leaf)
	if n := g.lines("cannot be read"); n != 0 {
		t.Errorf("an entry nobody has touched is told of %d times again", n)
	}
	entries, faults, err := Read(t.Context(), g.client)
	if err != nil || len(entries) != 2 || len(faults) != 2 {
		t.Errorf("read %d entries, %v, %v", len(entries), faults, err)
	}
}

func TestGuard_Run_SaysWhenTheListIsDeleted(t *testing.T) {
	ca, g := newAuthority(t), guard(t, nil)
	cert := ca.issue(t, "erika", time.Now())
	g.revoke(ForCertificate(cert.Leaf), cert.Leaf)
	if err := g.client.CoreV1().ConfigMaps(Namespace).Delete(t.Context(), Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	g.until("nothing revoked", func() bool { return !g.revoked(cert.Leaf) })
	if g.lines("was deleted") != 1 {
		t.Errorf("logged %v", g.logs.All())
	}
}

// Before the list is read nobody knows what is revoked: "revoked" would have a node throw its
// certificate away. The wait ends with the request that waits.
func TestGuard_ListNotRead_IsNoRevocation(t *testing.T) {
	ca := newAuthority(t)
	cert := ca.issue(t, "erika", time.Now()).Leaf
	for name, wait := range map[string]time.Duration{"the wait ends": time.Second, "the request ends": time.Hour} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, start := idle(t, nil), time.Now()
				g.config.Wait = wait
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				if _, revoked, err := g.Revoked(ctx, cert); revoked || !errors.Is(err, ErrNotRead) {
					t.Errorf("certificate: %v, %v", revoked, err)
				}
				if revoked, err := g.NodeRevoked(ctx, "pi"); revoked || !errors.Is(err, ErrNotRead) {
					t.Errorf("node: %v, %v", revoked, err)
				}
				if took := time.Since(start); took > 5*time.Second {
					t.Errorf("it took %v, longer than the request", took)
				}
			})
		})
	}
}

// Strangers choose the serial numbers of certificates that nobody has signed.
func TestGuard_Refuse_RemembersAndLogsAFewOfManySerials(t *testing.T) {
	g := idle(t, nil)
	ca, now := newAuthority(t), time.Now()
	cert := *ca.issue(t, "erika", now).Leaf
	entry := ForUser("erika", now)
	for i := range 2 * maxLogged {
		cert.SerialNumber = big.NewInt(int64(i))
		r := httptest.NewRequest(http.MethodGet, "/api", nil)
		r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{&cert}}
		g.refuse(httptest.NewRecorder(), r, &entry)
	}
	if len(g.logged) > maxLogged || g.lines("refused a revoked certificate") > maxLogged {
		t.Errorf("%d serial numbers are remembered and %d logged, want at most %d", len(g.logged),
			g.lines("refused a revoked certificate"), maxLogged)
	}
	if !g.due("another", now.Add(2*logInterval)) {
		t.Error("a full table is never emptied")
	}
}

func TestGuard_Replace_IgnoresWhatIsOlder(t *testing.T) {
	ca, g := newAuthority(t), idle(t, nil)
	cert := ca.issue(t, "erika", time.Now())
	text, err := ForCertificate(cert.Leaf).encode()
	if err != nil {
		t.Fatal(err)
	}
	g.replace("12", map[string]string{"serial": text})
	g.replace("9", nil)
	if g.list.Load().find(cert.Leaf) == nil {
		t.Error("an older list took the place of a newer")
	}
}

func TestParseSerial_AsProgramsPrintIt(t *testing.T) {
	for in, want := range map[string]string{"1a2b": "1a2b", "1A:2B": "1a2b", "0x001a2b": "1a2b", "007": "7"} {
		if got, err := ParseSerial(in); err != nil || got != want {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "xyz", "-1", "0x", "1_2", "12.5"} {
		if got, err := ParseSerial(in); err == nil {
			t.Errorf("%q is taken for %q", in, got)
		}
	}
}

func TestEntry_Key_NeverMeansTwoUsers(t *testing.T) {
	seen := map[string]string{}
	for _, name := range []string{"a:b", "a.b", "a_b", "a_3ab", "system:node:pi", strings.Repeat("ä", 200),
		strings.Repeat("ä", 201)} {
		key := ForUser(name, time.Now()).key()
		if other, ok := seen[key]; ok || len(key) > 253 {
			t.Errorf("%q has the key %q of %q", name, key, other)
		}
		seen[key] = name
	}
}

func TestAdd_DropsWhatEndedLongAgo(t *testing.T) {
	g := idle(t, nil)
	long := time.Now().Add(-2 * keepEnded)
	g.add(Entry{Serial: "aa", Expires: long})
	user := ForUser("erika", time.Now())
	user.Except = []Exception{{Serial: "bb", Expires: long}, {Serial: "cc", Expires: time.Now()}}
	g.add(user, Entry{Serial: "dd"})
	entries, faults, err := Read(t.Context(), g.client)
	if err != nil || len(faults) > 0 || len(entries) != 2 {
		t.Fatalf("%v, %v, %v", entries, faults, err)
	}
	if entries[0].Serial != "dd" || len(entries[1].Except) != 1 || entries[1].Except[0].Serial != "cc" {
		t.Errorf("kept %+v", entries)
	}
}
