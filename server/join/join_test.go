package join

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/user"

	"github.com/mote-dev/mote/internal/joinapi"
)

func TestService_Join(t *testing.T) {
	f := newFixture(t, nil, withToken(nil))
	request := f.joining(t, "n1", secretA)
	got := f.post(t, joinapi.PathJoin, testToken, request)
	if got.status != http.StatusOK {
		t.Fatalf("status %d: %+v", got.status, got.refusal)
	}
	if cert := parse(t, got.response.Certificate); cert.Subject.CommonName != "system:node:n1" ||
		!slices.Equal(cert.Subject.Organization, []string{"system:nodes"}) {
		t.Errorf("the certificate is for %s", cert.Subject)
	}
	if want := []string{"system:bootstrap:abcdef [system:bootstrappers system:authenticated]"}; !slices.Equal(f.asked(),
		want) {
		t.Errorf("certificates were asked for as %q, want %q", f.asked(), want)
	}
	csr := f.requests(t)[0].Spec
	if csr.SignerName != "kubernetes.io/kube-apiserver-client-kubelet" || len(csr.Usages) != 2 ||
		!bytes.Equal(csr.Request, request.CSR) {
		t.Errorf("the request is %+v", csr)
	}
	binding, err := f.api.CoreV1().Secrets(metav1.NamespaceSystem).Get(t.Context(), "n1.node-secret.mote",
		metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for key, value := range binding.Data {
		if strings.Contains(string(value), secretA) {
			t.Errorf("%s holds the node's secret", key)
		}
	}
	c := got.response.Cluster
	if !slices.Equal(c.Servers, []string{"192.0.2.1:6443"}) || !bytes.Equal(c.CA, f.caPEM()) || c.Time.IsZero() ||
		c.ClusterDomain != "cluster.local" {
		t.Errorf("the cluster is %+v", c)
	}
}

func TestService_CA(t *testing.T) {
	f := newFixture(t, nil)
	f.ready.Store(false)
	if got := f.send(t, f.request(t, http.MethodGet, joinapi.PathCA, "", nil)); got.status != http.StatusOK ||
		!parse(t, got.body).Equal(f.ca.cert) {
		t.Errorf("status %d, body %q", got.status, got.body)
	}
}

func TestService_Join_TokensThatDoNotLetIn(t *testing.T) {
	set := func(key, value string) func(*corev1.Secret) {
		return func(s *corev1.Secret) { s.Data[key] = []byte(value) }
	}
	said := map[string]bool{}
	for _, row := range []struct {
		name, token string
		stored      func(*corev1.Secret)
	}{
		{"none", "", nil},
		{"of another form", "a b", nil},
		{"unknown", "fedcba.0123456789abcdef", nil},
		{"wrong", "abcdef.0123456789abcdeg", nil},
		{"a password where there is none", "correct-horse", nil},
		{"expired", testToken, set("expiration", time.Now().Add(-time.Second).UTC().Format(time.RFC3339))},
		{"with an end nobody can read", testToken, set("expiration", "tomorrow")},
		{"for signing only", testToken, set("usage-bootstrap-authentication", "false")},
		{"of another id", testToken, set("token-id", "fedcba")},
		{"of another kind", testToken, func(s *corev1.Secret) { s.Type = corev1.SecretTypeOpaque }},
		{"being deleted", testToken, func(s *corev1.Secret) {
			s.DeletionTimestamp = &metav1.Time{Time: time.Now()}
			s.Finalizers = []string{"x/y"}
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			f := newFixture(t, nil, withToken(row.stored))
			got := f.post(t, joinapi.PathJoin, row.token, f.joining(t, "n1", secretA))
			if got.status != http.StatusUnauthorized || got.refusal.Code != joinapi.CodeTokenInvalid ||
				len(f.requests(t)) > 0 {
				t.Errorf("status %d, code %s, %d requests", got.status, got.refusal.Code, len(f.requests(t)))
			}
			said[got.refusal.Message] = true
		})
	}
	if len(said) != 1 {
		t.Errorf("the answers tell the cases apart: %v", said)
	}
}

// A token is revoked by deleting it, from the next request on.
func TestService_Join_RevokedToken(t *testing.T) {
	f := newFixture(t, nil, withToken(nil))
	if got := f.post(t, joinapi.PathJoin, testToken, f.joining(t, "n1", secretA)); got.status != http.StatusOK {
		t.Fatalf("status %d: %+v", got.status, got.refusal)
	}
	if err := DeleteToken(t.Context(), f.api, "abcdef"); err != nil {
		t.Fatal(err)
	}
	if got := f.post(t, joinapi.PathJoin, testToken,
		f.joining(t, "n2", secretB)); got.refusal.Code != joinapi.CodeTokenInvalid {
		t.Errorf("status %d, code %s", got.status, got.refusal.Code)
	}
}

func TestService_Join_Password(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.Password = "correct-horse" }, withToken(nil))
	if got := f.post(t, joinapi.PathJoin, "correct-horsf",
		f.joining(t, "n1", secretA)); got.refusal.Code != joinapi.CodeTokenInvalid {
		t.Errorf("a wrong password: status %d, code %s", got.status, got.refusal.Code)
	}
	if got := f.post(t, joinapi.PathJoin, "correct-horse", f.joining(t, "n1", secretA)); got.status != http.StatusOK {
		t.Fatalf("status %d: %+v", got.status, got.refusal)
	}
	if got := f.post(t, joinapi.PathJoin, testToken, f.joining(t, "n2", secretA)); got.status != http.StatusOK {
		t.Errorf("a token beside the password: status %d: %+v", got.status, got.refusal)
	}
	if want := "system:bootstrap:password [system:bootstrappers system:authenticated]"; f.asked()[0] != want {
		t.Errorf("asked as %q, want %q", f.asked()[0], want)
	}
	list, err := f.api.CoreV1().Secrets(metav1.NamespaceAll).List(t.Context(), metav1.ListOptions{})
	if err != nil || strings.Contains(list.String(), "correct-horse") {
		t.Errorf("the password is stored (%v)", err)
	}
}

