package join

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/authentication/user"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/tools/cache"
	certificatesapi "k8s.io/kubernetes/pkg/apis/certificates"
	"k8s.io/kubernetes/pkg/controller/certificates"

	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/mote-dev/mote/internal/informer"
)

// addressGrace is how long a request waits for its addresses to appear in the node's status: a
// kubelet sends the request at the same time as it reports them.
const addressGrace = time.Minute

// approver decides on kubelets' serving certificates, which upstream leaves to people. The holder
// of one can impersonate its names and addresses to every client that trusts the cluster's CA, so
// they must be the node's alone. A node's status is no proof of that: the node itself writes it.
type approver struct {
	service *Service
	nodes   corelisters.NodeLister
	slices  discoverylisters.EndpointSliceLister
}

// Run decides on kubelets' serving certificates until ctx ends.
func (s *Service) Run(ctx context.Context) (err error) {
	gate := informer.NewGate(s.config.Informers, nil)
	defer func() { err = errors.Join(err, gate.Close()) }()
	nodes, slices := gate.Core().V1().Nodes(), gate.Discovery().V1().EndpointSlices()
	a := &approver{service: s, nodes: nodes.Lister(), slices: slices.Lister()}
	synced := []cache.InformerSynced{nodes.Informer().HasSynced, slices.Informer().HasSynced}
	controller := certificates.NewCertificateController(ctx, "kubelet-serving-approver", s.client,
		gate.Certificates().V1().CertificateSigningRequests(), a.handle)
	if err := gate.Open(); err != nil {
		return fmt.Errorf("watch certificate requests: %w", err)
	}
	s.config.Informers.Ensure()
	if !cache.WaitForCacheSync(ctx.Done(), synced...) {
		return nil
	}
	controller.Run(ctx, 1)
	return nil
}

// handle decides on one request, or returns an error to be called again.
func (a *approver) handle(ctx context.Context, csr *certificatesv1.CertificateSigningRequest) error {
	if csr.Spec.SignerName != certificatesv1.KubeletServingSignerName {
		return nil
	}
	for _, c := range csr.Status.Conditions {
		if c.Type == certificatesv1.CertificateApproved || c.Type == certificatesv1.CertificateDenied {
			return nil
		}
	}
	objection, mayPass, err := a.check(ctx, csr)
	if err != nil {
		return fmt.Errorf("check certificate request %s: %w", csr.Name, err)
	}
	if objection != "" && mayPass && a.service.config.Now().Sub(csr.CreationTimestamp.Time) < addressGrace {
		return certificates.IgnorableError("request %s waits: %s", csr.Name, objection)
	}
	condition := certificatesv1.CertificateSigningRequestCondition{
		Type:    certificatesv1.CertificateApproved,
		Status:  corev1.ConditionTrue,
		Reason:  "MoteApproved",
		Message: "Names and addresses are those of the node that asks.",
	}
	if objection != "" {
		condition.Type, condition.Reason, condition.Message = certificatesv1.CertificateDenied, "MoteDenied", objection
	}
	csr.Status.Conditions = append(csr.Status.Conditions, condition)
	_, err = a.service.client.CertificatesV1().CertificateSigningRequests().UpdateApproval(ctx, csr.Name, csr,
		metav1.UpdateOptions{})
	if apierrors.IsConflict(err) {
		// Another server was faster and decides the same.
		return certificates.IgnorableError("request %s was changed meanwhile", csr.Name)
	}
	if err != nil {
		return fmt.Errorf("decide on certificate request %s: %w", csr.Name, err)
	}
	if objection != "" {
		a.service.config.Logger.Warn("denied a kubelet's serving certificate", zap.String("request", csr.Name),
			zap.String("by", csr.Spec.Username), zap.String("reason", objection))
	}
	return nil
}

