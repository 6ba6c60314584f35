package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/mote-dev/mote/test/tools/sandbox"
)

// cluster is one `mote server`, which is also a node, and an agent for each further node. With one
// node it runs in the sandbox itself; with more each has a host of its own there, and the suite
// stands beside them on their network.
type cluster struct {
	mote, dataDir, kubeconfig, kubectl string
	commit                             string // what the executable was built from, as it says itself

	members []*member // the server first

	stopMirror context.CancelFunc
	mirror     chan error // what serving images ended with
}

// startCluster returns when all nodes are ready and have the suite's images.
func startCluster(ctx context.Context, s settings) (*cluster, error) {
	commit, err := versionOf(ctx, s.mote)
	if err != nil {
		return nil, err
	}
	archives, err := findArchives(s.images)
	if err != nil {
		return nil, err
	}
	images, err := newRegistry(archives)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(s.reports, 0o755); err != nil {
		return nil, fmt.Errorf("make folder for logs: %w", err)
	}
	dir := sandbox.Dir()
	c := &cluster{
		mote:       s.mote,
		commit:     commit,
		dataDir:    filepath.Join(dir, "data"),
		kubeconfig: filepath.Join(dir, "kubeconfig"),
		kubectl:    filepath.Join(dir, "kubectl"),
	}
	// Under this name the executable is kubectl. The suite copies it into a pod, so that a link
	// would not do.
	if err := copyExecutable(c.kubectl, s.mote); err != nil {
		return nil, err
	}
	mirror, err := c.serveImages(ctx, images, s.nodes)
	if err != nil {
		return nil, err
	}
	if err := c.start(ctx, s, mirror, archives); err != nil {
		c.stop()
		return nil, err
	}
	return c, nil
}

func copyExecutable(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("copy executable: %w", err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return fmt.Errorf("copy executable: %w", err)
	}
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Close()); err != nil {
		return fmt.Errorf("copy %s to %s: %w", from, to, err)
	}
	return nil
}

// serveImages starts the mirror where all nodes reach it, and returns its address.
func (c *cluster) serveImages(ctx context.Context, images *registry, nodes int) (string, error) {
	address := "127.0.0.1:0"
	if nodes > 1 {
		address = sandbox.HostIP + ":0"
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return "", fmt.Errorf("open the mirror's port: %w", err)
	}
	ctx, c.stopMirror = context.WithCancel(ctx)
	c.mirror = make(chan error, 1)
	go func() { c.mirror <- images.serve(ctx, l) }()
	return l.Addr().String(), nil
}

func (c *cluster) start(ctx context.Context, s settings, mirror string, archives []string) error {
	for i := range s.nodes {
		m, err := newMember(i, s)
		if err != nil {
			return err
		}
		c.members = append(c.members, m)
		mirrors := filepath.Join(sandbox.Dir(), "registries.yaml")
		if err := writeMirrors(m.host.Path(mirrors), mirror); err != nil {
			return err
		}
		args := []string{"--data-dir", c.dataDir, "--node-name", m.name, "--registries-file", mirrors}
		if i == 0 {
			args = append([]string{"server", "--kubeconfig-output", c.kubeconfig},
				append(args, strings.Fields(s.args)...)...)
		} else if args, err = c.join(m, args); err != nil {
			return err
		}
		// As `mote check` advises where nothing else has done it, and systemd does at boot.
		if out, err := m.host.Command(ctx, "mount", "--make-rshared", "/").CombinedOutput(); err != nil {
			return fmt.Errorf("share the mounts of %s: %w: %s", m.name, err, lastLines(string(out), 2))
		}
		if err := m.run(s.mote, args...); err != nil {
			return err
		}
		if err := c.furnish(ctx, m, archives); err != nil {
			return err
		}
	}
	return nil
}

// join completes an agent's arguments with where to join and the server's own token.
func (c *cluster) join(m *member, args []string) ([]string, error) {
	server := c.members[0]
	token, err := os.ReadFile(server.host.Path(filepath.Join(c.dataDir, "server/token")))
	if err != nil {
		return nil, fmt.Errorf("read the cluster's token: %w", err)
	}
	file := filepath.Join(sandbox.Dir(), "token")
	if err := os.WriteFile(m.host.Path(file), token, 0o600); err != nil {
		return nil, fmt.Errorf("hand on the cluster's token: %w", err)
	}
	return append([]string{"agent", "--server", "https://" + net.JoinHostPort(server.host.Address(), "6443"),
		"--token-file", file}, args...), nil
}

// furnish waits until a node is ready and gives it the images.
func (c *cluster) furnish(ctx context.Context, m *member, archives []string) error {
	if m == c.members[0] {
		if err := c.takeKubeconfig(ctx, m); err != nil {
			return err
		}
		// The suite's pods name it, and its controller may come after the node.
		if err := c.until(ctx, "default service account", "-n", "default", "get", "serviceaccount",
			"default"); err != nil {
			return err
		}
	}
	if err := c.until(ctx, m.name+" ready", "wait", "--for=condition=Ready", "nodes/"+m.name,
		"--timeout=1s"); err != nil {
		return err
	}
	cmd := m.host.Command(ctx, c.mote, append([]string{"image", "import", "--data-dir", c.dataDir}, archives...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("import images into %s: %w: %s", m.name, err, lastLines(string(out), 5))
	}
	return nil
}

var serverLine = regexp.MustCompile(`(?m)^(\s*server:).*$`)

// takeKubeconfig fetches the file from the server's host. On that it leads to loopback.
func (c *cluster) takeKubeconfig(ctx context.Context, server *member) error {
	if server.host == nil {
		return nil
	}
	return wait(ctx, "kubeconfig", c.members, func(context.Context) error {
		data, err := os.ReadFile(server.host.Path(c.kubeconfig))
		if err != nil {
			return err
		}
		data = serverLine.ReplaceAll(data, []byte("${1} https://"+net.JoinHostPort(server.host.Address(), "6443")))
		return os.WriteFile(c.kubeconfig, data, 0o600)
	})
}

// until runs a kubectl command again and again until it succeeds.
func (c *cluster) until(ctx context.Context, what string, args ...string) error {
	return wait(ctx, what, c.members, func(ctx context.Context) error {
		out, err := exec.CommandContext(ctx, c.kubectl,
			append([]string{"--kubeconfig", c.kubeconfig}, args...)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, lastLines(string(out), 2))
		}
		return nil
	})
}

// wait calls check until it returns nil, two minutes at most, and no longer than all members run.
func wait(ctx context.Context, what string, members []*member, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		if ended := errOfEnded(members); ended != nil {
			return fmt.Errorf("wait for %s: %w", what, ended)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w; see %s", what, err, members[len(members)-1].log.Name())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// ended says which of the cluster's processes has ended by itself, if any.
func (c *cluster) ended() error { return errOfEnded(c.members) }

func errOfEnded(members []*member) error {
	var errs []error
	for _, m := range members {
		errs = append(errs, m.ended())
	}
	return errors.Join(errs...)
}

// stop need not be gentle with the pods: the sandbox goes with them.
func (c *cluster) stop() {
	for _, m := range c.members {
		m.stop()
	}
	c.stopMirror()
	if err := <-c.mirror; err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
	}
}

// versionOf is the first line of `mote version` without the name.
func versionOf(ctx context.Context, mote string) (string, error) {
	out, err := exec.CommandContext(ctx, mote, "version").Output()
	if err != nil {
		return "", fmt.Errorf("ask %s for its version: %w", mote, err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimPrefix(line, "mote "), nil
}
