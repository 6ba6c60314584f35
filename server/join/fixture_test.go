package join

import (
	"bytes"
	"context"
	"crypto"
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
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/mote-dev/mote/internal/clusterconfig"
	"github.com/mote-dev/mote/internal/joinapi"
)

const (
	testToken = "abcdef.0123456789abcdef"
	ownNode   = "server1"
)

var (
	secretA = strings.Repeat("a1", 32)
	secretB = strings.Repeat("b2", 32)
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"),
		// Shutting a queue down does not wait for its goroutine, which a busy machine runs later.
		goleak.IgnoreAnyFunction("k8s.io/client-go/util/workqueue.(*delayingType[...]).waitingLoop"))
}

// authority signs what a test needs.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "test-ca"},
		NotBefore:             time.Now().Add(-24 * time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{cert, key}
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// issue makes a certificate; zero fields are filled in.
func (a authority) issue(public crypto.PublicKey, template x509.Certificate) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	if template.NotAfter.IsZero() {
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	return x509.CreateCertificate(rand.Reader, &template, a.cert, public, a.key)
}

func (a authority) pair(t *testing.T, template x509.Certificate) tls.Certificate {
	t.Helper()
	key := newKey(t)
	der, err := a.issue(key.Public(), template)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// nodeCertificate is the template of a node's client certificate.
func nodeCertificate(name string) x509.Certificate {
	return x509.Certificate{Subject: pkix.Name{CommonName: nodePrefix + name, Organization: []string{user.NodesGroup}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
}

// fixture is a join service in front of a handler, over TLS, with an API that signs what it is
// asked to.
type fixture struct {
	*Service
	*httptest.Server
	ca  authority
	api *fake.Clientset

	mu sync.Mutex // guards what follows
	// users are those a client was made for.
	users []user.Info
	clock time.Time
}

func newFixture(t *testing.T, change func(*Config), objects ...runtime.Object) *fixture {
	t.Helper()
	f := &fixture{ca: newAuthority(t), api: fake.NewClientset(objects...), clock: time.Now()}
	f.api.PrependReactor("create", "certificatesigningrequests",
		func(action clienttesting.Action) (bool, runtime.Object, error) {
			csr := action.(clienttesting.CreateAction).GetObject().(*certificatesv1.CertificateSigningRequest)
			csr.Name = fmt.Sprintf("%s%d", csr.GenerateName, time.Now().UnixNano())
			if csr.Spec.SignerName != certificatesv1.KubeAPIServerClientKubeletSignerName {
				return false, nil, nil
			}
			block, _ := pem.Decode(csr.Spec.Request)
			request, err := x509.ParseCertificateRequest(block.Bytes)
			if err != nil {
				return true, nil, err
			}
			der, err := f.ca.issue(request.PublicKey,
				x509.Certificate{Subject: request.Subject, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
			if err != nil {
				return true, nil, err
			}
			csr.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{
				{Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue}}
			csr.Status.Certificate = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
			return false, nil, nil
		})
	c := Config{
		CA:        f.ca.cert,
		NodeName:  ownNode,
		Names:     []string{"kubernetes", "localhost", "*.mote.example"},
		IPs:       func() []net.IP { return []net.IP{net.IPv4(192, 0, 2, 1)} },
		Addresses: func() []net.IP { return []net.IP{net.IPv4(192, 0, 2, 1)} },
		Port:      6443,
		Cluster: joinapi.Cluster{
			Config: clusterconfig.Config{ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")},
				ClusterDomain: "cluster.local"}, KubernetesVersion: "v1.37.2", MoteVersion: "test"},
		Client: func(u user.Info) (kubernetes.Interface, error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.users = append(f.users, u)
			return f.api, nil
		},
		Now: func() time.Time {
			f.mu.Lock()
			defer f.mu.Unlock()
			return f.clock
		},
	}
	if change != nil {
		change(&c)
	}
	service, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	f.Service = service
	f.Ready()
	f.Server = httptest.NewUnstartedServer(
		f.Wrap(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "next") })))
	f.Server.TLS = &tls.Config{
		Certificates: []tls.Certificate{f.ca.pair(t, x509.Certificate{DNSNames: []string{"kubernetes"},
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})},
		ClientAuth: tls.RequestClientCert,
	}
	f.Server.EnableHTTP2 = true
	f.Server.StartTLS()
	t.Cleanup(f.Server.Close)
	return f
}

func (f *fixture) later(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.clock = f.clock.Add(d)
}

// asked are the users certificates were asked for as.
func (f *fixture) asked() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for _, u := range f.users[1:] {
		out = append(out, fmt.Sprint(u.GetName(), " ", u.GetGroups()))
	}
	return out
}

func (f *fixture) requests(t *testing.T) []certificatesv1.CertificateSigningRequest {
	t.Helper()
	list, err := f.api.CertificatesV1().CertificateSigningRequests().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return list.Items
}

// transport trusts the server and shows the certificates.
func (f *fixture) transport(t *testing.T, own ...tls.Certificate) *http.Transport {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(f.ca.cert)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "kubernetes",
		Certificates: own}, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	return transport
}

// answer is what came of a request: one of the fields is set.
type answer struct {
	status   int
	response joinapi.Response
	refusal  joinapi.Error
	header   http.Header
	body     []byte
}

func (f *fixture) send(t *testing.T, r *http.Request, own ...tls.Certificate) answer {
	t.Helper()
	response, err := f.transport(t, own...).RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	a := answer{status: response.StatusCode, header: response.Header}
	if a.body, err = io.ReadAll(response.Body); err != nil {
		t.Fatal(err)
	}
	if a.status == http.StatusOK {
		_ = json.Unmarshal(a.body, &a.response)
		return a
	}
	if err := json.Unmarshal(a.body, &a.refusal); err != nil || a.refusal.Code == "" || a.refusal.Message == "" ||
		a.refusal.ServerTime.IsZero() {
		t.Errorf("status %d with the body %q, want code, message and time (%v)", a.status, a.body, err)
	}
	return a
}

func (f *fixture) post(t *testing.T, path, token string, body any) answer {
	t.Helper()
	data, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	return f.send(t, f.request(t, http.MethodPost, path, token, bytes.NewReader(data)))
}

func (f *fixture) request(t *testing.T, method, path, token string, body io.Reader) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, f.URL+path, body)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	return r
}

