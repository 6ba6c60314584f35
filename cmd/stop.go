package cmd

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/mote-dev/mote/agent"
	"github.com/mote-dev/mote/agent/dns"
	"github.com/mote-dev/mote/internal/datadir"
	"github.com/mote-dev/mote/netproxy"
	"github.com/mote-dev/mote/runtime/recovery"
)

func (p program) stopCommand() *cli.Command {
	return &cli.Command{
		Name:  "stop",
		Usage: "stop mote on this machine; with --pods also its pods and their network",
		Description: "Stops the service, or the process that runs on the data folder. Pods run on unless --pods is " +
			"given.\nAll data stays: the next start brings everything back.",
		Flags: append(flags(dataFolderSettings), flag(configSetting),
			&cli.BoolFlag{Name: "pods", Usage: "also end all pods, and remove their network from the machine"}),
		Action: func(c *cli.Context) error {
			dataDir, _, err := p.dataFolder(c)
			if err != nil {
				return err
			}
			if os.Geteuid() != 0 {
				return errNotRoot
			}
			if there, err := holdsMote(dataDir); err != nil {
				return err
			} else if !there {
				return fmt.Errorf("there is no mote's data folder at %s: give the --data-dir of one", dataDir)
			}
			u := uninstaller{
				program:  p,
				dataDir:  dataDir,
				services: p.supervisors(),
				patience: restartPatience,
			}
			u.services.keep = true
			return u.stop(c.Context, c.Bool("pods"))
		},
	}
}

// stop stops the mote on the data folder, and if asked to ends its pods as a power cut would. What
// is on the disk stays.
func (u *uninstaller) stop(ctx context.Context, pods bool) (err error) {
	lock, err := u.takeOver(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	node := datadir.At(u.dataDir).Agent()
	hadNode, err := exists(node.Dir())
	if err != nil || !pods || !hadNode {
		return err
	}
	if err := recovery.EndPods(ctx, node.Dir()); err != nil {
		return fmt.Errorf("end pods: %w", err)
	}
	if err := unmountPods(node); err != nil {
		return err
	}
	u.say("ended all pods")
	// Rules of the machine are another mote's too, but those come back by themselves.
	err = errors.Join(netproxy.Cleanup(ctx, netproxy.CleanupConfig{
		Bridge: agent.Bridge(u.dataDir), CNIConfDir: node.CNIConf(), StateDir: node.CNI(),
	}), dns.Cleanup(""))
	if err != nil {
		return fmt.Errorf("remove pod network: %w", err)
	}
	u.say("removed the pod network and its rules; all data stays, and the next start brings the pods back")
	return nil
}
