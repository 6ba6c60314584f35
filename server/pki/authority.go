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

	"github.com/mote-dev/mote/internal/wallclock"
)

// ErrDamaged is returned when a certificate or key was read and cannot be used: it does not parse,
// or the key does not belong to the certificate. An authority is not replaced in that case.
var ErrDamaged = errors.New("damaged certificate or key")

// ErrIncomplete is returned when only one of an authority's two files exists: a new other half
// would fit nothing it has signed. Nothing is replaced in that case either.
var ErrIncomplete = errors.New("certificate or key is missing")

// ErrEnded is returned for a certificate authority that has expired. It is not replaced.
var ErrEnded = errors.New("the cluster's certificate authority has ended")

const (
	// authorityLifetime is how long a certificate authority is valid.
	authorityLifetime = 30 * 365 * 24 * time.Hour
	// leafLifetime is how long every other certificate is valid.
	leafLifetime = 365 * 24 * time.Hour
	// renewBefore is the remaining lifetime at which a certificate is renewed.
	renewBefore = leafLifetime / 3
	// overlongBy is how much longer than leafLifetime a certificate may be valid before it is
	// replaced: clocks of servers that share a certificate differ a little.
	overlongBy = 24 * time.Hour
)

// notBefore is the start of validity of everything issued here: the time at which a machine without
// a battery-backed clock boots. So certificates work whatever the clock says, and even if it was
// ahead when they were issued.
var notBefore = time.Unix(0, 0).UTC()

// Authority is a certificate authority: its certificate and its key.
type Authority struct {
	Cert    *x509.Certificate
	CertPEM []byte
	key     crypto.Signer
}

// Usage is what a certificate may be used for.
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

// base is the moment from which lifetimes count. Counted from a clock in 1970, a certificate would
// have expired before its first use.
func base(now time.Time) time.Time {
	if now.Before(wallclock.Floor) {
		return wallclock.Floor
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
	certPEM, keyPEM, err := newAuthority(commonName, now)
	if err != nil {
		return nil, err
	}
	if err := writePair(certFile, certPEM, keyFile, keyPEM); err != nil {
		return nil, err
	}
	if cert, certPEM, key, err = readPair(certFile, keyFile); err != nil {
		return nil, err
	}
	return &Authority{Cert: cert, CertPEM: certPEM, key: key}, nil
}

// newAuthority makes an authority's certificate and key, as PEM.
func newAuthority(commonName string, now time.Time) (certPEM, keyPEM []byte, err error) {
	key, keyPEM, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, nil, err
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
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, fmt.Errorf("create authority %s: %w", commonName, err)
	}
	return encodeCert(der), keyPEM, nil
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

// Pin is the SHA-256 of the authority's certificate (DER), in hexadecimal: what a join token
// carries.
func (a *Authority) Pin() string {
	sum := sha256.Sum256(a.Cert.Raw)
	return hex.EncodeToString(sum[:])
}

// ensure issues <dir>/<name>.crt and .key again if the certificate is missing, expires soon, is not
// signed by the authority or lacks a name.
func (l keptLeaf) ensure(now time.Time) (renewed bool, err error) {
	pair := pairIn(l.dir, l.name)
	cert, _, _, err := readPair(pair.CertFile, pair.KeyFile)
	if err == nil && l.authority.serves(cert, l.request, now) {
		return false, nil
	}
	// A leaf is derived from the authority, so one that is known to be of no use is issued again.
	useless := errors.Is(err, os.ErrNotExist) || errors.Is(err, ErrIncomplete) || errors.Is(err, ErrDamaged)
	if err != nil && !useless {
		return false, err
	}
	certPEM, keyPEM, err := l.authority.Issue(l.request, now)
	if err != nil {
		return false, err
	}
	return true, writePair(pair.CertFile, certPEM, pair.KeyFile, keyPEM)
}

// checkEnd refuses an authority that has expired: nobody accepts what it signed, and a new one has
// to be distributed to all nodes by hand.
func (a *Authority) checkEnd(now time.Time) error {
	if now.Before(a.Cert.NotAfter) {
		return nil
	}
	return fmt.Errorf("%w: %s was valid until %s, and it is %s by this machine's clock", ErrEnded,
		a.Cert.Subject.CommonName, a.Cert.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
}

// overlong reports whether a certificate was issued while the clock was ahead, so that it would
// stay valid for years. With a clock that is not plausible itself, it reports false.
func overlong(cert *x509.Certificate, now time.Time) bool {
	return !now.Before(wallclock.Floor) && cert.NotAfter.After(now.Add(leafLifetime+overlongBy))
}

func (a *Authority) serves(cert *x509.Certificate, r Request, now time.Time) bool {
	if cert.CheckSignatureFrom(a.Cert) != nil || base(now).Add(renewBefore).After(cert.NotAfter) ||
		overlong(cert, now) {
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
