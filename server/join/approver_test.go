package join

import (
	"context"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"

	"github.com/mote-dev/mote/internal/informer"
	"github.com/mote-dev/mote/internal/retry"
	"github.com/mote-dev/mote/server/revocation"
)

func kubernetesSlice(addresses ...string) *discoveryv1.EndpointSlice {
	port := int32(6443)
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: "kubernetes", Namespace: metav1.NamespaceDefault,
			Labels: map[string]string{discoveryv1.LabelServiceName: "kubernetes"}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: addresses}}, Ports: []discoveryv1.EndpointPort{{Port: &port}},
	}
}

func nodeAt(name string, addresses ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: "kubernetes"}}
	for _, a := range addresses {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
	}
	return n
}

// decided waits until a request is approved or denied, and says which and why.
func decided(t *testing.T, f *fixture, name string) (approved bool, why string) {
	t.Helper()
	requests := f.api.CertificatesV1().CertificateSigningRequests()
	ctx := ends(t)
	watcher, err := requests.Watch(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Stop()
	for {
		csr, err := requests.Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range csr.Status.Conditions {
			return c.Type == certificatesv1.CertificateApproved, c.Message
		}
		select {
		case <-watcher.ResultChan():
		case <-ctx.Done():
			t.Fatalf("nobody decided on %s", name)
		}
	}
}

// startApprover runs the approver until the test ends.
func startApprover(t *testing.T, f *fixture) {
	t.Helper()
	startInformers(t, f)
	background(t, f.Run)
}

// startInformers runs the shared informers until the test ends.
func startInformers(t *testing.T, f *fixture) {
	t.Helper()
	f.config.Informers = informer.NewShared(informers.NewSharedInformerFactory(f.api, 0))
	background(t, f.config.Informers.Run)
}

// background runs something until the test ends, or the function it returns is called.
func background(t *testing.T, run func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := run(ctx); err != nil {
			t.Error(err)
		}
	})
	stop = func() {
		cancel()
		running.Wait()
	}
	t.Cleanup(stop)
	return stop
}

type (
	spec    = certificatesv1.CertificateSigningRequestSpec
	request = x509.CertificateRequest
)