// check returns what speaks against a request, and whether that may pass by itself. With an error
// it is not known, and nothing is decided.
func (a *approver) check(ctx context.Context, csr *certificatesv1.CertificateSigningRequest) (objection string,
	mayPass bool, err error) {
	name, isNode := strings.CutPrefix(csr.Spec.Username, nodePrefix)
	if !isNode || name == "" || !slices.Contains(csr.Spec.Groups, user.NodesGroup) {
		return fmt.Sprintf("requested by %s, who is no node", csr.Spec.Username), false, nil
	}
	request, err := certificatesapi.ParseCSR(csr.Spec.Request)
	if err != nil {
		return "the request cannot be read", false, nil
	}
	usages := sets.NewString()
	for _, u := range csr.Spec.Usages {
		usages.Insert(string(u))
	}
	if err := certificatesapi.ValidateKubeletServingCSR(request, usages); err != nil {
		return err.Error(), false, nil
	}
	if err := checkKey(request.PublicKey); err != nil {
		return err.Error(), false, nil
	}
	if err := request.CheckSignature(); err != nil {
		return "the request is not signed with its own key", false, nil
	}
	if request.Subject.CommonName != csr.Spec.Username || len(request.Subject.Names) != 2 {
		return fmt.Sprintf("the subject is not %s of %s alone", csr.Spec.Username, user.NodesGroup), false, nil
	}
	revoked, err := a.service.config.NodeRevoked(ctx, name)
	if err != nil {
		return "", false, err
	}
	if revoked {
		return fmt.Sprintf("node %s was revoked", name), false, nil
	}
	for _, n := range request.DNSNames {
		if n != name {
			return fmt.Sprintf("name %q is not the node's", shorten(n)), false, nil
		}
		// The node's own name could be among them if the server got that name later.
		if a.service.isReserved(n) {
			return fmt.Sprintf("name %q is the API server's", n), false, nil
		}
	}
	return a.checkAddresses(name, request)
}

func (a *approver) checkAddresses(name string, request *x509.CertificateRequest) (objection string, mayPass bool,
	err error) {
	if len(request.IPAddresses) == 0 {
		return "", false, nil
	}
	servers, err := a.servers()
	if err != nil {
		return "", false, err
	}
	own, err := a.nodes.Get(name)
	if err != nil && !apierrors.IsNotFound(err) {
		return "", false, err
	}
	all, err := a.nodes.List(labels.Everything())
	if err != nil {
		return "", false, err
	}
	for _, ip := range request.IPAddresses {
		// Loopback, link-local and the like identify no machine.
		if !ip.IsGlobalUnicast() {
			return fmt.Sprintf("address %s is not of one machine", ip), false, nil
		}
		if a.service.config.Cluster.Contains(ip) {
			return fmt.Sprintf("address %s is of the cluster's pods or services", ip), false, nil
		}
		if slices.ContainsFunc(servers, ip.Equal) {
			return fmt.Sprintf("address %s is an API server's", ip), false, nil
		}
		for _, other := range all {
			// The address may have moved to this node before the other one reports its loss.
			if other.Name != name && hasAddress(other, ip) {
				return fmt.Sprintf("address %s is also node %s's", ip, other.Name), true, nil
			}
		}
		if own == nil || !hasAddress(own, ip) {
			return fmt.Sprintf("address %s is not in the status of node %s", ip, name), true, nil
		}
	}
	return "", false, nil
}

func hasAddress(node *corev1.Node, ip net.IP) bool {
	return slices.ContainsFunc(node.Status.Addresses,
		func(a corev1.NodeAddress) bool { return ip.Equal(net.ParseIP(a.Address)) })
}

// servers are the addresses of all API servers that are known.
func (a *approver) servers() ([]net.IP, error) {
	found := slices.Concat(a.service.config.IPs(), a.service.config.Addresses())
	list, err := a.slices.EndpointSlices(metav1.NamespaceDefault).List(
		labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: "kubernetes"}))
	if err != nil {
		return nil, fmt.Errorf("list API servers: %w", err)
	}
	for _, slice := range list {
		for _, e := range slice.Endpoints {
			for _, address := range e.Addresses {
				found = append(found, net.ParseIP(address))
			}
		}
	}
	return found, nil
}
