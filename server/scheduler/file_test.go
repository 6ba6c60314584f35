package scheduler

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// No flag and no field of the file is accepted and then without effect.
func TestRun_WithoutEffect_IsRefused(t *testing.T) {
	file := func(name, content string) string {
		path := filepath.Join(t.TempDir(), name)
		content = "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n" + content
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return "config=" + path
	}
	for _, row := range []struct {
		arg  string
		want []string
	}{
		{"v=4", []string{`kube-scheduler-arg "v=4"`, "--debug"}},
		{"--bind-address=0.0.0.0", []string{"bind-address", "in the server's process"}},
		{"leader-elect=true", []string{"leader-elect", "etcd"}},
		{"kubeconfig=/k", []string{"kubeconfig"}},
		{"authentication-kubeconfig=/k", []string{"authentication-kubeconfig"}},
		{"write-config-to=/k", []string{"write-config-to"}},
		{"profiling=true", []string{"profiling"}},
		{"config=/nowhere/scheduler.yaml", []string{"kube-scheduler-arg", "/nowhere/scheduler.yaml"}},
		{file("a", "clientConnection: {kubeconfig: /k}\nleaderElection: {leaderElect: true}\n"),
			[]string{"clientConnection", "leaderElection", "remove it"}},
		{file("b", "enableProfiling: true\n"), []string{"enableProfiling"}},
		{file("c", "paralellism: 3\n"), []string{"paralellism"}},
		{file("d", "kind: Pod\n"), []string{"Pod"}},
	} {
		err := Run(t.Context(), newConfig(t, row.arg))
		if err == nil {
			t.Errorf("%s is accepted", row.arg)
			continue
		}
		for _, want := range row.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q in it", row.arg, err, want)
			}
		}
	}
}
