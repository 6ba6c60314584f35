package pki

import (
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/mote-dev/mote/internal/atomicfile"
)

// authorities are the certificate authorities of a set.
var authorities = []struct{ name, commonName string }{{"ca", "mote-ca"}, {"front-proxy-ca", "mote-front-proxy-ca"}}

const serviceAccountKey = "service-account.key"

// sharedFiles are the files that are the same on all servers of a cluster. Everything else in the
// folder is derived from them. Each key comes before its certificate, see writePair.
func sharedFiles() []string {
	var names []string
	for _, a := range authorities {
		names = append(names, a.name+".key", a.name+".crt")
	}
	return append(names, serviceAccountKey)
}

// ReadShared returns the files in dir that all servers of a cluster share, by name. Missing ones
// are left out.
func ReadShared(dir string) (map[string][]byte, error) {
	files := map[string][]byte{}
	for _, name := range sharedFiles() {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, unreadable("key or certificate", err)
		}
		files[name] = data
	}
	return files, nil
}

// CompleteShared returns have with the missing files made. It refuses what Open would refuse, with
// the same errors.
func CompleteShared(have map[string][]byte, now time.Time) (map[string][]byte, error) {
	all := maps.Clone(have)
	if all == nil {
		all = map[string][]byte{}
	}
	for _, a := range authorities {
		cert, hasCert := all[a.name+".crt"]
		key, hasKey := all[a.name+".key"]
		if !hasCert && !hasKey {
			cert, key, err := newAuthority(a.commonName, now)
			if err != nil {
				return nil, err
			}
			all[a.name+".crt"], all[a.name+".key"] = cert, key
			continue
		}
		if !hasCert || !hasKey {
			return nil, fmt.Errorf("read certificate %s.crt and its key: %w", a.name, ErrIncomplete)
		}
		if _, err := tls.X509KeyPair(cert, key); err != nil {
			return nil, fmt.Errorf("read certificate %s.crt and its key: %w: %w", a.name, ErrDamaged, err)
		}
	}
	if key, ok := all[serviceAccountKey]; ok {
		_, err := parseServiceAccountKey(serviceAccountKey, key)
		return all, err
	}
	_, key, err := newKey()
	all[serviceAccountKey] = key
	return all, err
}

// WriteShared writes the files that are missing in dir.
func WriteShared(dir string, files map[string][]byte) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("create %s: %w", dir, err)
	}
	for _, name := range sharedFiles() {
		file := filepath.Join(dir, name)
		if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
			if err != nil {
				return fmt.Errorf("look for key or certificate: %w", err)
			}
			continue
		}
		mode := os.FileMode(0o600)
		if strings.HasSuffix(name, ".crt") {
			mode = 0o644
		}
		if err := atomicfile.Write(file, files[name], mode); err != nil {
			return err
		}
	}
	return nil
}