func TestApprover(t *testing.T) {
	f := newFixture(t, func(c *Config) {
		c.NodeRevoked = func(_ context.Context, n string) (bool, error) { return n == "revoked", nil }
	},
		kubernetesSlice("192.0.2.1", "192.0.2.2"),
		// n1 says that it has addresses of others; its host name is the API server's.
		nodeAt("n1", "192.0.2.11", "192.0.2.2", "10.42.3.4", "192.0.2.12", "127.0.0.1"),
		nodeAt("n2", "192.0.2.12", "192.0.2.13"), nodeAt("revoked", "192.0.2.14"), nodeAt("kubernetes", "192.0.2.15"))
	startApprover(t, f)
	ip := func(text string) []net.IP { return []net.IP{net.ParseIP(text)} }
	serving := []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageServerAuth}
	for _, row := range []struct {
		name   string
		change func(*spec, *request)
		want   bool
	}{
		{"its own name and address", nil, true},
		{"its name alone", func(_ *spec, r *request) { r.IPAddresses = nil }, true},
		{"its address alone", func(_ *spec, r *request) { r.DNSNames = nil }, true},
		{"neither", func(_ *spec, r *request) { r.DNSNames, r.IPAddresses = nil, nil }, false},
		{"the host name it gives itself", func(_ *spec, r *request) { r.DNSNames = []string{"kubernetes"} }, false},
		{"another node's name", func(_ *spec, r *request) { r.DNSNames = append(r.DNSNames, "n2") }, false},
		{"a wildcard", func(_ *spec, r *request) { r.DNSNames = []string{"*"} }, false},
		{"another node's address", func(_ *spec, r *request) { r.IPAddresses = ip("192.0.2.13") }, false},
		{"an address two nodes have", func(_ *spec, r *request) { r.IPAddresses = ip("192.0.2.12") }, false},
		{"this API server's address", func(_ *spec, r *request) { r.IPAddresses = ip("192.0.2.1") }, false},
		{"another API server's address", func(_ *spec, r *request) { r.IPAddresses = ip("192.0.2.2") }, false},
		{"a pod's address", func(_ *spec, r *request) { r.IPAddresses = ip("10.42.3.4") }, false},
		{"loopback", func(_ *spec, r *request) { r.IPAddresses = ip("127.0.0.1") }, false},
		{"an address nobody has", func(_ *spec, r *request) { r.IPAddresses = ip("192.0.2.99") }, false},
		{"another node's subject", func(_ *spec, r *request) { r.Subject.CommonName = "system:node:n2" }, false},
		{"a group more",
			func(_ *spec, r *request) { r.Subject.Organization = []string{"system:nodes", "system:masters"} }, false},
		{"a unit", func(_ *spec, r *request) { r.Subject.OrganizationalUnit = []string{"x"} }, false},
		{"a URI", func(_ *spec, r *request) { r.URIs = []*url.URL{{Scheme: "spiffe", Host: "x"}} }, false},
		{"asked by a user", func(s *spec, _ *request) { s.Username = "mallory" }, false},
		{"asked by a user of a node's name", func(s *spec, _ *request) { s.Groups = []string{"system:authenticated"} },
			false},
		{"asked by another node", func(s *spec, _ *request) { s.Username = "system:node:n2" }, false},
		{"for a client too", func(s *spec, _ *request) { s.Usages = append(s.Usages, certificatesv1.UsageClientAuth) },
			false},
		{"a revoked node", func(s *spec, r *request) {
			s.Username, r.Subject.CommonName, r.DNSNames, r.IPAddresses = "system:node:revoked", "system:node:revoked",
				[]string{"revoked"}, ip("192.0.2.14")
		}, false},
		{"a node of the API server's name", func(s *spec, r *request) {
			s.Username, r.Subject.CommonName, r.DNSNames, r.IPAddresses = "system:node:kubernetes",
				"system:node:kubernetes", []string{"kubernetes"}, ip("192.0.2.15")
		}, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			asked := request{
				Subject:  pkix.Name{CommonName: "system:node:n1", Organization: []string{"system:nodes"}},
				DNSNames: []string{"n1"}, IPAddresses: ip("192.0.2.11"),
			}
			by := spec{
				SignerName: certificatesv1.KubeletServingSignerName,
				Usages:     serving,
				Username:   "system:node:n1",
				Groups:     []string{"system:nodes", "system:authenticated"},
			}
			if row.change != nil {
				row.change(&by, &asked)
			}
			name := f.ask(t, by, newKey(t), asked, time.Now().Add(-2*addressGrace))
			if approved, why := decided(t, f, name); approved != row.want {
				t.Errorf("approved: %v (%s), want %v", approved, why, row.want)
			}
		})
	}
}

