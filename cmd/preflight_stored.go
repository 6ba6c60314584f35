package cmd

import (
	"bytes"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/mote-dev/mote/internal/datadir"
	"github.com/mote-dev/mote/server"
	"github.com/mote-dev/mote/server/pki"
	"github.com/mote-dev/mote/store"
)

// storeHeader is what every SQLite file begins with.
const storeHeader = "SQLite format 3\x00"

// checkStored refuses a data folder whose irreplaceable files are plainly damaged, before the parts
// that own them make anything beside these. They look closer when they open them.
func checkStored(s server.Config) error {
	if s.DatastoreEndpoint != "" {
		// The etcd has the keys, and what is missing here comes from there.
		return nil
	}
	tlsDir := datadir.At(s.DataDir).TLS()
	for _, name := range []string{"ca", "front-proxy-ca"} {
		if err := checkPair(filepath.Join(tlsDir, name+".crt"), filepath.Join(tlsDir, name+".key")); err != nil {
			return err
		}
	}
	key := filepath.Join(tlsDir, "service-account.key")
	data, err := os.ReadFile(key)
	if err == nil {
		if block, _ := pem.Decode(data); block == nil {
			return fmt.Errorf("read key %s: %w", key, pki.ErrDamaged)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read key: %w", err)
	}
	return checkStoreHeader(datadir.At(s.DataDir).StoreFile())
}

func checkPair(certFile, keyFile string) error {
	cert, certErr := os.ReadFile(certFile)
	key, keyErr := os.ReadFile(keyFile)
	if errors.Is(certErr, fs.ErrNotExist) && errors.Is(keyErr, fs.ErrNotExist) {
		return nil
	}
	for _, half := range []struct {
		file, other string
		data        []byte
		err         error
	}{{certFile, keyFile, cert, certErr}, {keyFile, certFile, key, keyErr}} {
		if errors.Is(half.err, fs.ErrNotExist) {
			continue
		}
		if half.err != nil {
			return fmt.Errorf("read certificate or key: %w", half.err)
		}
		if block, _ := pem.Decode(half.data); block == nil {
			return fmt.Errorf("read %s: %w", half.file, pki.ErrDamaged)
		}
	}
	// A new half would fit nothing that was signed with the old one.
	if certErr != nil {
		return fmt.Errorf("read %s: %w, and its key is there", certFile, pki.ErrIncomplete)
	}
	if keyErr != nil {
		return fmt.Errorf("read %s: %w, and its certificate is there", keyFile, pki.ErrIncomplete)
	}
	if _, err := tls.X509KeyPair(cert, key); err != nil {
		return fmt.Errorf("read %s and its key: %w: %w", certFile, pki.ErrDamaged, err)
	}
	return nil
}

func checkStoreHeader(file string) (err error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open store: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	header := make([]byte, len(storeHeader))
	n, err := io.ReadFull(f, header)
	// An empty file is a database nothing was written to yet.
	if n == 0 || bytes.Equal(header, []byte(storeHeader)) {
		return nil
	}
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("read store %s: %w", file, err)
	}
	return fmt.Errorf("open store %s: %w", file, store.ErrDamaged)
}
