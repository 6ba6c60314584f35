package join

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/apiserver/pkg/authentication/user"

	"github.com/mote-dev/mote/internal/joinapi"
	"github.com/mote-dev/mote/internal/nodename"
)

const (
	// bodyTimeout is how long a request's body may take to arrive.
	bodyTimeout = 10 * time.Second
	// maxSkew is how far two clocks may differ before certificates, leases and tokens stop working;
	// the node uses the same limit.
	maxSkew = time.Hour
	// olderMinors is how much older a kubelet may be than its API server.
	olderMinors = 3
	// nodePrefix begins the user name of a node.
	nodePrefix = "system:node:"
	// A key within these bounds is neither weak nor expensive to check.
	minRSABits, maxRSABits = 2048, 8192
)

var secretForm = regexp.MustCompile(`^[0-9a-f]{64}$`)

func wantJSON(r *http.Request) error {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return refuseAs(http.StatusUnsupportedMediaType, joinapi.CodeBadRequest,
			"the request's Content-Type must be application/json")
	}
	if r.ContentLength > joinapi.MaxRequestBytes {
		return errTooLarge
	}
	return nil
}

var errTooLarge = refuseAs(http.StatusRequestEntityTooLarge, joinapi.CodeBadRequest,
	"the request is larger than %d bytes", joinapi.MaxRequestBytes)

// readRequest reads the body, bounded in size and time.
func (s *Service) readRequest(w http.ResponseWriter, r *http.Request) (joinapi.Request, error) {
	var request joinapi.Request
	control := http.NewResponseController(w)
	if err := control.SetReadDeadline(time.Now().Add(s.bodyTimeout)); err != nil {
		return request, fmt.Errorf("bound the time of a request: %w", err)
	}
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, joinapi.MaxRequestBytes))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return request, errTooLarge
	case errors.Is(err, os.ErrDeadlineExceeded):
		return request, refuseAs(http.StatusRequestTimeout, joinapi.CodeIncomplete,
			"the request did not arrive within %s", s.bodyTimeout)
	case err != nil:
		return request, refuse(joinapi.CodeIncomplete, "the request did not arrive whole")
	}
	// Or the connection would end while the answer is on its way.
	if err := control.SetReadDeadline(time.Time{}); err != nil {
		return request, fmt.Errorf("unbound the time of a request: %w", err)
	}
	if err := json.Unmarshal(data, &request); err != nil {
		return request, refuse(joinapi.CodeBadRequest,
			"the request is no JSON of the form this server knows: use an agent of its version")
	}
	return request, nil
}

// checkRequest refuses requests that no later time could make right.
func (s *Service) checkRequest(request joinapi.Request) error {
	name := request.NodeName
	if nodename.Validate(name) != nil {
		return refuse(joinapi.CodeBadRequest,
			"node-name %q is no DNS label: choose one with --node-name, of at most 63 lower case letters, digits and "+
				"'-' between letters or digits", shorten(name))
	}
	if s.isReserved(name) {
		return refuse(joinapi.CodeBadRequest,
			"node-name %q is a name of the API server: choose another with --node-name", name)
	}
	if !secretForm.MatchString(request.NodeSecret) {
		return refuse(joinapi.CodeBadRequest,
			"the node's secret is not 64 hexadecimal digits: remove <data-dir>/agent/pki/node-secret and join again")
	}
	if err := s.checkVersion(request.KubernetesVersion); err != nil {
		return err
	}
	if err := checkCSR(request.CSR, name); err != nil {
		return refuse(joinapi.CodeBadRequest, "the certificate request is not that of node %s: %v", name, err)
	}
	return nil
}

// checkName refuses to a machine that is new what one that has joined may keep: a name that is an
// address, which may be another machine's.
func checkName(name string) error {
	if _, err := netip.ParseAddr(name); err == nil {
		return refuse(joinapi.CodeBadRequest, "node-name %q is an IP address: choose a name with --node-name", name)
	}
	return nil
}

// shorten keeps a stranger's text from filling the log.
func shorten(text string) string {
	if len(text) > 80 {
		return text[:80] + "…"
	}
	return text
}

func (s *Service) checkVersion(of string) error {
	own, err := version.ParseGeneric(s.config.Cluster.KubernetesVersion)
	if err != nil {
		return fmt.Errorf("read own version %q: %w", s.config.Cluster.KubernetesVersion, err)
	}
	node, err := version.ParseGeneric(of)
	if err != nil {
		return refuse(joinapi.CodeBadRequest,
			"the node's Kubernetes version %q is none: use an agent of this server's version", shorten(of))
	}
	switch {
	case node.Major() != own.Major(), node.Minor() > own.Minor():
		return refuse(joinapi.CodeVersionSkew,
			"the node's Kubernetes %s is newer than the server's %s: upgrade the server first, or install the "+
				"server's version of mote on the node", node, own)
	case own.Minor()-node.Minor() > olderMinors:
		return refuse(joinapi.CodeVersionSkew,
			"the node's Kubernetes %s is more than %d minor versions older than the server's %s: install the "+
				"server's version of mote on the node", node, olderMinors, own)
	}
	return nil
}

func (s *Service) checkClock(request joinapi.Request) error {
	now := s.config.Now()
	if request.Time.Sub(now).Abs() <= maxSkew {
		return nil
	}
	return refuse(joinapi.CodeClockSkew,
		"clock is far off: it is %s on the node and %s on the server: set the clock that is wrong",
		request.Time.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
}

// checkCSR accepts only a request for the node's client certificate: anything else in it might be
// signed as well.
func checkCSR(text []byte, node string) error {
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE REQUEST" || len(strings.TrimSpace(string(rest))) > 0 {
		return errors.New("it is not one PEM block of type CERTIFICATE REQUEST")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return errors.New("it cannot be read")
	}
	// Before the signature, which would be work with a huge key.
	if err := checkKey(csr.PublicKey); err != nil {
		return err
	}
	if err := csr.CheckSignature(); err != nil {
		return errors.New("it is not signed with its own key")
	}
	if csr.Subject.CommonName != nodePrefix+node {
		return fmt.Errorf("its common name is not %s%s", nodePrefix, node)
	}
	if !slices.Equal(csr.Subject.Organization, []string{user.NodesGroup}) {
		return fmt.Errorf("its organization is not %s alone", user.NodesGroup)
	}
	if len(csr.Subject.Names) != 2 {
		return errors.New("its subject has more than a common name and an organization")
	}
	if len(csr.Extensions) > 0 || len(csr.DNSNames)+len(csr.IPAddresses)+len(csr.EmailAddresses)+len(csr.URIs) > 0 {
		return errors.New("it asks for other names or extensions")
	}
	return nil
}

func checkKey(key any) error {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if k.Curve.Params().BitSize >= 256 {
			return nil
		}
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); minRSABits <= bits && bits <= maxRSABits {
			return nil
		}
	}
	return fmt.Errorf("its key is neither ECDSA of 256 bits or more nor RSA of %d to %d", minRSABits, maxRSABits)
}
