package joinapi

import (
	"time"

	"github.com/mote-dev/mote/internal/clusterconfig"
)

// Paths on the server's one HTTPS port, in front of the Kubernetes API.
const (
	// PathCA answers GET from anyone with the cluster's CA certificate, as PEM. The caller trusts
	// it only after comparing it with the pin of its token.
	PathCA = "/mote/v1/ca"
	// PathJoin takes a Request by POST, with a token as bearer, and answers with a Response. It
	// binds the node's name to the secret in the request.
	PathJoin = "/mote/v1/join"
	// PathRejoin is PathJoin for a node that has joined before and whose certificate has ended: no
	// token, the node's secret is the proof.
	PathRejoin = "/mote/v1/rejoin"
	// PathConfig answers GET from a node, by its client certificate, with the present Cluster.
	PathConfig = "/mote/v1/config"
	// PathTunnel turns a node's connection, by its client certificate, into a tunnel: the protocol
	// is TunnelProtocol.
	PathTunnel = "/mote/v1/tunnel"
)

// TunnelProtocol is the value of the Upgrade header on PathTunnel.
const TunnelProtocol = "mote-tunnel-v1"

// MaxRequestBytes bounds the body of a Request.
const MaxRequestBytes = 64 << 10

// Request asks for a node's first certificate, or for a new one.
type Request struct {
	NodeName string `json:"nodeName"`
	// NodeSecret is 32 random bytes in hexadecimal that the node made at its first join and keeps;
	// the server stores only a hash.
	NodeSecret string `json:"nodeSecret"`
	// CSR is a PEM certificate request for system:node:<NodeName> in system:nodes, to be signed by
	// kubernetes.io/kube-apiserver-client-kubelet.
	CSR []byte `json:"csr"`
	// MoteVersion and KubernetesVersion are the node's.
	MoteVersion       string `json:"moteVersion"`
	KubernetesVersion string `json:"kubernetesVersion"`
	// Time is the node's clock.
	Time time.Time `json:"time"`
}

// Response answers a Request.
type Response struct {
	// Certificate is the signed client certificate, as PEM.
	Certificate []byte  `json:"certificate"`
	Cluster     Cluster `json:"cluster"`
}

// Cluster is what every node must agree on with its server.
type Cluster struct {
	// CA is the authority of servers, kubelets and clients, as PEM.
	CA []byte `json:"ca"`
	// Servers are all servers known, as HOST:PORT, the answering one first.
	Servers []string `json:"servers"`
	clusterconfig.Config
	MoteVersion       string    `json:"moteVersion"`
	KubernetesVersion string    `json:"kubernetesVersion"`
	Time              time.Time `json:"time"`
}

// Code is why a request was refused, so that the node knows whether to try again. A node treats a
// code it does not know, from a newer server, like CodeBadRequest at its first join; a node that
// has joined goes on with what it has and tries again later.
type Code string

// The codes of a refused request.
const (
	// CodeBadRequest: the request itself is wrong; trying again is pointless.
	CodeBadRequest Code = "BadRequest"
	// CodeIncomplete: the request did not arrive whole, or not in time; try again.
	CodeIncomplete Code = "Incomplete"
	// CodeTokenInvalid: the token is unknown, expired, revoked or wrong. Which of them is not said.
	CodeTokenInvalid Code = "TokenInvalid"
	// CodeNameTaken: the node name belongs to a node with another secret.
	CodeNameTaken Code = "NameTaken"
	// CodeNodeUnknown: a rejoin of a node that was forgotten or never joined.
	CodeNodeUnknown Code = "NodeUnknown"
	// CodeNodeRevoked: the node's certificates were revoked.
	CodeNodeRevoked Code = "NodeRevoked"
	// CodeCertificateInvalid: the client certificate is missing, has ended or is no node's of this
	// cluster; a node that has joined before can rejoin.
	CodeCertificateInvalid Code = "CertificateInvalid"
	// CodeVersionSkew: the node's Kubernetes is newer than the server's, or more than three minor
	// versions older.
	CodeVersionSkew Code = "VersionSkew"
	// CodeClockSkew: the two clocks are too far apart for certificates to work.
	CodeClockSkew Code = "ClockSkew"
	// CodeTooManyRequests: wait, then try again.
	CodeTooManyRequests Code = "TooManyRequests"
	// CodeNotReady: the server is starting, or cannot do it just now; try again.
	CodeNotReady Code = "NotReady"
	// CodeTunnelOpen: the server has a tunnel of this node already; keep that one.
	CodeTunnelOpen Code = "TunnelOpen"
	// CodeInternal: the server has a fault that trying again does not cure; its log has the cause.
	CodeInternal Code = "Internal"
)

// Error is the body of every answer that is not a success.
type Error struct {
	Code Code `json:"code"`
	// Message is one line: what is wrong and what to do.
	Message string `json:"message"`
	// ServerTime is the server's clock.
	ServerTime time.Time `json:"serverTime"`
}

func (e *Error) Error() string { return e.Message }
