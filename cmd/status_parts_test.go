package cmd

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/mote-dev/mote/agent"
	"github.com/mote-dev/mote/internal/datadir"
	"github.com/mote-dev/mote/internal/part"
)

func TestServeStatus_AnswersUntilItsContextEnds(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "status.sock")
	// What a killed mote left is replaced.
	if err := os.WriteFile(socket, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	state := part.Status{Name: "store", State: part.Ready}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		serveStatus(ctx, socket, []roleReport{{roleServer, func() []part.Status { return []part.Status{state} }, nil}},
			zap.NewNop())
	}()
	var got []RoleStatus
	var err error
	deadline := time.After(10 * time.Second)
	for got == nil {
		if got, err = readStatus(t.Context(), socket); err != nil {
			select {
			case <-deadline:
				t.Fatal(err)
			case <-time.After(time.Millisecond):
			}
		}
	}
	if len(got) != 1 || got[0].Role != "server" || len(got[0].Parts) != 1 || got[0].Parts[0] != state {
		t.Errorf("read %+v", got)
	}
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket's mode is %v, %v; want 0600", info.Mode(), err)
	}
	cancel()
	<-done
	if _, err := readStatus(t.Context(), socket); err == nil {
		t.Error("it answers after its end")
	}
	if _, err := os.Lstat(socket); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestProgram_PrintParts_NamesWhatDoesNotWork(t *testing.T) {
	var out bytes.Buffer
	p := program{stdout: &out}
	p.printParts(RoleStatus{Role: "agent", Parts: []part.Status{
		{Name: "clock", State: part.Ready},
		{Name: "address", State: part.Idle, Detail: "node-ip is set"},
		{Name: "container-runtime", State: part.Starting},
		{Name: "dns", State: part.Disabled},
		{Name: "scheduler", State: part.Ready, Detail: "leader"},
		{Name: "kubelet", State: part.Waiting, Detail: "container-runtime"},
	}})
	want := `  agent       2 ready, 1 idle, 1 starting, 1 disabled, 1 waiting
    address            idle node-ip is set
    container-runtime  starting
    dns                disabled
    scheduler          ready leader
    kubelet            waiting for container-runtime
`
	if got := out.String(); got != want {
		t.Errorf("printed\n%s, want\n%s", got, want)
	}
}

func TestReadStatus_NobodyThereIsNamed(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "status.sock")
	if _, err := readStatus(t.Context(), socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a socket: %v", err)
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	// What a killed mote leaves: the socket without a process.
	listener.SetUnlinkOnClose(false)
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := readStatus(t.Context(), socket); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("with a socket that nobody listens on: %v", err)
	}
}

// On an agent, `mote status` is about the node and its way to the servers, and the exit code says
// whether all is well.
func TestStatus_Agent(t *testing.T) {
	well := agent.Health{
		Node:    "n1",
		Ready:   true,
		Server:  "https://192.0.2.10:6443",
		Tunnels: []string{"a"},
	}
	for _, row := range []struct {
		name   string
		change func(*Status)
		want   bool
		says   []string
	}{
		{"well", func(*Status) {}, true,
			[]string{"n1, ready", "server      https://192.0.2.10:6443", "tunnel      open", "ready, 3 images"}},
		{"two servers", func(s *Status) { s.Node.Tunnels = []string{"a", "b"} }, true, []string{"open to 2 servers"}},
		{"not ready", func(s *Status) { s.Node.Ready, s.Node.Reason = false, "KubeletNotReady: no network" }, false,
			[]string{"n1, not ready: KubeletNotReady: no network"}},
		{"no server", func(s *Status) { s.Node.Server, s.Node.ServerFault = "", "connection refused" }, false,
			[]string{"none answers: connection refused"}},
		{"no tunnel", func(s *Status) { s.Node.Tunnels = nil }, false, []string{"tunnel      closed"}},
		{"no containers", func(s *Status) { s.Containerd = "not running" }, false, []string{"not running"}},
		{"an older mote", func(s *Status) { s.Node = nil }, false, []string{"node        unknown"}},
		{"not running", func(s *Status) { *s = Status{DataDir: "/d", Role: roleAgent} }, false,
			[]string{"no mote runs on /d"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			node := well
			st := Status{
				DataDir:    "/d",
				Role:       roleAgent,
				Process:    1,
				Containerd: containerdReady + ", 3 images",
				Node:       &node,
			}
			row.change(&st)
			var out bytes.Buffer
			program{stdout: &out}.printStatus(st)
			for _, want := range row.says {
				if !strings.Contains(out.String(), want) {
					t.Errorf("it says\n%s\nwant %q in it", out.String(), want)
				}
			}
			for _, never := range []string{"store", "API server", "kubeconfig"} {
				if strings.Contains(out.String(), never) {
					t.Errorf("an agent's status is about %s:\n%s", never, out.String())
				}
			}
			if st.well() != row.want {
				t.Errorf("well is %v, want %v", st.well(), row.want)
			}
		})
	}
}

// status asks the mote that holds the folder, and knows its role from it.
func TestStatus_Agent_FromItsSocket(t *testing.T) {
	dir := shortDir(t)
	held, err := datadir.Open(dir, dataVersions())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = held.Close() }()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	health := agent.Health{Node: "n1", Reason: "it is starting", ServerFault: "no connection yet"}
	go func() {
		defer close(done)
		serveStatus(ctx, datadir.At(dir).StatusSocket(), []roleReport{{roleAgent,
			func() []part.Status { return []part.Status{{Name: "kubelet", State: part.Waiting}} },
			func() agent.Health { return health }}}, zap.NewNop())
	}()
	defer func() { cancel(); <-done }()
	var st Status
	for deadline := time.Now().Add(10 * time.Second); st.Node == nil && time.Now().Before(deadline); {
		if st, err = status(t.Context(), dir, "/nowhere"); err != nil {
			t.Fatal(err)
		}
	}
	if st.Node == nil || st.Node.Node != "n1" || st.Role != roleAgent || st.API != "" || st.Kubeconfig != "" ||
		st.Containerd != "not running" || len(st.Parts) != 1 || st.Parts[0].Node != nil {
		t.Errorf("status is %+v", st)
	}
}
