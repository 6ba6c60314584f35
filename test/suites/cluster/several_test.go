package cluster

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mote-dev/mote/test/tools/harness"
	"github.com/mote-dev/mote/test/tools/sandbox"
)

const (
	// leadMovesWithin is 20 s, the promise for a leader that vanishes, and what a busy machine may
	// add. To the second it is held by the election's own tests, whose clock does not run while
	// others do. A leader that stops says so; 15 s would be a lease that ran out.
	leadMovesWithin, leadGivenWithin = 30 * time.Second, 10 * time.Second
	// sharedToken is what the servers are given; the second is a wrong one.
	sharedToken, otherToken = "a7k2m9.q4w8e6r3t5y1u0z2", "a7k2m9.0123456789abcdef"
	agentIP                 = "192.168.77.34"
	apiService              = "https://10.43.0.1:443"
)

// several are servers that share an etcd, and an agent.
type several struct {
	etcd    *etcd
	servers []*server
	agent   *machine
	args    []string // what all servers are started with
}

// server is a machine with a server, and the way to its API.
type server struct {
	*cluster
	node bool // runs a node, too
}

func (s *server) name() string { return s.main.Name() }

// TestSeveralServers takes three servers on one etcd through the loss of one.
func TestSeveralServers(t *testing.T) {
	options.NeedMote(t)
	if options.etcd == "" {
		t.Skip("pass -etcd with etcd's executable, as `make e2e-hosts` does")
	}
	s := &several{etcd: newEtcd(t)}
	s.args = append([]string{"server", "--token-file", filepath.Join(sandbox.Dir(), "servers-token")},
		s.etcd.forServers()...)
	for i, name := range []string{"one", "two", "three"} {
		m := newMachine(t, sandbox.HostConfig{Name: name, Address: fmt.Sprintf("192.168.77.%d", 31+i)})
		m.write(t, "servers-token", sharedToken)
		m.giveEtcdFiles(t)
		s.servers = append(s.servers,
			&server{&cluster{main: m, kubeconfig: filepath.Join(sandbox.Dir(), "kubeconfig-"+name)}, i == 0})
	}
	s.agent = newMachine(t, sandbox.HostConfig{Name: "worker", Address: agentIP})
	inOrder(t, s, []step[*several]{
		{"StartAtOnce", testStartAtOnce},
		{"Refused", testServersRefused},
		{"Agent", testAgentOfSeveral},
		{"LeaderKilled", testLeaderKilled},
		{"LeaderStopped", testLeaderStopped},
		{"EtcdAway", testEtcdAway},
	})
}

// start starts a server and returns at once.
func (s *several) start(t *testing.T, which *server) {
	t.Helper()
	args := append(slices.Clone(s.args), "--kubeconfig-output", which.kubeconfig)
	if !which.node {
		args = append(args, "--disable-agent")
	}
	which.main.launch(t, args...)
}

// ready waits until a server answers through its own port.
func (s *server) ready(t *testing.T, begin time.Time) {
	t.Helper()
	s.takeKubeconfig(t)
	harness.Eventually(t, 60*time.Second, "API of "+s.name(), func(ctx context.Context) error {
		if err := s.main.Alive(); err != nil {
			return err
		}
		return s.client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	})
	harness.Eventually(t, 60*time.Second, s.name()+" says it is ready", func(context.Context) error {
		if err := s.main.Alive(); err != nil {
			return err
		}
		if !strings.Contains(s.main.said(), "mote is ready") {
			return errors.New("it does not yet")
		}
		return nil
	})
	t.Logf("%s is ready %v after its start", s.name(), time.Since(begin).Round(time.Millisecond))
}

// said is what mote wrote since it was started last.
func (m *machine) said() string {
	all := m.Tail(1000)
	return all[max(0, strings.LastIndex(all, "--- start")):]
}

func (s *several) others(than *server) []*server {
	return slices.DeleteFunc(slices.Clone(s.servers), func(o *server) bool { return o == than })
}

