package pki

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/mote-dev/mote/internal/atomicfile"
)

// Pair names the files of a certificate and its key.
type Pair struct {
	CertFile, KeyFile string
}

// pairIn is the pair of a name without extension.
func pairIn(dir, name string) Pair {
	return Pair{CertFile: filepath.Join(dir, name+".crt"), KeyFile: filepath.Join(dir, name+".key")}
}

// readPair reads a certificate and its key and checks that they belong
// together. It returns os.ErrNotExist only when neither file exists, and
// ErrDamaged, naming the file, for anything it cannot use.
func readPair(certFile, keyFile string) (*x509.Certificate, []byte, crypto.Signer, error) {
	certPEM, certErr := os.ReadFile(certFile)
	keyPEM, keyErr := os.ReadFile(keyFile)
	if errors.Is(certErr, os.ErrNotExist) && errors.Is(keyErr, os.ErrNotExist) {
		return nil, nil, nil, certErr
	}
	if certErr != nil {
		return nil, nil, nil, fmt.Errorf("read certificate %s: %w: %v", certFile, ErrDamaged, certErr)
	}
	if keyErr != nil {
		return nil, nil, nil, fmt.Errorf("read key %s: %w: %v", keyFile, ErrDamaged, keyErr)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("read certificate %s: %w: %v", certFile, ErrDamaged, err)
	}
	signer, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, nil, nil, fmt.Errorf("read key %s: %w: it cannot sign", keyFile, ErrDamaged)
	}
	return pair.Leaf, certPEM, signer, nil
}

// writePair writes the key first: a certificate without its key is the state
// that cannot be repaired, so it must never be on disk alone.
func writePair(certFile string, certPEM []byte, keyFile string, keyPEM []byte) error {
	if err := atomicfile.Write(keyFile, keyPEM, 0o600); err != nil {
		return err
	}
	return atomicfile.Write(certFile, certPEM, 0o644)
}
