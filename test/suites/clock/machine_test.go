package clock

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/mote-dev/mote/test/tools/harness"
	"github.com/mote-dev/mote/test/tools/sandbox"
)

// A year as certificates count it, and a day.
const (
	day  = 24 * time.Hour
	year = 365 * day
)

// machine is the sandbox as a machine with a clock of its own, and the mote on it.
type machine struct {
	*harness.Process
	args       []string
	dataDir    string
	kubeconfig string
	control    string // folder of the sockets by which clocks are set
	off        time.Duration
	bare       sandbox.Snapshot
}

// newMachine prepares a machine whose clock is off by so much. Nothing of it is left after the
// test.
func newMachine(t *testing.T, off time.Duration) *machine {
	t.Helper()
	options.NeedMote(t)
	dir := filepath.Join(sandbox.Dir(), strings.ToLower(strings.TrimPrefix(t.Name(), "Test")))
	m := &machine{
		dataDir:    filepath.Join(dir, "data"),
		kubeconfig: filepath.Join(dir, "kubeconfig.yaml"),
		control:    filepath.Join(dir, "clocks"),
		off:        off,
	}
	m.args = []string{"server", "--data-dir", m.dataDir, "--kubeconfig-output", m.kubeconfig, "--node-name", nodeName}
	if err := os.MkdirAll(m.control, 0o755); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(options.Artifacts, filepath.Base(dir)+".log"))
	if err != nil {
		t.Fatal(err)
	}
	if m.bare, err = sandbox.Take(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sandbox.PowerCut(m.bare); err != nil {
			t.Error(err)
		}
	})
	m.Process = harness.NewProcess(t, "mote", log)
	return m
}

// now is the time by the machine's clock.
func (m *machine) now() time.Time { return time.Now().Add(m.off) }

// since is how far a date lies from today, as the clock of a machine.
func since(date time.Time) time.Duration { return time.Until(date) }

// shifted are clockshift's arguments for a program that runs by the machine's clock.
func (m *machine) shifted(args ...string) []string {
	return append([]string{"-by", m.off.String()}, args...)
}

// command is one that runs by the machine's clock.
func (m *machine) command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, options.clockshift, m.shifted(args...)...)
}

// launch starts mote and returns at once.
func (m *machine) launch(t *testing.T) {
	t.Helper()
	m.Note("the clock says %v", m.now().UTC().Format(time.RFC3339))
	m.Launch(t, sandbox.Command(context.Background(), options.clockshift,
		m.shifted(append([]string{"-control", m.control, options.Mote}, m.args...)...)...))
}

// sleepUntil stops mote and then the machine, and lets its clock go on while it is off.
func (m *machine) sleepUntil(t *testing.T, off time.Duration) {
	t.Helper()
	m.Stop(t)
	m.powerOff(t)
	m.off = off
}

func (m *machine) powerOff(t *testing.T) {
	t.Helper()
	if err := sandbox.PowerCut(m.bare); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(m.control, 0o755); err != nil {
		t.Fatal(err)
	}
	// Who listened on them is gone.
	sockets, err := filepath.Glob(filepath.Join(m.control, "*.sock"))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range sockets {
		if err := os.Remove(s); err != nil {
			t.Fatal(err)
		}
	}
}

// setClock sets the clock of everything that runs on the machine.
func (m *machine) setClock(t *testing.T, off time.Duration) {
	t.Helper()
	m.Note("the clock is set from %v to %v", m.now().UTC().Format(time.RFC3339),
		time.Now().Add(off).UTC().Format(time.RFC3339))
	sockets, err := filepath.Glob(filepath.Join(m.control, "*.sock"))
	if err != nil || len(sockets) == 0 {
		t.Fatalf("nobody to set the clock: %v", err)
	}
	for _, socket := range sockets {
		if err := setAt(socket, off); err != nil {
			t.Fatalf("set clock: %v", err)
		}
	}
	m.off = off
}

func setAt(socket string, off time.Duration) error {
	c, err := net.Dial("unix", socket)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return nil // its processes have all ended
	}
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := fmt.Fprintf(c, "by %s\n", off); err != nil {
		return err
	}
	answer, err := bufio.NewReader(c).ReadString('\n')
	if err == nil && answer != "ok\n" {
		err = errors.New(strings.TrimSpace(answer))
	}
	return err
}

// client talks to the API as somebody with the kubeconfig and the right time would: each has its
// own connections, so it is verified anew.
func (m *machine) client() (*kubernetes.Clientset, func(), error) {
	config, err := clientcmd.BuildConfigFromFlags("", m.kubeconfig)
	if err != nil {
		return nil, nil, err
	}
	pair, err := tls.X509KeyPair(config.CertData, config.KeyData)
	if err != nil {
		return nil, nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(config.CAData)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair},
		Time: m.now}}
	client, err := kubernetes.NewForConfig(&rest.Config{
		Host:      config.Host,
		Transport: transport,
		QPS:       100,
		Burst:     100,
	})
	return client, transport.CloseIdleConnections, err
}

// presented is the certificate that a port of the machine presents, verified by the machine's clock
// and the cluster's CA.
func (m *machine) presented(port string) (*x509.Certificate, error) {
	config, err := clientcmd.BuildConfigFromFlags("", m.kubeconfig)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(config.CAData)
	c, err := tls.Dial("tcp", net.JoinHostPort("127.0.0.1", port), &tls.Config{RootCAs: roots, Time: m.now})
	if err != nil {
		return nil, fmt.Errorf("port %s: %w", port, err)
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0], nil
}

// mote runs one command of mote's by the machine's clock; it must succeed.
func (m *machine) mote(t *testing.T, args ...string) string {
	t.Helper()
	return harness.Output(t, nil, options.clockshift, m.shifted(append([]string{options.Mote}, args...)...)...)
}

// kubectl runs mote's own with the kubeconfig, by the machine's clock.
func (m *machine) kubectl(ctx context.Context, input string, args ...string) (string, error) {
	program := append([]string{options.clockshift}, m.shifted(options.Mote, "kubectl")...)
	return harness.Kubectl{Program: program, Kubeconfig: m.kubeconfig}.Try(ctx, input, args...)
}
