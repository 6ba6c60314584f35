package join

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/mote-dev/mote/internal/clusterconfig"
	"github.com/mote-dev/mote/internal/joinapi"
)

const testToken = "abcdef.0123456789abcdef"

// fakeServer is the part of a mote server that nodes join through.
type fakeServer struct {
	*httptest.Server
	ca    *x509.Certificate
	caKey *ecdsa.PrivateKey
	caPEM []byte

	mu sync.Mutex // guards the fields below
	// answers are the refusals of the next requests, by path.
	answers  map[string][]*joinapi.Error
	requests map[string][]joinapi.Request
	cluster  joinapi.Cluster
	lifetime time.Duration
	clock    func() time.Time
}

func newFakeServer(t *testing.T) *fakeServer {
	t.Helper()
	f := &fakeServer{
		answers:  map[string][]*joinapi.Error{},
		requests: map[string][]joinapi.Request{},
		lifetime: time.Hour,
		clock:    time.Now,
		cluster:  joinapi.Cluster{Config: clusterconfig.Config{}.WithDefaults()},
	}
	// As from a server of before there was a choice of it.
	f.cluster.NetworkBackend = ""
	var err error
	if f.caKey, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "test-ca"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour * 24),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, f.caKey.Public(), f.caKey)
	if err != nil {
		t.Fatal(err)
	}
	if f.ca, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	f.caPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	f.Server = f.listen(t)
	return f
}

// listen starts another server of the same cluster.
func (f *fakeServer) listen(t *testing.T) *httptest.Server {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2),
		Subject:      pkix.Name{CommonName: "kube-apiserver"},
		DNSNames:     []string{ServerName},
		NotBefore:    f.ca.NotBefore,
		NotAfter:     f.ca.NotAfter,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, f.ca, key.Public(), f.caKey)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(f)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		ClientAuth: tls.RequestClientCert}
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func (f *fakeServer) token() string { return "M10" + joinapi.Pin(f.ca.Raw) + "::" + testToken }

// refuse makes the next requests to a path fail with these codes.
func (f *fakeServer) refuse(path string, codes ...joinapi.Code) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range codes {
		f.answers[path] = append(f.answers[path],
			&joinapi.Error{Code: c, Message: "refused as " + string(c), ServerTime: time.Now()})
	}
}

func (f *fakeServer) seen(path string) []joinapi.Request {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.requests[path]
}

func (f *fakeServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	w.Header().Set("Date", f.clock().UTC().Format(http.TimeFormat))
	if queue := f.answers[r.URL.Path]; len(queue) > 0 {
		f.answers[r.URL.Path] = queue[1:]
		w.WriteHeader(http.StatusForbidden)
		_ = json.NewEncoder(w).Encode(queue[0])
		return
	}
	switch r.URL.Path {
	case joinapi.PathCA:
		_, _ = w.Write(f.caPEM)
	case joinapi.PathConfig:
		c := f.cluster
		c.Time = f.clock()
		_ = json.NewEncoder(w).Encode(c)
	case joinapi.PathJoin, joinapi.PathRejoin:
		var request joinapi.Request
		err := json.NewDecoder(r.Body).Decode(&request)
		f.requests[r.URL.Path] = append(f.requests[r.URL.Path], request)
		certificate := f.sign(request.CSR)
		if err != nil || certificate == nil || r.URL.Path == joinapi.PathJoin &&
			r.Header.Get("Authorization") != "Bearer "+testToken {
			w.WriteHeader(http.StatusUnauthorized)
			_ = json.NewEncoder(w).Encode(joinapi.Error{Code: joinapi.CodeTokenInvalid, Message: "no such token"})
			return
		}
		c := f.cluster
		c.CA, c.Time, c.Servers = f.caPEM, f.clock(), []string{r.Host}
		_ = json.NewEncoder(w).Encode(joinapi.Response{Certificate: certificate, Cluster: c})
	default:
		http.NotFound(w, r)
	}
}

func (f *fakeServer) sign(csrPEM []byte) []byte {
	block, _ := pem.Decode(csrPEM)
	if block == nil {
		return nil
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil || csr.CheckSignature() != nil {
		return nil
	}
	now := f.clock()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(3),
		Subject:      csr.Subject,
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.Add(f.lifetime),
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, f.ca, csr.PublicKey, f.caKey)
	if err != nil {
		return nil
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
