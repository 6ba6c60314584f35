package kubelet

import (
	"net/http"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/kubernetes/pkg/kubelet/server"
)

// apiServerUser is the subject of the API server's client certificate for kubelets.
const apiServerUser = "kube-apiserver-kubelet-client"

// certificatesOfServers accepts a client certificate only from the API server; all other clients
// need a token. A kubelet has no list of revoked certificates, so it would accept one of a revoked
// node.
type certificatesOfServers struct{ server.AuthInterface }

// AuthenticateRequest implements authenticator.Request.
func (a certificatesOfServers) AuthenticateRequest(r *http.Request) (*authenticator.Response, bool, error) {
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 &&
		r.TLS.PeerCertificates[0].Subject.CommonName != apiServerUser {
		return nil, false, nil
	}
	return a.AuthInterface.AuthenticateRequest(r)
}
