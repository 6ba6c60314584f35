package controllers

import (
	"strings"
	"testing"
)

// No flag is accepted and then without effect.
func TestRun_WithoutEffect_IsRefused(t *testing.T) {
	for arg, want := range map[string]string{
		"v=4":                          "--debug",
		"--secure-port=10257":          "in the server's process",
		"bind-address=0.0.0.0":         "in the server's process",
		"leader-elect=true":            "etcd",
		"leader-elect-retry-period=2s": "etcd",
		"kubeconfig=/k":                "in the server's process",
		"kube-api-qps=5":               "in the server's process",
		"profiling=true":               "in the server's process",
		"enable-leader-migration=true": "etcd",
		"min-resync-period=1h":         "informers",
	} {
		err := Run(t.Context(), newConfig(t, arg))
		if err == nil || !strings.Contains(err.Error(), want) ||
			!strings.Contains(err.Error(), `kube-controller-manager-arg "`+arg) {
			t.Errorf("%s: %v, want it refused with %q", arg, err, want)
		}
	}
}
