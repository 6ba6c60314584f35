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
	// Process is 0 when no mote runs on the folder.
	Process    int    `json:"process"`
	MemoryMB   int    `json:"memoryMB,omitempty"`
	API        string `json:"api"`
	Containerd string `json:"containerd"`
	Kubeconfig string `json:"kubeconfig,omitempty"`
	StoreMB    int    `json:"storeMB"`
	// Parts are those of the running process, by role; nil if it does not answer.
	Parts []RoleStatus `json:"parts,omitempty"`
	// PartsError is why they cannot be read. Empty also for an older mote, which has none to read.
	PartsError string `json:"partsError,omitempty"`
}

func (p program) statusCommand() *cli.Command {
	all := []settings.Setting{dataDirSetting, {Name: "kubeconfig-output", Default: server.DefaultKubeconfigOutput,
		Usage: "`FILE` the server wrote its kubeconfig to"}}
	return &cli.Command{
		Name:        "status",
		Usage:       "show whether mote is running here, and its state",
		Description: "The exit code is 1 when no mote runs on the data folder or its API does not answer.",
		Flags:       append([]cli.Flag{outputFlag(), flag(configSetting)}, flags(all)...),
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
			if st.Process == 0 || st.API != "ready" {
				return exitError(1)
			}
			return nil
		},
	}
}

func status(ctx context.Context, dataDir, kubeconfig string) (Status, error) {
	st := Status{DataDir: dataDir, API: "not running", Containerd: "not running"}
	info, err := os.Stat(datadir.At(dataDir).StoreFile())
	switch {
	case err == nil:
		st.StoreMB = int(info.Size() / 1e6)
	case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission):
		return st, fmt.Errorf("look at store: %w", err)
	}
	pid, err := datadir.Holder(dataDir)
	if err != nil {
		return st, err
	}
	if pid == 0 {
		return st, nil
	}
	st.Process, st.MemoryMB = pid, anonymousMB(pid)
	// The default file may be another mote's: what this one wrote is on record.
	if outside, err := datadir.Outside(dataDir); err == nil && len(outside) > 0 {
		kubeconfig = outside[len(outside)-1]
	}
	st.Kubeconfig = kubeconfig
	st.API = apiState(ctx, kubeconfig)
	st.Parts, err = readStatus(ctx, datadir.At(dataDir).StatusSocket())
	// No socket, or nobody at it: an older mote runs, or one that is just starting.
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ECONNREFUSED) {
		st.PartsError = err.Error()
	}
	switch list, err := image.List(ctx, datadir.At(dataDir).Agent().Dir()); {
	case err == nil:
		st.Containerd = fmt.Sprintf("ready, %d images", len(list))
	case !errors.Is(err, image.ErrNotRunning):
		st.Containerd = "error: " + err.Error()
	}
	return st, nil
}

func (p program) printStatus(st Status) {
	if st.Process == 0 {
		fmt.Fprintf(p.stdout, "no mote runs on %s\n", st.DataDir)
		return
	}
	fmt.Fprintf(p.stdout, "mote runs on %s (process %d, %d MB)\n", st.DataDir, st.Process, st.MemoryMB)
	fmt.Fprintf(p.stdout, "  API server  %s\n  containerd  %s\n  store       %d MB\n  kubeconfig  %s\n", st.API,
		st.Containerd, st.StoreMB, st.Kubeconfig)
	for _, role := range st.Parts {
		p.printParts(role)
	}
	if st.PartsError != "" {
		fmt.Fprintf(p.stdout, "  parts       unknown: %s\n", st.PartsError)
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
