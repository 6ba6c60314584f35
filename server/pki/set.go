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
	"time"
)

// Set is everything the server needs to be trusted and to trust: file names,
// as Kubernetes' options want them, and the cluster's authority.
type Set struct {
	CA *Authority
	// CAFile is the cluster CA's certificate, CAKeyFile its key: signer of client, serving and node certificates.
	CAFile, CAKeyFile string
	// FrontProxyCAFile signs the aggregation layer's client certificate and nothing else.
	FrontProxyCAFile string
	// ServiceAccountKeyFile signs service account tokens; ServiceAccountPubFile checks them.
	ServiceAccountKeyFile, ServiceAccountPubFile string

	APIServer, KubeletClient, FrontProxy, Admin Pair
}

// Names are the names and addresses under which the API server is reached.
type Names struct {
	DNSNames []string
	IPs      []net.IP
}

// Open loads the set from dir, creating what is missing and renewing what is
// about to end. An authority or key that exists but is damaged is refused with
// ErrDamaged: replacing it would lock every node and user out.
func Open(dir string, names Names, now time.Time) (*Set, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create %s: %w", dir, err)
	}
	ca, err := loadOrCreateAuthority(dir, "ca", "mote-ca", now)
	if err != nil {
		return nil, err
	}
	frontCA, err := loadOrCreateAuthority(dir, "front-proxy-ca", "mote-front-proxy-ca", now)
	if err != nil {
		return nil, err
	}
	s := &Set{
		CA:                    ca,
		CAFile:                filepath.Join(dir, "ca.crt"),
		CAKeyFile:             filepath.Join(dir, "ca.key"),
		FrontProxyCAFile:      filepath.Join(dir, "front-proxy-ca.crt"),
		ServiceAccountKeyFile: filepath.Join(dir, "service-account.key"),
		ServiceAccountPubFile: filepath.Join(dir, "service-account.pub"),
	}
	if err := ensureServiceAccountKey(s.ServiceAccountKeyFile, s.ServiceAccountPubFile); err != nil {
		return nil, err
	}
	for _, leaf := range []struct {
		pair *Pair
		ca   *Authority
		name string
		req  Request
	}{
		{&s.APIServer, ca, "apiserver", Request{CommonName: "kube-apiserver", Usage: ServerUsage, DNSNames: names.DNSNames, IPs: names.IPs}},
		{&s.KubeletClient, ca, "apiserver-kubelet-client", Request{CommonName: "kube-apiserver-kubelet-client", Organizations: []string{"system:masters"}}},
		{&s.FrontProxy, frontCA, "front-proxy-client", Request{CommonName: "front-proxy-client"}},
		{&s.Admin, ca, "admin", Request{CommonName: "kubernetes-admin", Organizations: []string{"system:masters"}}},
	} {
		if *leaf.pair, err = leaf.ca.ensure(dir, leaf.name, leaf.req, now); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// NodeServing keeps the serving certificate of the kubelet that runs in the
// server's own process in dir.
func (s *Set) NodeServing(dir, nodeName string, ips []net.IP, now time.Time) (Pair, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return Pair{}, fmt.Errorf("create %s: %w", dir, err)
	}
	return s.CA.ensure(dir, "kubelet-serving", Request{
		CommonName:    "system:node:" + nodeName,
		Organizations: []string{"system:nodes"},
		Usage:         ServerUsage,
		DNSNames:      []string{nodeName},
		IPs:           ips,
	}, now)
}

func ensureServiceAccountKey(keyFile, pubFile string) error {
	keyPEM, err := os.ReadFile(keyFile)
	var key *ecdsa.PrivateKey
	switch {
	case errors.Is(err, os.ErrNotExist):
		if key, keyPEM, err = newKey(); err != nil {
			return err
		}
		if err := WriteFile(keyFile, keyPEM, 0o600); err != nil {
			return err
		}
	case err != nil:
		return fmt.Errorf("read service account key %s: %w", keyFile, err)
	default:
		block, _ := pem.Decode(keyPEM)
		if block == nil {
			return fmt.Errorf("read service account key %s: %w: no PEM in it", keyFile, ErrDamaged)
		}
		if key, err = x509.ParseECPrivateKey(block.Bytes); err != nil {
			return fmt.Errorf("read service account key %s: %w: %v", keyFile, ErrDamaged, err)
		}
	}
	if _, err := os.Stat(pubFile); err == nil {
		return nil
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return fmt.Errorf("encode service account public key: %w", err)
	}
	return WriteFile(pubFile, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o644)
}
