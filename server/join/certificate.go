package join

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/util/certificate/csr"

	"github.com/mote-dev/mote/internal/joinapi"
)

// certificate asks for the certificate as u, with u's rights, and waits until Kubernetes' own
// controllers have approved and signed it.
func (s *Service) certificate(ctx context.Context, request joinapi.Request, u user.Info) ([]byte, error) {
	client, err := s.config.Client(u)
	if err != nil {
		return nil, fmt.Errorf("make client of %s: %w", u.GetName(), err)
	}
	created, err := client.CertificatesV1().CertificateSigningRequests().Create(ctx,
		&certificatesv1.CertificateSigningRequest{
			ObjectMeta: metav1.ObjectMeta{GenerateName: "join-"},
			Spec: certificatesv1.CertificateSigningRequestSpec{
				Request: request.CSR, SignerName: certificatesv1.KubeAPIServerClientKubeletSignerName,
				Usages: usagesFor(request.CSR),
			},
		}, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("request certificate of node %s: %w", request.NodeName, err)
	}
	certificate, err := csr.WaitForCertificate(ctx, s.client, created.Name, created.UID)
	if err != nil {
		return nil, fmt.Errorf("wait for certificate %s of node %s: %w", created.Name, request.NodeName, err)
	}
	block, _ := pem.Decode(certificate)
	if block == nil {
		return nil, fmt.Errorf("read certificate %s of node %s: it is no PEM", created.Name, request.NodeName)
	}
	signed, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read certificate %s of node %s: %w", created.Name, request.NodeName, err)
	}
	if err := s.config.Admit(ctx, signed); err != nil {
		return nil, fmt.Errorf("admit certificate %s of node %s: %w", created.Name, request.NodeName, err)
	}
	return certificate, nil
}

// usagesFor are those a key of its kind can have. The request was checked.
func usagesFor(csrPEM []byte) []certificatesv1.KeyUsage {
	usages := []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageClientAuth}
	if block, _ := pem.Decode(csrPEM); block != nil {
		if request, err := x509.ParseCertificateRequest(block.Bytes); err == nil {
			if _, ec := request.PublicKey.(*ecdsa.PublicKey); ec {
				return usages
			}
		}
	}
	return append(usages, certificatesv1.UsageKeyEncipherment)
}