// joining is the request of a node as an agent makes it.
func (f *fixture) joining(t *testing.T, name, secret string) joinapi.Request {
	t.Helper()
	return joinapi.Request{
		NodeName:          name,
		NodeSecret:        secret,
		CSR:               csrFor(t, newKey(t), nodeSubject(name)),
		MoteVersion:       "test",
		KubernetesVersion: "v1.37.2",
		Time:              f.config.Now(),
	}
}

func nodeSubject(name string) x509.CertificateRequest {
	return x509.CertificateRequest{Subject: pkix.Name{CommonName: nodePrefix + name,
		Organization: []string{user.NodesGroup}}}
}

func csrFor(t *testing.T, key crypto.Signer, template x509.CertificateRequest) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &template, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func parse(t *testing.T, certPEM []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(certPEM)
	if block == nil {
		t.Fatalf("%q is no PEM", certPEM)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// withToken stores the test token, changed.
func withToken(change func(*corev1.Secret)) *corev1.Secret {
	s := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "bootstrap-token-abcdef", Namespace: metav1.NamespaceSystem},
		Type:       "bootstrap.kubernetes.io/token",
		Data: map[string][]byte{"token-id": []byte("abcdef"), "token-secret": []byte("0123456789abcdef"),
			"usage-bootstrap-authentication": []byte("true")},
	}
	if change != nil {
		change(s)
	}
	return s
}

// ends is a context no wait of a test outlives.
func ends(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}
