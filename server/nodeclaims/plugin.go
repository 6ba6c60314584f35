package nodeclaims

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/initializer"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/informers"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	bootstrapapi "k8s.io/cluster-bootstrap/token/api"
	api "k8s.io/kubernetes/pkg/apis/core"

	"github.com/mote-dev/mote/internal/hostaddr"
)

// PluginName is the plugin's name in the API server's settings.
const PluginName = "MoteNodeClaims"

// userPrefix begins the user name of a node.
const userPrefix = "system:node:"

// Config is what the plugin compares claims with. No field may be zero unless it says so.
type Config struct {
	// Local is the node in this process, which has the server's addresses.
	Local string
	// ClusterCIDRs and ServiceCIDRs are the ranges of pods and services.
	ClusterCIDRs, ServiceCIDRs []netip.Prefix
	// PodsInRanges says that a pod's address is always in its node's range, as with mote's own pod
	// network. Other networks may give addresses of ClusterCIDRs to nodes by rules of their own.
	PodsInRanges bool
	// Servers returns the addresses of this server; those of others are behind the service
	// kubernetes.
	Servers func() []net.IP
}

// Register makes the plugin known under PluginName.
func Register(plugins *admission.Plugins, c Config) {
	plugins.Register(PluginName, func(io.Reader) (admission.Interface, error) { return newPlugin(c), nil })
}

type plugin struct {
	*admission.Handler
	config Config
	nodes  corelisters.NodeLister
	slices discoverylisters.EndpointSliceLister
}

var (
	_ admission.ValidationInterface                = (*plugin)(nil)
	_ initializer.WantsExternalKubeInformerFactory = (*plugin)(nil)
)

func newPlugin(c Config) *plugin {
	return &plugin{Handler: admission.NewHandler(admission.Create, admission.Update), config: c}
}

// SetExternalKubeInformerFactory implements initializer.WantsExternalKubeInformerFactory.
func (p *plugin) SetExternalKubeInformerFactory(f informers.SharedInformerFactory) {
	nodes, slices := f.Core().V1().Nodes(), f.Discovery().V1().EndpointSlices()
	p.nodes, p.slices = nodes.Lister(), slices.Lister()
	p.SetReadyFunc(func() bool { return nodes.Informer().HasSynced() && slices.Informer().HasSynced() })
}

// ValidateInitialization implements admission.InitializationValidator.
func (p *plugin) ValidateInitialization() error {
	if p.nodes == nil || p.slices == nil {
		return fmt.Errorf("%s: the informers of nodes and endpoint slices are needed", PluginName)
	}
	return nil
}

// claimant returns the name of the node that u is or may become. Whoever has only some marks of a
// node is bounded like one.
func claimant(u user.Info) (node string, is bool) {
	if u == nil {
		return "", false
	}
	node, is = strings.CutPrefix(u.GetName(), userPrefix)
	return node, is || slices.ContainsFunc(u.GetGroups(), func(g string) bool {
		return g == user.NodesGroup || g == bootstrapapi.BootstrapDefaultGroup
	})
}

// Validate implements admission.ValidationInterface.
func (p *plugin) Validate(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	of := a.GetResource().GroupResource()
	isNode, isPod := of == api.Resource("nodes"), of == api.Resource("pods") && a.GetSubresource() == "status"
	if !isNode && !isPod {
		return nil
	}
	name, is := claimant(a.GetUserInfo())
	if !is {
		return nil
	}
	if !p.WaitForReady() {
		return admission.NewForbidden(a, errors.New("the server does not know the other nodes yet: try again"))
	}
	var err error
	switch is := a.GetObject().(type) {
	case *api.Node:
		was, _ := a.GetOldObject().(*api.Node)
		if was == nil {
			was = &api.Node{}
		}
		err = p.checkNode(name, is, was)
	case *api.Pod:
		was, _ := a.GetOldObject().(*api.Pod)
		if was == nil {
			was = &api.Pod{}
		}
		err = p.checkPod(name, is, was)
	}
	if err != nil {
		return admission.NewForbidden(a, err)
	}
	return nil
}

// servers are the addresses of all API servers that are known.
func (p *plugin) servers() ([]netip.Addr, error) {
	var all []netip.Addr
	for _, ip := range p.config.Servers() {
		if a, ok := netip.AddrFromSlice(ip); ok {
			all = append(all, a.Unmap())
		}
	}
	list, err := p.slices.EndpointSlices(metav1.NamespaceDefault).List(
		labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: "kubernetes"}))
	if err != nil {
		return nil, fmt.Errorf("list API servers: %w", err)
	}
	for _, s := range list {
		for _, e := range s.Endpoints {
			for _, text := range e.Addresses {
				if a, err := netip.ParseAddr(text); err == nil {
					all = append(all, a.Unmap())
				}
			}
		}
	}
	return all, nil
}

// dummy is the address of every machine that has no network.
func dummy(ip netip.Addr) bool {
	d, _ := netip.AddrFromSlice(hostaddr.Dummy)
	return ip == d.Unmap()
}

func within(ip netip.Addr, ranges []netip.Prefix) bool {
	return slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Contains(ip) })
}
