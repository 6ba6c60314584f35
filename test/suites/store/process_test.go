package store

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/grpclog"
)

var built struct {
	mu   sync.Mutex
	dir  string
	bins map[string]string
}

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "mote-store-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	// Connections that break are what these tests are about.
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard))
	built.dir, built.bins = dir, map[string]string{}
	code := m.Run()
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

// binary builds a command once for all tests. MOTE_TEST_BIN_DIR can name a folder that has it
// already.
func binary(t testing.TB, pkg string) string {
	t.Helper()
	built.mu.Lock()
	defer built.mu.Unlock()
	if bin, ok := built.bins[pkg]; ok {
		return bin
	}
	name := strings.NewReplacer("/", "-", ".", "-").Replace(pkg)
	if dir := os.Getenv("MOTE_TEST_BIN_DIR"); dir != "" {
		if bin := filepath.Join(dir, name); fileExists(bin) {
			built.bins[pkg] = bin
			return bin
		}
	}
	bin := filepath.Join(built.dir, name)
	cmd := exec.Command("go", "build", "-trimpath", "-tags", buildTags, "-o", bin, pkg)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, out)
	}
	built.bins[pkg] = bin
	return bin
}

func fileExists(p string) bool {
	_, err := os.Stat(p)
	return err == nil
}

// process is a running server.
type process struct {
	cmd    *exec.Cmd
	addr   string
	exited chan struct{}
	err    error
	stderr *strings.Builder
	mu     sync.Mutex
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stderr.Write(b)
}

func (p *process) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stderr.String()
}

// startStore runs a store over path and waits until it answers, or gives the reason why it does
// not.
func startStore(t testing.TB, path string, args ...string) (*process, error) {
	t.Helper()
	p := &process{exited: make(chan struct{}), stderr: &strings.Builder{}}
	p.cmd = exec.Command(binary(t, "./storeproc"), append([]string{"-path", path}, args...)...)
	p.cmd.Stderr = p
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	ready := make(chan string, 1)
	go func() {
		sc := bufio.NewScanner(out)
		if sc.Scan() {
			ready <- strings.TrimPrefix(sc.Text(), "ready ")
		}
		for sc.Scan() {
		}
		p.err = p.cmd.Wait()
		close(p.exited)
	}()
	select {
	case p.addr = <-ready:
		return p, nil
	case <-p.exited:
		return nil, fmt.Errorf("store ended: %w: %s", p.err, p.output())
	case <-time.After(30 * time.Second):
		p.kill()
		return nil, fmt.Errorf("store is not ready: %s", p.output())
	}
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.exited
}

func (p *process) stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	<-p.exited
	return p.err
}

// startEtcd runs a real etcd until the test ends and gives its address.
func startEtcd(t testing.TB) string {
	t.Helper()
	bin := binary(t, "go.etcd.io/etcd/server/v3")
	dir := t.TempDir()
	client, peer := freeAddr(t), freeAddr(t)
	cmd := exec.Command(bin, "--data-dir", dir, "--listen-client-urls", "http://"+client, "--advertise-client-urls",
		"http://"+client,
		"--listen-peer-urls", "http://"+peer, "--initial-advertise-peer-urls", "http://"+peer, "--initial-cluster",
		"default=http://"+peer,
		"--unsafe-no-fsync", "--log-level", "error")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// It may have ended, and how does not matter.
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	c := dial(t, client)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if _, err := c.Get(ctx, "x"); err != nil {
		t.Fatalf("etcd does not answer: %v", err)
	}
	return client
}

func freeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func dial(t testing.TB, addr string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{"http://" + addr}, Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1 << 30))}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