// Whoever has a token still takes nobody's name.
func TestService_Join_NameStaysWithItsOwner(t *testing.T) {
	f := newFixture(t, nil, withToken(nil), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "old"}})
	for _, row := range []struct {
		name, node, secret string
		want               joinapi.Code
		says               string
	}{
		{"first of its name", "n1", secretA, "", ""},
		{"the same machine again", "n1", secretA, "", ""},
		{"another machine", "n1", secretB, joinapi.CodeNameTaken, "mote node forget n1"},
		{"the server's own", ownNode, secretA, joinapi.CodeNameTaken, "server's own"},
		{"of a node nobody is bound to", "old", secretA, joinapi.CodeNameTaken, "mote node forget old"},
		{"an API server's", "kubernetes", secretA, joinapi.CodeBadRequest, "API server"},
		{"one of a wildcard of API servers", "api.mote.example", secretA, joinapi.CodeBadRequest, "API server"},
		{"an address", "192.0.2.7", secretA, joinapi.CodeBadRequest, "IP address"},
		{"no DNS label", "N1", secretA, joinapi.CodeBadRequest, "node-name"},
		{"with a path in it", "../n1", secretA, joinapi.CodeBadRequest, "node-name"},
		{"too long", strings.Repeat("n", 64), secretA, joinapi.CodeBadRequest, "63"},
		{"with a secret that is none", "n2", "secret", joinapi.CodeBadRequest, "secret"},
	} {
		t.Run(row.name, func(t *testing.T) {
			before := len(f.requests(t))
			got := f.post(t, joinapi.PathJoin, testToken, f.joining(t, row.node, row.secret))
			if got.refusal.Code != row.want || !strings.Contains(got.refusal.Message, row.says) {
				t.Errorf("status %d, %+v; want %q with %q", got.status, got.refusal, row.want, row.says)
			}
			if row.want != "" && len(f.requests(t)) != before {
				t.Error("a certificate was asked for all the same")
			}
		})
	}
}

// Of machines that want a name at the same moment, one gets it.
func TestService_Join_Race(t *testing.T) {
	f := newFixture(t, nil, withToken(nil))
	var group sync.WaitGroup
	codes := make([]joinapi.Code, 6)
	for i := range codes {
		request := f.joining(t, "n1", strings.Repeat(string("0123456789"[i]), 64))
		group.Go(func() { codes[i] = f.post(t, joinapi.PathJoin, testToken, request).refusal.Code })
	}
	group.Wait()
	slices.Sort(codes)
	if codes[0] != "" || codes[1] != joinapi.CodeNameTaken || codes[5] != joinapi.CodeNameTaken {
		t.Errorf("answers are %q, want one that lets in", codes)
	}
}

