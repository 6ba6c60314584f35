package cmd

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/urfave/cli/v2"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/mote-dev/mote/server"
)

// clusterTimeout bounds each question a command asks a cluster.
const clusterTimeout = 30 * time.Second

// cluster is the cluster a command talks to, as one of its users.
type cluster struct {
	config *rest.Config
	client kubernetes.Interface
	// file is the one kubeconfig in use; empty when several were merged.
	file string
}

func clusterFlag() cli.Flag {
	return &cli.StringFlag{Name: "kubeconfig",
		Usage: "`FILE` to talk to the cluster with (default: KUBECONFIG, or what this machine's server wrote)"}
}

// cluster connects as `mote kubectl` would: with the flag, KUBECONFIG, or the file this machine's
// server wrote.
func (p program) cluster(c *cli.Context) (*cluster, error) {
	rules := &clientcmd.ClientConfigLoadingRules{ExplicitPath: c.String("kubeconfig")}
	if rules.ExplicitPath == "" {
		if list, set := p.lookupEnv("KUBECONFIG"); set && list != "" {
			rules.Precedence = clientcmd.NewDefaultClientConfigLoadingRules().Precedence
		} else {
			file, err := p.machineSetting("kubeconfig-output", server.DefaultKubeconfigOutput)
			if err != nil {
				return nil, err
			}
			rules.ExplicitPath = file
		}
	}
	// The loader's own error hides its cause.
	for _, file := range append([]string{rules.ExplicitPath}, rules.Precedence...) {
		if err := mayRead(file); err != nil {
			return nil, fmt.Errorf("read kubeconfig: %w", err)
		}
	}
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	switch {
	case errors.Is(err, os.ErrNotExist):
		if c.String("kubeconfig") == "" && rules.ExplicitPath != "" {
			return nil, p.missingKubeconfig(rules.ExplicitPath)
		}
		return nil, fmt.Errorf(
			"kubeconfig %s is not there: say with --kubeconfig which one to talk to the cluster with",
			rules.ExplicitPath)
	case err != nil:
		return nil, fmt.Errorf("use kubeconfig: %w", err)
	}
	if err := rest.LoadTLSFiles(config); err != nil {
		return nil, fmt.Errorf("use kubeconfig: %w", err)
	}
	config.Timeout = clusterTimeout
	// Commands say themselves what there is to say.
	config.WarningHandler = rest.NoWarnings{}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("use kubeconfig: %w", err)
	}
	return &cluster{config: config, client: client, file: rules.ExplicitPath}, nil
}

// mayRead returns the error of a file that this user may not read.
func mayRead(file string) error {
	f, err := os.Open(file)
	switch {
	case err == nil:
		return f.Close()
	case errors.Is(err, os.ErrPermission):
		return err
	}
	return nil
}

// whoami is the name the cluster knows the user by.
func (c *cluster) whoami(ctx context.Context) (string, error) {
	review, err := c.client.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{},
		metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("ask the cluster who this is: %w", err)
	}
	return review.Status.UserInfo.Username, nil
}

// now is the later of the server's clock and this machine's.
func (c *cluster) now(ctx context.Context) (time.Time, error) {
	client, err := rest.HTTPClientFor(c.config)
	if err != nil {
		return time.Time{}, fmt.Errorf("use kubeconfig: %w", err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, c.config.Host+"/version", nil)
	if err != nil {
		return time.Time{}, fmt.Errorf("ask the server for its time: %w", err)
	}
	response, err := client.Do(request)
	if err != nil {
		return time.Time{}, fmt.Errorf("ask the server for its time: %w", err)
	}
	defer func() { _ = response.Body.Close() }()
	now := time.Now()
	if there, err := http.ParseTime(response.Header.Get("Date")); err == nil && there.After(now) {
		now = there
	}
	return now.UTC(), nil
}
