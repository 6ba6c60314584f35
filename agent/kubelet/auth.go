package kubelet

import (
	"net/http"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/kubernetes/pkg/kubelet/server"
)

// apiServerUser is whom the API server's certificate for kubelets names.
const apiServerUser = "kube-apiserver-kubelet-client"

// certificatesOfServers lets the API server in by certificate, and all others
// with tokens only: a kubelet does not hear which certificates are revoked, so
// one that is must not be of use here either.
type certificatesOfServers struct{ server.AuthInterface }

// AuthenticateRequest implements authenticator.Request.
func (a certificatesOfServers) AuthenticateRequest(r *http.Request) (*authenticator.Response, bool, error) {
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 && r.TLS.PeerCertificates[0].Subject.CommonName != apiServerUser {
		return nil, false, nil
	}
	return a.AuthInterface.AuthenticateRequest(r)
}