func TestService_Join_ForeignCSR(t *testing.T) {
	f := newFixture(t, nil, withToken(nil))
	key := newKey(t)
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	short, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, other, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	changed := func(change func(*x509.CertificateRequest)) []byte {
		template := nodeSubject("n1")
		change(&template)
		return csrFor(t, key, template)
	}
	right := csrFor(t, key, nodeSubject("n1"))
	broken := slices.Clone(right)
	// Within the signature, past the key and the subject.
	broken[len(broken)-60] ^= 1
	for _, row := range []struct {
		name string
		csr  []byte
	}{
		{"no request", []byte("nothing")},
		{"none", nil},
		{"two blocks", append(slices.Clone(right), right...)},
		{"another node's", csrFor(t, key, nodeSubject("n2"))},
		{"an administrator's group",
			changed(func(c *x509.CertificateRequest) { c.Subject.Organization = []string{"system:masters"} })},
		{"a group more",
			changed(func(c *x509.CertificateRequest) {
				c.Subject.Organization = []string{"system:nodes", "system:masters"}
			})},
		{"no group", changed(func(c *x509.CertificateRequest) { c.Subject.Organization = nil })},
		{"a unit", changed(func(c *x509.CertificateRequest) { c.Subject.OrganizationalUnit = []string{"x"} })},
		{"a second common name", changed(func(c *x509.CertificateRequest) {
			c.Subject.ExtraNames = []pkix.AttributeTypeAndValue{{Type: asn1.ObjectIdentifier{2, 5, 4, 3},
				Value: "system:admin"}}
		})},
		{"a DNS name", changed(func(c *x509.CertificateRequest) { c.DNSNames = []string{"kubernetes"} })},
		{"an address", changed(func(c *x509.CertificateRequest) { c.IPAddresses = []net.IP{net.IPv4(192, 0, 2, 1)} })},
		{"a mail address", changed(func(c *x509.CertificateRequest) { c.EmailAddresses = []string{"a@b.c"} })},
		{"an authority", changed(func(c *x509.CertificateRequest) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true,
				Value: []byte{0x30, 0x03, 0x01, 0x01, 0xff}}}
		})},
		{"a short RSA key", csrFor(t, weak, nodeSubject("n1"))},
		{"a short curve", csrFor(t, short, nodeSubject("n1"))},
		{"another kind of key", csrFor(t, other, nodeSubject("n1"))},
		{"a broken signature", broken},
	} {
		t.Run(row.name, func(t *testing.T) {
			request := f.joining(t, "n1", secretA)
			request.CSR = row.csr
			got := f.post(t, joinapi.PathJoin, testToken, request)
			if got.status != http.StatusBadRequest || got.refusal.Code != joinapi.CodeBadRequest ||
				len(f.requests(t)) > 0 {
				t.Errorf("status %d, %+v, %d requests", got.status, got.refusal, len(f.requests(t)))
			}
		})
	}
	if list, err := f.api.CoreV1().Secrets(metav1.NamespaceSystem).List(t.Context(),
		metav1.ListOptions{LabelSelector: bindingLabel}); err != nil || len(list.Items) > 0 {
		t.Errorf("a wrong request took a name (%v)", err)
	}
	request := f.joining(t, "n1", secretA)
	request.CSR = right
	if got := f.post(t, joinapi.PathJoin, testToken, request); got.status != http.StatusOK {
		t.Errorf("the right one: status %d, %+v", got.status, got.refusal)
	}
}

func TestService_Join_VersionsAndClocks(t *testing.T) {
	f := newFixture(t, nil, withToken(nil))
	for _, row := range []struct {
		name, version string
		ahead         time.Duration
		want          joinapi.Code
	}{
		{"the same", "v1.37.2", 0, ""},
		{"a newer patch", "v1.37.9", 0, ""},
		{"three minors older", "v1.34.0", 0, ""},
		{"four minors older", "v1.33.9", 0, joinapi.CodeVersionSkew},
		{"a minor newer", "v1.38.0", 0, joinapi.CodeVersionSkew},
		{"of another age", "v2.37.0", 0, joinapi.CodeVersionSkew},
		{"no version", "latest", 0, joinapi.CodeBadRequest},
		{"59 minutes ahead", "v1.37.2", 59 * time.Minute, ""},
		{"61 minutes ahead", "v1.37.2", 61 * time.Minute, joinapi.CodeClockSkew},
		{"in 1970", "v1.37.2", -56 * 365 * 24 * time.Hour, joinapi.CodeClockSkew},
	} {
		t.Run(row.name, func(t *testing.T) {
			request := f.joining(t, "n1", secretA)
			request.KubernetesVersion, request.Time = row.version, request.Time.Add(row.ahead)
			got := f.post(t, joinapi.PathJoin, testToken, request)
			if got.refusal.Code != row.want {
				t.Errorf("status %d, %+v; want %q", got.status, got.refusal, row.want)
			}
			if row.want == joinapi.CodeClockSkew {
				for _, clock := range []time.Time{request.Time, f.config.Now()} {
					if text := clock.UTC().Format(time.RFC3339); !strings.Contains(got.refusal.Message, text) {
						t.Errorf("%q does not have %s", got.refusal.Message, text)
					}
				}
			}
		})
	}
}

