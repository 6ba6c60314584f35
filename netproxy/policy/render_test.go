package policy

import (
	"flag"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/mote-dev/mote/netproxy/nfttool"
)

var update = flag.Bool("update", false, "write testdata anew")

func pod(ns, name, labels string, local bool, ips ...string) Pod {
	p := Pod{
		Namespace: ns,
		Name:      name,
		Local:     local,
		Labels:    make(map[string]string),
	}
	for _, each := range strings.Fields(labels) {
		k, v, _ := strings.Cut(each, "=")
		p.Labels[k] = v
	}
	for _, ip := range ips {
		p.IPs = append(p.IPs, netip.MustParseAddr(ip))
	}
	return p
}

// testState is two namespaces with pods on two nodes.
func testState(t *testing.T, policies string) State {
	t.Helper()
	s := State{
		Namespaces: map[string]map[string]string{"default": {"kubernetes.io/metadata.name": "default"},
			"other": {"team": "blue"}},
		Pods: []Pod{
			pod("default", "web-1", "app=web", true, "10.42.0.2", "fd00:42::2"),
			pod("default", "web-2", "app=web", false, "10.42.1.2", "fd00:42:1::2"),
			pod("default", "db", "app=db", true, "10.42.0.3"),
			pod("default", "client", "role=client", true, "10.42.0.4"),
			pod("other", "client", "role=client", false, "10.42.1.4"),
			pod("other", "web", "app=web", true, "10.42.0.5"),
		},
	}
	s.Pods[0].Ports = []Port{{"http", corev1.ProtocolTCP, 8080}}
	s.Pods[1].Ports = []Port{{"http", corev1.ProtocolTCP, 8081}}
	s.Pods[2].Ports = []Port{{"sql", corev1.ProtocolTCP, 5432}}
	for _, text := range strings.Split(policies, "---\n") {
		if strings.TrimSpace(text) == "" {
			continue
		}
		p := &networking.NetworkPolicy{}
		if err := yaml.UnmarshalStrict([]byte(text), p); err != nil {
			t.Fatal(err)
		}
		s.Policies = append(s.Policies, p)
	}
	return s
}

// TestRender reads policies from testdata/NAME.yaml and compares with NAME.nft.
func TestRender(t *testing.T) {
	inputs, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(inputs) == 0 {
		t.Fatalf("no inputs: %v", err)
	}
	for _, input := range inputs {
		name := strings.TrimSuffix(filepath.Base(input), ".yaml")
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(input)
			if err != nil {
				t.Fatal(err)
			}
			got, err := Render(testState(t, string(text)))
			if err != nil {
				t.Fatal(err)
			}
			if got != "" {
				got = (&nfttool.Table{Name: Table}).Script(got)
			}
			path := filepath.Join("testdata", name+".nft")
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
			if _, err := exec.LookPath("nft"); err != nil || os.Getuid() != 0 {
				return
			}
			if out, err := exec.Command("nft", "-c", "-f", path).CombinedOutput(); err != nil {
				t.Errorf("nft does not take it: %v\n%s", err, out)
			}
		})
	}
}

func TestRender_OrderDoesNotMatter(t *testing.T) {
	text, err := os.ReadFile("testdata/peers.yaml")
	if err != nil {
		t.Fatal(err)
	}
	a, b := testState(t, string(text)), testState(t, string(text))
	for i, j := 0, len(b.Pods)-1; i < j; i, j = i+1, j-1 {
		b.Pods[i], b.Pods[j] = b.Pods[j], b.Pods[i]
	}
	for i, j := 0, len(b.Policies)-1; i < j; i, j = i+1, j-1 {
		b.Policies[i], b.Policies[j] = b.Policies[j], b.Policies[i]
	}
	first, _ := Render(a)
	second, _ := Render(b)
	if first != second {
		t.Errorf("rules differ:\n%s\n%s", first, second)
	}
}

func TestRender_FaultyPolicyForbids(t *testing.T) {
	s := testState(t, `
metadata: {name: bad, namespace: default}
spec:
  podSelector: {}
  ingress: [{from: [{ipBlock: {cidr: nonsense}}]}]
`)
	got, err := Render(s)
	if err == nil || !strings.Contains(err.Error(), "default/bad") {
		t.Errorf("error is %v", err)
	}
	if !strings.Contains(got, "10.42.0.2 : goto") || strings.Contains(got, "saddr 0.0.0.0") {
		t.Errorf("rules:\n%s", got)
	}
}

func TestRender_AddressGivenToAnother(t *testing.T) {
	s := testState(t, `
metadata: {name: only-old, namespace: default}
spec: {podSelector: {matchLabels: {app: old}}, policyTypes: [Ingress]}
---
metadata: {name: only-db, namespace: default}
spec: {podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress]}
`)
	// One leaving pod has the address of a pod another policy selects, and one that of a pod none
	// selects.
	first, second := pod("default", "a", "app=old", true, "10.42.0.3"),
		pod("default", "b", "app=old", true, "10.42.0.4")
	first.Leaving, second.Leaving = true, true
	s.Pods = append(s.Pods, first, second)
	got, err := Render(s)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(got, "10.42.0.3 : goto") != 1 || strings.Contains(got, "10.42.0.4 : goto") {
		t.Errorf("rules:\n%s", got)
	}
}

func TestPodFrom(t *testing.T) {
	base := func() *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "p"},
			Spec: corev1.PodSpec{NodeName: "n1",
				Containers: []corev1.Container{
					{Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 80}, {ContainerPort: 81}}}}},
			Status: corev1.PodStatus{PodIP: "10.42.0.2",
				PodIPs: []corev1.PodIP{{IP: "10.42.0.2"}, {IP: "fd00::2"}}},
		}
	}
	got, ok := podFrom(base(), "n1")
	if !ok || !got.Local || len(got.IPs) != 2 || len(got.Ports) != 1 ||
		got.Ports[0] != (Port{"http", corev1.ProtocolTCP, 80}) {
		t.Errorf("pod: %+v, %v", got, ok)
	}
	if got, _ := podFrom(base(), "n2"); got.Local {
		t.Error("another node's pod counts as local")
	}
	for name, spoil := range map[string]func(*corev1.Pod){
		"host network": func(p *corev1.Pod) { p.Spec.HostNetwork = true },
		"finished":     func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded },
		"failed":       func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed },
		"no address":   func(p *corev1.Pod) { p.Status = corev1.PodStatus{} },
	} {
		p := base()
		spoil(p)
		if _, ok := podFrom(p, "n1"); ok {
			t.Errorf("%s: counts", name)
		}
	}
}
