package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// version is set by the image build, so that a rolling update can be seen from outside.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Getenv); err != nil {
		fmt.Fprintln(os.Stderr, "shop:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, env func(string) string) error {
	if len(args) != 1 {
		return errors.New("want one of: web, ledger, seed, report, nodeinfo")
	}
	listen := env("LISTEN")
	if listen == "" {
		listen = ":8080"
	}
	switch args[0] {
	case "web":
		w, err := newWeb(env)
		if err != nil {
			return err
		}
		return serve(ctx, listen, w.handler())
	case "ledger":
		l, err := openLedger(env("DATA_DIR"))
		if err != nil {
			return err
		}
		defer l.close()
		return serve(ctx, listen, l.handler())
	case "seed":
		return seed(ctx, env("LEDGER_URL"))
	case "report":
		return report(ctx, env("LEDGER_URL"), os.Stdout)
	case "nodeinfo":
		return serve(ctx, listen, nodeinfo(env("NODE_NAME")))
	}
	return fmt.Errorf("unknown part %q", args[0])
}

// serve answers until ctx ends, then finishes the requests already begun.
func serve(ctx context.Context, listen string, h http.Handler) error {
	srv := &http.Server{Addr: listen, Handler: h, ReadHeaderTimeout: 10 * time.Second}
	stopped := make(chan error, 1)
	go func() {
		<-ctx.Done()
		fmt.Println("shutting down")
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
		defer cancel()
		stopped <- srv.Shutdown(end)
	}()
	fmt.Printf("shop %s listening on %s\n", version, listen)
	if err := srv.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return <-stopped
}

func nodeinfo(node string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "node %s\n", node)
	})
	return mux
}
