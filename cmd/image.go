package cmd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/mote-dev/mote/cmd/settings"
	"github.com/mote-dev/mote/internal/datadir"
	"github.com/mote-dev/mote/runtime/image"
)

func (p program) imageCommand() *cli.Command {
	common := []cli.Flag{flag(configSetting), flag(dataDirSetting)}
	return &cli.Command{
		Name:  "image",
		Usage: "import, list and remove images of this machine's node",
		Subcommands: []*cli.Command{
			{
				Name:      "import",
				Usage:     "import image archives (OCI or docker, also compressed); - reads standard input",
				ArgsUsage: "FILE…",
				Flags:     common,
				Action:    p.withAgentDir(1, "FILE", p.importImages),
			},
			{
				Name:    "list",
				Aliases: []string{"ls"},
				Usage:   "list the images",
				Flags:   append([]cli.Flag{outputFlag()}, common...),
				Action:  p.withAgentDir(0, "", p.listImages),
			},
			{
				Name:      "rm",
				Usage:     "remove images by name",
				ArgsUsage: "NAME…",
				Flags:     common,
				Action: p.withAgentDir(1, "NAME", func(c *cli.Context, agentDir string) error {
					if err := image.Remove(c.Context, agentDir, c.Args().Slice()...); err != nil {
						return err
					}
					fmt.Fprintf(p.stdout, "removed %s\n", strings.Join(c.Args().Slice(), ", "))
					return nil
				}),
			},
		},
	}
}

// withAgentDir gives an action the agent's folder of the machine's mote, after checking that the
// command has at least so many words, or none.
func (p program) withAgentDir(words int, what string, action func(*cli.Context, string) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		if words == 0 {
			if err := noArgs(c); err != nil {
				return err
			}
		}
		if c.NArg() < words {
			return fmt.Errorf("`%s` needs a %s", c.Command.HelpName, what)
		}
		for _, word := range c.Args().Slice() {
			if len(word) > 1 && strings.HasPrefix(word, "-") {
				return fmt.Errorf("flag %s comes too late: write `%s [flags] %s…`", word, c.Command.HelpName, what)
			}
		}
		v, err := p.settings(c, []settings.Setting{dataDirSetting})
		if err != nil {
			return err
		}
		return action(c, datadir.At(v.String("data-dir")).Agent().Dir())
	}
}

func (p program) importImages(c *cli.Context, agentDir string) error {
	for _, file := range c.Args().Slice() {
		options := image.ImportOptions{
			AgentDir: agentDir,
			Progress: func(int64, int64) {},
			Unnamed: func(digest string) {
				fmt.Fprintf(p.stderr, "image %s in %s has no name and was left out: save it as NAME:TAG\n",
					digest, file)
			},
		}
		ended := func(error) {}
		if f, ok := p.stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
			ui := newTerminalUI(f, p.plain(), func() int {
				width, _, err := term.GetSize(int(f.Fd()))
				if err != nil {
					return 80
				}
				return width
			})
			done := ui.Phase("import " + file)
			options.Progress = func(n, total int64) { ui.Progress("read", filepath.Base(file), n, total) }
			ended = func(err error) { done(err); ui.close() }
		}
		names, err := importOne(c.Context, p, file, options)
		ended(err)
		if err != nil {
			return importFault(file, err)
		}
		for _, name := range names {
			fmt.Fprintf(p.stdout, "imported %s\n", name)
		}
	}
	return nil
}

func importOne(ctx context.Context, p program, file string, options image.ImportOptions) ([]string, error) {
	if file == "-" {
		return image.ImportFrom(ctx, p.stdin, options)
	}
	return image.Import(ctx, file, options)
}

// importFault says what is wrong with an archive, in one line with a remedy.
func importFault(file string, err error) error {
	switch {
	case errors.Is(err, image.ErrNotAnImage):
		return fmt.Errorf(
			"%w; nothing was imported: make the archive with `docker save`, `podman save` or `skopeo copy`", err)
	case errors.Is(err, os.ErrNotExist) && !errors.Is(err, image.ErrNotRunning):
		return fmt.Errorf("image archive %s is not there", file)
	}
	return err
}

func (p program) listImages(c *cli.Context, agentDir string) error {
	list, err := image.List(c.Context, agentDir)
	if err != nil {
		return err
	}
	return p.print(c, list, func() {
		w := tabwriter.NewWriter(p.stdout, 0, 0, 3, ' ', 0)
		fmt.Fprintln(w, "NAME\tSIZE\tORIGIN\tPINNED\tDIGEST")
		for _, i := range list {
			pinned := "no"
			if i.Pinned {
				pinned = "yes"
			}
			digest := i.Digest
			if len(digest) > 19 {
				digest = digest[:19]
			}
			fmt.Fprintf(w, "%s\t%.1f MB\t%s\t%s\t%s\n", i.Name, float64(i.Size)/1e6, i.Origin, pinned, digest)
		}
		_ = w.Flush()
	})
}
