package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mote-dev/mote/test/bench/measure"
	"github.com/mote-dev/mote/test/tools/sandbox"
)

type settings struct {
	measure.Settings
	hollow        string
	nodes, atOnce int
	profile       bool
}

func main() {
	var s settings
	s.Register("join")
	flag.StringVar(&s.hollow, "hollow", "build/tools/hollow", "the executable that is the nodes")
	flag.IntVar(&s.nodes, "nodes", 200, "how many nodes")
	flag.IntVar(&s.atOnce, "at-once", 10, "how many of them join at a time")
	flag.BoolVar(&s.profile, "profile", false, "put profiles of the server beside the logs")
	os.Exit(s.Main(func(ctx context.Context) error { return run(ctx, s) }, &s.hollow))
}

// look is a cluster watched for a while, with what its server counted meanwhile.
type look struct {
	measure.State
	seconds       float64
	before, after counters
}

func (l look) perSecond(name string) float64 { return (l.after[name] - l.before[name]) / l.seconds }

func run(ctx context.Context, s settings) error {
	mote := measure.NewMote(s.Settings, "server")
	c := mote.Cluster
	c.Patience = 10 * time.Minute
	defer c.Stop()
	if err := mote.StartServer(ctx, "--disable-agent"); err != nil {
		return err
	}
	if _, err := c.UntilAPI(ctx); err != nil {
		return err
	}
	alone, err := watch(ctx, c, s, 0)
	if err != nil {
		return err
	}
	alone.Print(os.Stdout, "no nodes")

	token, err := mote.Command(ctx, "token", "create", "--quiet", "--kubeconfig", c.Kubeconfig)
	if err != nil {
		return err
	}
	before, err := countersOf(ctx, c)
	if err != nil {
		return err
	}
	cpuBefore, err := c.CPUTime()
	if err != nil {
		return err
	}
	socket := filepath.Join(sandbox.Dir(), "hollow.sock")
	if err := c.Start(ctx, "nodes", s.hollow, "-token", strings.TrimSpace(token), "-dir",
		filepath.Join(sandbox.Dir(), "nodes"), "-listen", socket,
		"-nodes", strconv.Itoa(s.nodes), "-at-once", strconv.Itoa(s.atOnce)); err != nil {
		return err
	}
	var joined nodesState
	g, gctx := errgroup.WithContext(ctx)
	if s.profile {
		g.Go(func() error { return profileJoining(gctx, c, s.Logs) })
	}
	g.Go(func() error {
		var err error
		joined, err = untilJoined(gctx, c, socket)
		return err
	})
	if err := g.Wait(); err != nil {
		return err
	}
	cpuAfter, err := c.CPUTime()
	if err != nil {
		return err
	}
	after, err := countersOf(ctx, c)
	if err != nil {
		return err
	}
	printJoin(os.Stdout, s, joined, cpuAfter-cpuBefore, before, after)

	together, err := watch(ctx, c, s, s.nodes)
	if err != nil {
		return err
	}
	together.Print(os.Stdout, fmt.Sprintf("%d nodes", s.nodes))
	if joined, err = stateOf(ctx, socket); err != nil {
		return err
	}
	if err := checkReady(ctx, c, s.nodes); err != nil {
		return err
	}
	printCost(os.Stdout, s, alone, together, joined)
	printRequests(os.Stdout, together)
	return nil
}

// watch lets the cluster settle and watches it. The server's counters are read outside of the span,
// as reading them costs.
func watch(ctx context.Context, c *measure.Cluster, s settings, nodes int) (look, error) {
	var l look
	if err := measure.Pause(ctx, s.Settle); err != nil {
		return l, err
	}
	var err error
	if l.before, err = countersOf(ctx, c); err != nil {
		return l, err
	}
	begin := time.Now()
	g, gctx := errgroup.WithContext(ctx)
	if s.profile && nodes > 0 {
		g.Go(func() error { return profileIdle(gctx, c, s.Logs, s.Span) })
	}
	g.Go(func() error {
		var err error
		l.State, err = c.Watch(gctx, s.Span)
		return err
	})
	if err := g.Wait(); err != nil {
		return l, err
	}
	l.seconds = time.Since(begin).Seconds()
	l.after, err = countersOf(ctx, c)
	return l, err
}

// checkReady makes sure that it was all nodes whose cost was measured.
func checkReady(ctx context.Context, c *measure.Cluster, want int) error {
	list, err := c.Client().CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	ready := 0
	for i := range list.Items {
		if measure.Ready(&list.Items[i]) {
			ready++
		}
	}
	if ready != want {
		return fmt.Errorf("%d of %d nodes are Ready after the span: the figures are not of %d", ready, len(list.Items),
			want)
	}
	return nil
}
