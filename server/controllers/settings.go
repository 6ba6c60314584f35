package controllers

import (
	"crypto/tls"
	"errors"
	"fmt"

	"github.com/spf13/pflag"
	"k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"
	basecompatibility "k8s.io/component-base/compatibility"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app/config"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app/options"
	"k8s.io/kubernetes/cmd/kube-controller-manager/names"
	kubecontrollerconfig "k8s.io/kubernetes/pkg/controller/apis/config"
	csrsigningconfig "k8s.io/kubernetes/pkg/controller/certificates/signer/config"

	"github.com/mote-dev/mote/internal/clusterconfig"
	"github.com/mote-dev/mote/internal/upstream"
	"github.com/mote-dev/mote/internal/upstreamflag"
	"github.com/mote-dev/mote/server/pki"
)

// madeAtStart stands for files that a start makes. Nothing reads them to check the others.
const madeAtStart = "made-at-start"

// Check tries "flag=value" settings for kube-controller-manager's own flags without making a
// controller. It uses upstream's checks, which read the process's feature gates, and changes
// nothing.
func Check(cluster clusterconfig.Config, args []string) error {
	trial, err := upstream.NewTrial()
	if err != nil {
		return err
	}
	const file = madeAtStart
	result, err := Config{
		PKI:       &pki.Set{CAFile: file, CAKeyFile: file, ServiceAccountKeyFile: file},
		Cluster:   cluster,
		ExtraArgs: args,
	}.componentConfig(trial)
	if err != nil {
		return err
	}
	_, err = podCIDRSettings(result.ComponentConfig)
	return errors.Join(err, checkFiles(result.ComponentConfig))
}

// checkFiles reads the files of keys and certificates, which upstream reads when it makes the
// controllers that use them: too late to refuse them, and some of it goes on without.
func checkFiles(c kubecontrollerconfig.KubeControllerManagerConfiguration) error {
	var errs []error
	read := func(flag, file string, err error) {
		if file != "" && file != madeAtStart && err != nil {
			errs = append(errs, fmt.Errorf("kube-controller-manager-arg %q: %w", flag+"="+file, err))
		}
	}
	_, err := cert.CertsFromFile(c.SAController.RootCAFile)
	read("root-ca-file", c.SAController.RootCAFile, err)
	_, err = keyutil.PrivateKeyFromFile(c.SAController.ServiceAccountKeyFile)
	read("service-account-private-key-file", c.SAController.ServiceAccountKeyFile, err)
	signing := c.CSRSigningController
	for flag, pair := range map[string]csrsigningconfig.CSRSigningConfiguration{
		"cluster-signing-cert-file": {CertFile: signing.ClusterSigningCertFile,
			KeyFile: signing.ClusterSigningKeyFile},
		"cluster-signing-kubelet-serving-cert-file":       signing.KubeletServingSignerConfiguration,
		"cluster-signing-kubelet-client-cert-file":        signing.KubeletClientSignerConfiguration,
		"cluster-signing-kube-apiserver-client-cert-file": signing.KubeAPIServerClientSignerConfiguration,
		"cluster-signing-legacy-unknown-cert-file":        signing.LegacyUnknownSignerConfiguration,
	} {
		_, err := tls.LoadX509KeyPair(pair.CertFile, pair.KeyFile)
		read(flag, pair.CertFile, err)
	}
	return errors.Join(errs...)
}

// componentConfig takes upstream's defaults and flags and fills in ours. gates are those that
// upstream's flags for feature gates reach; nil means the process's.
func (c Config) componentConfig(gates basecompatibility.ComponentGlobalsRegistry) (*config.Config, error) {
	o, err := options.NewKubeControllerManagerOptions()
	if err != nil {
		return nil, fmt.Errorf("make controller options: %w", err)
	}
	if gates != nil {
		o.ComponentGlobalsRegistry = gates
	}
	known, disabled, aliases := app.KnownControllers(), app.ControllersDisabledByDefault(), app.ControllerAliases()
	// Declaring the flags comes first: it sets some fields to the flags' defaults.
	all := pflag.NewFlagSet("kube-controller-manager", pflag.ContinueOnError)
	sections := o.Flags(known, disabled, aliases)
	for _, section := range sections.FlagSets {
		all.AddFlagSet(section)
	}
	o.KubeCloudShared.AllocateNodeCIDRs = true
	o.KubeCloudShared.ClusterCIDR = clusterconfig.Join(c.Cluster.ClusterCIDRs)
	o.KubeCloudShared.ConfigureCloudRoutes = false
	o.KubeCloudShared.UseServiceAccountCredentials = true
	o.NodeIPAMController.ServiceCIDR = clusterconfig.Join(c.Cluster.ServiceCIDRs)
	if c.Cluster.HasIPv4() {
		o.NodeIPAMController.NodeCIDRMaskSizeIPv4 = clusterconfig.NodeMaskIPv4
	}
	if c.Cluster.HasIPv6() {
		o.NodeIPAMController.NodeCIDRMaskSizeIPv6 = clusterconfig.NodeMaskIPv6
	}
	o.SAController.RootCAFile = c.PKI.CAFile
	o.SAController.ServiceAccountKeyFile = c.PKI.ServiceAccountKeyFile
	o.CSRSigningController.ClusterSigningCertFile = c.PKI.CAFile
	o.CSRSigningController.ClusterSigningKeyFile = c.PKI.CAKeyFile
	o.Generic.LeaderElection.LeaderElect = false
	// Upstream leaves this one off: it removes join tokens that have expired.
	o.Generic.Controllers = append(o.Generic.Controllers, names.TokenCleanerController)
	// The API server's port serves everything; there is no second listener.
	o.SecureServing.BindPort = 0
	// Upstream spreads the start of controllers to spare a busy API server of a large cluster; here
	// it would only delay the first pod.
	o.Generic.ControllerStartInterval.Duration = 0

	if err := unusedFlags(sections).Refuse("kube-controller-manager-arg", c.ExtraArgs); err != nil {
		return nil, err
	}
	if err := upstreamflag.Apply(all, "kube-controller-manager-arg", c.ExtraArgs); err != nil {
		return nil, err
	}
	if gates != nil {
		if err := gates.Set(); err != nil {
			return nil, fmt.Errorf("kube-controller-manager-arg: %w", err)
		}
	}
	if err := o.Validate(known, disabled, aliases); err != nil {
		return nil, fmt.Errorf("kube-controller-manager-arg: %w", err)
	}
	result := &config.Config{}
	if err := o.ApplyTo(result, known, disabled, aliases); err != nil {
		return nil, fmt.Errorf("apply controller options: %w", err)
	}
	return result, nil
}
