package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/mote-dev/mote/store"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "storeproc:", err)
		os.Exit(1)
	}
}

func run() (err error) {
	var o store.Options
	var durability string
	flag.StringVar(&o.Path, "path", "", "store file")
	listen := flag.String("listen", "127.0.0.1:0", "address")
	flag.Int64Var(&o.WALBytes, "wal-bytes", 0, "size of the log at which it is copied back")
	flag.StringVar(&durability, "durability", "full", "full or relaxed")
	deferred := flag.String("deferred", "", "prefix of keys whose writes may be deferred")
	verbose := flag.Bool("v", false, "log everything")
	flag.Parse()
	o.Durability = store.Durability(durability)
	if *deferred != "" {
		o.DeferredKeys = []string{*deferred}
	}
	cfg := zap.NewDevelopmentConfig()
	cfg.DisableStacktrace = true
	if !*verbose {
		cfg.Level = zap.NewAtomicLevelAt(zapcore.WarnLevel)
	}
	if o.Logger, err = cfg.Build(); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	s, err := store.Open(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	l, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	fmt.Println("ready", l.Addr())
	return s.Serve(ctx, l)
}