// endless is a body without an end.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

// silent is a body that does not come as long as the test runs.
func silent(t *testing.T) io.Reader {
	body, end := io.Pipe()
	t.Cleanup(func() { _ = end.Close() })
	return body
}

func TestService_Bodies(t *testing.T) {
	f := newFixture(t, nil, withToken(nil))
	plain := func(r *http.Request) { r.Header.Set("Content-Type", "text/plain") }
	announced := func(r *http.Request) { r.ContentLength = 1 << 40 }
	for _, row := range []struct {
		name   string
		body   io.Reader
		change func(*http.Request)
		want   int
	}{
		{"endless", endless{}, nil, http.StatusRequestEntityTooLarge},
		{"announced as huge", endless{}, announced, http.StatusRequestEntityTooLarge},
		{"silent", nil, nil, http.StatusRequestTimeout},
		{"no JSON", strings.NewReader("<xml/>"), nil, http.StatusBadRequest},
		{"two of them", strings.NewReader("{} {}"), nil, http.StatusBadRequest},
		{"another type", strings.NewReader("{}"), plain, http.StatusUnsupportedMediaType},
	} {
		for _, path := range []string{joinapi.PathJoin, joinapi.PathRejoin} {
			for _, http2 := range []bool{false, true} {
				name := row.name + " " + path
				if http2 {
					name += " HTTP/2"
				}
				t.Run(name, func(t *testing.T) {
					body := row.body
					f.bodyTimeout = bodyTimeout
					if body == nil {
						body = silent(t)
						f.bodyTimeout = 200 * time.Millisecond
					}
					r := f.request(t, http.MethodPost, path, testToken, body)
					if row.change != nil {
						row.change(r)
					}
					transport := f.transport(t)
					transport.ForceAttemptHTTP2 = http2
					response, err := transport.RoundTrip(r)
					if err != nil {
						t.Fatal(err)
					}
					defer response.Body.Close()
					if response.StatusCode != row.want {
						t.Errorf("status %s, want %d", response.Status, row.want)
					}
				})
			}
		}
	}
	if got := f.send(t, f.request(t, http.MethodGet, joinapi.PathJoin, testToken,
		nil)); got.status != http.StatusMethodNotAllowed || got.header.Get("Allow") != http.MethodPost {
		t.Errorf("GET: status %d, Allow %q", got.status, got.header.Get("Allow"))
	}
}

// Who has no token does not get the server to read a body.
func TestService_Join_StrangersBodyIsNotRead(t *testing.T) {
	f := newFixture(t, nil, withToken(nil))
	r := f.request(t, http.MethodPost, joinapi.PathJoin, "fedcba.0123456789abcdef", silent(t))
	if got := f.send(t, r); got.refusal.Code != joinapi.CodeTokenInvalid {
		t.Errorf("status %d, %+v", got.status, got.refusal)
	}
}

// Without TLS there is nobody at these paths: neither from the network nor from within the process.
func TestService_PlainHTTP(t *testing.T) {
	f := newFixture(t, nil, withToken(nil))
	plain := httptest.NewServer(f.Server.Config.Handler)
	defer plain.Close()
	for _, path := range []string{joinapi.PathCA, joinapi.PathJoin, joinapi.PathRejoin, joinapi.PathConfig,
		joinapi.PathTunnel, "/api/v1/nodes"} {
		r := f.request(t, http.MethodPost, path, testToken, strings.NewReader("{}"))
		r.URL.Scheme, r.URL.Host = "http", strings.TrimPrefix(plain.URL, "http://")
		response, err := plain.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		_ = response.Body.Close()
		if err != nil || string(body) != "next" {
			t.Errorf("%s over plain HTTP answers %q (%v), want what the API server says", path, body, err)
		}
	}
	if got := f.send(t, f.request(t, http.MethodGet, "/api/v1/nodes", "", nil)); string(got.body) != "next" {
		t.Errorf("another path answers %q", got.body)
	}
}

