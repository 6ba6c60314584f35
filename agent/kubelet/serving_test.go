package kubelet

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestDropFutureServing(t *testing.T) {
	now := time.Date(2027, 3, 1, 0, 0, 0, 0, time.UTC)
	for name, row := range map[string]struct {
		from, to time.Time
		kept     bool
	}{
		"valid":         {now.Add(-time.Hour), now.Add(time.Hour), true},
		"not valid yet": {now.Add(time.Hour), now.Add(2 * time.Hour), false},
		// Upstream replaces this one itself.
		"expired": {now.Add(-2 * time.Hour), now.Add(-time.Hour), true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			// Like upstream: a link to a file with the date in its name.
			dated := filepath.Join(dir, "kubelet-server-2027-03-01-00-00-00.pem")
			if err := os.WriteFile(dated, selfSigned(t, row.from, row.to), 0o600); err != nil {
				t.Fatal(err)
			}
			link := filepath.Join(dir, currentServing)
			if err := os.Symlink(dated, link); err != nil {
				t.Fatal(err)
			}
			if err := dropFutureServing(dir, now); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Lstat(link); (err == nil) != row.kept {
				t.Errorf("kept: %v, want %v", err == nil, row.kept)
			}
		})
	}
	if err := dropFutureServing(t.TempDir(), now); err != nil {
		t.Errorf("without a certificate: %v", err)
	}
}

func selfSigned(t *testing.T, from, to time.Time) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: from, NotAfter: to}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})...)
}
