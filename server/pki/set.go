package pki

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/mote-dev/mote/internal/atomicfile"
)

// Set holds the cluster's authority and the names of all key and certificate files, as Kubernetes'
// options want them.
type Set struct {
	CA *Authority
	// CAFile is the cluster CA's certificate, CAKeyFile its key: signer of client, serving and node
	// certificates.
	CAFile, CAKeyFile string
	// FrontProxyCAFile signs the aggregation layer's client certificate and nothing else.
	FrontProxyCAFile string
	// ServiceAccountKeyFile signs service account tokens; ServiceAccountPubFile checks them.
	ServiceAccountKeyFile, ServiceAccountPubFile string

	APIServer, KubeletClient, FrontProxy, Admin Pair

	frontCA *Authority
	dir     string
	// mu guards nodes, and keeps two renewals from writing one file.
	mu sync.Mutex
	// nodes are the leaves of earlier NodeServing calls.
	nodes []keptLeaf
}

// keptLeaf is a certificate in a folder that is renewed in time.
type keptLeaf struct {
	authority *Authority
	dir, name string
	request   Request
}

// Names are the names and addresses under which the API server is reached.
type Names struct {
	DNSNames []string
	IPs      []net.IP
}

// Open loads the set from dir, creating what is missing and renewing what expires soon. An
// authority or key that exists and cannot be used is refused with ErrDamaged or ErrIncomplete:
// replacing it would lock every node and user out. An error of neither kind leaves open whether it
// can be used.
func Open(dir string, names Names, now time.Time) (*Set, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create %s: %w", dir, err)
	}
	ca, err := loadOrCreateAuthority(dir, authorities[0].name, authorities[0].commonName, now)
	if err != nil {
		return nil, err
	}
	frontCA, err := loadOrCreateAuthority(dir, authorities[1].name, authorities[1].commonName, now)
	if err != nil {
		return nil, err
	}
	s := &Set{
		CA:                    ca,
		frontCA:               frontCA,
		dir:                   dir,
		APIServer:             pairIn(dir, apiServerLeaf),
		KubeletClient:         pairIn(dir, kubeletClientLeaf),
		FrontProxy:            pairIn(dir, frontProxyLeaf),
		Admin:                 pairIn(dir, adminLeaf),
		CAFile:                filepath.Join(dir, "ca.crt"),
		CAKeyFile:             filepath.Join(dir, "ca.key"),
		FrontProxyCAFile:      filepath.Join(dir, "front-proxy-ca.crt"),
		ServiceAccountKeyFile: filepath.Join(dir, serviceAccountKey),
		ServiceAccountPubFile: filepath.Join(dir, "service-account.pub"),
	}
	if err := ensureServiceAccountKey(s.ServiceAccountKeyFile, s.ServiceAccountPubFile); err != nil {
		return nil, err
	}
	for _, authority := range []*Authority{ca, frontCA} {
		if err := authority.checkEnd(now); err != nil {
			return nil, err
		}
	}
	if _, err := s.Renew(names, now); err != nil {
		return nil, err
	}
	return s, nil
}

// adminRequest describes the administrator in the machine's kubeconfig.
var adminRequest = Request{CommonName: "kubernetes-admin", Organizations: []string{"system:masters"}}

// AdminCertificate returns the administrator's current certificate.
func (s *Set) AdminCertificate() (*x509.Certificate, error) {
	cert, _, _, err := readPair(s.Admin.CertFile, s.Admin.KeyFile)
	return cert, err
}

// ReplaceAdmin issues a new key and certificate for the administrator. They replace the old ones
// once accept has returned nil.
func (s *Set) ReplaceAdmin(now time.Time, accept func(*x509.Certificate) error) error {
	certPEM, keyPEM, err := s.CA.Issue(adminRequest, now)
	if err != nil {
		return err
	}
	block, _ := pem.Decode(certPEM)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return fmt.Errorf("parse new administrator certificate: %w", err)
	}
	if err := accept(cert); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return writePair(s.Admin.CertFile, certPEM, s.Admin.KeyFile, keyPEM)
}

// Names of the server's own certificates, without extension.
const (
	apiServerLeaf     = "apiserver"
	kubeletClientLeaf = "apiserver-kubelet-client"
	frontProxyLeaf    = "front-proxy-client"
	adminLeaf         = "admin"
)

// Renew issues the certificates again that are missing, expire soon or lack one of names, and
// returns which. It is called at start and periodically, so that none expires while the server
// runs; users of the files reload them.
func (s *Set) Renew(names Names, now time.Time) ([]Pair, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	leaves := append([]keptLeaf{
		{s.CA, s.dir, apiServerLeaf, Request{
			CommonName: "kube-apiserver",
			Usage:      ServerUsage,
			DNSNames:   names.DNSNames,
			IPs:        names.IPs,
		}},
		{s.CA, s.dir, kubeletClientLeaf,
			Request{CommonName: "kube-apiserver-kubelet-client", Organizations: []string{"system:masters"}}},
		{s.frontCA, s.dir, frontProxyLeaf, Request{CommonName: "front-proxy-client"}},
		{s.CA, s.dir, adminLeaf, adminRequest},
	}, s.nodes...)
	var renewed []Pair
	// A failure to write one must not prevent the renewal of the others.
	var errs []error
	for _, l := range leaves {
		isNew, err := l.ensure(now)
		if err != nil {
			errs = append(errs, err)
		} else if isNew {
			renewed = append(renewed, pairIn(l.dir, l.name))
		}
	}
	return renewed, errors.Join(errs...)
}

// End is when the first of the set's authorities expires.
func (s *Set) End() time.Time {
	if s.frontCA.Cert.NotAfter.Before(s.CA.Cert.NotAfter) {
		return s.frontCA.Cert.NotAfter
	}
	return s.CA.Cert.NotAfter
}

// NodeServing issues the serving certificate of the kubelet in the server's own process, in dir,
// and has [Set.Renew] renew it.
func (s *Set) NodeServing(dir, nodeName string, ips []net.IP, now time.Time) (Pair, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return Pair{}, fmt.Errorf("create %s: %w", dir, err)
	}
	l := keptLeaf{s.CA, dir, "kubelet-serving", Request{
		CommonName:    "system:node:" + nodeName,
		Organizations: []string{"system:nodes"},
		Usage:         ServerUsage,
		DNSNames:      []string{nodeName},
		IPs:           ips,
	}}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := l.ensure(now); err != nil {
		return Pair{}, err
	}
	s.nodes = append(s.nodes, l)
	return pairIn(dir, l.name), nil
}

func ensureServiceAccountKey(keyFile, pubFile string) error {
	keyPEM, err := os.ReadFile(keyFile)
	var key *ecdsa.PrivateKey
	switch {
	case errors.Is(err, os.ErrNotExist):
		if key, keyPEM, err = newKey(); err != nil {
			return err
		}
		if err := atomicfile.Write(keyFile, keyPEM, 0o600); err != nil {
			return err
		}
	case err != nil:
		return unreadable("service account key", err)
	default:
		if key, err = parseServiceAccountKey(keyFile, keyPEM); err != nil {
			return err
		}
	}
	if _, err := os.Stat(pubFile); err == nil {
		return nil
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return fmt.Errorf("encode service account public key: %w", err)
	}
	return atomicfile.Write(pubFile, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o644)
}

func parseServiceAccountKey(file string, data []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("read service account key %s: %w: no PEM in it", file, ErrDamaged)
	}
	key, err := x509.ParseECPrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read service account key %s: %w: %w", file, ErrDamaged, err)
	}
	return key, nil
}