// leader is the server that holds a lease.
func (s *several) leader(ctx context.Context, from *server, lease string) (*server, error) {
	l, err := from.client.CoordinationV1().Leases(metav1.NamespaceSystem).Get(ctx, lease, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	if l.Spec.HolderIdentity == nil {
		return nil, errors.New("nobody leads")
	}
	holder, _, _ := strings.Cut(*l.Spec.HolderIdentity, "_")
	for _, o := range s.servers {
		if o.name() == holder {
			return o, nil
		}
	}
	return nil, fmt.Errorf("%q leads", *l.Spec.HolderIdentity)
}

func (s *several) mustLead(t *testing.T, from *server, lease string) *server {
	t.Helper()
	var who *server
	harness.Eventually(t, leadMovesWithin, "a leader of "+lease, func(ctx context.Context) (err error) {
		who, err = s.leader(ctx, from, lease)
		return err
	})
	return who
}

// behindService waits until the service kubernetes leads to these servers and no others.
func (s *several) behindService(t *testing.T, from *server, within time.Duration, want ...*server) {
	t.Helper()
	var addresses []string
	for _, w := range want {
		addresses = append(addresses, w.main.Address())
	}
	slices.Sort(addresses)
	harness.Eventually(t, within, "servers behind the service kubernetes", func(ctx context.Context) error {
		list, err := from.client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).List(ctx,
			metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=kubernetes"})
		if err != nil {
			return err
		}
		var have []string
		for _, slice := range list.Items {
			for _, e := range slice.Endpoints {
				have = append(have, e.Addresses...)
			}
		}
		slices.Sort(have)
		if !slices.Equal(have, addresses) {
			return fmt.Errorf("they are %v, want %v", have, addresses)
		}
		return nil
	})
}

// testStartAtOnce starts all servers on an empty etcd in the same moment: they must become one
// cluster.
func testStartAtOnce(t *testing.T, s *several) {
	begin := time.Now()
	for _, server := range s.servers {
		s.start(t, server)
	}
	for _, server := range s.servers {
		server.ready(t, begin)
	}
	for _, name := range []string{"ca.crt", "ca.key", "front-proxy-ca.crt", "front-proxy-ca.key", "service-account.key",
		"service-account.pub"} {
		var first string
		for i, server := range s.servers {
			data, err := readFile(server.main.Path(filepath.Join(dataDir(), "server", "tls", name)))
			if err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				first = data
			} else if data != first {
				t.Errorf("%s has a %s of its own", server.name(), name)
			}
		}
	}
	for _, name := range []string{"apiserver.key", "admin.key"} {
		seen := map[string]bool{}
		for _, server := range s.servers {
			data, err := readFile(server.main.Path(filepath.Join(dataDir(), "server", "tls", name)))
			if err != nil {
				t.Fatal(err)
			}
			seen[data] = true
		}
		if len(seen) != len(s.servers) {
			t.Errorf("%d different %s, want one on each server", len(seen), name)
		}
	}
	for _, lease := range []string{"kube-controller-manager", "kube-scheduler"} {
		leader := s.mustLead(t, s.servers[0], lease)
		t.Logf("%s leads %s", leader.name(), lease)
	}
	s.behindService(t, s.servers[2], 30*time.Second, s.servers...)
	// A server that stands by has its node, too.
	s.servers[0].readyWithin(t, s.servers[0].main, begin, time.Since(begin)+60*time.Second)
	s.servers[0].kubectl(t, "create", "namespace", space)
}

