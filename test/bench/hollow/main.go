package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
)

type settings struct {
	server, token, dir, listen, version string
	nodes, atOnce                       int
	statusEvery                         time.Duration
}

func main() {
	var s settings
	flag.StringVar(&s.server, "server", "https://127.0.0.1:6443", "the server to join")
	flag.StringVar(&s.token, "token", "", "what to join with")
	flag.StringVar(&s.dir, "dir", "", "folder for the nodes' folders")
	flag.StringVar(&s.listen, "listen", "", "socket that tells how far the nodes are, as JSON")
	flag.StringVar(&s.version, "version", "bench", "what the nodes call their mote")
	flag.IntVar(&s.nodes, "nodes", 200, "how many nodes")
	flag.IntVar(&s.atOnce, "at-once", 10, "how many of them join at a time")
	flag.DurationVar(&s.statusEvery, "status-every", 5*time.Minute,
		"how often a node says its status although nothing changed")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, s); err != nil {
		fmt.Fprintln(os.Stderr, "hollow:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, s settings) error {
	log, err := zap.NewProduction()
	if err != nil {
		return fmt.Errorf("make log: %w", err)
	}
	var listen net.ListenConfig
	listener, err := listen.Listen(ctx, "unix", s.listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	r := newReport(s.nodes)
	server := &http.Server{Handler: r, ReadHeaderTimeout: time.Minute}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("tell how far the nodes are: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		return server.Close()
	})
	turns := make(chan struct{}, s.atOnce)
	for i := range s.nodes {
		name := fmt.Sprintf("hollow-%03d", i)
		n := &node{
			settings: s,
			name:     name,
			number:   i,
			dir:      filepath.Join(s.dir, name),
			report:   r,
			turns:    turns,
			log:      log.Named(name),
		}
		g.Go(func() error {
			if err := n.run(ctx); err != nil {
				return fmt.Errorf("node %s: %w", name, err)
			}
			return nil
		})
	}
	return g.Wait()
}
