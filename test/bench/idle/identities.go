package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// authority signs the identities of the upstream parts and keeps them in a folder, <name>.crt and
// <name>.key each.
type authority struct {
	dir         string
	server      string // URL of the API server
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// identity is who a part is.
type identity struct {
	name     string // of its files
	user     string
	group    string
	serverOf []string // names and addresses it serves at; a client has none
}

func newAuthority(dir, server string) (*authority, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make folder for keys: %w", err)
	}
	a := &authority{dir: dir, server: server}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "bench-ca"},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
	}
	var err error
	a.certificate, a.key, err = a.sign("ca", template)
	return a, err
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name) }

// sign makes a key and a certificate for it, signed by the authority, or by itself if there is none
// yet.
func (a *authority) sign(name string, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make key of %s: %w", name, err)
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62)); err != nil {
		return nil, nil, fmt.Errorf("draw serial of %s: %w", name, err)
	}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	parent, signer := a.certificate, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		return nil, nil, fmt.Errorf("sign %s: %w", name, err)
	}
	if err := a.writeKey(name, key); err != nil {
		return nil, nil, err
	}
	if err := os.WriteFile(a.file(name+".crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		0o600); err != nil {
		return nil, nil, fmt.Errorf("write certificate: %w", err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, fmt.Errorf("read certificate of %s: %w", name, err)
	}
	return certificate, key, nil
}

func (a *authority) writeKey(name string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode key of %s: %w", name, err)
	}
	if err := os.WriteFile(a.file(name+".key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
		0o600); err != nil {
		return fmt.Errorf("write key: %w", err)
	}
	return nil
}

// issue makes an identity, and a kubeconfig for it if it is a client.
func (a *authority) issue(id identity) error {
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: id.user, Organization: []string{id.group}},
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	for _, s := range id.serverOf {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		if ip := net.ParseIP(s); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, s)
		}
	}
	if _, _, err := a.sign(id.name, template); err != nil || len(id.serverOf) > 0 {
		return err
	}
	config := clientcmdapi.NewConfig()
	config.Clusters["bench"] = &clientcmdapi.Cluster{Server: a.server, CertificateAuthority: a.file("ca.crt")}
	config.AuthInfos[id.name] = &clientcmdapi.AuthInfo{ClientCertificate: a.file(id.name + ".crt"),
		ClientKey: a.file(id.name + ".key")}
	config.Contexts["bench"] = &clientcmdapi.Context{Cluster: "bench", AuthInfo: id.name}
	config.CurrentContext = "bench"
	if err := clientcmd.WriteToFile(*config, a.file(id.name+".kubeconfig")); err != nil {
		return fmt.Errorf("write kubeconfig of %s: %w", id.name, err)
	}
	return nil
}
