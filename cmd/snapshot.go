package cmd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mote-dev/mote/cmd/settings"
	"github.com/mote-dev/mote/internal/datadir"
	"github.com/mote-dev/mote/store"
)

func (p program) snapshotCommand() *cli.Command {
	common := []cli.Flag{flag(configSetting), flag(dataDirSetting)}
	return &cli.Command{
		Name:  "snapshot",
		Usage: "save, list, check and restore snapshots of the built-in store",
		Subcommands: []*cli.Command{
			{
				Name:      "save",
				Usage:     "save the store in its current state; a server may be running",
				ArgsUsage: "[FILE]",
				Flags:     common,
				Action:    p.withDataDir(0, 1, p.saveSnapshot),
			},
			{
				Name:    "list",
				Aliases: []string{"ls"},
				Usage:   "list the snapshots of the data folder, newest first",
				Flags:   append([]cli.Flag{outputFlag()}, common...),
				Action:  p.withDataDir(0, 0, p.listSnapshots),
			},
			{
				Name:      "check",
				Usage:     "check every page and row of a snapshot",
				ArgsUsage: "FILE",
				Flags:     common,
				Action: p.withDataDir(1, 1, func(c *cli.Context, _ string) error {
					info, err := store.CheckFile(c.Context, c.Args().First())
					if err != nil {
						return fmt.Errorf("check %s: %w", c.Args().First(), err)
					}
					fmt.Fprintf(p.stdout, "%s is whole: revision %d\n", c.Args().First(), info.Revision)
					return nil
				}),
			},
			{
				Name:      "restore",
				Usage:     "replace the store with a snapshot; the old store is kept beside it",
				ArgsUsage: "FILE",
				Flags:     common,
				Action:    p.withDataDir(1, 1, p.restoreSnapshot),
			},
		},
	}
}

// withDataDir gives an action the data folder, after checking the number of words.
func (p program) withDataDir(least, most int, action func(*cli.Context, string) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		if n := c.NArg(); n < least || n > most {
			return usageOf(c)
		}
		v, err := p.settings(c, []settings.Setting{dataDirSetting})
		if err != nil {
			return err
		}
		return action(c, v.String("data-dir"))
	}
}

// usageOf says how to write a command that got another number of words.
func usageOf(c *cli.Context) error {
	return fmt.Errorf("write `%s`", strings.TrimSpace(c.Command.HelpName+" [flags] "+c.Command.ArgsUsage))
}

func (p program) saveSnapshot(c *cli.Context, dataDir string) error {
	dest := c.Args().First()
	if dest == "" {
		dest = datadir.At(dataDir).Snapshots()
		there, err := exists(datadir.At(dataDir).StoreFile())
		if err != nil {
			return err
		}
		if !there {
			return fmt.Errorf("there is no store in %s: give the --data-dir of a server", dataDir)
		}
		if err := os.MkdirAll(dest, 0o700); err != nil {
			return fmt.Errorf("create folder of snapshots: %w", err)
		}
	}
	info, err := store.Snapshot(c.Context, datadir.At(dataDir).StoreFile(), dest)
	if err != nil {
		return err
	}
	fmt.Fprintf(p.stdout, "saved %s: revision %d, %.1f MB\n", info.Path, info.Revision, float64(info.Bytes)/1e6)
	return nil
}

func (p program) listSnapshots(c *cli.Context, dataDir string) error {
	list, err := store.ListSnapshots(datadir.At(dataDir).Snapshots())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return p.print(c, list, func() {
		if len(list) == 0 {
			fmt.Fprintf(p.stdout, "no snapshots in %s\n", datadir.At(dataDir).Snapshots())
			return
		}
		w := tabwriter.NewWriter(p.stdout, 0, 0, 3, ' ', 0)
		fmt.Fprintln(w, "TAKEN\tREVISION\tSIZE\tFILE")
		for _, s := range list {
			fmt.Fprintf(w, "%s\t%d\t%.1f MB\t%s\n", s.Taken.Format(time.RFC3339), s.Revision, float64(s.Bytes)/1e6,
				s.Path)
		}
		_ = w.Flush()
	})
}

func (p program) restoreSnapshot(c *cli.Context, dataDir string) (err error) {
	snapshot, err := filepath.Abs(c.Args().First())
	if err != nil {
		return fmt.Errorf("find %s: %w", c.Args().First(), err)
	}
	there, err := exists(snapshot)
	if err != nil {
		return err
	}
	if !there {
		return fmt.Errorf("snapshot %s is not there: `mote snapshot list` shows those of the data folder", snapshot)
	}
	// The lock keeps a server from starting on half a store.
	dir, err := datadir.Open(dataDir, dataVersions())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	if err := os.MkdirAll(datadir.At(dataDir).Database(), 0o700); err != nil {
		return fmt.Errorf("create folder of the store: %w", err)
	}
	restored, err := store.Restore(c.Context, snapshot, datadir.At(dataDir).StoreFile())
	if err != nil {
		return fmt.Errorf("restore %s: %w", snapshot, err)
	}
	fmt.Fprintf(p.stdout, "restored %s: the store goes on at revision %d\n", snapshot, restored.Revision)
	if restored.Kept != "" {
		fmt.Fprintf(p.stdout, "what was there is kept in %s\n", restored.Kept)
	}
	return nil
}
