package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/grpclog"

	"github.com/mote-dev/mote/store"
)

const kineVersion = "v0.17.5"

type config struct {
	dir, etcd, kine, only, phases, profile string
	each                                   time.Duration
	value                                  int
	page                                   int64
}

// wants reports whether a comma-separated choice, of which an empty one is all, has name.
func wants(choice, name string) bool {
	return choice == "" || slices.Contains(strings.Split(choice, ","), name)
}

func main() {
	var c config
	flag.StringVar(&c.dir, "dir", "", "folder for the data, on the disk to measure; empty is a temporary one")
	flag.StringVar(&c.etcd, "etcd", "", "etcd executable; empty builds the one this module pins")
	flag.StringVar(&c.kine, "kine", "", "kine executable; empty builds "+kineVersion)
	flag.StringVar(&c.only, "only", "", "comma-separated targets: in-process, mote, etcd, kine")
	flag.StringVar(&c.phases, "phases", "",
		"comma-separated measurements: create, update, get, list, watch, heartbeat; empty is all")
	flag.StringVar(&c.profile, "profile", "", "folder for CPU and heap profiles of the store; empty writes none")
	flag.DurationVar(&c.each, "each", 3*time.Second, "time of each measurement")
	flag.IntVar(&c.value, "value", 1024, "bytes of a value")
	flag.Int64Var(&c.page, "page", 0, "bytes of a page of the store, 0 for its default")
	serve := flag.String("serve", "", "run as a server over this store file (used by the program itself)")
	listen := flag.String("listen", "127.0.0.1:0", "address to serve on")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	run := func() error { return measure(ctx, c) }
	if *serve != "" {
		run = func() error { return profiled(c.profile, func() error { return server(ctx, *serve, *listen, c.page) }) }
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// profiled runs what is measured, and writes down in dir where its time and memory went.
func profiled(dir string, run func() error) error {
	if dir == "" {
		return run()
	}
	cpu, err := os.Create(filepath.Join(dir, "mote.cpu.pprof"))
	if err != nil {
		return err
	}
	if err := pprof.StartCPUProfile(cpu); err != nil {
		return errors.Join(err, cpu.Close())
	}
	err = run()
	pprof.StopCPUProfile()
	heap, herr := os.Create(filepath.Join(dir, "mote.heap.pprof"))
	if herr != nil {
		return errors.Join(err, herr, cpu.Close())
	}
	return errors.Join(err, pprof.Lookup("allocs").WriteTo(heap, 0), heap.Close(), cpu.Close())
}

// server is the store alone, as `mote store` runs it.
func server(ctx context.Context, path, listen string, page int64) error {
	s, err := store.Open(ctx, store.Options{Path: path, PageBytes: page})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return errors.Join(err, s.Close())
	}
	return errors.Join(s.Serve(ctx, l), s.Close())
}

// target is one of what is compared.
type target struct {
	name  string
	start func(ctx context.Context, dir string) (*running, error)
}

// running is a started target.
type running struct {
	client *clientv3.Client
	pid    int
	stop   func() error
}

func measure(ctx context.Context, c config) (err error) {
	// Servers run in folders of their own.
	for _, p := range []*string{&c.etcd, &c.kine, &c.profile} {
		if *p == "" {
			continue
		}
		if *p, err = filepath.Abs(*p); err != nil {
			return err
		}
	}
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard))
	if c.dir, err = os.MkdirTemp(c.dir, "mote-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(c.dir)
	if err := buildPeers(ctx, &c); err != nil {
		return err
	}
	targets := []target{
		{"in-process", func(ctx context.Context, dir string) (*running, error) { return startInProcess(ctx, &c, dir) }},
		{"mote", func(ctx context.Context, dir string) (*running, error) { return startSelf(ctx, &c, dir) }},
		{"etcd", func(ctx context.Context, dir string) (*running, error) { return startEtcd(ctx, &c, dir) }},
		{"kine", func(ctx context.Context, dir string) (*running, error) { return startKine(ctx, &c, dir) }},
	}
	var names []string
	results := map[string]map[string]float64{}
	for _, t := range targets {
		if !wants(c.only, t.name) {
			continue
		}
		dir := filepath.Join(c.dir, t.name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
		fmt.Fprintln(os.Stderr, "measuring", t.name)
		r, err := t.start(ctx, dir)
		if err != nil {
			return fmt.Errorf("start %s: %w", t.name, err)
		}
		res, err := measureAll(ctx, r, c)
		if serr := r.stop(); err == nil {
			err = serr
		}
		if err != nil {
			return fmt.Errorf("measure %s: %w", t.name, err)
		}
		names, results[t.name] = append(names, t.name), res
	}
	fmt.Printf("%d cores, values of %d bytes, %s each, %s\n", runtime.NumCPU(), c.value, c.each, runtime.Version())
	table(names, results)
	return nil
}

func startInProcess(ctx context.Context, c *config, dir string) (*running, error) {
	s, err := store.Open(ctx, store.Options{Path: filepath.Join(dir, "state.db"), PageBytes: c.page})
	if err != nil {
		return nil, err
	}
	rctx, cancel := context.WithCancel(ctx)
	ran := make(chan error, 1)
	go func() { ran <- s.Run(rctx) }()
	return &running{s.Client(ctx), os.Getpid(), func() error {
		cancel()
		return errors.Join(<-ran, s.Close())
	}}, nil
}

func startSelf(ctx context.Context, c *config, dir string) (*running, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	return startProcess(ctx, dir, addr, self, "-serve", filepath.Join(dir, "state.db"), "-listen", addr, "-page",
		fmt.Sprint(c.page), "-profile", c.profile)
}

func startEtcd(ctx context.Context, c *config, dir string) (*running, error) {
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	peer, err := freeAddr()
	if err != nil {
		return nil, err
	}
	return startProcess(ctx, dir, addr, c.etcd, "--data-dir", filepath.Join(dir, "data"), "--log-level", "error",
		"--listen-client-urls", "http://"+addr, "--advertise-client-urls", "http://"+addr,
		"--listen-peer-urls", "http://"+peer, "--initial-advertise-peer-urls", "http://"+peer, "--initial-cluster",
		"default=http://"+peer)
}

func startKine(ctx context.Context, c *config, dir string) (*running, error) {
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	return startProcess(ctx, dir, addr, c.kine, "--listen-address", addr, "--metrics-bind-address", "0")
}

// buildPeers makes the executables to compare with that are not given. It is done before anything
// is measured.
func buildPeers(ctx context.Context, c *config) error {
	bin := filepath.Join(c.dir, "bin")
	if c.etcd == "" && wants(c.only, "etcd") {
		c.etcd = filepath.Join(bin, "etcd")
		if err := build(exec.CommandContext(ctx, "go", "build", "-o", c.etcd,
			"go.etcd.io/etcd/server/v3")); err != nil {
			return err
		}
	}
	if c.kine == "" && wants(c.only, "kine") {
		c.kine = filepath.Join(bin, "kine")
		cmd := exec.CommandContext(ctx, "go", "install", "github.com/k3s-io/kine@"+kineVersion)
		cmd.Env = append(os.Environ(), "GOBIN="+bin)
		if err := build(cmd); err != nil {
			return err
		}
	}
	return nil
}

func build(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", cmd, err, out)
	}
	return nil
}

func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// startProcess runs a server in dir and waits until it answers.
func startProcess(ctx context.Context, dir, addr, bin string, args ...string) (*running, error) {
	cmd := exec.Command(bin, args...)
	cmd.Dir = dir
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd.Stderr, cmd.Stdout = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	r := &running{pid: cmd.Process.Pid}
	r.stop = func() error {
		if r.client != nil {
			r.client.Close()
		}
		// It may have ended, and how does not matter.
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		return nil
	}
	r.client, err = clientv3.New(clientv3.Config{Endpoints: []string{"http://" + addr}, Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1 << 30))}})
	if err != nil {
		return nil, errors.Join(err, r.stop())
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		if _, err = r.client.Get(ctx, "ready"); err == nil {
			return r, nil
		}
		if ctx.Err() != nil {
			out, _ := os.ReadFile(log.Name())
			return nil, errors.Join(err, fmt.Errorf("log: %s", out), r.stop())
		}
	}
}
