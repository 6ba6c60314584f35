package cmd

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/urfave/cli/v2"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/mote-dev/mote/agent"
	"github.com/mote-dev/mote/agent/join"
	"github.com/mote-dev/mote/cmd/settings"
	"github.com/mote-dev/mote/internal/datadir"
	"github.com/mote-dev/mote/internal/hostcheck"
	"github.com/mote-dev/mote/internal/upstreamflag"
)

func (p program) agentCommand() *cli.Command {
	return &cli.Command{
		Name:  "agent",
		Usage: "run a node of a cluster whose server is on another machine",
		Description: "The first start needs --server and --token, as the server printed them.\n" +
			"Every flag may also be set as a MOTE_* environment variable (MOTE_TOKEN for --token), which\n" +
			"other users of the machine cannot read, or as a key of the configuration file.",
		Flags: flags(grouped(append(agentSettings(), configSetting))),
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			v, err := p.settings(c, agentSettings())
			if err != nil {
				return err
			}
			return p.agent(c.Context, v)
		},
	}
}

func (p program) agent(ctx context.Context, v settings.Values) error {
	var a agent.Config
	return p.start(ctx, v, role{
		configure: func(log *zap.Logger) (err error) {
			a, err = agentConfig(v, log)
			return err
		},
		preflight: func(h hostcheck.Host) (*datadir.Dir, error) { return agentPreflight(h, a) },
		run: func(ctx context.Context, ui UI, opened func(...string) error, failed func(error)) error {
			a.Failed = failed
			return runAgent(ctx, a, ui, func() error { return opened() })
		},
	})
}

// agentPreflight finds out whether a node can run here, and takes the data folder for this process.
// When it refuses, the host is as it was.
func agentPreflight(h hostcheck.Host, a agent.Config) (*datadir.Dir, error) {
	return preflightOf(h, a.DataDir, a.Logger, agentOptions(a), func() error {
		isServers, err := exists(datadir.At(a.DataDir).StoreFile())
		if err != nil {
			return err
		}
		if isServers {
			return fmt.Errorf(
				"data-dir %s holds a server's cluster: run `mote server` on it, or remove it with `mote uninstall "+
					"--yes` first", a.DataDir)
		}
		return nil
	})
}

// agentOptions say what a node with these settings wants of the host.
func agentOptions(a agent.Config) hostcheck.Options {
	// What cannot be read stops the node when it joins, which says why.
	known, _, _ := join.Cluster(datadir.At(a.DataDir).Agent().Identity())
	return hostcheck.Options{
		DataDir:    a.DataDir,
		Existing:   datadir.At(a.DataDir).HasRun(),
		Node:       true,
		IPv6:       known.HasIPv6(),
		Cluster:    known.Config,
		Own:        agent.OwnNetworks(a.DataDir),
		NodeIPs:    a.NodeIPs,
		ResolvConf: a.ResolvConf,
		Ports: []hostcheck.Port{{
			Address: net.JoinHostPort(upstreamflag.Value(a.KubeletArgs, "address", ""),
				upstreamflag.Value(a.KubeletArgs, "port", kubeletPort)),
			Purpose: "the kubelet", Setting: "--kubelet-arg=port=N",
		}},
	}
}

// runAgent runs a node until ctx ends. opened is called once nothing can be refused any more.
func runAgent(ctx context.Context, c agent.Config, ui UI, opened func() error) error {
	start := time.Now()
	in := make(chan struct{})
	node, err := agent.New(c, agent.ConnectToServer(c, Version, func() { close(in) }), ui.Progress)
	if err != nil {
		return err
	}
	if err := opened(); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		serveStatus(ctx, datadir.At(c.DataDir).StatusSocket(),
			[]roleReport{{roleAgent, node.Report, node.Health}}, c.Logger)
		return nil
	})
	g.Go(func() error { return node.Run(ctx) })
	follow(ctx, g, ui, "join the cluster", in)
	follow(ctx, g, ui, "start container runtime", node.RuntimeReady())
	follow(ctx, g, ui, "register node", node.Ready())
	g.Go(func() error {
		if wait(ctx, in) && wait(ctx, node.Ready()) {
			h := node.Health()
			announce(ctx, ui, Ready{NodeName: h.Node, URL: h.Server, Offline: h.ServerFault}, start, c.Logger)
		}
		return nil
	})
	return g.Wait()
}
