package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mote-dev/mote/test/tools/harness"
)

// testLeaderKilled kills the server that leads, which is the one the agent has used so far. Nothing
// may be lost, the others and the agent go on, and work that needs a leader is done in time.
func testLeaderKilled(t *testing.T, s *several) {
	victim := s.mustLead(t, s.servers[0], "kube-controller-manager")
	left := s.others(victim)
	pids := s.agent.sleepers()
	before := victim.uids(t)

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var writing sync.WaitGroup
	acknowledged := make([][]string, len(left)+1)
	for i, server := range append(slices.Clone(left), victim) {
		writing.Go(func() { acknowledged[i] = server.write(ctx) })
	}
	// Writes are under way when it dies.
	harness.Eventually(t, 20*time.Second, "writes", func(ctx context.Context) error {
		list, err := left[0].client.CoreV1().ConfigMaps(space).List(ctx,
			metav1.ListOptions{LabelSelector: "test=writes"})
		if err != nil {
			return err
		}
		by := map[string]int{}
		for _, m := range list.Items {
			by[writer(m.Name)]++
		}
		for _, server := range s.servers {
			if by[server.name()] < 5 {
				return fmt.Errorf("%v so far", by)
			}
		}
		return nil
	})
	begin := time.Now()
	victim.main.Kill(t)
	left[0].apply(t, laterManifest)
	for _, lease := range []string{"kube-controller-manager", "kube-scheduler"} {
		harness.Eventually(t, leadMovesWithin-time.Since(begin), "another leader of "+lease,
			func(ctx context.Context) error {
				who, err := s.leader(ctx, left[1], lease)
				if err == nil && who == victim {
					err = errors.New("the lease is still the killed server's")
				}
				return err
			})
		t.Logf("another server leads %s %v after the kill", lease, time.Since(begin).Round(time.Millisecond))
	}
	harness.Eventually(t, 30*time.Second, "a new deployment has its pods, on their node",
		func(ctx context.Context) error {
			pods, err := left[1].pods(ctx, "app=later")
			if err != nil {
				return err
			}
			if len(pods) != 2 || slices.ContainsFunc(pods, func(p corev1.Pod) bool { return p.Spec.NodeName == "" }) {
				return fmt.Errorf("%d pods, not all on a node", len(pods))
			}
			return nil
		})
	t.Logf("a new deployment had its pods %v after the kill", time.Since(begin).Round(time.Millisecond))
	left[0].running(t, "later", 30*time.Second)

	stop()
	writing.Wait()
	s.allThere(t, left[0], slices.Concat(acknowledged...))
	after := left[1].uids(t)
	for name, uid := range before {
		if after[name] != uid {
			t.Errorf("%s is %q, was %q", name, after[name], uid)
		}
	}
	// The agent uses another one, says so, and its first pods have noticed nothing.
	left[0].heard(t, s.agent, begin)
	if now := s.agent.sleepers(); !containsAll(now, pids) || len(pids) != 2 {
		t.Errorf("processes of the first pods are %v, were %v", now, pids)
	}
	for _, server := range left {
		server.said(t, s)
	}
	// Others take it out of the service once its entry has ended.
	s.behindService(t, left[0], 30*time.Second, left...)
	s.fromPod(t, left[0])

	begin = time.Now()
	s.start(t, victim)
	victim.ready(t, begin)
	s.behindService(t, left[1], 30*time.Second, s.servers...)
	victim.said(t, s)
	if victim.node {
		victim.heard(t, victim.main, begin)
	}
}

// fromPod asks for the API as a pod of the agent does, by the service: packets go to whichever
// server the node's rules choose.
func (s *several) fromPod(t *testing.T, via *server) {
	t.Helper()
	pid := s.agent.sleepers()[0]
	harness.Eventually(t, 90*time.Second, "ten answers in a row by the service kubernetes",
		func(ctx context.Context) error {
			for i := range 10 {
				ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
				_, err := s.agent.inPod(ctx, pid, options.Mote, "kubectl", "--kubeconfig", via.kubeconfig, "--server",
					apiService, "get", "--raw", "/readyz")
				cancel()
				if err != nil {
					return fmt.Errorf("request %d: %w", i, err)
				}
			}
			return nil
		})
}

// write makes objects through the server until ctx ends, and returns those it was told are there.
func (s *server) write(ctx context.Context) []string {
	var done []string
	for i := 0; ctx.Err() == nil; i++ {
		m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("write-%s-%d", s.name(), i),
			Labels: map[string]string{"test": "writes"}}}
		if _, err := s.client.CoreV1().ConfigMaps(space).Create(ctx, m, metav1.CreateOptions{}); err == nil {
			done = append(done, m.Name)
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
	return done
}

// writer is the name of the server through which an object of write was made.
func writer(object string) string { return strings.Split(object, "-")[1] }

func (s *several) allThere(t *testing.T, from *server, names []string) {
	t.Helper()
	list, err := from.client.CoreV1().ConfigMaps(space).List(t.Context(),
		metav1.ListOptions{LabelSelector: "test=writes"})
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for _, m := range list.Items {
		have[m.Name] = true
	}
	by := map[string]int{}
	for _, name := range names {
		by[writer(name)]++
		if !have[name] {
			t.Errorf("%s was acknowledged and is lost", name)
		}
	}
	t.Logf("acknowledged writes by server: %v", by)
	for _, server := range s.servers {
		if by[server.name()] == 0 {
			t.Errorf("%s acknowledged no write", server.name())
		}
	}
}

