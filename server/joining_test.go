package server

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/component-base/version"

	"github.com/mote-dev/mote/internal/datadir"
	"github.com/mote-dev/mote/internal/joinapi"
	"github.com/mote-dev/mote/server/join"
)

// startServer runs a whole control plane, without a node, on loopback until the test ends.
func startServer(t *testing.T) *Server {
	t.Helper()
	// An address of its own: the port is free until the server takes it.
	ip := net.IPv4(127, 77, 4, 1)
	probe, err := net.Listen("tcp", net.JoinHostPort(ip.String(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	port := probe.Addr().(*net.TCPAddr).Port
	if err := probe.Close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s, err := New(Config{
		DataDir:          filepath.Join(dir, "data"),
		NodeName:         "server1",
		BindAddress:      ip,
		HTTPSListenPort:  port,
		KubeconfigOutput: filepath.Join(dir, "kubeconfig.yaml"),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("stop server: %v", err)
		}
	})
	select {
	case <-s.Ready():
	case err := <-done:
		done <- nil
		t.Fatalf("server ended: %v", err)
	case <-time.After(time.Minute):
		t.Fatal("server is not ready after a minute")
	}
	return s
}

// machine is one that joins.
type machine struct {
	server *Server
	token  joinapi.Token
	name   string
	secret string
	key    *ecdsa.PrivateKey
	// certificate is what joining gave.
	certificate []byte
}

func (m *machine) tls() *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(m.server.pki.CA.Cert)
	return &tls.Config{RootCAs: pool, ServerName: "kubernetes"}
}

// ask sends a request for a certificate and returns the refusal's code, "" for none.
func (m *machine) ask(t *testing.T, path string) joinapi.Code {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: m.subject()}, m.key)
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(joinapi.Request{
		NodeName:          m.name,
		NodeSecret:        m.secret,
		CSR:               pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}),
		KubernetesVersion: version.Get().GitVersion,
		Time:              time.Now(),
	})
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, m.server.url()+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	if path == joinapi.PathJoin {
		r.Header.Set("Authorization", "Bearer "+m.token.Secret)
	}
	transport := &http.Transport{TLSClientConfig: m.tls(), DisableKeepAlives: true}
	response, err := transport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var answer struct {
		joinapi.Response
		joinapi.Error
	}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		t.Fatal(err)
	}
	if answer.Code == "" {
		m.certificate = answer.Certificate
	} else {
		t.Logf("%s of %s: %s: %s", path, m.name, answer.Code, answer.Message)
	}
	return answer.Code
}

func (m *machine) subject() pkix.Name {
	return pkix.Name{CommonName: "system:node:" + m.name, Organization: []string{"system:nodes"}}
}

// client speaks to the API with the node's certificate.
func (m *machine) client(t *testing.T) kubernetes.Interface {
	t.Helper()
	der, err := x509.MarshalECPrivateKey(m.key)
	if err != nil {
		t.Fatal(err)
	}
	return m.clientOf(t, rest.TLSClientConfig{CertData: m.certificate,
		KeyData: pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})}, "")
}

func (m *machine) clientOf(t *testing.T, own rest.TLSClientConfig, bearer string) kubernetes.Interface {
	t.Helper()
	own.CAData, own.ServerName = m.server.pki.CA.CertPEM, "kubernetes"
	client, err := kubernetes.NewForConfig(&rest.Config{Host: m.server.url(), TLSClientConfig: own,
		BearerToken: bearer})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// create asks the API for a certificate as the node.
func (m *machine) create(t *testing.T, signer string, usage certificatesv1.KeyUsage,
	template x509.CertificateRequest) (*certificatesv1.CertificateSigningRequest, error) {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &template, m.key)
	if err != nil {
		t.Fatal(err)
	}
	return m.client(t).CertificatesV1().CertificateSigningRequests().Create(t.Context(),
		&certificatesv1.CertificateSigningRequest{
			ObjectMeta: metav1.ObjectMeta{GenerateName: "csr-"},
			Spec: certificatesv1.CertificateSigningRequestSpec{
				SignerName: signer, Usages: []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, usage},
				Request: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}),
			},
		}, metav1.CreateOptions{})
}

// request asks for a certificate and waits until it is signed or denied.
func (m *machine) request(t *testing.T, signer string, usage certificatesv1.KeyUsage,
	template x509.CertificateRequest) *certificatesv1.CertificateSigningRequest {
	t.Helper()
	csr, err := m.create(t, signer, usage, template)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	requests := m.client(t).CertificatesV1().CertificateSigningRequests()
	watcher, err := requests.Watch(ctx,
		metav1.ListOptions{ResourceVersion: csr.ResourceVersion, FieldSelector: "metadata.name=" + csr.Name})
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Stop()
	for event := range watcher.ResultChan() {
		csr, ok := event.Object.(*certificatesv1.CertificateSigningRequest)
		if !ok {
			t.Fatalf("watch says %v", event.Object)
		}
		if len(csr.Status.Certificate) > 0 {
			return csr
		}
		for _, c := range csr.Status.Conditions {
			if c.Type != certificatesv1.CertificateApproved {
				return csr
			}
		}
	}
	t.Fatalf("nobody decided on request %s", csr.Name)
	return nil
}

