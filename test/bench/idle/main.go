package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/mote-dev/mote/test/sandbox"
)

type settings struct {
	mote   string
	images string
	pods   int
	span   time.Duration
	log    string
	args   string
}

func main() {
	var s settings
	flag.StringVar(&s.mote, "mote", "bin/mote", "the executable to measure")
	flag.StringVar(&s.images, "images", "bin/images", "folder with busybox.tar, for -pods")
	flag.IntVar(&s.pods, "pods", 0, "measure once more with so many one-container pods")
	flag.DurationVar(&s.span, "span", 60*time.Second, "how long to watch the idle process")
	flag.StringVar(&s.log, "log", "bin/reports/bench-idle.log", "where the server's log is put")
	flag.StringVar(&s.args, "args", "", "more arguments for mote server, separated by spaces")
	flag.Parse()
	for _, p := range []*string{&s.mote, &s.images, &s.log} {
		abs, err := filepath.Abs(*p)
		if err != nil {
			fmt.Fprintln(os.Stderr, "idle:", err)
			os.Exit(1)
		}
		*p = abs
	}
	os.Exit(sandbox.Run(func() int {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		if err := measure(ctx, s); err != nil {
			fmt.Fprintln(os.Stderr, "idle:", err)
			return 1
		}
		return 0
	}))
}

func measure(ctx context.Context, s settings) error {
	info, err := os.Stat(s.mote)
	if err != nil {
		return fmt.Errorf("find executable: %w", err)
	}
	fmt.Printf("executable                %8.1f MB\n", float64(info.Size())/1e6)

	srv, err := startServer(ctx, s)
	if err != nil {
		return err
	}
	defer srv.stop()
	api, err := srv.until(ctx, "API ready", srv.apiReady)
	if err != nil {
		return err
	}
	fmt.Printf("start to API ready        %8.2f s\n", api.Seconds())
	node, err := srv.until(ctx, "node Ready", srv.nodeReady)
	if err != nil {
		return err
	}
	fmt.Printf("start to node Ready       %8.2f s\n", node.Seconds())
	fmt.Printf("data folder               %8.1f MB\n", float64(diskUse(filepath.Join(sandbox.Dir(), "data")))/1e6)
	if err := srv.report(ctx, "no pods", s.span); err != nil {
		return err
	}
	if s.pods == 0 {
		return nil
	}
	took, err := srv.runPods(ctx, s)
	if err != nil {
		return err
	}
	fmt.Printf("%d pods ready after apply %8.2f s\n", s.pods, took.Seconds())
	return srv.report(ctx, fmt.Sprintf("%d pods", s.pods), s.span)
}

// report waits until the process has settled, then prints memory and the CPU time used over span.
func (srv *server) report(ctx context.Context, state string, span time.Duration) error {
	settled, err := settle(ctx, srv.cmd.Process.Pid)
	if err != nil {
		return err
	}
	begin, err := cpuTime(srv.cmd.Process.Pid)
	if err != nil {
		return err
	}
	if err := pause(ctx, span); err != nil {
		return err
	}
	end, err := cpuTime(srv.cmd.Process.Pid)
	if err != nil {
		return err
	}
	m, err := memoryOf(srv.cmd.Process.Pid)
	if err != nil {
		return err
	}
	fmt.Printf("--- %s, settled after %.0f s\n", state, settled.Seconds())
	fmt.Printf("anonymous memory          %8.1f MB\n", m.anonymous)
	fmt.Printf("file-backed memory        %8.1f MB\n", m.file)
	fmt.Printf("idle CPU over %-10v  %8.2f %% of a core\n", span, 100*(end-begin).Seconds()/span.Seconds())
	fmt.Printf("threads                   %8d\n", m.threads)
	others, n := othersMemory(srv.cmd.Process.Pid)
	if n > 0 {
		fmt.Printf("%3d other processes (PSS)  %8.1f MB\n", n, others)
	}
	return nil
}

// settle waits until the process used less than 3 % of a core over five seconds, or a minute passed.
func settle(ctx context.Context, pid int) (time.Duration, error) {
	begin := time.Now()
	for time.Since(begin) < time.Minute {
		before, err := cpuTime(pid)
		if err != nil {
			return 0, err
		}
		if err := pause(ctx, 5*time.Second); err != nil {
			return 0, err
		}
		after, err := cpuTime(pid)
		if err != nil {
			return 0, err
		}
		if after-before < 150*time.Millisecond {
			break
		}
	}
	return time.Since(begin), nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// runPods applies one-container pods and waits for all of them.
func (srv *server) runPods(ctx context.Context, s settings) (time.Duration, error) {
	if out, err := exec.CommandContext(ctx, s.mote, "image", "import", "--data-dir", srv.dataDir, filepath.Join(s.images, "busybox.tar")).CombinedOutput(); err != nil {
		return 0, fmt.Errorf("import image: %w: %s", err, out)
	}
	var manifest strings.Builder
	for i := range s.pods {
		fmt.Fprintf(&manifest, "---\napiVersion: v1\nkind: Pod\nmetadata: {name: idle-%d, namespace: default}\nspec:\n"+
			"  containers:\n  - {name: main, image: \"docker.io/library/busybox:1.36\", imagePullPolicy: IfNotPresent, command: [sleep, \"1000000\"]}\n", i)
	}
	begin := time.Now()
	if err := srv.kubectl(ctx, manifest.String(), "apply", "-f", "-"); err != nil {
		return 0, err
	}
	if err := srv.kubectl(ctx, "", "wait", "--for=condition=Ready", "pods", "--all", "--timeout=180s"); err != nil {
		return 0, err
	}
	return time.Since(begin), nil
}

var errEnded = errors.New("mote ended")
