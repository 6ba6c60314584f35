package cmd

import (
	"errors"
	"fmt"
	"regexp"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mote-dev/mote/internal/datadir"
	"github.com/mote-dev/mote/internal/joinapi"
	"github.com/mote-dev/mote/server"
	"github.com/mote-dev/mote/server/join"
)

var tokenIDForm = regexp.MustCompile(`^[a-z0-9]{6}$`)

func (p program) tokenCommand() *cli.Command {
	quiet := &cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print only the token"}
	return &cli.Command{
		Name:  "token",
		Usage: "create, list and revoke the tokens that machines join with",
		Subcommands: []*cli.Command{
			{
				Name:  "create",
				Usage: "create a token and print the command to run on the joining machine",
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "ttl",
						Usage: "how long machines can join with it, such as 30m, 24h or 7d; 0 means until it " +
							"is deleted",
						Value: "24h"},
					&cli.StringFlag{Name: "description", Usage: "`TEXT` that identifies it in the list"},
					quiet, clusterFlag(),
				},
				Action: p.onCluster(0, p.createToken),
			},
			{
				Name:    "list",
				Aliases: []string{"ls"},
				Usage:   "list the tokens without their secrets",
				Flags:   []cli.Flag{outputFlag(), clusterFlag()},
				Action:  p.onCluster(0, p.listTokens),
			},
			{
				Name:      "delete",
				Aliases:   []string{"revoke"},
				Usage:     "revoke a token at once; machines that have joined with it stay",
				ArgsUsage: "ID",
				Flags:     []cli.Flag{clusterFlag()},
				Action:    p.onCluster(1, p.deleteToken),
			},
			{
				Name:   "rotate",
				Usage:  "replace the server's own token, on the server's machine",
				Flags:  []cli.Flag{quiet, clusterFlag(), flag(configSetting), flag(dataDirSetting)},
				Action: p.onCluster(0, p.rotateToken),
			},
		},
	}
}

func (p program) createToken(c *cli.Context, k *cluster) error {
	ttl, err := parseDuration(c.String("ttl"))
	if err != nil || ttl < 0 {
		return fmt.Errorf("ttl %q is no duration: write it as 30m, 24h or 7d, or 0 for a token that does not expire",
			c.String("ttl"))
	}
	pin, err := k.pin()
	if err != nil {
		return err
	}
	text, err := join.CreateToken(c.Context, k.client, ttl, c.String("description"))
	if err != nil {
		return err
	}
	return p.printToken(c, k, joinapi.Token{Pin: pin, Secret: text})
}

// printToken prints a token, and how to join with it.
func (p program) printToken(c *cli.Context, k *cluster, token joinapi.Token) error {
	if c.Bool("quiet") {
		fmt.Fprintln(p.stdout, token)
		return nil
	}
	url, err := k.joinURL(c.Context)
	if err != nil {
		return err
	}
	fmt.Fprintln(p.stdout, server.JoinCommand(url, token))
	return nil
}

func (p program) listTokens(c *cli.Context, k *cluster) error {
	list, err := join.ListTokens(c.Context, k.client)
	if err != nil {
		return err
	}
	return p.print(c, list, func() {
		if len(list) == 0 {
			fmt.Fprintln(p.stdout, "no tokens: `mote token create` makes one")
			return
		}
		w := tabwriter.NewWriter(p.stdout, 0, 0, 3, ' ', 0)
		fmt.Fprintln(w, "ID\tEXPIRES\tDESCRIPTION")
		for _, t := range list {
			expires := "never"
			if t.Expires != nil {
				expires = t.Expires.UTC().Format(time.RFC3339)
			}
			if t.Expired {
				expires += " (expired)"
			}
			fmt.Fprintf(w, "%s\t%s\t%s\n", t.ID, expires, t.Description)
		}
		_ = w.Flush()
	})
}

func (p program) deleteToken(c *cli.Context, k *cluster) error {
	id := c.Args().First()
	if !tokenIDForm.MatchString(id) {
		// Not quoted: it may be a whole token.
		return errors.New("that is no token's id, which has 6 characters of a-z and 0-9: `mote token list` shows them")
	}
	if err := join.DeleteToken(c.Context, k.client, id); err != nil {
		if errors.Is(err, join.ErrNoToken) {
			return fmt.Errorf("%w: `mote token list` shows those there are", err)
		}
		return err
	}
	fmt.Fprintf(p.stdout, "token %s is revoked\n", id)
	return nil
}

func (p program) rotateToken(c *cli.Context, k *cluster) error {
	dataDir, err := p.dataDirOf(c)
	if err != nil {
		return err
	}
	paths := datadir.At(dataDir)
	file := paths.TokenFile()
	there, err := exists(paths.Server())
	if err != nil {
		return err
	}
	if !there {
		return fmt.Errorf("there is no server in %s: run this on the server's machine, with its --data-dir", dataDir)
	}
	pin, err := k.pin()
	if err != nil {
		return err
	}
	token, err := join.RotateServerToken(c.Context, k.client, file, pin)
	if err != nil {
		return err
	}
	return p.printToken(c, k, token)
}
