package pki

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

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

// readPair reads a certificate and its key and checks that they belong together. It returns
// os.ErrNotExist only when neither file exists, ErrIncomplete when one of them does, and ErrDamaged
// when both can be read and not used. Any other error says nothing about the files' content.
func readPair(certFile, keyFile string) (*x509.Certificate, []byte, crypto.Signer, error) {
	certPEM, certErr := os.ReadFile(certFile)
	keyPEM, keyErr := os.ReadFile(keyFile)
	noCert, noKey := errors.Is(certErr, os.ErrNotExist), errors.Is(keyErr, os.ErrNotExist)
	switch {
	case noCert && noKey:
		return nil, nil, nil, certErr
	case certErr != nil && !noCert:
		return nil, nil, nil, unreadable("certificate", certErr)
	case keyErr != nil && !noKey:
		return nil, nil, nil, unreadable("key", keyErr)
	case noCert:
		return nil, nil, nil, fmt.Errorf("read certificate %s: %w, and its key is there", certFile, ErrIncomplete)
	case noKey:
		return nil, nil, nil, fmt.Errorf("read key %s: %w, and its certificate is there", keyFile, ErrIncomplete)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("read certificate %s: %w: %w", certFile, ErrDamaged, err)
	}
	signer, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, nil, nil, fmt.Errorf("read key %s: %w: it cannot sign", keyFile, ErrDamaged)
	}
	return pair.Leaf, certPEM, signer, nil
}

// unreadable wraps the error of a file that could not be read. What it holds is unknown, so the
// advice is never to remove it. The cause names the file.
func unreadable(what string, cause error) error {
	advice := "the file was left as it is: check the disk it is on, then start again"
	switch {
	case errors.Is(cause, fs.ErrPermission):
		advice = "run mote as root, or let its user read the file"
	case errors.Is(cause, syscall.EMFILE), errors.Is(cause, syscall.ENFILE):
		advice = "raise the limit of open files (ulimit -n), then start again"
	}
	return fmt.Errorf("read %s: %w: %s", what, cause, advice)
}

// writePair writes the key first: a certificate without its key cannot be repaired, so it must
// never be on disk alone.
func writePair(certFile string, certPEM []byte, keyFile string, keyPEM []byte) error {
	if err := atomicfile.Write(keyFile, keyPEM, 0o600); err != nil {
		return err
	}
	return atomicfile.Write(certFile, certPEM, 0o644)
}
