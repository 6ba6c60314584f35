package pki

import (
	"crypto/x509"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// Two folders with the same shared files are the same cluster.
func TestShared_SecondFolder_SameCluster(t *testing.T) {
	first, second := t.TempDir(), filepath.Join(t.TempDir(), "tls")
	a := open(t, first, names, now)
	files, err := ReadShared(first)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"ca.crt", "ca.key", "front-proxy-ca.crt", "front-proxy-ca.key", "service-account.key"}
	if got := slices.Sorted(maps.Keys(files)); !slices.Equal(got, want) {
		t.Fatalf("shared are %v, want %v", got, want)
	}
	if err := WriteShared(second, files); err != nil {
		t.Fatal(err)
	}
	b := open(t, second, names, now)
	if a.CA.Pin() != b.CA.Pin() {
		t.Error("the two have different authorities")
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.CA.Cert)
	for _, p := range []Pair{b.APIServer, b.KubeletClient, b.Admin} {
		if _, err := leaf(t, p).Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now,
			KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
			t.Errorf("%s: %v", p.CertFile, err)
		}
	}
	// What proves one server's identity is not the other's.
	if leaf(t, a.Admin).SerialNumber.Cmp(leaf(t, b.Admin).SerialNumber) == 0 {
		t.Error("the two have one administrator's certificate")
	}
	for _, name := range []string{"service-account.key", "service-account.pub"} {
		x, errX := os.ReadFile(filepath.Join(first, name))
		y, errY := os.ReadFile(filepath.Join(second, name))
		if err := errors.Join(errX, errY); err != nil || string(x) != string(y) {
			t.Errorf("%s differs (%v)", name, err)
		}
	}
	for name := range files {
		info, err := os.Stat(filepath.Join(second, name))
		if err != nil || (filepath.Ext(name) == ".key" && info.Mode().Perm() != 0o600) {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
}

func TestCompleteShared_MakesWhatOpenAccepts(t *testing.T) {
	for name, keep := range map[string][]string{"nothing": nil, "an authority": {"ca.crt", "ca.key"},
		"the service account key": {"service-account.key"}} {
		t.Run(name, func(t *testing.T) {
			full, err := CompleteShared(nil, now)
			if err != nil {
				t.Fatal(err)
			}
			have := map[string][]byte{}
			for _, k := range keep {
				have[k] = full[k]
			}
			all, err := CompleteShared(have, now)
			if err != nil || len(all) != len(sharedFiles()) {
				t.Fatalf("%d files, %v", len(all), err)
			}
			for _, k := range keep {
				if string(all[k]) != string(full[k]) {
					t.Errorf("%s was replaced", k)
				}
			}
			dir := filepath.Join(t.TempDir(), "tls")
			if err := WriteShared(dir, all); err != nil {
				t.Fatal(err)
			}
			open(t, dir, names, now)
		})
	}
}

func TestCompleteShared_DamagedIsRefused(t *testing.T) {
	full, err := CompleteShared(nil, now)
	if err != nil {
		t.Fatal(err)
	}
	for name, row := range map[string]struct {
		change func(map[string][]byte)
		want   error
	}{
		"half a pair":     {func(f map[string][]byte) { delete(f, "ca.crt") }, ErrIncomplete},
		"the other half":  {func(f map[string][]byte) { delete(f, "front-proxy-ca.key") }, ErrIncomplete},
		"mixed pair":      {func(f map[string][]byte) { f["ca.key"] = f["front-proxy-ca.key"] }, ErrDamaged},
		"no key in a key": {func(f map[string][]byte) { f["service-account.key"] = []byte("garbage") }, ErrDamaged},
	} {
		have := maps.Clone(full)
		row.change(have)
		if _, err := CompleteShared(have, now); !errors.Is(err, row.want) {
			t.Errorf("%s: %v, want %v", name, err, row.want)
		}
	}
}