// A machine joins a real API server by its token alone and gets a node's rights and no more.
func TestServer_Joining(t *testing.T) {
	s := startServer(t)
	text, err := os.ReadFile(datadir.At(s.config.DataDir).TokenFile())
	if err != nil {
		t.Fatal(err)
	}
	token, err := joinapi.ParseToken(strings.TrimSpace(string(text)))
	if err != nil || token.Pin != s.Pin() || !strings.HasSuffix(s.JoinCommand(), " --token "+token.String()) {
		t.Fatalf("token file has %q (%v), the join command is %q", text, err, s.JoinCommand())
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{
		server: s,
		token:  token,
		name:   "n1",
		secret: strings.Repeat("a1", 32),
		key:    key,
	}
	code := m.ask(t, joinapi.PathJoin)
	for range 3 {
		// The controller that signs starts last; nodes ask again as well.
		if code != joinapi.CodeNotReady {
			break
		}
		code = m.ask(t, joinapi.PathJoin)
	}
	if code != "" {
		t.Fatalf("refused: %s", code)
	}
	other := *m
	other.secret = strings.Repeat("b2", 32)
	if code := other.ask(t, joinapi.PathJoin); code != joinapi.CodeNameTaken {
		t.Errorf("another machine under its name: %q", code)
	}
	other.name = "server1"
	if code := other.ask(t, joinapi.PathJoin); code != joinapi.CodeNameTaken {
		t.Errorf("a machine under the server's name: %q", code)
	}
	if code := m.ask(t, joinapi.PathRejoin); code != "" {
		t.Errorf("rejoin: %q", code)
	}
	t.Run("RightsOfNode", func(t *testing.T) { testRightsOfNode(t, m) })
	t.Run("Claims", func(t *testing.T) { testClaims(t, s, m) })
	t.Run("TokenAtTheAPI", func(t *testing.T) { testTokenAtTheAPI(t, m) })
	t.Run("ServingCertificate", func(t *testing.T) { testServingCertificate(t, m) })
	t.Run("Renewal", func(t *testing.T) { testRenewal(t, m) })
	t.Run("PlainHTTP", func(t *testing.T) { testPlainHTTP(t, s) })
	t.Run("Forget", func(t *testing.T) {
		admin, err := s.client(&user.DefaultInfo{Name: "admin", Groups: []string{user.SystemPrivilegedGroup}})
		if err != nil {
			t.Fatal(err)
		}
		if there, err := join.ForgetNode(t.Context(), admin, "n1", time.Now()); err != nil || !there {
			t.Fatalf("there was something: %v (%v)", there, err)
		}
		waitRefused(t, m)
		if code := m.ask(t, joinapi.PathRejoin); code != joinapi.CodeNodeUnknown {
			t.Errorf("rejoin of a forgotten node: %q", code)
		}
		other.name = "n1"
		if code := other.ask(t, joinapi.PathJoin); code != "" {
			t.Errorf("another machine under the name that is free again: %q", code)
		}
		if _, err := other.client(t).CoreV1().Services("").List(t.Context(), metav1.ListOptions{}); err != nil {
			t.Errorf("it may not do what nodes do: %v", err)
		}
		waitRefused(t, m)
	})
}

// waitRefused waits until the API refuses the machine's certificate, which is when the server has
// heard of it.
func waitRefused(t *testing.T, m *machine) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var last error
	err := wait.PollUntilContextCancel(ctx, 10*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		last = second(m.client(t).CoreV1().Services("").List(ctx, metav1.ListOptions{}))
		return apierrors.IsUnauthorized(last), nil
	})
	if err != nil {
		t.Errorf("the certificate of a forgotten node still works: %v", last)
	}
}

