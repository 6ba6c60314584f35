package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mote-dev/mote/test/tools/harness"
	"github.com/mote-dev/mote/test/tools/sandbox"
)

// fetch makes one request on a connection of its own, as each user does.
func fetch(ctx context.Context, method, url, body string, header ...string) (int, string, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{}).DialContext}}
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(data), err
}

// fetched waits until url answers with want in the body.
func fetched(t *testing.T, within time.Duration, url, want string) {
	t.Helper()
	harness.Eventually(t, within, url, func(ctx context.Context) error {
		code, body, err := fetch(ctx, http.MethodGet, url, "")
		if err != nil {
			return err
		}
		if code != http.StatusOK || !strings.Contains(body, want) {
			return fmt.Errorf("answered %d %q, want %q in it", code, body, want)
		}
		return nil
	})
}

// outside runs a program on the machine beside the sandbox, which reaches it over the network only.
func outside(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", sandbox.OutsideNetns}, args...)...)
}

func (s *space) clusterIP(service string) string {
	s.t.Helper()
	svc, err := s.client.CoreV1().Services(s.name).Get(s.t.Context(), service, metav1.GetOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	return svc.Spec.ClusterIP
}

// testShop applies the example as its README says, and looks at it as its user would.
func testShop(t *testing.T, c *cluster) {
	deploy := filepath.Join(options.examples, "shop", "deploy")
	s := &space{cluster: c, t: t, name: "shop"}
	s.collectAtEnd()
	c.kubectl(t, "apply", "-k", deploy)
	s.rollout("deployment/web")
	s.rollout("statefulset/ledger")
	s.rollout("daemonset/nodeinfo")

	public := "http://" + sandbox.HostIP + ":30080"
	private := "http://" + s.clusterIP("web")
	step := func(name string, run func(*testing.T, *space)) {
		t.Run(name, func(t *testing.T) { run(t, &space{cluster: c, t: t, name: s.name}) })
	}
	step("NodePort", func(t *testing.T, _ *space) {
		fetched(t, 10*time.Second, public, "Welcome to the shop\nOpen all day\n")
		out, err := outside(t.Context(), "curl", "-sSf", "--max-time", "5", public).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "Welcome to the shop") {
			t.Errorf("curl from another machine: %v: %s", err, out)
		}
	})
	step("ClusterIP", func(t *testing.T, s *space) {
		fetched(t, 10*time.Second, private, "Welcome to the shop")
		s.apply(toolPod("visitor"))
		s.ready("visitor")
		for _, url := range []string{private, "http://web", "http://web.shop.svc.cluster.local"} {
			if out := s.exec("visitor", "podtool", "get", url); !strings.Contains(out, "Welcome") {
				t.Errorf("%s from a pod: %q", url, out)
			}
		}
	})
	step("StatefulSet", func(t *testing.T, s *space) {
		code, _, err := fetch(t.Context(), http.MethodPost, public+"/orders", "two apples")
		if err != nil || code != http.StatusCreated {
			t.Errorf("order through web to ledger-0.ledger: %d, %v", code, err)
		}
		fetched(t, 20*time.Second, public+"/orders", "two apples")
		if out := s.exec("visitor", "nslookup", "ledger-1.ledger.shop.svc.cluster.local"); !strings.Contains(out,
			s.pod("ledger-1").Status.PodIP) {
			t.Errorf("DNS name of the second replica: %q", out)
		}
	})
	step("Job", func(t *testing.T, s *space) {
		s.kubectl("wait", "--for=condition=complete", "job/seed", "--timeout=60s")
		if out := s.kubectl("logs", "job/seed"); !strings.Contains(out, "seeded") &&
			!strings.Contains(out, "orders already") {
			t.Errorf("job printed %q", out)
		}
	})
	step("DaemonSet", func(t *testing.T, s *space) {
		pods := s.pods("app=nodeinfo")
		if len(pods) != 1 {
			t.Fatalf("%d pods on one node", len(pods))
		}
		fetched(t, 20*time.Second, "http://"+pods[0].Status.PodIP+":8080", "node "+c.node)
	})
	s.kubectl("patch", "configmap", "shop", "-p",
		`{"data":{"greeting":"Season's greetings","motd":"Open half the day"}}`)
	step("RollingUpdate", func(t *testing.T, s *space) { testRollingUpdate(t, s, public, private) })
	step("Scale", func(t *testing.T, s *space) {
		s.kubectl("scale", "deployment/web", "--replicas=3")
		s.rollout("deployment/web")
		names := map[string]bool{}
		harness.Eventually(t, 20*time.Second, "answers from three pods", func(ctx context.Context) error {
			_, body, err := fetch(ctx, http.MethodGet, private+"/hostname", "")
			if err != nil {
				return err
			}
			if names[body] = true; len(names) != 3 {
				return fmt.Errorf("only from %d", len(names))
			}
			return nil
		})
		s.kubectl("scale", "deployment/web", "--replicas=1")
		harness.Eventually(t, 40*time.Second, "scaled down", func(context.Context) error {
			if n := len(s.pods("app=web")); n != 1 {
				return fmt.Errorf("%d pods", n)
			}
			return nil
		})
	})
	step("LiveConfig", func(t *testing.T, _ *space) {
		// The web pods were replaced meanwhile: the file must change under a running container.
		pods := s.pods("app=web")
		s.kubectl("patch", "configmap", "shop", "-p", `{"data":{"greeting":"Changed while running"}}`)
		fetched(t, 120*time.Second, public, "Changed while running")
		if after := s.pods("app=web"); len(after) != 1 || len(pods) != 1 || after[0].UID != pods[0].UID ||
			after[0].Status.ContainerStatuses[0].RestartCount != 0 {
			t.Errorf("the pod did not stay the same")
		}
	})
	step("LivenessAdmin", func(t *testing.T, s *space) {
		// admin:change-me
		code, _, err := fetch(t.Context(), http.MethodPost, public+"/admin/die", "", "Authorization",
			"Basic YWRtaW46Y2hhbmdlLW1l")
		if err != nil || code != http.StatusOK {
			t.Fatalf("password from the Secret: %d, %v", code, err)
		}
		pod := s.pods("app=web")[0].Name
		s.podUntil(pod, 60*time.Second, "restarted by its liveness probe", restartedOnce)
	})
	step("CronJob", func(t *testing.T, s *space) {
		harness.Eventually(t, 130*time.Second, "CronJob ran", func(ctx context.Context) error {
			jobs, err := s.client.BatchV1().Jobs(s.name).List(ctx, metav1.ListOptions{})
			if err != nil {
				return err
			}
			for _, j := range jobs.Items {
				if len(j.OwnerReferences) == 0 || j.OwnerReferences[0].Kind != "CronJob" {
					continue
				}
				for _, cond := range j.Status.Conditions {
					if cond.Type == batchv1.JobComplete {
						return nil
					}
				}
			}
			return errors.New("no complete job of it yet")
		})
	})
}

