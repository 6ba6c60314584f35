package join

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"go.uber.org/zap"

	"github.com/mote-dev/mote/internal/atomicfile"
	"github.com/mote-dev/mote/internal/joinapi"
)

// Files of an identity, in <data-dir>/agent/pki.
const (
	caName     = "server-ca.crt"
	secretName = "node-secret"
	// clientName holds certificate and key together, so that a power cut cannot leave halves that
	// do not match.
	clientName  = "client.pem"
	clusterName = "cluster.json"

	// secretBytes is the length of a node's secret, which is written in hexadecimal.
	secretBytes = 32
)

// stored is the content of clusterName.
type stored struct {
	// NodeName is the name the node joined under.
	NodeName string          `json:"nodeName"`
	Cluster  joinapi.Cluster `json:"cluster"`
}

// folder is the folder of an identity.
type folder string

func (f folder) path(name string) string { return filepath.Join(string(f), name) }

// make creates the folder, for root only.
func (f folder) make() error {
	if err := os.MkdirAll(string(f), 0o700); err != nil {
		return fmt.Errorf("create folder of node identity: %w", err)
	}
	return nil
}

// load returns the result of an earlier join; ok is false if the node has not joined.
func (f folder) load() (s stored, ok bool, err error) {
	data, err := os.ReadFile(f.path(clusterName))
	if errors.Is(err, fs.ErrNotExist) {
		return s, false, nil
	}
	if err != nil {
		return s, false, fmt.Errorf("read node identity: %w", err)
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return s, false, fmt.Errorf("read node identity %s: %w: remove the file and join again with a token",
			f.path(clusterName), err)
	}
	return s, true, nil
}

func (f folder) save(s stored) error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("write node identity: %w", err)
	}
	return atomicfile.Write(f.path(clusterName), append(data, '\n'), 0o600)
}

// secret returns the node's secret, and generates it the first time.
func (f folder) secret() (string, error) {
	data, err := os.ReadFile(f.path(secretName))
	if err == nil {
		text := strings.TrimSpace(string(data))
		if len(text) != 2*secretBytes {
			// Servers would refuse a new one: the node's name is bound to this one.
			return "", fmt.Errorf("node secret %s is damaged: it has %d characters instead of %d: "+
				"run `mote node forget` with this node's name on a server, then remove the file and join again with "+
				"a token",
				f.path(secretName), len(text), 2*secretBytes)
		}
		return text, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read node secret: %w", err)
	}
	random := make([]byte, secretBytes)
	if _, err := rand.Read(random); err != nil {
		return "", fmt.Errorf("generate node secret: %w", err)
	}
	text := hex.EncodeToString(random)
	return text, atomicfile.Write(f.path(secretName), []byte(text+"\n"), 0o600)
}

// ca returns the trusted CA certificate, or nil before the first join.
func (f folder) ca() (*x509.Certificate, error) {
	data, err := os.ReadFile(f.path(caName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read server CA: %w", err)
	}
	cert, err := parseCertificate(data)
	if err != nil {
		return nil, fmt.Errorf("read server CA %s: %w: remove the file and join again with a token", f.path(caName),
			err)
	}
	return cert, nil
}

// certificate returns the node's client certificate, or nil if there is none or its file is
// damaged: Run then requests another one, for which the node's secret is enough.
func (f folder) certificate(log *zap.Logger) (*tls.Certificate, error) {
	data, err := os.ReadFile(f.path(clientName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read node certificate: %w", err)
	}
	pair, err := tls.X509KeyPair(data, data)
	if err != nil {
		log.Warn("node certificate is damaged, requesting another", zap.String("file", f.path(clientName)),
			zap.Error(err))
		return nil, nil
	}
	return &pair, nil
}

func (f folder) saveCertificate(certPEM, keyPEM []byte) (*tls.Certificate, error) {
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("use certificate from server: %w", err)
	}
	whole := append(append([]byte{}, certPEM...), keyPEM...)
	return &pair, atomicfile.Write(f.path(clientName), whole, 0o600)
}

func parseCertificate(data []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("it holds no certificate")
	}
	return x509.ParseCertificate(block.Bytes)
}
