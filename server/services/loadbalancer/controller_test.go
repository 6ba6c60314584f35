package loadbalancer

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/mote-dev/mote/internal/hostports"
)

// run starts a controller for the objects in client, and stops it at the test's end.
func run(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	shared := informers.NewSharedInformerFactory(client, 0)
	c, err := New(Config{Client: client, Informers: shared, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	shared.Start(ctx.Done())
	go func() { ended <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		shared.Shutdown()
	})
}

// has waits until a service has addresses.
func has(t *testing.T, client kubernetes.Interface, name, want string) {
	t.Helper()
	var got string
	err := wait.PollUntilContextTimeout(t.Context(), 5*time.Millisecond, 10*time.Second, true,
		func(ctx context.Context) (bool, error) {
			s, err := client.CoreV1().Services("default").Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return false, err
			}
			got = ""
			for _, i := range s.Status.LoadBalancer.Ingress {
				got = strings.TrimSpace(got + " " + i.IP)
			}
			return got == want, nil
		})
	if err != nil {
		t.Fatalf("service %s has %q, want %q: %v", name, got, want, err)
	}
}

func TestController_Run_FollowsServicesAndNodes(t *testing.T) {
	n := node(t, "a", "192.0.2.1")
	s := balancer("s", tcp(80))
	client := fake.NewClientset(n, s)
	run(t, client)
	has(t, client, "s", "192.0.2.1")
	ctx := t.Context()

	// A second node joins.
	if _, err := client.CoreV1().Nodes().Create(ctx, node(t, "b", "192.0.2.2"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	has(t, client, "s", "192.0.2.1 192.0.2.2")

	// A program of the first one begins to listen on the port.
	text, err := hostports.Format([]hostports.Listener{{Port: 80, Protocol: corev1.ProtocolTCP, Owner: "nginx"}})
	if err != nil {
		t.Fatal(err)
	}
	n.Annotations[hostports.Annotation] = text
	if _, err := client.CoreV1().Nodes().Update(ctx, n, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	has(t, client, "s", "192.0.2.2")
	event(t, client, "s", "port 80/TCP of node a (192.0.2.1) is in use by nginx")

	// It becomes a service inside the cluster again.
	current, err := client.CoreV1().Services("default").Get(ctx, "s", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	current.Spec.Type = corev1.ServiceTypeClusterIP
	if _, err := client.CoreV1().Services("default").Update(ctx, current, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	has(t, client, "s", "")
}

func TestController_Run_PortIsFreedByADeletedService(t *testing.T) {
	first, second := balancer("first", tcp(80)), balancer("second", tcp(80))
	client := fake.NewClientset(node(t, "a", "192.0.2.1"), first, second)
	run(t, client)
	has(t, client, "first", "192.0.2.1")
	event(t, client, "second", "in use by service default/first")
	if err := client.CoreV1().Services("default").Delete(t.Context(), "first", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	has(t, client, "second", "192.0.2.1")
}

// event waits for a warning about a service.
func event(t *testing.T, client kubernetes.Interface, name, want string) {
	t.Helper()
	var said []string
	err := wait.PollUntilContextTimeout(t.Context(), 5*time.Millisecond, 10*time.Second, true,
		func(ctx context.Context) (bool, error) {
			list, err := client.CoreV1().Events("default").List(ctx, metav1.ListOptions{})
			if err != nil {
				return false, err
			}
			said = nil
			for _, e := range list.Items {
				said = append(said, fmt.Sprintf("%s: %s", e.InvolvedObject.Name, e.Message))
				if e.InvolvedObject.Name == name && e.Type == corev1.EventTypeWarning &&
					strings.Contains(e.Message, want) {
					return true, nil
				}
			}
			return false, nil
		})
	if err != nil {
		t.Fatalf("events %q, want one of %s with %q: %v", said, name, want, err)
	}
}
