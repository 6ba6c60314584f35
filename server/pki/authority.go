package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// ErrDamaged is returned when a certificate or key file exists but cannot be
// used: it does not parse, or the key does not belong to the certificate.
// Nothing is replaced in that case.
var ErrDamaged = errors.New("damaged certificate or key")

const (
	// authorityLifetime is how long a certificate authority is valid.
	authorityLifetime = 30 * 365 * 24 * time.Hour
	// leafLifetime is how long every other certificate is valid.
	leafLifetime = 365 * 24 * time.Hour
	// renewBefore is the rest of its life at which a certificate is made anew.
	renewBefore = leafLifetime / 3
)

// notBefore is the start of validity of everything issued here. It lies far
// back so that a certificate made while the clock was ahead (no battery, first
// boot) is still valid once the clock is right.
var notBefore = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// clockFloor is the earliest present this program believes in: a clock before
// it (1970 after a flat battery) would give certificates that end before they
// can be used.
var clockFloor = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

// Authority is a certificate authority: its certificate and its key.
type Authority struct {
	Cert    *x509.Certificate
	CertPEM []byte
	key     crypto.Signer
}

// Usage says what a certificate may be used for.
type Usage int

const (
	// ClientUsage is for proving an identity to a server.
	ClientUsage Usage = iota
	// ServerUsage is for serving TLS.
	ServerUsage
)

// Request describes a certificate to be issued.
type Request struct {
	CommonName    string
	Organizations []string
	Usage         Usage
	DNSNames      []string
	IPs           []net.IP
}

// base is the moment lifetimes are counted from.
func base(now time.Time) time.Time {
	if now.Before(clockFloor) {
		return clockFloor
	}
	return now
}

// loadOrCreateAuthority reads <dir>/<name>.crt and .key, making both if neither exists.
func loadOrCreateAuthority(dir, name, commonName string, now time.Time) (*Authority, error) {
	certFile, keyFile := filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	cert, certPEM, key, err := readPair(certFile, keyFile)
	switch {
	case err == nil:
		return &Authority{Cert: cert, CertPEM: certPEM, key: key}, nil
	case !errors.Is(err, os.ErrNotExist):
		return nil, err
	}
	newKey, keyPEM, err := newKey()
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: commonName},
		NotBefore:             notBefore,
		NotAfter:              base(now).Add(authorityLifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, newKey.Public(), newKey)
	if err != nil {
		return nil, fmt.Errorf("create authority %s: %w", name, err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("parse new authority %s: %w", name, err)
	}
	certPEM = encodeCert(der)
	if err := writePair(certFile, certPEM, keyFile, keyPEM); err != nil {
		return nil, err
	}
	return &Authority{Cert: parsed, CertPEM: certPEM, key: newKey}, nil
}

// Issue makes a key and a certificate for r and returns both as PEM.
func (a *Authority) Issue(r Request, now time.Time) (certPEM, keyPEM []byte, err error) {
	key, keyPEM, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	certPEM, err = a.sign(r, key.Public(), now)
	return certPEM, keyPEM, err
}

func (a *Authority) sign(r Request, public crypto.PublicKey, now time.Time) ([]byte, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	usage := x509.ExtKeyUsageClientAuth
	if r.Usage == ServerUsage {
		usage = x509.ExtKeyUsageServerAuth
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: r.CommonName, Organization: r.Organizations},
		NotBefore:    notBefore,
		NotAfter:     base(now).Add(leafLifetime),
		KeyUsage:     x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage:  []x509.ExtKeyUsage{usage},
		DNSNames:     r.DNSNames,
		IPAddresses:  r.IPs,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.Cert, public, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate for %s: %w", r.CommonName, err)
	}
	return encodeCert(der), nil
}

// Pin is the SHA-256 of the authority's certificate (DER), in hexadecimal: what
// a join token carries.
func (a *Authority) Pin() string {
	sum := sha256.Sum256(a.Cert.Raw)
	return hex.EncodeToString(sum[:])
}

// ensure keeps <dir>/<name>.crt and .key a valid certificate for r, making it
// anew when it is missing, about to end, not signed by a or not for r's names.
func (a *Authority) ensure(dir, name string, r Request, now time.Time) (Pair, error) {
	pair := Pair{CertFile: filepath.Join(dir, name+".crt"), KeyFile: filepath.Join(dir, name+".key")}
	cert, _, _, err := readPair(pair.CertFile, pair.KeyFile)
	if err == nil && a.serves(cert, r, now) {
		return pair, nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, ErrDamaged) {
		return Pair{}, err
	}
	// A leaf is derived from the authority, so a damaged one is simply made anew.
	certPEM, keyPEM, err := a.Issue(r, now)
	if err != nil {
		return Pair{}, err
	}
	return pair, writePair(pair.CertFile, certPEM, pair.KeyFile, keyPEM)
}

func (a *Authority) serves(cert *x509.Certificate, r Request, now time.Time) bool {
	if cert.CheckSignatureFrom(a.Cert) != nil || base(now).Add(renewBefore).After(cert.NotAfter) {
		return false
	}
	if cert.Subject.CommonName != r.CommonName || !slices.Equal(cert.Subject.Organization, r.Organizations) {
		return false
	}
	for _, name := range r.DNSNames {
		if !slices.Contains(cert.DNSNames, name) {
			return false
		}
	}
	for _, ip := range r.IPs {
		if !slices.ContainsFunc(cert.IPAddresses, ip.Equal) {
			return false
		}
	}
	return true
}

func newKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("generate key: %w", err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("encode key: %w", err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}

func newSerial() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("generate serial number: %w", err)
	}
	return serial.Add(serial, big.NewInt(1)), nil
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
