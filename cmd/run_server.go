package cmd

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/mote-dev/mote/agent"
	"github.com/mote-dev/mote/internal/datadir"
	"github.com/mote-dev/mote/internal/execpages"
	"github.com/mote-dev/mote/internal/giveback"
	"github.com/mote-dev/mote/server"
)

// runServer runs a server and, unless node is nil, a node beside it until ctx ends. A failure of
// either stops both; the node stops first, while the server can still take its last writes. opened
// is called once nothing can be refused any more.
func runServer(ctx context.Context, control server.Config, node *agent.Config, ui UI, opened func() error) error {
	start := time.Now()
	s, err := server.New(control)
	if err != nil {
		return err
	}
	var a *agent.Agent
	if node != nil {
		if a, err = agent.New(*node, connectTo(s, *node), ui.Progress); err != nil {
			return err
		}
	}
	// First, so that a damaged key or store is refused before anything is made.
	if err := s.Open(ctx); err != nil {
		return err
	}
	if err := opened(); err != nil {
		return errors.Join(err, s.Close())
	}
	g, ctx := errgroup.WithContext(ctx)
	ready := func(node string) Ready {
		return Ready{
			NodeName:    node,
			Kubeconfig:  control.KubeconfigOutput,
			URL:         s.URL(),
			JoinCommand: s.JoinCommand(),
			TokenFile:   datadir.At(control.DataDir).TokenFile(),
		}
	}
	running := []roleReport{{roleServer, s.Report, nil}}
	nodeDone := make(chan struct{})
	if a == nil {
		close(nodeDone)
	} else {
		running = append(running, roleReport{roleAgent, a.Report, nil})
		g.Go(func() error {
			defer close(nodeDone)
			return a.Run(ctx)
		})
		follow(ctx, g, ui, "start container runtime", a.RuntimeReady())
		follow(ctx, g, ui, "register node", a.Ready())
		g.Go(func() error {
			if wait(ctx, s.Ready()) && wait(ctx, a.Ready()) {
				announce(ctx, ui, ready(node.NodeName), start, control.Logger)
			}
			return nil
		})
	}
	follow(ctx, g, ui, "start API server", s.Ready())
	if node == nil {
		g.Go(func() error {
			if wait(ctx, s.Ready()) {
				announce(ctx, ui, ready(""), start, control.Logger)
			}
			return nil
		})
	}
	// The server's own context ends only after the node has stopped.
	serverContext, stopServer := context.WithCancel(context.WithoutCancel(ctx))
	g.Go(func() error {
		defer stopServer()
		<-ctx.Done()
		<-nodeDone
		return nil
	})
	g.Go(func() error {
		serveStatus(ctx, datadir.At(control.DataDir).StatusSocket(), running, control.Logger)
		return nil
	})
	g.Go(func() error { return s.Run(serverContext) })
	return g.Wait()
}

// announce says that the process is ready, and gives back to the machine what only starting needed,
// and from then on what only a burst of work did, until ctx ends.
func announce(ctx context.Context, ui UI, r Ready, start time.Time, log *zap.Logger) {
	r.Took = time.Since(start)
	ui.Ready(r)
	debug.FreeOSMemory()
	giveback.Run(ctx, func() {
		debug.FreeOSMemory()
		// Without it the process is larger, and that is all.
		if err := execpages.Release(); err != nil {
			log.Debug("keep pages of the executable", zap.Error(err))
		}
	})
}

// connectTo returns how a node in this process connects to s.
func connectTo(s *server.Server, node agent.Config) agent.Connect {
	return func(ctx context.Context) (agent.Connection, error) {
		n, err := s.Node(ctx, node.NodeName, node.NodeIPs, datadir.At(node.DataDir).Agent().Identity())
		if err != nil {
			return agent.Connection{}, fmt.Errorf("make identity of node %s: %w", node.NodeName, err)
		}
		return agent.Connection{
			REST:            n.REST,
			Informers:       n.Informers,
			ServingCertFile: n.Serving.CertFile,
			ServingKeyFile:  n.Serving.KeyFile,
			ClientCAFile:    n.ClientCAFile,
			Cluster:         node.Cluster,
		}, nil
	}
}

// follow shows a phase until done is closed.
func follow(ctx context.Context, g *errgroup.Group, ui UI, name string, done <-chan struct{}) {
	ended := ui.Phase(name)
	g.Go(func() error {
		if wait(ctx, done) {
			ended(nil)
		} else {
			ended(context.Cause(ctx))
		}
		return nil
	})
}

// wait reports whether done was closed before ctx ended.
func wait(ctx context.Context, done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	case <-ctx.Done():
		return false
	}
}
