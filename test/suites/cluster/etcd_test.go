package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/mote-dev/mote/test/tools/sandbox"
)

// etcd is one that runs beside the machines, with TLS on both sides.
type etcd struct {
	cmd *exec.Cmd
	log *os.File
}

func (*etcd) file(name string) string { return filepath.Join(sandbox.Dir(), name) }

func (*etcd) url() string { return "https://" + net.JoinHostPort(sandbox.HostIP, "2379") }

// newEtcd starts an empty one. It ends with the test.
func newEtcd(t *testing.T) *etcd {
	t.Helper()
	makeCertificates(t, sandbox.Dir())
	log, err := os.Create(filepath.Join(options.Artifacts, "etcd.log"))
	if err != nil {
		t.Fatal(err)
	}
	e := &etcd{log: log}
	t.Cleanup(func() {
		e.kill()
		log.Close()
	})
	e.start(t)
	return e
}

func (e *etcd) start(t *testing.T) {
	t.Helper()
	const peers = "http://127.0.0.1:2380"
	e.cmd = exec.Command(options.etcd, "--data-dir", e.file("etcd"), "--listen-client-urls", e.url(),
		"--advertise-client-urls", e.url(),
		"--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers, "--initial-cluster", "default="+peers,
		"--cert-file", e.file("etcd-server.pem"), "--key-file", e.file("etcd-server-key.pem"), "--trusted-ca-file",
		e.file("etcd-ca.pem"), "--client-cert-auth", "--log-level", "warn")
	e.cmd.Stdout, e.cmd.Stderr = e.log, e.log
	if err := e.cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

func (e *etcd) kill() {
	_ = e.cmd.Process.Kill()
	_ = e.cmd.Wait()
}

// etcdFiles are what servers need of it.
var etcdFiles = []string{"etcd-ca.pem", "etcd-client.pem", "etcd-client-key.pem"}

// forServers are the settings of a server that uses it.
func (e *etcd) forServers() []string {
	return []string{
		"--datastore-endpoint", e.url(), "--datastore-cafile", e.file(etcdFiles[0]),
		"--datastore-certfile", e.file(etcdFiles[1]), "--datastore-keyfile", e.file(etcdFiles[2]),
	}
}

// giveEtcdFiles puts them on a machine's disk.
func (m *machine) giveEtcdFiles(t *testing.T) {
	t.Helper()
	for _, file := range etcdFiles {
		data, err := os.ReadFile(filepath.Join(sandbox.Dir(), file))
		if err != nil {
			t.Fatal(err)
		}
		m.write(t, file, string(data))
	}
}

// makeCertificates writes an authority of its own for the etcd, and what it signed for the etcd and
// for those who use it.
func makeCertificates(t *testing.T, dir string) {
	t.Helper()
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "etcd-ca"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	for i, c := range []struct {
		name     string
		template *x509.Certificate
	}{
		{"etcd-ca", ca},
		{"etcd-server", &x509.Certificate{IPAddresses: []net.IP{net.ParseIP(sandbox.HostIP)},
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}},
		{"etcd-client", &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}},
	} {
		key := caKey
		if c.template != ca {
			if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
				t.Fatal(err)
			}
			c.template.SerialNumber, c.template.Subject = big.NewInt(int64(i+1)), pkix.Name{CommonName: c.name}
			c.template.NotBefore, c.template.NotAfter = ca.NotBefore, ca.NotAfter
		}
		der, err := x509.CreateCertificate(rand.Reader, c.template, ca, key.Public(), caKey)
		if err != nil {
			t.Fatal(err)
		}
		private, err := x509.MarshalECPrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		for name, block := range map[string]*pem.Block{c.name + ".pem": {Type: "CERTIFICATE", Bytes: der},
			c.name + "-key.pem": {Type: "EC PRIVATE KEY", Bytes: private}} {
			if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
}
