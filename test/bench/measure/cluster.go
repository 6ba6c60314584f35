package measure

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

var errEnded = errors.New("it ended")

// Part is a process that is measured.
type Part struct {
	name   string
	cmd    *exec.Cmd
	log    *os.File
	exited chan struct{}
}

// Tool is a program and what it is called as; Args come before any others.
type Tool struct {
	Path, Name string
	Args       []string
}

// Run runs the program and returns what it says.
func (t Tool) Run(ctx context.Context, stdin io.Reader, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, t.Path, slices.Concat(t.Args, args)...)
	cmd.Args[0] = t.Name
	cmd.Stdin = stdin
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", t.Name, args[0], err, out)
	}
	return string(out), nil
}

// Cluster is a whole Kubernetes: mote, or programs that do the same together. Whoever makes it
// fills in the fields.
type Cluster struct {
	Name       string
	Kubeconfig string
	Logs       string   // prefix of the parts' logs
	Env        []string // of the parts, beside this process's own
	Kubectl    Tool
	Patience   time.Duration // of each wait; zero means two minutes

	begin  time.Time     // of the first part
	api    time.Duration // from there until the API server was ready
	parts  []*Part
	client *kubernetes.Clientset
}

// Start starts one more part.
func (c *Cluster) Start(ctx context.Context, name, path string, args ...string) error {
	if err := os.MkdirAll(filepath.Dir(c.Logs), 0o755); err != nil {
		return fmt.Errorf("make folder for logs: %w", err)
	}
	log, err := os.Create(c.Logs + name + ".log")
	if err != nil {
		return fmt.Errorf("create log: %w", err)
	}
	p := &Part{
		name:   name,
		cmd:    exec.CommandContext(ctx, path, args...),
		log:    log,
		exited: make(chan struct{}),
	}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.Env = append(os.Environ(), c.Env...)
	if len(c.parts) == 0 {
		c.begin = time.Now()
	}
	if err := p.cmd.Start(); err != nil {
		log.Close()
		return fmt.Errorf("start %s: %w", name, err)
	}
	c.parts = append(c.parts, p)
	go func() {
		defer close(p.exited)
		// How it ended is in ProcessState, for whoever waits.
		_ = p.cmd.Wait()
	}()
	return nil
}

// Stop need not be gentle with the pods: the sandbox goes with them.
func (c *Cluster) Stop() {
	for i := len(c.parts) - 1; i >= 0; i-- {
		p := c.parts[i]
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.exited:
		case <-time.After(10 * time.Second):
			_ = p.cmd.Process.Kill()
			<-p.exited
		}
		p.log.Close()
	}
	c.parts = nil
}

// Until polls check and returns the time since the start at which it first held.
func (c *Cluster) Until(ctx context.Context, what string, check func(context.Context) error) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(c.Patience, 2*time.Minute))
	defer cancel()
	for {
		err := check(ctx)
		if err == nil {
			return time.Since(c.begin), nil
		}
		if ended := c.ended(); ended != nil {
			return 0, fmt.Errorf("wait for %s: %w", what, ended)
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("wait for %s of %s: %w; see %s*.log", what, c.Name, err, c.Logs)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// ended says which part is no more, if one is.
func (c *Cluster) ended() error {
	for _, p := range c.parts {
		select {
		case <-p.exited:
			return fmt.Errorf("%s: %w: %v; see %s", p.name, errEnded, p.cmd.ProcessState, p.log.Name())
		default:
		}
	}
	return nil
}

// UntilAPI returns the time from the start until the API server was ready.
func (c *Cluster) UntilAPI(ctx context.Context) (time.Duration, error) {
	if c.api > 0 {
		return c.api, nil
	}
	var err error
	c.api, err = c.Until(ctx, "API ready", c.apiReady)
	return c.api, err
}

func (c *Cluster) apiReady(ctx context.Context) error {
	if c.client == nil {
		config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
		if err != nil {
			return err
		}
		if c.client, err = kubernetes.NewForConfig(config); err != nil {
			return err
		}
	}
	return c.client.RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
}

// CPUTime is what the part started first has used so far.
func (c *Cluster) CPUTime() (time.Duration, error) { return cpuTime(c.parts[0].cmd.Process.Pid) }

// Client speaks with the API server once it has been ready.
func (c *Cluster) Client() *kubernetes.Clientset { return c.client }

// KeepProfile writes a profile of the API server to a file.
func (c *Cluster) KeepProfile(ctx context.Context, file, path, name, value string) error {
	data, err := c.client.RESTClient().Get().AbsPath(path).Param(name, value).DoRaw(ctx)
	if err != nil {
		return fmt.Errorf("profile the server: %s: %w", path, err)
	}
	if err := os.WriteFile(file, data, 0o644); err != nil {
		return fmt.Errorf("keep profile: %w", err)
	}
	return nil
}

// UntilNode returns the time from the start until the node was Ready.
func (c *Cluster) UntilNode(ctx context.Context, name string) (time.Duration, error) {
	return c.Until(ctx, "node Ready", func(ctx context.Context) error {
		node, err := c.client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if !Ready(node) {
			return fmt.Errorf("node %s is not ready", name)
		}
		return nil
	})
}

// Ready reports whether a node is.
func Ready(node *corev1.Node) bool {
	return slices.ContainsFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}