func TestService_NotReady(t *testing.T) {
	f := newFixture(t, nil, withToken(nil))
	f.ready.Store(false)
	own := f.ca.pair(t, nodeCertificate("n1"))
	for _, path := range []string{joinapi.PathJoin, joinapi.PathRejoin} {
		if got := f.post(t, path, testToken,
			f.joining(t, "n1", secretA)); got.status != http.StatusServiceUnavailable ||
			got.refusal.Code != joinapi.CodeNotReady {
			t.Errorf("%s: status %d, %+v", path, got.status, got.refusal)
		}
	}
	for _, path := range []string{joinapi.PathConfig, joinapi.PathTunnel} {
		if got := f.send(t, f.request(t, http.MethodGet, path, "", nil),
			own); got.status != http.StatusServiceUnavailable || got.refusal.Code != joinapi.CodeNotReady {
			t.Errorf("%s: status %d, %+v", path, got.status, got.refusal)
		}
	}
}

// A captured request gives the one who sends it again nothing: the certificate is for a key that
// never left the node, and another key needs the node's secret.
func TestService_Join_Replay(t *testing.T) {
	f := newFixture(t, nil, withToken(nil))
	key := newKey(t)
	captured := f.joining(t, "n1", secretA)
	captured.CSR = csrFor(t, key, nodeSubject("n1"))
	for range 2 {
		got := f.post(t, joinapi.PathJoin, testToken, captured)
		if got.status != http.StatusOK || !key.PublicKey.Equal(parse(t, got.response.Certificate).PublicKey) {
			t.Fatalf("status %d, %+v; want a certificate for the node's own key", got.status, got.refusal)
		}
	}
	// The server holds a hash: what is read there, or guessed, is not the secret.
	forged := f.joining(t, "n1", secretB)
	if got := f.post(t, joinapi.PathJoin, testToken, forged); got.refusal.Code != joinapi.CodeNameTaken {
		t.Errorf("a key of another: status %d, %+v", got.status, got.refusal)
	}
	// Nor does it work for ever.
	f.later(2 * time.Hour)
	if got := f.post(t, joinapi.PathJoin, testToken, captured); got.refusal.Code != joinapi.CodeClockSkew {
		t.Errorf("two hours later: status %d, %+v", got.status, got.refusal)
	}
}

func TestService_Rejoin(t *testing.T) {
	revoked := ""
	f := newFixture(t, func(c *Config) {
		c.NodeRevoked = func(_ context.Context, n string) (bool, error) { return n == revoked, nil }
	}, withToken(nil))
	if got := f.post(t, joinapi.PathJoin, testToken, f.joining(t, "n1", secretA)); got.status != http.StatusOK {
		t.Fatalf("status %d: %+v", got.status, got.refusal)
	}
	request := f.joining(t, "n1", secretA)
	request.Time = time.Unix(0, 0)
	got := f.post(t, joinapi.PathRejoin, "", request)
	if got.status != http.StatusOK || parse(t, got.response.Certificate).Subject.CommonName != "system:node:n1" {
		t.Fatalf("with a clock in 1970: status %d: %+v", got.status, got.refusal)
	}
	if want := "system:node:n1 [system:nodes system:authenticated]"; f.asked()[1] != want {
		t.Errorf("asked as %q, want %q", f.asked()[1], want)
	}
	said := map[string]bool{}
	for _, row := range []struct{ node, secret string }{{"n1", secretB}, {"n2", secretA}, {ownNode, secretA}} {
		got := f.post(t, joinapi.PathRejoin, testToken, f.joining(t, row.node, row.secret))
		if got.refusal.Code != joinapi.CodeNodeUnknown {
			t.Errorf("node %s: status %d, %+v", row.node, got.status, got.refusal)
		}
		said[strings.ReplaceAll(got.refusal.Message, row.node, "")] = true
	}
	if len(said) != 1 {
		t.Errorf("the answers tell which names are taken: %v", said)
	}
	revoked = "n1"
	if got := f.post(t, joinapi.PathRejoin, "",
		f.joining(t, "n1", secretA)); got.refusal.Code != joinapi.CodeNodeRevoked {
		t.Errorf("revoked: status %d, %+v", got.status, got.refusal)
	}
	if got := f.post(t, joinapi.PathJoin, testToken,
		f.joining(t, "n1", secretA)); got.refusal.Code != joinapi.CodeNodeRevoked {
		t.Errorf("revoked, with a token: status %d, %+v", got.status, got.refusal)
	}
}