// ask stores a request as if it had been made at the time.
func (f *fixture) ask(t *testing.T, spec certificatesv1.CertificateSigningRequestSpec, key crypto.Signer,
	request x509.CertificateRequest, at time.Time) string {
	t.Helper()
	spec.Request = csrFor(t, key, request)
	csr, err := f.api.CertificatesV1().CertificateSigningRequests().Create(t.Context(),
		&certificatesv1.CertificateSigningRequest{
			ObjectMeta: metav1.ObjectMeta{GenerateName: "csr-", CreationTimestamp: metav1.NewTime(at)}, Spec: spec,
		}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return csr.Name
}

// A kubelet asks at the moment it reports its addresses: it is waited for.
func TestApprover_WaitsForAddresses(t *testing.T) {
	f := newFixture(t, nil, nodeAt("n1"))
	startApprover(t, f)
	name := f.ask(t, certificatesv1.CertificateSigningRequestSpec{
		SignerName: certificatesv1.KubeletServingSignerName,
		Username:   "system:node:n1",
		Groups:     []string{"system:nodes"},
		Usages:     []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageServerAuth},
	}, newKey(t), x509.CertificateRequest{
		Subject:     pkix.Name{CommonName: "system:node:n1", Organization: []string{"system:nodes"}},
		IPAddresses: []net.IP{net.IPv4(192, 0, 2, 11)},
	}, time.Now())
	if _, err := f.api.CoreV1().Nodes().UpdateStatus(t.Context(), nodeAt("n1", "192.0.2.11"),
		metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if approved, why := decided(t, f, name); !approved {
		t.Errorf("denied: %s", why)
	}
}

// The informers outlive the approver: others use them, too.
func TestApprover_Stops_InformersGoOn(t *testing.T) {
	f := newFixture(t, nil, nodeAt("n1"))
	startInformers(t, f)
	stop := background(t, f.Run)
	f.ask(t, servingRequest("n1"), newKey(t), request{Subject: nodeSubject("n1").Subject, DNSNames: []string{"n1"}},
		time.Now())
	nodes := f.config.Informers.Core().V1().Nodes().Informer()
	if !cache.WaitForCacheSync(ends(t).Done(), nodes.HasSynced) {
		t.Fatal("the nodes are not read")
	}
	stop()
	if nodes.IsStopped() {
		t.Error("the informer has stopped")
	}
	// The fake API loses what happens between list and watch, so one change is not enough.
	ctx := ends(t)
	for i := 2; len(nodes.GetStore().ListKeys()) < 2; i++ {
		if _, err := f.api.CoreV1().Nodes().Create(ctx, nodeAt(fmt.Sprintf("n%d", i)),
			metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := retry.Sleep(ctx, 10*time.Millisecond); err != nil {
			t.Fatal("the informer no longer follows")
		}
	}
}

// While it is not known whether a node is revoked nothing is decided: a denial is for good.
func TestApprover_RevocationUnknown_DecidesNothing(t *testing.T) {
	f := newFixture(t, func(c *Config) {
		c.NodeRevoked = func(context.Context, string) (bool, error) { return false, revocation.ErrNotRead }
	})
	csr := &certificatesv1.CertificateSigningRequest{Spec: servingRequest("n1")}
	csr.CreationTimestamp = metav1.NewTime(time.Now().Add(-2 * addressGrace))
	csr.Spec.Request = csrFor(t, newKey(t), request{Subject: nodeSubject("n1").Subject, DNSNames: []string{"n1"}})
	a := &approver{service: f.Service}
	if err := a.handle(t.Context(), csr); !errors.Is(err, revocation.ErrNotRead) || len(csr.Status.Conditions) > 0 {
		t.Errorf("conditions %v, %v", csr.Status.Conditions, err)
	}
}

// servingRequest is what a node asks with for a serving certificate.
func servingRequest(node string) spec {
	return spec{
		SignerName: certificatesv1.KubeletServingSignerName,
		Username:   nodePrefix + node,
		Groups:     []string{"system:nodes"},
		Usages:     []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageServerAuth},
	}
}

// Requests for other signers are upstream's.
func TestApprover_LeavesOthersAlone(t *testing.T) {
	f := newFixture(t, nil)
	a := &approver{service: f.Service}
	csr := &certificatesv1.CertificateSigningRequest{Spec: certificatesv1.CertificateSigningRequestSpec{
		SignerName: certificatesv1.KubeAPIServerClientKubeletSignerName}}
	if err := a.handle(t.Context(), csr); err != nil || len(csr.Status.Conditions) > 0 || len(f.api.Actions()) > 0 {
		t.Errorf("conditions %v, actions %v, %v", csr.Status.Conditions, f.api.Actions(), err)
	}
}
