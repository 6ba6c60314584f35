package cmd

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/client-go/util/certificate/csr"

	"github.com/mote-dev/mote/internal/atomicfile"
	"github.com/mote-dev/mote/internal/joinapi"
	"github.com/mote-dev/mote/server/revocation"
)

const (
	// leastTTL is the shortest life the API allows a certificate.
	leastTTL = 10 * time.Minute
	// signTimeout bounds the wait for the cluster's signer.
	signTimeout = 30 * time.Second
)

func (p program) kubeconfigCommand() *cli.Command {
	return &cli.Command{
		Name:  "kubeconfig",
		Usage: "create kubeconfigs for users and programs",
		Subcommands: []*cli.Command{{
			Name:  "create",
			Usage: "create a kubeconfig for a user, with its own certificate, groups and an expiry date",
			Description: "The key is generated here; the cluster signs a certificate for it. A new user has no " +
				"rights until you bind a role to it.\n" +
				"`mote certificate revoke FILE` revokes the file's access before it expires.",
			Flags: []cli.Flag{
				&cli.StringFlag{Name: "user", Usage: "user `NAME` in the cluster"},
				&cli.StringSliceFlag{Name: "group", Usage: "`NAME` of a group of the user; may be repeated"},
				&cli.StringFlag{Name: "ttl", Value: "720h",
					Usage: "lifetime of the certificate, such as 12h or 30d: at least 10m, at most what the " +
						"cluster's signer allows (a year)"},
				&cli.StringFlag{Name: "output", Aliases: []string{"o"},
					Usage: "`FILE` to write, readable only by you (default: standard output)"},
				&cli.BoolFlag{Name: "force", Usage: "overwrite an existing file"},
				&cli.StringFlag{Name: "server",
					Usage: "`URL` of the API server in the file (default: its first address)"},
				clusterFlag(),
			},
			Action: func(c *cli.Context) error {
				if err := noArgs(c); err != nil {
					return err
				}
				return p.createKubeconfig(c)
			},
		}},
	}
}

// wantedUser is who a kubeconfig is made for.
type wantedUser struct {
	name   string
	groups []string
	ttl    time.Duration
}

func wantUser(c *cli.Context) (wantedUser, error) {
	u := wantedUser{name: c.String("user"), groups: c.StringSlice("group")}
	ttl, err := parseDuration(c.String("ttl"))
	switch {
	case u.name == "":
		return u, errors.New("user is missing: name it with --user")
	case strings.HasPrefix(u.name, "system:"):
		return u, fmt.Errorf("--user %s: names that begin with system: belong to Kubernetes itself: choose another",
			u.name)
	case strings.TrimSpace(u.name) != u.name || strings.ContainsFunc(u.name, func(r rune) bool { return r < ' ' }):
		return u, fmt.Errorf("--user %q has blanks around it or characters that cannot be seen", u.name)
	case serverNames[u.name] != "" || u.name == "kubernetes-admin":
		return u, fmt.Errorf("--user %s is a name mote uses itself: choose another", u.name)
	case slices.Contains(u.groups, "system:masters"):
		return u, fmt.Errorf(
			"--group system:masters is refused: its members cannot be limited; give full rights with `mote kubectl "+
				"create clusterrolebinding %s --clusterrole=cluster-admin --user=%s`", bindingName(u.name), u.name)
	case err != nil:
		return u, fmt.Errorf("--ttl %q is no duration: write it as 12h or 7d", c.String("ttl"))
	case ttl < leastTTL:
		return u, fmt.Errorf("--ttl %s is too short: Kubernetes makes no certificates for less than %s",
			c.String("ttl"), leastTTL)
	}
	for _, g := range u.groups {
		if g == "" || strings.HasPrefix(g, "system:") {
			return u, fmt.Errorf(
				"--group %q: groups that begin with system: belong to Kubernetes itself: choose another", g)
		}
	}
	u.ttl = ttl
	return u, nil
}

func bindingName(user string) string {
	return strings.Trim(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.ToLower(user)), "-")
}

func (p program) createKubeconfig(c *cli.Context) error {
	u, err := wantUser(c)
	if err != nil {
		return err
	}
	output := c.String("output")
	if output != "" && !c.Bool("force") {
		there, err := exists(output)
		if err != nil {
			return err
		}
		if there {
			return fmt.Errorf("%s exists: choose another --output, or overwrite it with --force", output)
		}
	}
	cl, err := p.cluster(c)
	if err != nil {
		return err
	}
	address := c.String("server")
	if address == "" {
		if address, err = cl.address(c.Context); err != nil {
			return err
		}
	} else {
		parsed, err := joinapi.ParseServer(address)
		if err != nil {
			return fmt.Errorf("--server %q is %w", address, err)
		}
		address = "https://" + parsed
	}
	cert, certPEM, keyPEM, err := cl.issue(c.Context, u)
	if err != nil {
		return err
	}
	// The signer dates certificates back, so one of a user that was revoked a moment ago looks like
	// an old one.
	admitted, err := revocation.Admit(c.Context, cl.client, cert)
	if err != nil {
		return err
	}
	config := clientcmdapi.NewConfig()
	config.Clusters["mote"] = &clientcmdapi.Cluster{Server: address, CertificateAuthorityData: cl.config.CAData,
		TLSServerName: cl.config.ServerName}
	config.AuthInfos[u.name] = &clientcmdapi.AuthInfo{ClientCertificateData: certPEM, ClientKeyData: keyPEM}
	config.Contexts["mote"] = &clientcmdapi.Context{Cluster: "mote", AuthInfo: u.name}
	config.CurrentContext = "mote"
	data, err := clientcmd.Write(*config)
	if err != nil {
		return fmt.Errorf("encode kubeconfig: %w", err)
	}
	if err := p.writeKubeconfig(output, data, c.Bool("force")); err != nil {
		return err
	}
	p.sayIssued(output, address, u, cert, admitted != nil)
	return nil
}