func TestService_Config_WhoMayAsk(t *testing.T) {
	var revoked *x509.Certificate
	node := ""
	f := newFixture(t, func(c *Config) {
		c.Revoked = func(_ context.Context, cert *x509.Certificate) (bool, error) {
			return revoked != nil && cert.Equal(revoked), nil
		}
		c.NodeRevoked = func(_ context.Context, n string) (bool, error) { return n == node, nil }
	})
	changed := func(change func(*x509.Certificate)) []tls.Certificate {
		template := nodeCertificate("n1")
		change(&template)
		return []tls.Certificate{f.ca.pair(t, template)}
	}
	good := changed(func(*x509.Certificate) {})
	leaked := changed(func(*x509.Certificate) {})
	var err error
	if revoked, err = x509.ParseCertificate(leaked[0].Certificate[0]); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name string
		own  []tls.Certificate
		want joinapi.Code
	}{
		{"a node", good, ""},
		{"nobody", nil, joinapi.CodeCertificateInvalid},
		{"another cluster's node", []tls.Certificate{newAuthority(t).pair(t, nodeCertificate("n1"))},
			joinapi.CodeCertificateInvalid},
		{"ended", changed(func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Minute)
		}), joinapi.CodeCertificateInvalid},
		{"for serving", changed(
			func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }),
			joinapi.CodeCertificateInvalid},
		{"an administrator", changed(func(c *x509.Certificate) {
			c.Subject = pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}}
		}), joinapi.CodeCertificateInvalid},
		{"a node by name alone", changed(func(c *x509.Certificate) { c.Subject.Organization = nil }),
			joinapi.CodeCertificateInvalid},
		{"a node without a name", changed(func(c *x509.Certificate) { c.Subject.CommonName = nodePrefix }),
			joinapi.CodeCertificateInvalid},
		{"revoked", leaked, joinapi.CodeCertificateInvalid},
	} {
		t.Run(row.name, func(t *testing.T) {
			for _, path := range []string{joinapi.PathConfig, joinapi.PathTunnel} {
				got := f.send(t, f.request(t, http.MethodGet, path, "", nil), row.own...)
				if path == joinapi.PathTunnel && row.want == "" {
					if got.status != http.StatusNotFound {
						t.Errorf("a server without a tunnel: status %d", got.status)
					}
					continue
				}
				if got.refusal.Code != row.want {
					t.Errorf("%s: status %d, %+v; want %q", path, got.status, got.refusal, row.want)
				}
			}
		})
	}
	node = "n1"
	if got := f.send(t, f.request(t, http.MethodGet, joinapi.PathConfig, "", nil),
		good...); got.refusal.Code != joinapi.CodeNodeRevoked {
		t.Errorf("a revoked node: status %d, %+v", got.status, got.refusal)
	}
}

type tunnel struct{ node string }

func (u *tunnel) ServeNode(w http.ResponseWriter, _ *http.Request, node string) {
	u.node = node
	w.WriteHeader(http.StatusOK)
}

func TestService_Tunnel(t *testing.T) {
	u := &tunnel{}
	f := newFixture(t, func(c *Config) { c.Tunnel = u })
	if got := f.send(t, f.request(t, http.MethodGet, joinapi.PathTunnel, "", nil),
		f.ca.pair(t, nodeCertificate("n1"))); got.status != http.StatusOK || u.node != "n1" {
		t.Errorf("status %d, node %q", got.status, u.node)
	}
}

// Servers beside this one come from the service kubernetes.
func TestService_Cluster_Servers(t *testing.T) {
	f := newFixture(t, nil, kubernetesSlice("192.0.2.1", "192.0.2.2"))
	c, err := f.cluster(ends(t))
	if err != nil || !slices.Equal(c.Servers, []string{"192.0.2.1:6443", "192.0.2.2:6443"}) {
		t.Errorf("servers are %v (%v)", c.Servers, err)
	}
}

var _ user.Info = self
