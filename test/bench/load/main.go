package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/mote-dev/mote/test/bench/measure"
)

// glance is how long the server is watched for one row of the table.
const glance = 5 * time.Second

type settings struct {
	measure.Settings
	clients int
	rest    time.Duration
	profile bool
}

func main() {
	var s settings
	s.Register("load")
	flag.IntVar(&s.clients, "clients", 16, "how many clients")
	flag.DurationVar(&s.rest, "rest", 2*time.Minute, "how long to leave the server alone after a load")
	flag.BoolVar(&s.profile, "profile", false,
		"put heap profiles of the server beside the logs, for which it collects garbage")
	os.Exit(s.Main(func(ctx context.Context) error { return run(ctx, s) }))
}

// row is what the server needed at one time.
type row struct {
	when string
	measure.PartFigures
}

func (r row) resident() float64 { return r.Memory.Anonymous + r.Memory.File }

func run(ctx context.Context, s settings) error {
	mote := measure.NewMote(s.Settings, "server")
	c := mote.Cluster
	defer c.Stop()
	if err := mote.StartServer(ctx, "--disable-agent"); err != nil {
		return err
	}
	if _, err := c.UntilAPI(ctx); err != nil {
		return err
	}
	if err := measure.Pause(ctx, s.Settle); err != nil {
		return err
	}
	var rows []row
	look := func(when string) error {
		state, err := c.Watch(ctx, glance)
		if err != nil {
			return err
		}
		rows = append(rows, row{when, state.Sum()})
		if !s.profile {
			return nil
		}
		file := filepath.Join(s.Logs, strings.ReplaceAll(when, " ", "-"))
		if err := c.KeepProfile(ctx, file+".metrics", "/metrics", "", ""); err != nil {
			return err
		}
		return c.KeepProfile(ctx, file+".pprof", "/debug/pprof/heap", "gc", "1")
	}
	if err := look("before"); err != nil {
		return err
	}
	for _, load := range []string{"first load", "second load"} {
		done, err := work(ctx, c.Kubeconfig, s.clients, s.Span)
		if err != nil {
			return err
		}
		fmt.Printf("%s: %d clients, %v: %d requests, %.0f a second\n", load, s.clients, s.Span, done,
			float64(done)/s.Span.Seconds())
		if err := look("after the " + load); err != nil {
			return err
		}
		if err := measure.Pause(ctx, s.rest-glance); err != nil {
			return err
		}
		if err := look(fmt.Sprintf("%v after the %s", s.rest, load)); err != nil {
			return err
		}
	}
	printRows(rows)
	return nil
}

func printRows(rows []row) {
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "when\tresident MB\tto before\tanonymous MB\tfile-backed MB\tPSS MB\tthreads\tCPU %\t")
	for _, r := range rows {
		fmt.Fprintf(t, "%s\t%.1f\t%.2f\t%.1f\t%.1f\t%.1f\t%d\t%.2f\t\n", r.when, r.resident(),
			r.resident()/rows[0].resident(), r.Memory.Anonymous, r.Memory.File, r.Memory.PSS, r.Memory.Threads, r.CPU)
	}
	t.Flush()
}
