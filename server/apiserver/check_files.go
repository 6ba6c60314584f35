package apiserver

import (
	"crypto/tls"
	"errors"
	"fmt"
	"slices"

	"k8s.io/apiserver/pkg/authentication/token/tokenfile"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	kubeoptions "k8s.io/kubernetes/pkg/kubeapiserver/options"
)

// checkIdentityFiles reads the files that say who the server is and whom it believes: certificates,
// keys, tokens, and how to reach those it asks. Upstream reads them when it applies its options,
// long after the start has made the data folder.
func checkIdentityFiles(o *options.ServerRunOptions) error {
	var errs []error
	read := func(flag, file string, read func(file string) error) {
		if file == "" || file == madeAtStart {
			return
		}
		if err := read(file); err != nil {
			errs = append(errs, fmt.Errorf("kube-apiserver-arg %q: %w", flag+"="+file, err))
		}
	}
	pair := func(flag, certFile, keyFile string) {
		if keyFile == "" || keyFile == madeAtStart {
			return
		}
		read(flag, certFile, func(string) error {
			_, err := tls.LoadX509KeyPair(certFile, keyFile)
			return err
		})
	}
	serving := o.SecureServing.ServerCert.CertKey
	pair("tls-cert-file", serving.CertFile, serving.KeyFile)
	for _, sni := range o.SecureServing.SNICertKeys {
		pair("tls-sni-cert-key", sni.CertFile, sni.KeyFile)
	}
	pair("proxy-client-cert-file", o.ProxyClientCertFile, o.ProxyClientKeyFile)

	a := o.Authentication
	read("client-ca-file", a.ClientCert.ClientCA, readCertificates)
	read("requestheader-client-ca-file", a.RequestHeader.ClientCAFile, readCertificates)
	read("oidc-ca-file", a.OIDC.CAFile, readCertificates)
	for _, file := range slices.Compact(slices.Sorted(slices.Values(a.ServiceAccounts.KeyFiles))) {
		read("service-account-key-file", file, func(file string) error {
			_, err := keyutil.PublicKeysFromFile(file)
			return err
		})
	}
	read("service-account-signing-key-file", o.ServiceAccountSigningKeyFile, func(file string) error {
		_, err := keyutil.PrivateKeyFromFile(file)
		return err
	})
	read("token-auth-file", a.TokenFile.TokenFile, func(file string) error {
		_, err := tokenfile.NewCSV(file)
		return err
	})
	read("authentication-config", a.AuthenticationConfigFile, func(file string) error {
		_, err := (&kubeoptions.BuiltInAuthenticationOptions{AuthenticationConfigFile: file}).ToAuthenticationConfig()
		return err
	})
	read("authentication-token-webhook-config-file", a.WebHook.ConfigFile, readKubeconfig)
	read("authorization-webhook-config-file", o.Authorization.WebhookConfigFile, readKubeconfig)
	read("audit-webhook-config-file", o.Audit.WebhookOptions.ConfigFile, readKubeconfig)
	return errors.Join(errs...)
}

func readCertificates(file string) error {
	_, err := cert.CertsFromFile(file)
	return err
}

func readKubeconfig(file string) error {
	_, err := clientcmd.LoadFromFile(file)
	return err
}
