package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/mote-dev/mote/test/sandbox"
)

const nodeName = "idle"

// server is the process that is measured.
type server struct {
	mote, dataDir, kubeconfig string

	log    *os.File
	cmd    *exec.Cmd
	begin  time.Time
	exited chan struct{}
	client *kubernetes.Clientset
}

func startServer(ctx context.Context, s settings) (*server, error) {
	if err := os.MkdirAll(filepath.Dir(s.log), 0o755); err != nil {
		return nil, fmt.Errorf("make folder for the log: %w", err)
	}
	log, err := os.Create(s.log)
	if err != nil {
		return nil, fmt.Errorf("create log: %w", err)
	}
	srv := &server{
		mote: s.mote, dataDir: filepath.Join(sandbox.Dir(), "data"), kubeconfig: filepath.Join(sandbox.Dir(), "kubeconfig"),
		log: log, exited: make(chan struct{}),
	}
	args := append([]string{"server", "--data-dir", srv.dataDir, "--kubeconfig-output", srv.kubeconfig, "--node-name", nodeName}, strings.Fields(s.args)...)
	srv.cmd = exec.CommandContext(ctx, s.mote, args...)
	srv.cmd.Stdout, srv.cmd.Stderr = log, log
	srv.begin = time.Now()
	if err := srv.cmd.Start(); err != nil {
		log.Close()
		return nil, fmt.Errorf("start mote: %w", err)
	}
	go func() {
		defer close(srv.exited)
		// How it ended is in ProcessState, for whoever waits.
		_ = srv.cmd.Wait()
	}()
	return srv, nil
}

// stop need not be gentle with the pods: the sandbox goes with them.
func (srv *server) stop() {
	_ = srv.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-srv.exited:
	case <-time.After(10 * time.Second):
		_ = srv.cmd.Process.Kill()
		<-srv.exited
	}
	srv.log.Close()
}

// until polls check and returns the time since the start at which it first held.
func (srv *server) until(ctx context.Context, what string, check func(context.Context) error) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		err := check(ctx)
		if err == nil {
			return time.Since(srv.begin), nil
		}
		select {
		case <-srv.exited:
			return 0, fmt.Errorf("wait for %s: %w: %v; see %s", what, errEnded, srv.cmd.ProcessState, srv.log.Name())
		case <-ctx.Done():
			return 0, fmt.Errorf("wait for %s: %w; see %s", what, err, srv.log.Name())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (srv *server) apiReady(ctx context.Context) error {
	if srv.client == nil {
		config, err := clientcmd.BuildConfigFromFlags("", srv.kubeconfig)
		if err != nil {
			return err
		}
		if srv.client, err = kubernetes.NewForConfig(config); err != nil {
			return err
		}
	}
	return srv.client.RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
}

func (srv *server) nodeReady(ctx context.Context) error {
	node, err := srv.client.CoreV1().Nodes().Get(ctx, nodeName, metav1.GetOptions{})
	if err != nil {
		return err
	}
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
			return nil
		}
	}
	return fmt.Errorf("node %s is not ready", nodeName)
}

func (srv *server) kubectl(ctx context.Context, stdin string, args ...string) error {
	cmd := exec.CommandContext(ctx, srv.mote, append([]string{"kubectl", "--kubeconfig", srv.kubeconfig}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("kubectl %s: %w: %s", args[0], err, out)
	}
	return nil
}
