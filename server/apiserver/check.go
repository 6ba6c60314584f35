package apiserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/admission"
	apiserverapi "k8s.io/apiserver/pkg/apis/apiserver"
	apiserverv1 "k8s.io/apiserver/pkg/apis/apiserver/v1"
	apiserverv1alpha1 "k8s.io/apiserver/pkg/apis/apiserver/v1alpha1"
	"k8s.io/apiserver/pkg/audit/policy"
	"k8s.io/apiserver/pkg/server/egressselector"
	genericoptions "k8s.io/apiserver/pkg/server/options"
	"k8s.io/apiserver/pkg/server/options/encryptionconfig"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	basecompatibility "k8s.io/component-base/compatibility"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	"k8s.io/kubernetes/pkg/serviceaccount"

	"github.com/mote-dev/mote/internal/upstream"
	"github.com/mote-dev/mote/server/pki"
)

// madeAtStart stands for files that a start makes. Nothing reads them to check the others.
const madeAtStart = "made-at-start"

// Check tries "flag=value" settings for kube-apiserver's own flags without making a server: it
// reads the files they name and uses upstream's checks, which read the process's feature gates. It
// changes nothing.
func Check(serviceCIDRs []netip.Prefix, args []string) error {
	trial, err := upstream.NewTrial()
	if err != nil {
		return err
	}
	o := options.NewServerRunOptions()
	o.GenericServerRunOptions.ComponentGlobalsRegistry = trial
	const file = madeAtStart
	err = fill(o, Config{
		PKI: &pki.Set{
			CAFile:                file,
			FrontProxyCAFile:      file,
			APIServer:             pki.Pair{CertFile: file, KeyFile: file},
			ServiceAccountKeyFile: file,
			ServiceAccountPubFile: file,
		},
		Transport:        storagebackend.TransportConfig{ServerList: []string{file}},
		Listener:         noListener{},
		AdvertiseAddress: net.IPv4(127, 0, 0, 1),
		ServiceCIDRs:     serviceCIDRs,
		ClusterDomain:    "cluster.local",
		ExtraArgs:        args,
	})
	if err != nil {
		return err
	}
	if err := trial.Set(); err != nil {
		// A version that is none of those possible has none of the feature gates either.
		return fmt.Errorf("kube-apiserver-arg: %w", cmp.Or(
			errors.Join(trial.EffectiveVersionFor(basecompatibility.DefaultKubeComponent).Validate()...), err))
	}
	// Upstream makes it of the key, and checks that it did.
	o.ServiceAccountIssuer = struct{ serviceaccount.TokenGenerator }{}
	o.Authorization.Complete()
	// Complete, which cannot run without keys, gives these another form.
	for key := range o.APIEnablement.RuntimeConfig {
		if version := strings.TrimPrefix(key, "api/"); version == "legacy" || version == "v1" ||
			strings.HasPrefix(version, "v1/") {
			delete(o.APIEnablement.RuntimeConfig, key)
		}
	}
	if err := errors.Join(o.Validate()...); err != nil {
		return fmt.Errorf("kube-apiserver-arg: %w", err)
	}
	return checkFiles(o)
}

// checkFiles reads the files that upstream only reads when it configures the server.
func checkFiles(o *options.ServerRunOptions) error {
	var errs []error
	read := func(flag, file string, read func() error) {
		if file == "" {
			return
		}
		if err := read(); err != nil {
			errs = append(errs, fmt.Errorf("kube-apiserver-arg %q: %w", flag+"="+file, err))
		}
	}
	read("audit-policy-file", o.Audit.PolicyFile, func() error {
		_, err := policy.LoadPolicyFromFile(o.Audit.PolicyFile)
		return err
	})
	admissionFile := o.Admission.GenericAdmission.ConfigFile
	read("admission-control-config-file", admissionFile, func() error {
		scheme := runtime.NewScheme()
		for _, add := range []func(*runtime.Scheme) error{apiserverapi.AddToScheme, apiserverv1alpha1.AddToScheme,
			apiserverv1.AddToScheme} {
			if err := add(scheme); err != nil {
				return err
			}
		}
		plugins := o.Admission.GenericAdmission.RecommendedPluginOrder
		_, err := admission.ReadAdmissionConfiguration(plugins, admissionFile, scheme)
		return err
	})
	read("egress-selector-config-file", o.EgressSelector.ConfigFile, func() error {
		_, err := egressselector.ReadEgressSelectorConfiguration(o.EgressSelector.ConfigFile)
		return err
	})
	read("tracing-config-file", o.Traces.ConfigFile, func() error {
		_, err := genericoptions.ReadTracingConfiguration(o.Traces.ConfigFile)
		return err
	})
	read("encryption-provider-config", o.Etcd.EncryptionProviderConfigFilepath, func() error {
		// Ends what it starts to reach a key service.
		ctx, end := context.WithCancel(context.Background())
		defer end()
		_, err := encryptionconfig.LoadEncryptionConfig(ctx, o.Etcd.EncryptionProviderConfigFilepath, false, "")
		return err
	})
	errs = append(errs, checkIdentityFiles(o))
	if _, err := genericoptions.ParseWatchCacheSizes(o.Etcd.WatchCacheSizes); err != nil {
		errs = append(errs, fmt.Errorf("kube-apiserver-arg watch-cache-sizes: %w", err))
	}
	return errors.Join(errs...)
}

// noListener stands for the port that a start opens.
type noListener struct{ net.Listener }

// Addr implements net.Listener.
func (noListener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4zero, Port: 6443} }