// testRightsOfNode tries what a node's parts need, and what nobody may do with a node's
// certificate.
func testRightsOfNode(t *testing.T, m *machine) {
	client, ctx := m.client(t), t.Context()
	if _, err := client.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}},
		metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	all := metav1.ListOptions{}
	for what, err := range map[string]error{
		"services":         second(client.CoreV1().Services("").List(ctx, all)),
		"nodes":            second(client.CoreV1().Nodes().List(ctx, all)),
		"namespaces":       second(client.CoreV1().Namespaces().List(ctx, all)),
		"pods":             second(client.CoreV1().Pods("").List(ctx, all)),
		"endpoint slices":  second(client.DiscoveryV1().EndpointSlices("").List(ctx, all)),
		"network policies": second(client.NetworkingV1().NetworkPolicies("").List(ctx, all)),
		"service ranges":   second(client.NetworkingV1().ServiceCIDRs().List(ctx, all)),
		"DNS settings": second(client.CoreV1().ConfigMaps("kube-system").List(ctx,
			metav1.ListOptions{FieldSelector: "metadata.name=mote-dns"})),
		"runtime classes": second(client.NodeV1().RuntimeClasses().List(ctx, all)),
		"CSI drivers":     second(client.StorageV1().CSIDrivers().List(ctx, all)),
	} {
		if err != nil {
			t.Errorf("a node may not list %s: %v", what, err)
		}
	}
	for what, err := range map[string]error{
		"list all secrets":  second(client.CoreV1().Secrets("").List(ctx, all)),
		"read a join token": second(client.CoreV1().Secrets("kube-system").List(ctx, all)),
		"read a node's binding": second(client.CoreV1().Secrets("kube-system").Get(ctx, "n1.node-secret.mote",
			metav1.GetOptions{})),
		"list all config maps": second(client.CoreV1().ConfigMaps("").List(ctx, all)),
		"make another node": second(client.CoreV1().Nodes().Create(ctx,
			&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n2"}}, metav1.CreateOptions{})),
		"make a secret": second(client.CoreV1().Secrets("default").Create(ctx,
			&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "x"}}, metav1.CreateOptions{})),
		"delete another's lease": client.CoordinationV1().Leases("kube-node-lease").Delete(ctx, "server1",
			metav1.DeleteOptions{}),
		"list rights":               second(client.RbacV1().ClusterRoleBindings().List(ctx, all)),
		"ask for a token of others": second(client.CoreV1().ServiceAccounts("default").List(ctx, all)),
	} {
		if !apierrors.IsForbidden(err) {
			t.Errorf("a node may %s: %v", what, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// testTokenAtTheAPI shows that a token is no credential of the Kubernetes API, where it could ask
// for a certificate of any name.
func testTokenAtTheAPI(t *testing.T, m *machine) {
	client := m.clientOf(t, rest.TLSClientConfig{}, m.token.Secret)
	if _, err := client.CertificatesV1().CertificateSigningRequests().List(t.Context(),
		metav1.ListOptions{}); !apierrors.IsUnauthorized(err) {
		t.Errorf("the API says %v, want 401", err)
	}
}

func testServingCertificate(t *testing.T, m *machine) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.11"}}
	if _, err := m.client(t).CoreV1().Nodes().UpdateStatus(t.Context(), node, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name, dns, ip string
		want          bool
	}{
		{"its own", "n1", "192.0.2.11", true},
		{"the API server's name", "kubernetes", "192.0.2.11", false},
		{"the API's service address", "n1", "10.43.0.1", false},
	} {
		csr := m.request(t, certificatesv1.KubeletServingSignerName, certificatesv1.UsageServerAuth,
			x509.CertificateRequest{
				Subject: m.subject(), DNSNames: []string{row.dns}, IPAddresses: []net.IP{net.ParseIP(row.ip)},
			})
		if (len(csr.Status.Certificate) > 0) != row.want {
			t.Errorf("%s: %+v; signed should be %v", row.name, csr.Status.Conditions, row.want)
		}
	}
}

// testRenewal has a node ask for another's certificate, and then for its own.
func testRenewal(t *testing.T, m *machine) {
	const signer, usage = certificatesv1.KubeAPIServerClientKubeletSignerName, certificatesv1.UsageClientAuth
	other := machine{name: "server1"}
	if _, err := m.create(t, signer, usage,
		x509.CertificateRequest{Subject: other.subject()}); !apierrors.IsForbidden(err) {
		t.Errorf("another's: %v", err)
	}
	if own := m.request(t, signer, usage,
		x509.CertificateRequest{Subject: m.subject()}); len(own.Status.Certificate) == 0 {
		t.Errorf("its own: %+v", own.Status.Conditions)
	}
}

// testPlainHTTP shows that the port answers nothing without TLS.
func testPlainHTTP(t *testing.T, s *Server) {
	u, err := url.Parse(s.url())
	if err != nil {
		t.Fatal(err)
	}
	u.Scheme = "http"
	for _, path := range []string{joinapi.PathCA, joinapi.PathJoin} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, u.String()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		_ = response.Body.Close()
		if err != nil || response.StatusCode != http.StatusBadRequest || strings.Contains(string(body), "CERTIFICATE") {
			t.Errorf("%s over plain HTTP: %s, %q (%v)", path, response.Status, body, err)
		}
	}
}

// A token of another cluster is refused before anything starts.
func TestServer_Open_TokenOfAnotherCluster(t *testing.T) {
	s, err := New(Config{
		DataDir:     filepath.Join(t.TempDir(), "data"),
		NodeName:    "server1",
		BindAddress: net.IPv4(127, 0, 0, 1),
		Token:       "M10" + strings.Repeat("0f", 32) + "::abcdef.0123456789abcdef",
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Open(t.Context()); err == nil || !strings.Contains(err.Error(), "another cluster") ||
		strings.Contains(err.Error(), "0123456789abcdef") || strings.Contains(err.Error(), "\n") {
		t.Errorf("opened with %v, want one line that names the other cluster", err)
	}
}
