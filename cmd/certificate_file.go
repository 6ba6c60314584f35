package cmd

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// fileCertificates are the client certificates in a kubeconfig, or the one in a PEM file. Others
// says of each user without one how it signs in.
func fileCertificates(file string) (certs []*x509.Certificate, others []error, err error) {
	data, err := os.ReadFile(file)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, nil,
			fmt.Errorf("%s is not there: give a kubeconfig or a certificate, or say --node, --user or --serial", file)
	case err != nil:
		return nil, nil, fmt.Errorf("read %s: %w", file, err)
	}
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("-----BEGIN")) {
		cert, err := leaf(data)
		if err != nil {
			return nil, nil, fmt.Errorf("read %s: %w", file, err)
		}
		return []*x509.Certificate{cert}, nil, nil
	}
	config, err := clientcmd.LoadFromFile(file)
	if err == nil && len(config.AuthInfos) == 0 {
		err = errors.New("it names no users")
	}
	if err == nil {
		err = clientcmd.ResolveLocalPaths(config)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s is neither a kubeconfig nor a certificate: %w", file, err)
	}
	for _, name := range slices.Sorted(maps.Keys(config.AuthInfos)) {
		user := config.AuthInfos[name]
		pemData := user.ClientCertificateData
		if len(pemData) == 0 && user.ClientCertificate != "" {
			if pemData, err = os.ReadFile(user.ClientCertificate); err != nil {
				return nil, nil, fmt.Errorf("read certificate of user %q in %s: %w", name, file, err)
			}
		}
		if len(pemData) == 0 {
			others = append(others, fmt.Errorf("user %q in %s %s", name, file, signsInWith(user)))
			continue
		}
		cert, err := leaf(pemData)
		if err != nil {
			return nil, nil, fmt.Errorf("read certificate of user %q in %s: %w", name, file, err)
		}
		if !slices.ContainsFunc(certs, cert.Equal) {
			certs = append(certs, cert)
		}
	}
	if len(certs) == 0 {
		return nil, nil, errors.Join(others...)
	}
	return certs, others, nil
}

// signsInWith says how a user without a certificate signs in, and how that is ended.
func signsInWith(user *clientcmdapi.AuthInfo) string {
	switch {
	case user.Token != "" || user.TokenFile != "":
		return "has a token, not a certificate: a service account's token ends when you delete the account, or the " +
			"secret or pod it was made for, with kubectl"
	case user.Exec != nil:
		return fmt.Sprintf(
			"signs in with the program %s, not a certificate: revoke it where that program gets its credentials",
			user.Exec.Command)
	case user.AuthProvider != nil:
		return fmt.Sprintf("signs in with the provider %s, not a certificate: revoke it there", user.AuthProvider.Name)
	}
	return "has no certificate"
}

// leaf is the first certificate of a PEM file: the one that proves who it is.
func leaf(data []byte) (*x509.Certificate, error) {
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			return nil, errors.New("there is no certificate in it")
		}
		if block.Type == "CERTIFICATE" {
			return x509.ParseCertificate(block.Bytes)
		}
		data = rest
	}
}

// signedBy drops the certificates that none of the authorities in caPEM has signed: other clusters'
// are not this one's to revoke.
func signedBy(caPEM []byte, certs []*x509.Certificate) []*x509.Certificate {
	var cas []*x509.Certificate
	for block, rest := pem.Decode(caPEM); block != nil; block, rest = pem.Decode(rest) {
		if ca, err := x509.ParseCertificate(block.Bytes); err == nil {
			cas = append(cas, ca)
		}
	}
	if len(cas) == 0 {
		return certs
	}
	return slices.DeleteFunc(slices.Clone(certs), func(cert *x509.Certificate) bool {
		return !slices.ContainsFunc(cas, func(ca *x509.Certificate) bool { return cert.CheckSignatureFrom(ca) == nil })
	})
}

// groups are those a certificate puts its user in.
func groups(cert *x509.Certificate) string {
	if len(cert.Subject.Organization) == 0 {
		return "none"
	}
	return strings.Join(cert.Subject.Organization, ", ")
}
