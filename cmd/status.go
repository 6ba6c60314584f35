package cmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/mote-dev/mote/agent"
	"github.com/mote-dev/mote/cmd/settings"
	"github.com/mote-dev/mote/internal/datadir"
	"github.com/mote-dev/mote/runtime/image"
	"github.com/mote-dev/mote/server"
)

// statusTimeout bounds each question `mote status` asks.
const statusTimeout = 5 * time.Second

// Status is what `mote status` found.
type Status struct {
	DataDir string `json:"dataDir"`
	// Role is server or agent; empty when the folder is neither's.
	Role string `json:"role,omitempty"`
	// Process is 0 when no mote runs on the folder.
	Process  int `json:"process"`
	MemoryMB int `json:"memoryMB,omitempty"`
	// API, Kubeconfig and StoreMB are a server's; StoreMB is 0 when its store is an etcd.
	API        string `json:"api,omitempty"`
	Kubeconfig string `json:"kubeconfig,omitempty"`
	StoreMB    int    `json:"storeMB,omitempty"`
	// Containerd is empty when no node runs here.
	Containerd string `json:"containerd,omitempty"`
	// Node is an agent's; nil if it does not answer.
	Node *agent.Health `json:"node,omitempty"`
	// Parts are those of the running process, by role; nil if it does not answer.
	Parts []RoleStatus `json:"parts,omitempty"`
	// PartsError is why they cannot be read. Empty also for an older mote, which has none to read.
	PartsError string `json:"partsError,omitempty"`
}

func (p program) statusCommand() *cli.Command {
	all := []settings.Setting{dataDirSetting, {Name: "kubeconfig-output", Default: server.DefaultKubeconfigOutput,
		Usage: "`FILE` the server wrote its kubeconfig to"}}
	return &cli.Command{
		Name:  "status",
		Usage: "show whether mote is running here, and its state",
		Description: "The exit code is 0 when mote runs on the data folder and is well: a server's API is ready, " +
			"an agent's\nnode is ready, reaches a server and can be reached by it.",
		Flags: append([]cli.Flag{outputFlag(), flag(configSetting)}, flags(all)...),
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			v, err := p.settings(c, all)
			if err != nil {
				return err
			}
			st, err := status(c.Context, v.String("data-dir"), v.String("kubeconfig-output"))
			if err != nil {
				return err
			}
			if err := p.print(c, st, func() { p.printStatus(st) }); err != nil {
				return err
			}
			if !st.well() {
				return exitError(1)
			}
			return nil
		},
	}
}

// well reports whether what runs works.
func (st Status) well() bool {
	switch {
	case st.Process == 0:
		return false
	case st.Role == roleAgent:
		return st.Node != nil && st.Node.OK() && strings.HasPrefix(st.Containerd, containerdReady)
	}
	return st.API == "ready"
}

// The roles as they are reported.
const (
	roleServer = "server"
	roleAgent  = "agent"
)

// roleOf tells whose a data folder is; empty when nothing has run on it yet.
func roleOf(dataDir string) (string, error) {
	isServers, err := exists(datadir.At(dataDir).Server())
	if err != nil {
		return "", err
	}
	if isServers {
		return roleServer, nil
	}
	isAgents, err := holdsAgent(dataDir)
	if err != nil || !isAgents {
		return "", err
	}
	return roleAgent, nil
}

func status(ctx context.Context, dataDir, kubeconfig string) (Status, error) {
	st := Status{DataDir: dataDir}
	pid, err := datadir.Holder(dataDir)
	if err != nil {
		return st, err
	}
	if st.Role, err = roleOf(dataDir); err != nil {
		return st, err
	}
	if pid == 0 {
		return st, nil
	}
	st.Process, st.MemoryMB = pid, anonymousMB(pid)
	st.Parts, err = readStatus(ctx, datadir.At(dataDir).StatusSocket())
	switch {
	case errors.Is(err, fs.ErrPermission):
		return st, fmt.Errorf("ask the mote that runs on %s (process %d): %w", dataDir, pid, err)
	// No socket, or nobody at it: an older mote runs, or one that is just starting.
	case err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ECONNREFUSED):
		st.PartsError = err.Error()
	}
	hasNode := st.Parts == nil
	for i, role := range st.Parts {
		hasNode = hasNode || role.Role == roleAgent
		if role.Node != nil {
			// It is the whole status's, not a part's.
			st.Node, st.Parts[i].Node = role.Node, nil
		}
	}
	if len(st.Parts) > 0 {
		st.Role = st.Parts[0].Role
	}
	if st.Role != roleAgent {
		if err := st.addServer(ctx, kubeconfig); err != nil {
			return st, err
		}
	}
	if hasNode {
		st.Containerd = containerdState(ctx, dataDir)
	}
	return st, nil
}

