package cmd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"

	"github.com/urfave/cli/v2"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/util/cert"

	"github.com/mote-dev/mote/cmd/settings"
	"github.com/mote-dev/mote/internal/hostaddr"
	"github.com/mote-dev/mote/internal/joinapi"
	"github.com/mote-dev/mote/server/join"
)

// onCluster gives an action the cluster, after checking the number of words.
func (p program) onCluster(words int, action func(*cli.Context, *cluster) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		if err := p.lateFlags(c); err != nil {
			return err
		}
		if c.NArg() != words {
			return usageOf(c)
		}
		cl, err := p.cluster(c)
		if err != nil {
			return err
		}
		return cl.explain(action(c, cl))
	}
}

// explain makes one line with a remedy of what a cluster can answer.
func (c *cluster) explain(err error) error {
	var connection *net.OpError
	switch {
	case errors.As(err, &connection):
		return fmt.Errorf("the cluster does not answer at %s: start `mote server`, or give --kubeconfig of another",
			c.config.Host)
	case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		return fmt.Errorf("%w: give --kubeconfig of an administrator", err)
	}
	return err
}

// pin is the fingerprint of the cluster's CA.
func (c *cluster) pin() (string, error) {
	authorities, err := cert.ParseCertsPEM(c.config.CAData)
	if err != nil {
		return "", fmt.Errorf("read CA of kubeconfig: %w", err)
	}
	return joinapi.Pin(authorities[0].Raw), nil
}

// joinURL is where machines that join reach the cluster: the kubeconfig's own address is often one
// of this machine alone.
func (c *cluster) joinURL(ctx context.Context) (string, error) {
	servers, err := join.Servers(ctx, c.client)
	if err != nil {
		return "", err
	}
	if len(servers) > 0 {
		return "https://" + servers[0], nil
	}
	// Its addresses are made known a moment after it is ready.
	u, err := url.Parse(c.config.Host)
	if err != nil {
		return "", fmt.Errorf("read server of kubeconfig: %w", err)
	}
	if ip := net.ParseIP(u.Hostname()); ip.IsLoopback() {
		return "https://" + net.JoinHostPort(hostaddr.Preferred().String(), u.Port()), nil
	}
	return c.config.Host, nil
}

// dataDirOf is the data folder of this machine's mote.
func (p program) dataDirOf(c *cli.Context) (string, error) {
	v, err := p.settings(c, []settings.Setting{dataDirSetting})
	if err != nil {
		return "", err
	}
	return v.String("data-dir"), nil
}