// uids are those of what must outlive a server.
func (s *server) uids(t *testing.T) map[string]string {
	t.Helper()
	uids := map[string]string{}
	pods, err := s.pods(t.Context(), "app=before")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pods {
		uids["pod "+p.Name] = string(p.UID)
	}
	nodes, err := s.client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes.Items {
		uids["node "+n.Name] = string(n.UID)
	}
	if len(uids) < 4 {
		t.Fatalf("only %v are there", uids)
	}
	return uids
}

// heard waits for a sign of life of a node; its conditions are written every five minutes only.
func (s *server) heard(t *testing.T, node *machine, since time.Time) {
	t.Helper()
	harness.Eventually(t, 60*time.Second, "heartbeat of "+node.Name(), func(ctx context.Context) error {
		lease, err := s.client.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(ctx, node.Name(),
			metav1.GetOptions{})
		if err == nil && (lease.Spec.RenewTime == nil || lease.Spec.RenewTime.Time.Before(since)) {
			err = fmt.Errorf("the last was at %v", lease.Spec.RenewTime)
		}
		return err
	})
}

func containsAll(all, some []int) bool {
	return !slices.ContainsFunc(some, func(p int) bool { return !slices.Contains(all, p) })
}

// testLeaderStopped stops the server that leads as a service manager does: it gives the lead away,
// so nobody waits for it.
func testLeaderStopped(t *testing.T, s *several) {
	leader := s.mustLead(t, s.servers[0], "kube-controller-manager")
	left := s.others(leader)
	leader.main.Stop(t)
	begin := time.Now()
	s.behindService(t, left[0], leadGivenWithin, left...)
	for _, lease := range []string{"kube-controller-manager", "kube-scheduler"} {
		harness.Eventually(t, leadGivenWithin, "another leader of "+lease, func(ctx context.Context) error {
			who, err := s.leader(ctx, left[1], lease)
			if err == nil && who == leader {
				err = errors.New("the lease is still the stopped server's")
			}
			return err
		})
	}
	t.Logf("others lead %v after %s has ended", time.Since(begin).Round(time.Millisecond), leader.name())
	left[0].kubectl(t, "scale", "deploy/later", "--replicas=1")
	harness.Eventually(t, 20*time.Second, "the new leader works", func(ctx context.Context) error {
		pods, err := left[0].pods(ctx, "app=later")
		if err == nil && len(pods) != 1 {
			err = fmt.Errorf("%d pods", len(pods))
		}
		return err
	})
	begin = time.Now()
	s.start(t, leader)
	leader.ready(t, begin)
}

// testEtcdAway kills the etcd for longer than anyone may lead without it. Nobody but the leader may
// end for that, and it only when it can come back.
func testEtcdAway(t *testing.T, s *several) {
	leader := s.mustLead(t, s.servers[0], "kube-controller-manager")
	pids := s.agent.sleepers()
	s.etcd.kill()
	begin := time.Now()
	harness.Eventually(t, 60*time.Second, leader.name()+" stops leading", func(context.Context) error {
		if err := leader.main.Alive(); err != nil {
			return err
		}
		if !strings.Contains(leader.main.said(), "the lead is lost") {
			return errors.New("it does not say so")
		}
		return nil
	})
	took := time.Since(begin)
	t.Logf("%s stopped leading %v after the etcd went away", leader.name(), took.Round(time.Millisecond))
	// After 15 s another one could lead; that it stops before is held by the election's own tests.
	// It says so once its work has ended.
	if took > 30*time.Second {
		t.Errorf("it stopped leading after %v, when another one could have led", took)
	}
	s.etcd.start(t)
	select {
	case <-leader.main.Exited():
	case <-time.After(30 * time.Second):
		t.Fatalf("%s, which cannot lead again, did not end\n%s", leader.name(), leader.main.Tail(20))
	}
	if said := leader.main.Tail(1); leader.main.State().ExitCode() != 1 || !strings.Contains(said, "no longer leads") {
		t.Errorf("%s ended with %v: %s", leader.name(), leader.main.State(), said)
	}
	// What its service manager does.
	begin = time.Now()
	s.start(t, leader)
	leader.ready(t, begin)
	for _, server := range s.servers {
		if err := server.main.Alive(); err != nil {
			// The scheduler's leader may have been another.
			if strings.Contains(server.main.Tail(1), "no longer leads") {
				s.start(t, server)
				server.ready(t, begin)
				continue
			}
			t.Error(err)
		}
	}
	left := s.others(leader)
	left[0].kubectl(t, "scale", "deploy/later", "--replicas=2")
	left[1].running(t, "later", 60*time.Second)
	left[0].heard(t, s.agent, begin)
	if now := s.agent.sleepers(); !containsAll(now, pids) {
		t.Errorf("processes of the first pods are %v, were %v", now, pids)
	}
}
