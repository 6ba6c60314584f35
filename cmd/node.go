package cmd

import (
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/mote-dev/mote/server/join"
)

func (p program) nodeCommand() *cli.Command {
	return &cli.Command{
		Name:  "node",
		Usage: "list the cluster's machines, or remove one",
		Subcommands: []*cli.Command{
			{
				Name:    "list",
				Aliases: []string{"ls"},
				Usage:   "list nodes, and machines that have joined",
				Flags:   []cli.Flag{outputFlag(), clusterFlag()},
				Action:  p.onCluster(0, p.listNodes),
			},
			{
				Name:  "forget",
				Usage: "remove a node and revoke its credentials, so that another machine can join under its name",
				Description: "Kubernetes recreates its pods on other nodes. The machine itself is not touched:\n" +
					"`mote uninstall --yes` there cleans up.",
				ArgsUsage: "NAME",
				Flags:     []cli.Flag{clusterFlag()},
				Action:    p.onCluster(1, p.forgetNode),
			},
		},
	}
}

func (p program) listNodes(c *cli.Context, k *cluster) error {
	list, err := join.ListNodes(c.Context, k.client)
	if err != nil {
		return err
	}
	return p.print(c, list, func() {
		if len(list) == 0 {
			fmt.Fprintln(p.stdout, "no nodes: `mote token create` prints how to join one")
			return
		}
		w := tabwriter.NewWriter(p.stdout, 0, 0, 3, ' ', 0)
		fmt.Fprintln(w, "NAME\tSTATUS\tKIND\tADDRESS\tVERSION\tSINCE")
		for _, n := range list {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", n.Name, n.Status, dash(n.Kind), dash(n.Address), dash(n.Version),
				n.Since.UTC().Format(time.RFC3339))
		}
		_ = w.Flush()
	})
}

func (p program) forgetNode(c *cli.Context, k *cluster) error {
	name := c.Args().First()
	if len(validation.IsDNS1123Subdomain(name)) > 0 {
		return fmt.Errorf("%q is no node's name: `mote node list` shows them", name)
	}
	now, err := k.now(c.Context)
	if err != nil {
		return err
	}
	there, err := join.ForgetNode(c.Context, k.client, name, now)
	if errors.Is(err, join.ErrServerNode) {
		return fmt.Errorf("%w: it goes with the server, by `mote uninstall --yes` on its machine", err)
	}
	if err != nil {
		return err
	}
	if there {
		fmt.Fprintf(p.stdout, "node %s is forgotten: a machine can join under its name\n", name)
	} else {
		fmt.Fprintf(p.stdout, "there is no node %s: a machine can join under that name\n", name)
	}
	return nil
}

func dash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}
