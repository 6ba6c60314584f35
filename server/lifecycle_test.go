package server

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/mote-dev/mote/internal/upstream"
)

// startTimeout is generous: the machine may be busy with other tests.
const startTimeout = 2 * time.Minute

// instance is a server that runs in this process.
type instance struct {
	client     *kubernetes.Clientset
	rest       *rest.Config
	kubeconfig string
	stop       context.CancelFunc
	ended      chan error
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// startInstance runs a server without a node on dir, and waits until it is ready.
func startInstance(t *testing.T, dir string) *instance {
	t.Helper()
	i := &instance{kubeconfig: filepath.Join(dir, "kubeconfig.yaml"), ended: make(chan error, 1)}
	s, err := New(Config{
		DataDir:          filepath.Join(dir, "data"),
		NodeName:         "n1",
		BindAddress:      net.IPv4(127, 0, 0, 1),
		HTTPSListenPort:  freePort(t),
		KubeconfigOutput: i.kubeconfig,
		Logger:           zap.NewNop(),
	})
	if err != nil {
		t.Fatal(err)
	}
	var ctx context.Context
	ctx, i.stop = context.WithCancel(t.Context())
	go func() { i.ended <- s.Run(ctx) }()
	select {
	case <-s.Ready():
	case err := <-i.ended:
		i.stop()
		t.Fatalf("the server ended before it was ready: %v", err)
	case <-time.After(startTimeout):
		i.stop()
		t.Fatalf("not ready after %s; Run returned %v", startTimeout, <-i.ended)
	}
	if i.rest, err = clientcmd.BuildConfigFromFlags("", i.kubeconfig); err != nil {
		t.Fatal(err)
	}
	if i.client, err = kubernetes.NewForConfig(i.rest); err != nil {
		t.Fatal(err)
	}
	return i
}

// end stops the server and waits for it.
func (i *instance) end(t *testing.T) {
	t.Helper()
	i.stop()
	if err := <-i.ended; err != nil {
		t.Errorf("Run returned %v after it was asked to stop", err)
	}
}

// metric returns the lines of a metric that the API server serves.
func (i *instance) metric(t *testing.T, name string) []string {
	t.Helper()
	client, err := rest.HTTPClientFor(i.rest)
	if err != nil {
		t.Fatal(err)
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, i.rest.Host+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	client.CloseIdleConnections()
	var out []string
	for line := range strings.Lines(string(body)) {
		if strings.HasPrefix(line, name+" ") || strings.HasPrefix(line, name+"{") {
			out = append(out, line)
		}
	}
	return out
}

func (i *instance) namespace(t *testing.T, name string) {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := i.client.CoreV1().Namespaces().Create(t.Context(), ns, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func (i *instance) wantNamespaces(t *testing.T, has, hasNot string) {
	t.Helper()
	list, err := i.client.CoreV1().Namespaces().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, ns := range list.Items {
		names = append(names, ns.Name)
	}
	text := fmt.Sprint(names)
	if !strings.Contains(text, has) || (hasNot != "" && strings.Contains(text, hasNot)) {
		t.Errorf("namespaces are %s, want %q and not %q", text, has, hasNot)
	}
}

// A process can stop a server and start it again, and another one after it: what upstream keeps per
// process is either the same for all of them or set anew.
func TestServer_Run_TwiceInOneProcess(t *testing.T) {
	quietKlog(t)
	dir := t.TempDir()
	for _, step := range []string{"first", "again"} {
		i := startInstance(t, dir)
		if n := len(i.metric(t, "mote_tunnel_open")); n != 1 {
			t.Errorf("%s: %d values of mote_tunnel_open, want 1", step, n)
		}
		if step == "first" {
			i.namespace(t, "kept")
		}
		i.wantNamespaces(t, "kept", "")
		i.end(t)
	}
	i := startInstance(t, t.TempDir())
	defer i.end(t)
	i.wantNamespaces(t, "default", "kept")
}

// Two servers of two folders run side by side. They share their feature gates, log and metrics,
// which upstream keeps per process, and nothing else.
func TestServer_Run_TwoAtOnce(t *testing.T) {
	quietKlog(t)
	one := startInstance(t, t.TempDir())
	two := startInstance(t, t.TempDir())
	one.namespace(t, "of-one")
	two.namespace(t, "of-two")
	one.wantNamespaces(t, "of-one", "of-two")
	two.wantNamespaces(t, "of-two", "of-one")
	one.end(t)
	two.namespace(t, "after-one")
	two.wantNamespaces(t, "after-one", "of-one")
	two.end(t)
}

func quietKlog(t *testing.T) {
	t.Helper()
	if _, err := upstream.BridgeKlog(zap.NewNop(), false, func(err error) { t.Error(err) }); err != nil {
		t.Fatal(err)
	}
}
