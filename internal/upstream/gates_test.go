package upstream

import (
	"strings"
	"testing"

	genericfeatures "k8s.io/apiserver/pkg/features"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/component-base/featuregate"
	"k8s.io/kubernetes/pkg/features"
)

func wantGate(t *testing.T, name featuregate.Feature, want bool) {
	t.Helper()
	if got := utilfeature.DefaultFeatureGate.Enabled(name); got != want {
		t.Errorf("feature gate %s is %v, want %v", name, got, want)
	}
}

// Feature gates belong to the process, so no test here runs in parallel.
func TestSetFeatureGates_LaterWins(t *testing.T) {
	const localhost = features.KubeProxyNFTablesLocalhostNodePorts
	set := func(own Gates, args ...Args) {
		t.Helper()
		if err := SetFeatureGates(own, args...); err != nil {
			t.Fatal(err)
		}
	}
	set(nil)
	wantGate(t, localhost, true)
	set(nil, Args{"kubelet-arg", []string{"--feature-gates=KubeProxyNFTablesLocalhostNodePorts=false"}})
	wantGate(t, localhost, false)
	// A default does not come back over what a user asked for.
	set(nil)
	wantGate(t, localhost, false)
	set(nil, Args{"kube-apiserver-arg", []string{"v=2", "feature-gates=kube:KubeProxyNFTablesLocalhostNodePorts=true"}})
	wantGate(t, localhost, true)

	// A single server after one of several, and the other way round.
	for _, several := range []bool{true, false, true} {
		set(ServerGates(several))
		wantGate(t, genericfeatures.APIServerIdentity, several)
		wantGate(t, genericfeatures.UnknownVersionInteroperabilityProxy, several)
	}
	set(ServerGates(false), Args{"kube-scheduler-arg", []string{"feature-gates=APIServerIdentity=true"}})
	wantGate(t, genericfeatures.APIServerIdentity, true)
}

func TestSetFeatureGates_RefusedIsForgotten(t *testing.T) {
	for _, bad := range []string{"feature-gates=NoSuchGate=true", "feature-gates=APIServerIdentity=maybe",
		"feature-gates=APIServerIdentity"} {
		err := SetFeatureGates(nil, Args{"kube-scheduler-arg", []string{bad}})
		if err == nil || !strings.Contains(err.Error(), "kube-scheduler-arg") || !strings.Contains(err.Error(), bad) {
			t.Errorf("error is %v, want one that names kube-scheduler-arg and %s", err, bad)
		}
		if err := SetFeatureGates(ServerGates(false)); err != nil {
			t.Errorf("after %s was refused: %v", bad, err)
		}
	}
}