// testRollingUpdate replaces every pod, twice, under constant requests to both services, of which
// not one may fail.
func testRollingUpdate(t *testing.T, s *space, public, private string) {
	ctx, stop := context.WithCancel(t.Context())
	var (
		wg       sync.WaitGroup
		mu       sync.Mutex
		answers  int
		versions = map[string]int{}
		failures []string
	)
	for _, url := range []string{public + "/version", private + "/version", public + "/slow?for=500ms"} {
		wg.Go(func() {
			// Often enough to hit every moment of a rollout, and yet not a load test.
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			for ; ctx.Err() == nil; <-tick.C {
				// Not ctx: a request under way at the end must still be answered.
				code, body, err := fetch(context.WithoutCancel(ctx), http.MethodGet, url, "")
				mu.Lock()
				if answers++; err != nil || code != http.StatusOK {
					failures = append(failures,
						fmt.Sprintf("%s %s: %d %q %v", time.Now().Format(time.TimeOnly), url, code, body, err))
				}
				versions[strings.TrimSpace(body)]++
				mu.Unlock()
			}
		})
	}
	s.kubectl("set", "image", "deployment/web", "web=example.com/shop:2.0")
	s.rollout("deployment/web")
	fetched(t, 10*time.Second, public+"/version", "2.0")
	s.kubectl("rollout", "undo", "deployment/web")
	s.rollout("deployment/web")
	harness.Eventually(t, 40*time.Second, "rolled back", func(ctx context.Context) error {
		for _, p := range s.pods("app=web") {
			if p.Spec.Containers[0].Image != "example.com/shop:1.0" {
				return fmt.Errorf("pod %s still runs %s", p.Name, p.Spec.Containers[0].Image)
			}
		}
		return nil
	})
	stop()
	wg.Wait()
	t.Logf("%d requests during two rollouts, answers %v", answers, versions)
	if len(failures) > 0 {
		t.Errorf("%d requests failed, the first: %s", len(failures),
			strings.Join(failures[:min(5, len(failures))], "\n"))
	}
	if versions["1.0"] == 0 || versions["2.0"] == 0 {
		t.Errorf("requests did not see both versions: %v", versions)
	}
	if _, body, err := fetch(t.Context(), http.MethodGet, public, ""); err != nil ||
		!strings.Contains(body, "Open half the day") {
		t.Errorf("environment of new pods: %q, %v", body, err)
	}
	if _, err := s.try(t.Context(), "", "rollout", "history", "deployment/web"); err != nil {
		t.Error(err)
	}
}
