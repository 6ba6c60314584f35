package clock

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/mote-dev/mote/test/tools/harness"
	"github.com/mote-dev/mote/test/tools/sandbox"
)

const agentName = "pi"

// agent is mote on a machine of its own, with a clock of its own.
type agent struct {
	*harness.Process
	host    *sandbox.Host
	dataDir string // as the host sees it
	control string // likewise
}

func newAgent(t *testing.T) *agent {
	t.Helper()
	host, err := sandbox.AddHost(sandbox.HostConfig{Name: agentName, Address: "192.168.77.20"})
	if err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(options.Artifacts, "agent-"+agentName+".log"))
	if err != nil {
		t.Fatal(err)
	}
	a := &agent{host: host, dataDir: filepath.Join(sandbox.Dir(), "mote"),
		control: filepath.Join(sandbox.Dir(), "clocks")}
	if err := os.MkdirAll(host.Path(a.control), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := host.Remove(); err != nil {
			t.Error(err)
		}
	})
	a.Process = harness.NewProcess(t, "agent", log)
	return a
}

func (a *agent) launch(t *testing.T, off time.Duration, args ...string) {
	t.Helper()
	args = append([]string{"-by", off.String(), "-control", a.control, options.Mote, "agent", "--data-dir", a.dataDir},
		args...)
	a.Note("the clock says %v", time.Now().Add(off).UTC().Format(time.RFC3339))
	a.Launch(t, a.host.Command(context.Background(), options.clockshift, args...))
}

// powerOff stops mote and the machine.
func (a *agent) powerOff(t *testing.T) {
	t.Helper()
	a.Stop(t)
	if err := a.host.PowerCut(); err != nil {
		t.Fatal(err)
	}
}

// setClock sets the clock of what runs on the agent's machine.
func (a *agent) setClock(t *testing.T, off time.Duration) {
	t.Helper()
	sockets, err := filepath.Glob(filepath.Join(a.host.Path(a.control), "*.sock"))
	if err != nil || len(sockets) == 0 {
		t.Fatalf("nobody to set the clock: %v", err)
	}
	for _, socket := range sockets {
		if err := setAt(socket, off); err != nil {
			t.Fatalf("set clock: %v", err)
		}
	}
}

// agentWorks wants the agent's node Ready, and reached by the API server with certificates that
// both believe in.
func (m *machine) agentWorks(t *testing.T, a *agent, within time.Duration) {
	t.Helper()
	m.eventually(t, within, "agent ready", func(ctx context.Context, client *kubernetes.Clientset) error {
		if err := a.Alive(); err != nil {
			return err
		}
		return readyNow(ctx, client, agentName)
	})
	m.eventually(t, within, "agent's kubelet reached", func(ctx context.Context, client *kubernetes.Clientset) error {
		answer, err := client.RESTClient().Get().AbsPath("/api/v1/nodes/" + agentName + "/proxy/healthz").DoRaw(ctx)
		if err == nil && string(answer) != "ok" {
			err = fmt.Errorf("it answers %q", answer)
		}
		return err
	})
}

// TestAgent has a node and its server off for 400 days, and the node come back in 1970.
func TestAgent(t *testing.T) {
	m := newMachine(t, 0)
	m.launch(t)
	m.answers(t, 60*time.Second)
	token := m.mote(t, "token", "create", "--quiet", "--kubeconfig", m.kubeconfig)
	a := newAgent(t)
	a.launch(t, 0, "--server", "https://"+sandbox.HostIP+":6443", "--token", strings.TrimSpace(token), "--node-name",
		agentName)
	m.agentWorks(t, a, 60*time.Second)
	first := a.certificate(t)

	a.powerOff(t)
	m.sleepUntil(t, longOff)
	if m.now().Before(first.Leaf.NotAfter) {
		t.Fatalf("the node's certificate is valid until %v", first.Leaf.NotAfter)
	}
	m.launch(t)
	m.answers(t, 60*time.Second)
	if err := a.host.Boot(); err != nil {
		t.Fatal(err)
	}
	a.launch(t, longOff)
	m.eventually(t, 60*time.Second, "agent has another certificate",
		func(context.Context, *kubernetes.Clientset) error {
			if err := a.Alive(); err != nil {
				return err
			}
			if now := a.certificate(t).Leaf; now.SerialNumber.Cmp(first.Leaf.SerialNumber) == 0 ||
				m.now().After(now.NotAfter) {
				return errors.New("it is the old one")
			}
			return nil
		})
	m.agentWorks(t, a, 90*time.Second)

	// Its battery is empty: it wakes in 1970, and hears of the time later.
	second := a.certificate(t)
	a.powerOff(t)
	if err := a.host.Boot(); err != nil {
		t.Fatal(err)
	}
	a.launch(t, since(time.Unix(600, 0)))
	m.eventually(t, 90*time.Second, "agent says that it is 1970",
		func(ctx context.Context, client *kubernetes.Clientset) error {
			if err := a.Alive(); err != nil {
				return err
			}
			date, err := heartbeat(ctx, client, agentName)
			if err == nil && date.Year() != 1970 {
				err = fmt.Errorf("its last heartbeat says %v", date)
			}
			return err
		})
	m.agentWorks(t, a, 90*time.Second)
	// Its death is noticed although its heartbeats are older than those of before.
	a.powerOff(t)
	m.eventually(t, 90*time.Second, "agent's end noticed",
		func(ctx context.Context, client *kubernetes.Clientset) error {
			if readyNow(ctx, client, agentName) == nil {
				return errors.New("it still counts as ready")
			}
			return nil
		})
	if err := a.host.Boot(); err != nil {
		t.Fatal(err)
	}
	a.launch(t, since(time.Unix(600, 0)))
	m.agentWorks(t, a, 90*time.Second)
	a.setClock(t, longOff)
	m.eventually(t, 60*time.Second, "agent knows the time",
		func(ctx context.Context, client *kubernetes.Clientset) error {
			if err := a.Alive(); err != nil {
				return err
			}
			date, err := heartbeat(ctx, client, agentName)
			if err == nil && m.now().Sub(date).Abs() > time.Minute {
				err = fmt.Errorf("its last heartbeat says %v", date)
			}
			return err
		})
	m.agentWorks(t, a, 60*time.Second)
	if got := a.certificate(t).Leaf; got.SerialNumber.Cmp(second.Leaf.SerialNumber) != 0 {
		t.Error("the agent asked for another certificate, although it had a good one")
	}
}

// certificate is what the agent proves with who it is.
func (a *agent) certificate(t *testing.T) tls.Certificate {
	t.Helper()
	file := a.host.Path(filepath.Join(a.dataDir, "agent", "pki", "client.pem"))
	pair, err := tls.LoadX509KeyPair(file, file)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}