// testServersRefused starts servers that must not become one of these; each says why in one line.
func testServersRefused(t *testing.T, s *several) {
	stray := newMachine(t, sandbox.HostConfig{Name: "stray", Address: strayIP})
	stray.giveEtcdFiles(t)
	good := append(slices.Clone(s.args[3:]), "--data-dir", dataDir(), "--disable-agent", "--kubeconfig-output",
		filepath.Join(sandbox.Dir(), "kubeconfig-stray"))
	without := func(args []string, flag string) []string {
		i := slices.Index(args, flag)
		return slices.Delete(slices.Clone(args), i, i+2)
	}
	for _, row := range []struct {
		name, token string
		args        []string
		want        []string
	}{
		{"another token", otherToken, good, []string{"token is not the one"}},
		{"no token", "", good, []string{"datastore-endpoint needs a token"}},
		{"name of a server that runs", sharedToken, append(slices.Clone(good), "--node-name", "two"),
			[]string{"node-name two", "--node-name"}},
		{"another backend", sharedToken, append(slices.Clone(good), "--network-backend", "host-gw"),
			[]string{"network-backend is host-gw here and vxlan there"}},
		{"another range", sharedToken, append(slices.Clone(good), "--service-cidr", "10.99.0.0/16"),
			[]string{"service-cidr", "10.99.0.0/16", "10.43.0.0/16"}},
		{"etcd not trusted", sharedToken, without(good, "--datastore-cafile"),
			[]string{"not trusted", "--datastore-cafile"}},
		{"etcd does not trust", sharedToken, without(without(good, "--datastore-certfile"), "--datastore-keyfile"),
			[]string{"does not accept", "--datastore-certfile"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			args := append([]string{"server"}, row.args...)
			if row.token != "" {
				args = append(args, "--token-file", stray.write(t, "servers-token", row.token))
			}
			said := stray.refused(t, args...)
			t.Log(said)
			for _, want := range row.want {
				if !strings.Contains(said, want) {
					t.Errorf("said %q, want %q in it", said, want)
				}
			}
			if row.token != "" && strings.Contains(said, row.token) {
				t.Errorf("said %q, which has the token in it", said)
			}
		})
	}
}

// testAgentOfSeveral joins an agent through the leader; it must know the others and be reached
// through each.
func testAgentOfSeveral(t *testing.T, s *several) {
	leader := s.mustLead(t, s.servers[0], "kube-controller-manager")
	token := strings.TrimSpace(leader.main.mote(t, "token", "create", "--kubeconfig", leader.kubeconfig, "--quiet",
		"--ttl", "10m"))
	s.agent.join(t, leader.cluster, "--server", "https://"+leader.main.Address()+":6443", "--token-file",
		s.agent.write(t, "token", token))
	s.agent.importImages(t)
	harness.Eventually(t, 30*time.Second, "the agent knows all servers", func(context.Context) error {
		kept, err := readFile(s.agent.Path(filepath.Join(dataDir(), "agent", "pki", "cluster.json")))
		if err != nil {
			return err
		}
		for _, server := range s.servers {
			if !strings.Contains(kept, server.main.Address()+":6443") {
				return fmt.Errorf("it does not know %s: %s", server.name(), kept)
			}
		}
		return nil
	})
	leader.apply(t, severalManifest)
	for _, server := range s.servers {
		server.said(t, s)
	}
}

// severalManifest runs on the agent: pods that are reached through the tunnel.
const severalManifest = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: before}
spec:
  replicas: 2
  selector: {matchLabels: {app: before}}
  template:
    metadata: {labels: {app: before}}
    spec:
      terminationGracePeriodSeconds: 1
      nodeName: worker
      containers:
      - name: main
        image: docker.io/library/busybox:1.36
        imagePullPolicy: IfNotPresent
        command: [sh, -c, "trap exit TERM; echo here I am; sleep 100000 & wait"]
`

// laterManifest is the same for after a leader was lost, with the scheduler's help.
var laterManifest = strings.NewReplacer("before", "later", "      nodeName: worker\n",
	"      nodeSelector: {kubernetes.io/hostname: worker}\n").Replace(severalManifest)

// said wants the agent's pods to run and to be heard through this server.
func (s *server) said(t *testing.T, all *several) {
	t.Helper()
	s.running(t, "before", 60*time.Second)
	harness.Eventually(t, 30*time.Second, "logs through "+s.name(), func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		out, err := s.try(ctx, "", "logs", "deploy/before")
		if err == nil && !strings.Contains(out, "here I am") {
			err = fmt.Errorf("said %q", out)
		}
		return err
	})
}

// running waits until both pods of a deployment are ready.
func (s *server) running(t *testing.T, app string, within time.Duration) []corev1.Pod {
	t.Helper()
	var pods []corev1.Pod
	harness.Eventually(t, within, "pods of "+app, func(ctx context.Context) (err error) {
		if pods, err = s.pods(ctx, "app="+app); err != nil {
			return err
		}
		ready := 0
		for _, p := range pods {
			if harness.PodReady(&p) == nil {
				ready++
			}
		}
		if len(pods) != 2 || ready != 2 {
			return fmt.Errorf("%d pods, %d ready", len(pods), ready)
		}
		return nil
	})
	return pods
}