// addServer adds what is a server's alone.
func (st *Status) addServer(ctx context.Context, kubeconfig string) error {
	info, err := os.Stat(datadir.At(st.DataDir).StoreFile())
	switch {
	case err == nil:
		st.StoreMB = int(info.Size() / 1e6)
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("look at store: %w", err)
	}
	// The default file may be another mote's: what this one wrote is on record.
	if outside, err := datadir.Outside(st.DataDir); err == nil && len(outside) > 0 {
		kubeconfig = outside[len(outside)-1]
	}
	st.Kubeconfig = kubeconfig
	st.API = apiState(ctx, kubeconfig)
	return nil
}

const containerdReady = "ready"

func containerdState(ctx context.Context, dataDir string) string {
	list, err := image.List(ctx, datadir.At(dataDir).Agent().Dir())
	switch {
	case err == nil:
		if len(list) == 1 {
			return containerdReady + ", 1 image"
		}
		return fmt.Sprintf("%s, %d images", containerdReady, len(list))
	case errors.Is(err, image.ErrNotRunning):
		return "not running"
	}
	return "error: " + err.Error()
}

func (p program) printStatus(st Status) {
	if st.Process == 0 {
		fmt.Fprintf(p.stdout, "no mote runs on %s\n", st.DataDir)
		return
	}
	fmt.Fprintf(p.stdout, "mote runs on %s (process %d, %d MB)\n", st.DataDir, st.Process, st.MemoryMB)
	line := func(label, text string) {
		if text != "" {
			fmt.Fprintf(p.stdout, "  %-10s  %s\n", label, text)
		}
	}
	line("API server", st.API)
	switch n := st.Node; {
	case n != nil:
		p.printNode(*n, line)
	case st.Role == roleAgent:
		line("node", "unknown: this mote does not say, as it is starting or an older one")
	}
	line("containerd", st.Containerd)
	if st.StoreMB > 0 {
		line("store", fmt.Sprintf("%d MB", st.StoreMB))
	}
	line("kubeconfig", st.Kubeconfig)
	for _, role := range st.Parts {
		p.printParts(role)
	}
	if st.PartsError != "" {
		line("parts", "unknown: "+st.PartsError)
	}
}

// printNode prints the state of a node whose server is on another machine.
func (program) printNode(n agent.Health, line func(label, text string)) {
	if n.Ready {
		line("node", n.Node+", ready")
	} else {
		line("node", n.Node+", not ready: "+n.Reason)
	}
	if n.Server != "" {
		line("server", n.Server)
	} else {
		line("server", "none answers: "+n.ServerFault)
	}
	switch len(n.Tunnels) {
	case 0:
		line("tunnel", "closed: no server reaches this node for logs, exec and webhooks")
	case 1:
		line("tunnel", "open")
	default:
		line("tunnel", fmt.Sprintf("open to %d servers", len(n.Tunnels)))
	}
}

// anonymousMB is the memory a process has that no file backs.
func anonymousMB(pid int) int {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		var kib int
		if n, _ := fmt.Sscanf(line, "RssAnon: %d kB", &kib); n == 1 {
			return kib / 1000
		}
	}
	return 0
}

// apiState asks the API server of a kubeconfig whether it is ready.
func apiState(ctx context.Context, kubeconfig string) string {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return fmt.Sprintf("unknown: read kubeconfig: %v", err)
	}
	config.Timeout = statusTimeout
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return fmt.Sprintf("unknown: use kubeconfig %s: %v", kubeconfig, err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, config.Host+"/readyz", nil)
	if err != nil {
		return fmt.Sprintf("unknown: %v", err)
	}
	response, err := client.Do(request)
	if err != nil {
		return fmt.Sprintf("does not answer: %v", err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 4096))
	switch {
	case err != nil:
		return fmt.Sprintf("does not answer: %v", err)
	case response.StatusCode != http.StatusOK:
		return "not ready: " + strings.Join(strings.Fields(string(body)), " ")
	}
	return "ready"
}
