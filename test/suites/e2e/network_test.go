package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mote-dev/mote/test/tools/harness"
	"github.com/mote-dev/mote/test/tools/sandbox"
)

// testServices goes through the ways a service is reached: every kind of port, protocol and origin.
func testServices(t *testing.T, c *cluster) {
	s := c.namespace(t)
	s.apply(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: echo}
spec:
  replicas: 2
  selector: {matchLabels: {app: echo}}
  template:
    metadata: {labels: {app: echo}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: example.com/podtool:1
        args: [serve, ":8080"]
        ports: [{name: web, containerPort: 8080}]
        readinessProbe: {httpGet: {path: /, port: web}, periodSeconds: 1}
      - name: udp
        image: example.com/podtool:1
        args: [udp, ":5353"]
---
apiVersion: v1
kind: Service
metadata: {name: echo}
spec:
  selector: {app: echo}
  ports:
  - {name: web, port: 80, targetPort: web}
  - {name: udp, port: 53, targetPort: 5353, protocol: UDP}
---
apiVersion: v1
kind: Service
metadata: {name: sticky}
spec:
  sessionAffinity: ClientIP
  selector: {app: echo}
  ports: [{port: 80, targetPort: web}]
---
apiVersion: v1
kind: Service
metadata: {name: local}
spec:
  type: NodePort
  externalTrafficPolicy: Local
  selector: {app: echo}
  ports: [{port: 80, targetPort: web, nodePort: 30081}]
---
apiVersion: v1
kind: Service
metadata: {name: balanced}
spec:
  type: LoadBalancer
  selector: {app: echo}
  ports: [{port: 8383, targetPort: web}]
---
apiVersion: v1
kind: Service
metadata: {name: the-api}
spec:
  type: LoadBalancer
  selector: {app: echo}
  ports: [{port: 6443, targetPort: web}]
---
apiVersion: v1
kind: Service
metadata: {name: host-port}
spec:
  type: LoadBalancer
  selector: {app: echo}
  ports: [{port: 8181, targetPort: web}]
---
apiVersion: v1
kind: Service
metadata: {name: empty}
spec:
  selector: {app: nothing}
  ports: [{port: 80}]
---
apiVersion: v1
kind: Pod
metadata: {name: mapped, labels: {app: mapped}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: example.com/podtool:1
    args: [serve, ":8080"]
    ports: [{containerPort: 8080, hostPort: 8181}]
---
apiVersion: v1
kind: Pod
metadata: {name: on-host}
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: example.com/podtool:1
    args: [serve, ":8282"]
---
` + toolPod("client"))
	s.rollout("deployment/echo")
	for _, p := range []string{"mapped", "on-host", "client"} {
		s.ready(p)
	}
	client := s.pod("client").Status.PodIP
	// A pod is ready a moment before the services that lead to it are.
	for _, service := range []string{"echo", "sticky"} {
		harness.Eventually(t, 60*time.Second, "service "+service+" answers", func(ctx context.Context) error {
			_, err := s.try(ctx, "", "exec", "client", "--", "podtool", "get", "http://"+service+"/")
			return err
		})
	}
	get := func(url string) string {
		out, err := s.try(t.Context(), "", "exec", "client", "--", "podtool", "get", url)
		if err != nil {
			t.Errorf("%s from a pod: %v", url, err)
		}
		return strings.TrimSpace(out)
	}

	if out := get("http://echo/"); !strings.HasPrefix(out, "echo-") || !strings.HasSuffix(out, " "+client) {
		t.Errorf("through a service from a pod: %q, want the pod's own address %s", out, client)
	}
	t.Run("Sticky", func(t *testing.T) {
		seen := map[string]bool{}
		for range 8 {
			seen[get("http://sticky/")] = true
		}
		if len(seen) != 1 {
			t.Errorf("one client reached %d pods", len(seen))
		}
	})
	t.Run("Hairpin", func(t *testing.T) {
		s := &space{cluster: c, t: t, name: s.name}
		for _, p := range s.pods("app=echo") {
			// Enough tries that its own pod is chosen at least once, all but surely.
			for range 10 {
				if out := s.kubectl("exec", p.Name, "-c", "web", "--", "podtool", "get",
					"http://echo/"); !strings.HasPrefix(out, "echo-") {
					t.Errorf("a pod of the service through the service: %q", out)
				}
			}
		}
	})
	t.Run("UDP", func(t *testing.T) {
		conn, err := net.Dial("udp", net.JoinHostPort((&space{cluster: c, t: t, name: s.name}).clusterIP("echo"), "53"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		harness.Eventually(t, 60*time.Second, "datagram comes back", func(ctx context.Context) error {
			if _, err := conn.Write([]byte("ping")); err != nil {
				return err
			}
			if err := conn.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
				return err
			}
			buf := make([]byte, 16)
			n, err := conn.Read(buf)
			if err == nil && string(buf[:n]) != "ping" {
				err = fmt.Errorf("got %q", buf[:n])
			}
			return err
		})
	})
	t.Run("LocalPolicyKeepsClientAddress", func(t *testing.T) {
		out, err := outside(t.Context(), "curl", "-sSf", "--max-time", "5",
			"http://"+sandbox.HostIP+":30081/").CombinedOutput()
		if err != nil || !strings.HasSuffix(strings.TrimSpace(string(out)), " "+sandbox.OutsideIP) {
			t.Errorf("from another machine: %v: %s", err, out)
		}
	})
	t.Run("LoadBalancer", func(t *testing.T) { testLoadBalancer(t, c, s.name) })
	t.Run("HostPort", func(t *testing.T) {
		fetched(t, 10*time.Second, "http://"+sandbox.HostIP+":8181/", "mapped ")
		out, err := outside(t.Context(), "curl", "-sSf", "--max-time", "5",
			"http://"+sandbox.HostIP+":8181/").CombinedOutput()
		if err != nil || !strings.HasPrefix(string(out), "mapped ") {
			t.Errorf("from another machine: %v: %s", err, out)
		}
	})
	t.Run("HostNetwork", func(t *testing.T) {
		fetched(t, 10*time.Second, "http://"+sandbox.HostIP+":8282/", sandbox.Hostname+" ")
	})
	t.Run("NoEndpointsRefusedAtOnce", func(t *testing.T) {
		url := "http://" + (&space{cluster: c, t: t, name: s.name}).clusterIP("empty")
		// Nobody answers a packet that is dropped, however often it is tried.
		harness.Eventually(t, 60*time.Second, "refused at once", func(ctx context.Context) error {
			begin := time.Now()
			if _, _, err := fetch(ctx, http.MethodGet, url, ""); err == nil || time.Since(begin) > 3*time.Second {
				return fmt.Errorf("a service without endpoints: %v after %v, want a refusal", err, time.Since(begin))
			}
			return nil
		})
	})
	t.Run("Masquerade", func(t *testing.T) {
		// The world outside knows no pod address: only the node's may leave.
		server := outside(t.Context(), options.podtool, "serve", sandbox.OutsideIP+":8080")
		startBeside(t, server)
		harness.Eventually(t, 30*time.Second, "pod reaches another machine", func(ctx context.Context) error {
			out, err := s.try(ctx, "", "exec", "client", "--", "podtool", "get", "http://"+sandbox.OutsideIP+":8080/")
			if err != nil {
				return err
			}
			if !strings.HasSuffix(strings.TrimSpace(out), " "+sandbox.HostIP) {
				return fmt.Errorf("%w: seen from there: %q, want the node's address", harness.ErrStop, out)
			}
			return nil
		})
	})
}

// testLoadBalancer reaches a service of type LoadBalancer at the node's address, and wants the
// host's own ports left alone.
func testLoadBalancer(t *testing.T, c *cluster, namespace string) {
	s := &space{cluster: c, t: t, name: namespace}
	addresses := func(name string) string {
		return s.kubectl("get", "service", name, "-o", "jsonpath={.status.loadBalancer.ingress[*].ip}")
	}
	events := func(ctx context.Context, name string) string {
		out, err := s.try(ctx, "", "get", "events", "--field-selector", "involvedObject.name="+name, "-o",
			"jsonpath={.items[*].message}")
		if err != nil {
			return err.Error()
		}
		return out
	}
	harness.Eventually(t, 20*time.Second, "the service has the node's address", func(context.Context) error {
		if got := addresses("balanced"); got != sandbox.HostIP {
			return fmt.Errorf("it has %q", got)
		}
		return nil
	})
	url := "http://" + net.JoinHostPort(sandbox.HostIP, "8383") + "/"
	fromOutside := func(ctx context.Context) (string, error) {
		out, err := outside(ctx, "curl", "-sS", "--max-time", "2", url).CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	answers := func(ctx context.Context, prefix string) error {
		out, err := fromOutside(ctx)
		if err == nil && !strings.HasPrefix(out, prefix) {
			err = errors.New("another answers")
		}
		if err != nil {
			return fmt.Errorf("from another machine: %w: %s", err, out)
		}
		return nil
	}
	harness.Eventually(t, 20*time.Second, "pods answer at the node's address", func(ctx context.Context) error {
		return answers(ctx, "echo-")
	})

	for name, user := range map[string]string{"the-api": "is in use by mote", "host-port": s.name + "/mapped"} {
		harness.Eventually(t, 20*time.Second, "an event of "+name, func(ctx context.Context) error {
			if said := events(ctx, name); !strings.Contains(said, user) {
				return fmt.Errorf("%q, want %q in it", said, user)
			}
			return nil
		})
		if got := addresses(name); got != "" {
			t.Errorf("service %s has %s, although the port is in use", name, got)
		}
	}

	// A program of the host that begins to listen gets its own clients back.
	server := exec.Command(options.podtool, "serve", ":8383")
	startBeside(t, server)
	harness.Eventually(t, 30*time.Second, "the host's program answers", func(ctx context.Context) error {
		return answers(ctx, sandbox.Hostname+" ")
	})
	if err := server.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 30*time.Second, "pods answer again", func(ctx context.Context) error {
		return answers(ctx, "echo-")
	})
}

// startBeside runs a program for the rest of the test.
func startBeside(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}

// testDNS asks for what the Kubernetes DNS specification 1.1 promises, from inside a pod, with its
// resolver's settings.
func testDNS(t *testing.T, c *cluster) {
	startBeside(t, outside(t.Context(), options.podtool, "dns", sandbox.OutsideIP+":53", "www.example.test",
		"192.0.2.80"))
	s := c.namespaceNamed(t, "names")
	s.apply(`
apiVersion: v1
kind: Service
metadata: {name: plain}
spec:
  clusterIP: 10.43.77.77
  selector: {app: member}
  ports: [{name: web, port: 80}, {name: talk, port: 99, protocol: UDP}]
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec:
  clusterIP: None
  selector: {app: member}
  ports: [{name: web, port: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: away}
spec: {type: ExternalName, externalName: www.example.test}
---
apiVersion: v1
kind: Pod
metadata: {name: one, labels: {app: member}}
spec:
  hostname: one
  subdomain: headless
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: "example.com/podtool:1", args: [serve, ":8080"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: two, labels: {app: member}}
spec:
  hostname: two
  subdomain: headless
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: "example.com/podtool:1", args: [serve, ":8080"]}]
`)
	one, two := s.ready("one").Status.PodIP, s.ready("two").Status.PodIP
	members := []string{one, two}
	slices.Sort(members)
	const zone = ".names.svc.cluster.local."
	for _, row := range []struct {
		kind, name string
		want       []string
	}{
		{"A", "kubernetes.default", []string{"10.43.0.1"}},
		{"A", "plain", []string{"10.43.77.77"}},
		{"A", "plain.names", []string{"10.43.77.77"}},
		{"A", "plain" + zone, []string{"10.43.77.77"}},
		{"SRV", "_web._tcp.plain" + zone, []string{"80 plain" + zone}},
		{"SRV", "_talk._udp.plain" + zone, []string{"99 plain" + zone}},
		{"PTR", "10.43.77.77", []string{"plain" + zone}},
		{"A", "headless" + zone, members},
		{"A", "one.headless", []string{one}},
		{"SRV", "_web._tcp.headless" + zone, []string{"8080 one.headless" + zone, "8080 two.headless" + zone}},
		{"PTR", two, []string{"two.headless" + zone}},
		{"CNAME", "away" + zone, []string{"www.example.test."}},
		{"A", "away", []string{"192.0.2.80"}},
		{"A", strings.ReplaceAll(one, ".", "-") + ".names.pod.cluster.local.", []string{one}},
		{"A", "www.example.test", []string{"192.0.2.80"}},
	} {
		t.Run(row.kind+" "+row.name, func(t *testing.T) {
			harness.Eventually(t, 60*time.Second, "answer", func(ctx context.Context) error {
				out, err := s.try(ctx, "", "exec", "one", "--", "podtool", "lookup", row.kind, row.name)
				if err != nil {
					return err
				}
				if got := strings.Fields(strings.ReplaceAll(out, " ", "_")); !slices.Equal(got,
					replaceAll(row.want, " ", "_")) {
					return fmt.Errorf("got %q, want %q", got, row.want)
				}
				return nil
			})
		})
	}
	t.Run("unknown name", func(t *testing.T) {
		// At once: a name server that says nothing is given up after five seconds, each time.
		harness.Eventually(t, 30*time.Second, "denied at once", func(ctx context.Context) error {
			begin := time.Now()
			_, err := s.try(ctx, "", "exec", "one", "--", "podtool", "lookup", "A", "nobody"+zone)
			if err == nil || !strings.Contains(err.Error(), "no such host") || time.Since(begin) > 4*time.Second {
				return fmt.Errorf("after %v: %w", time.Since(begin), err)
			}
			return nil
		})
	})
	t.Run("resolv.conf", func(t *testing.T) {
		out := (&space{cluster: c, t: t, name: s.name}).exec("one", "cat", "/etc/resolv.conf")
		for _, want := range []string{"search names.svc.cluster.local svc.cluster.local cluster.local", "ndots:5"} {
			if !strings.Contains(out, want) {
				t.Errorf("%q lacks %q", out, want)
			}
		}
	})
}

func replaceAll(list []string, from, to string) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = strings.ReplaceAll(s, from, to)
	}
	return out
}
