package loadbalancer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	kubetesting "k8s.io/client-go/testing"

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

// Two that give one service addresses do not write as fast as they can, and an event says what to
// do.
func TestController_Run_ContestedService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset(node(t, "a", "192.0.2.1"), balancer("s", tcp(80)))
		var writes atomic.Int64
		versions(client)
		client.PrependReactor("update", "services", func(a kubetesting.Action) (bool, runtime.Object, error) {
			if a.GetSubresource() == "status" {
				writes.Add(1)
			}
			return false, nil, nil
		})
		run(t, client)
		time.Sleep(time.Second)
		has(t, client, "s", "192.0.2.1")
		// The other one changes the service whenever it is changed.
		for range 3000 {
			s, err := client.CoreV1().Services("default").Get(t.Context(), "s", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if s.Status.LoadBalancer.Ingress[0].IP != "198.51.100.1" {
				s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "198.51.100.1"}}
				_, err := client.CoreV1().Services("default").Update(t.Context(), s, metav1.UpdateOptions{})
				if err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(100 * time.Millisecond)
		}
		if n := writes.Load(); n < 5 || n > 25 {
			t.Errorf("%d writes in five minutes", n)
		}
		event(t, client, "s", "something else writes other addresses (198.51.100.1)")
	})
}

// A service that cannot be written keeps no other from getting its addresses at once.
func TestController_Run_OneServiceFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset(node(t, "a", "192.0.2.1"), balancer("bad", tcp(80)))
		versions(client)
		var writes atomic.Int64
		client.PrependReactor("update", "services", func(a kubetesting.Action) (bool, runtime.Object, error) {
			s := a.(kubetesting.UpdateAction).GetObject().(*corev1.Service)
			if s.Name != "bad" {
				return false, nil, nil
			}
			writes.Add(1)
			return true, nil, errors.New("a webhook refuses it")
		})
		run(t, client)
		time.Sleep(2 * time.Minute) // the pauses are at their longest
		if n := writes.Load(); n < 5 || n > 20 {
			t.Errorf("%d writes in two minutes", n)
		}
		good := balancer("good", tcp(81))
		if _, err := client.CoreV1().Services("default").Create(t.Context(), good, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		has(t, client, "good", "192.0.2.1")
	})
}

// versions gives services that are updated a new version, as the API server does.
func versions(client *fake.Clientset) {
	var last atomic.Int64
	client.PrependReactor("update", "services", func(a kubetesting.Action) (bool, runtime.Object, error) {
		a.(kubetesting.UpdateAction).GetObject().(*corev1.Service).ResourceVersion = fmt.Sprint(last.Add(1))
		return false, nil, nil
	})
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
