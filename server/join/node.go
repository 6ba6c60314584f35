package join

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/kubernetes"

	"github.com/mote-dev/mote/internal/joinapi"
)

// authenticate returns the name of the node whose client certificate r came with.
func (s *Service) authenticate(ctx context.Context, r *http.Request) (string, error) {
	if len(r.TLS.PeerCertificates) == 0 {
		return "", refuse(joinapi.CodeCertificateInvalid, "%s is for nodes: a node's client certificate is needed",
			r.URL.Path)
	}
	own, rest := r.TLS.PeerCertificates[0], x509.NewCertPool()
	for _, c := range r.TLS.PeerCertificates[1:] {
		rest.AddCert(c)
	}
	_, err := own.Verify(x509.VerifyOptions{
		Roots:         s.roots,
		Intermediates: rest,
		CurrentTime:   s.config.Now(),
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return "", refuse(joinapi.CodeCertificateInvalid,
			"the client certificate is not valid here: it has ended, or is of another cluster; a node that has "+
				"joined before joins again by itself")
	}
	node, ok := strings.CutPrefix(own.Subject.CommonName, nodePrefix)
	if !ok || node == "" || !slices.Equal(own.Subject.Organization, []string{user.NodesGroup}) {
		return "", refuse(joinapi.CodeCertificateInvalid, "the client certificate is no node's: a node's is needed")
	}
	if err := s.checkNodeRevoked(ctx, node); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, revocationTimeout)
	defer cancel()
	revoked, err := s.config.Revoked(ctx, own)
	if err != nil {
		return "", revocationUnknown(err)
	}
	if revoked {
		return "", refuse(joinapi.CodeCertificateInvalid,
			"the client certificate was revoked: a node that has joined before joins again by itself")
	}
	return node, nil
}

// cluster is what nodes are told now.
func (s *Service) cluster(ctx context.Context) (joinapi.Cluster, error) {
	c := s.config.Cluster
	c.CA, c.Time = s.caPEM(), s.config.Now()
	for _, ip := range s.config.Addresses() {
		c.Servers = append(c.Servers, net.JoinHostPort(ip.String(), strconv.Itoa(s.config.Port)))
	}
	others, err := Servers(ctx, s.client)
	if err != nil {
		return c, err
	}
	for _, other := range others {
		if !slices.Contains(c.Servers, other) {
			c.Servers = append(c.Servers, other)
		}
	}
	return c, nil
}

// Servers are the API servers behind the service kubernetes, as HOST:PORT.
func Servers(ctx context.Context, client kubernetes.Interface) ([]string, error) {
	slices, err := client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).List(ctx, metav1.ListOptions{
		LabelSelector: discoveryv1.LabelServiceName + "=kubernetes",
	})
	if err != nil {
		return nil, fmt.Errorf("list API servers: %w", err)
	}
	var servers []string
	for _, slice := range slices.Items {
		for _, port := range slice.Ports {
			if port.Port == nil {
				continue
			}
			for _, e := range slice.Endpoints {
				for _, a := range e.Addresses {
					servers = append(servers, net.JoinHostPort(a, strconv.Itoa(int(*port.Port))))
				}
			}
		}
	}
	return servers, nil
}
