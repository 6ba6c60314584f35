package kubelet

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net/http"
	"net/http/httptest"
	"testing"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/kubernetes/pkg/kubelet/server"
)

// everybody lets every request in.
type everybody struct{ server.AuthInterface }

func (everybody) AuthenticateRequest(*http.Request) (*authenticator.Response, bool, error) {
	return &authenticator.Response{User: &user.DefaultInfo{Name: "somebody"}}, true, nil
}

func TestCertificatesOfServers_AuthenticateRequest_OnlyTheAPIServer(t *testing.T) {
	for _, row := range []struct {
		name string
		tls  *tls.ConnectionState
		want bool
	}{
		{"API server", &tls.ConnectionState{PeerCertificates: []*x509.Certificate{
			{Subject: pkix.Name{CommonName: "kube-apiserver-kubelet-client"}}}}, true},
		{"administrator",
			&tls.ConnectionState{
				PeerCertificates: []*x509.Certificate{{Subject: pkix.Name{CommonName: "kubernetes-admin",
					Organization: []string{"system:masters"}}}}}, false},
		{"token", &tls.ConnectionState{}, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodGet, "/pods", nil)
			r.TLS = row.tls
			if _, ok, err := (certificatesOfServers{everybody{}}).AuthenticateRequest(r); ok != row.want || err != nil {
				t.Errorf("let in is %v, %v", ok, err)
			}
		})
	}
}
