package pki

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Pair names the files of a certificate and its key.
type Pair struct {
	CertFile, KeyFile string
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
	if err := WriteFile(keyFile, keyPEM, 0o600); err != nil {
		return err
	}
	return WriteFile(certFile, certPEM, 0o644)
}

// WriteFile replaces a file so that after a power cut either the old or the
// whole new content is there.
func WriteFile(name string, data []byte, mode os.FileMode) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(tmp.Name())
		}
	}()
	_, err = tmp.Write(data)
	if err == nil {
		err = tmp.Chmod(mode)
	}
	if err == nil {
		err = tmp.Sync()
	}
	if closeErr := tmp.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), name)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return syncDir(filepath.Dir(name))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync folder %s: %w", dir, err)
	}
	defer func() { _ = d.Close() }()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync folder %s: %w", dir, err)
	}
	return nil
}
