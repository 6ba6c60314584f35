package cmd

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

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
		serveStatus(ctx, socket, []roleReport{{"server", func() []part.Status { return []part.Status{state} }}},
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
