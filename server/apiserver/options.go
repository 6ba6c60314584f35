package apiserver

import (
	"net"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	"k8s.io/kubernetes/pkg/controlplane/reconcilers"
	"k8s.io/kubernetes/plugin/pkg/admission/noderestriction"

	"github.com/mote-dev/mote/internal/upstream"
	"github.com/mote-dev/mote/internal/upstreamflag"
	"github.com/mote-dev/mote/server/nodeclaims"
)

// watchGrace is how long a server that stops lets watches end.
const watchGrace = 2 * time.Second

// newOptions fills upstream's options from c. c.ExtraArgs are applied last, so they win.
func newOptions(c Config) (*options.ServerRunOptions, error) {
	o := options.NewServerRunOptions()
	if err := fill(o, c); err != nil {
		return nil, err
	}
	if err := upstream.SetVersions(); err != nil {
		return nil, err
	}
	return o, nil
}

// fill sets what c says in upstream's new options.
func fill(o *options.ServerRunOptions, c Config) error {
	// Declaring the flags comes first: it sets some fields to the flags' defaults.
	flags := pflag.NewFlagSet("kube-apiserver", pflag.ContinueOnError)
	sections := o.Flags()
	for _, section := range sections.FlagSets {
		flags.AddFlagSet(section)
	}

	o.GenericServerRunOptions.AdvertiseAddress = c.AdvertiseAddress
	// Watches of nodes and people would hold up a stop for a minute.
	o.GenericServerRunOptions.ShutdownWatchTerminationGracePeriod = watchGrace
	o.SecureServing.Required = true
	o.SecureServing.Listener = c.Listener
	o.SecureServing.BindAddress = c.BindAddress
	o.SecureServing.BindPort = c.Listener.Addr().(*net.TCPAddr).Port
	o.SecureServing.ServerCert.CertKey.CertFile = c.PKI.APIServer.CertFile
	o.SecureServing.ServerCert.CertKey.KeyFile = c.PKI.APIServer.KeyFile

	o.Authentication.ClientCert.ClientCA = c.PKI.CAFile
	// Tokens let nodes in through server/join only, where names are bound to the machines that have
	// them; at the API itself a token could take any name.
	o.Authentication.BootstrapToken.Enable = false
	o.Authentication.RequestHeader.ClientCAFile = c.PKI.FrontProxyCAFile
	o.Authentication.RequestHeader.AllowedNames = []string{"front-proxy-client"}
	o.Authentication.RequestHeader.UsernameHeaders = []string{"X-Remote-User"}
	o.Authentication.RequestHeader.GroupHeaders = []string{"X-Remote-Group"}
	o.Authentication.RequestHeader.ExtraHeaderPrefixes = []string{"X-Remote-Extra-"}
	o.Authentication.ServiceAccounts.Issuers = []string{"https://kubernetes.default.svc." + c.ClusterDomain}
	o.Authentication.ServiceAccounts.KeyFiles = []string{c.PKI.ServiceAccountPubFile}
	o.ServiceAccountSigningKeyFile = c.PKI.ServiceAccountKeyFile
	o.Authorization.Modes = []string{"Node", "RBAC"}
	admission := o.Admission.GenericAdmission
	nodeclaims.Register(admission.Plugins, c.NodeClaims)
	// The order upstream recommends is a variable of its package.
	order := slices.Clone(admission.RecommendedPluginOrder)
	admission.RecommendedPluginOrder = slices.Insert(order,
		slices.Index(order, noderestriction.PluginName)+1, nodeclaims.PluginName)

	o.ProxyClientCertFile, o.ProxyClientKeyFile = c.PKI.FrontProxy.CertFile, c.PKI.FrontProxy.KeyFile
	// The server need not be a node, so it may not know the way to a cluster IP.
	o.EnableAggregatorRouting = true
	o.AllowPrivileged = true
	// Nodes behind different NATs may have the same address. Names are theirs alone, and in their
	// serving certificates.
	o.KubeletConfig.PreferredAddressTypes = []string{string(proxyHost), "Hostname", "InternalIP", "ExternalIP"}
	o.KubeletConfig.TLSClientConfig.CertFile = c.PKI.KubeletClient.CertFile
	o.KubeletConfig.TLSClientConfig.KeyFile = c.PKI.KubeletClient.KeyFile
	o.KubeletConfig.TLSClientConfig.CAFile = c.PKI.CAFile

	ranges := make([]string, len(c.ServiceCIDRs))
	for i, r := range c.ServiceCIDRs {
		ranges[i] = r.String()
	}
	o.ServiceClusterIPRanges = strings.Join(ranges, ",")
	// The addresses behind the service "kubernetes" are kept by a reconciler of ours
	// (endpoints.go): it follows the network and writes only on changes.
	o.EndpointReconcilerType = string(reconcilers.NoneEndpointReconcilerType)

	o.Etcd.StorageConfig.Transport = c.Transport
	// Compaction runs once, on the client all resources share.
	o.Etcd.StorageConfig.CompactionInterval = 0
	o.Etcd.StorageConfig.DBMetricPollInterval = 0
	o.Etcd.StorageConfig.CountMetricPollPeriod = 0
	o.Etcd.SkipHealthEndpoints = true

	if c.Servers != nil {
		// Requests for what only a newer or older server knows go there.
		o.PeerCAFile = c.PKI.CAFile
	}
	if err := unusedFlags().Refuse("kube-apiserver-arg", c.ExtraArgs); err != nil {
		return err
	}
	if err := upstreamflag.Apply(flags, "kube-apiserver-arg", c.ExtraArgs); err != nil {
		return err
	}
	// After the user's, whose list would replace these: without them a node is held to nothing.
	// Upstream refuses to have a plugin both enabled and disabled.
	for _, name := range []string{noderestriction.PluginName, nodeclaims.PluginName} {
		if !slices.Contains(admission.EnablePlugins, name) {
			admission.EnablePlugins = append(admission.EnablePlugins, name)
		}
	}
	return nil
}