func (p program) writeKubeconfig(file string, data []byte, force bool) error {
	switch {
	case file == "":
		if _, err := p.stdout.Write(data); err != nil {
			return fmt.Errorf("write kubeconfig: %w", err)
		}
		return nil
	case force:
		return atomicfile.Write(file, data, 0o600)
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write kubeconfig: %w", err)
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

// sayIssued tells what was made, on standard error when the file is on standard output.
func (p program) sayIssued(file, address string, u wantedUser, cert *x509.Certificate, admitted bool) {
	var w io.Writer = p.stdout
	if file == "" {
		w = p.stderr
	} else {
		fmt.Fprintf(w, "wrote %s for %s\n", file, u.name)
	}
	fmt.Fprintf(w, "  server       %s\n  groups       %s\n  valid until  %s\n  serial       %s\n", address,
		groups(cert), cert.NotAfter.Format(time.RFC3339), revocation.Serial(cert))
	// The signer dates certificates back, some of them together with their end: their length is
	// what it gave, not what is left.
	if cert.NotAfter.Sub(cert.NotBefore) < u.ttl {
		fmt.Fprintf(w, "that is less than --ttl %s: the cluster's signer gives no more\n", u.ttl)
	}
	if admitted {
		fmt.Fprintf(w, "%s was revoked before: only this certificate is let in, older ones stay refused\n", u.name)
	}
	fmt.Fprintf(w,
		"it may do nothing yet; to let it change things in the namespace default, for example:\n  mote kubectl "+
			"create rolebinding %s --clusterrole=edit --user=%q --namespace=default\n", bindingName(u.name), u.name)
}

// address is where other machines reach the API server.
func (c *cluster) address(ctx context.Context) (string, error) {
	own, err := url.Parse(c.config.Host)
	if err != nil {
		return "", fmt.Errorf("read address in kubeconfig: %w", err)
	}
	if ip := net.ParseIP(own.Hostname()); own.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return c.config.Host, nil
	}
	slices, err := c.client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).List(ctx,
		metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=kubernetes"})
	if err != nil {
		return "", fmt.Errorf("ask the cluster for its address: %w", err)
	}
	for _, s := range slices.Items {
		for _, e := range s.Endpoints {
			for _, port := range s.Ports {
				if port.Port != nil && len(e.Addresses) > 0 {
					return "https://" + net.JoinHostPort(e.Addresses[0], strconv.Itoa(int(*port.Port))), nil
				}
			}
		}
	}
	return c.config.Host, nil
}

// issue makes a key and has the cluster sign a certificate for it.
func (c *cluster) issue(ctx context.Context, u wantedUser) (cert *x509.Certificate, certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("make key: %w", err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("encode key: %w", err)
	}
	keyPEM = pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: u.name, Organization: u.groups},
	}, key)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("make certificate request: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	name, uid, err := csr.RequestCertificateWithContext(ctx, c.client,
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: request}),
		"", certificatesv1.KubeAPIServerClientSignerName, &u.ttl,
		[]certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageClientAuth}, key)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("ask for a certificate: %w", err)
	}
	defer func() {
		// It has served, or never will; the certificate itself is not kept by anybody else.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), signTimeout)
		defer cancel()
		if deleteErr := c.client.CertificatesV1().CertificateSigningRequests().Delete(ctx, name,
			metav1.DeleteOptions{}); deleteErr != nil && err == nil {
			err = fmt.Errorf("remove certificate request %s: %w", name, deleteErr)
		}
	}()
	if certPEM, err = c.approve(ctx, name, uid); err != nil {
		return nil, nil, nil, err
	}
	if cert, err = leaf(certPEM); err != nil {
		return nil, nil, nil, fmt.Errorf("read certificate the cluster signed: %w", err)
	}
	return cert, certPEM, keyPEM, nil
}

// approve approves a request with the caller's rights and waits for the signature.
func (c *cluster) approve(ctx context.Context, name string, uid types.UID) ([]byte, error) {
	api := c.client.CertificatesV1().CertificateSigningRequests()
	request, err := api.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("read certificate request %s: %w", name, err)
	}
	request.Status.Conditions = append(request.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
		Type:    certificatesv1.CertificateApproved,
		Status:  corev1.ConditionTrue,
		Reason:  "MoteKubeconfigCreate",
		Message: "approved by `mote kubeconfig create`",
	})
	if _, err := api.UpdateApproval(ctx, name, request, metav1.UpdateOptions{}); err != nil {
		return nil, fmt.Errorf("approve certificate request %s: %w", name, err)
	}
	cert, err := csr.WaitForCertificate(ctx, c.client, name, uid)
	if err != nil {
		return nil, fmt.Errorf(
			"wait for the cluster to sign certificate request %s: %w: the server's log says why it does not", name, err)
	}
	return cert, nil
}
