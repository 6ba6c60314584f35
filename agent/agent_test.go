package agent

import (
	"context"
	"errors"
	"strings"
	"testing"

	"go.uber.org/zap"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/kubernetes/pkg/features"
)

func newAgent(t *testing.T, kubeletArgs ...string) error {
	t.Helper()
	_, err := New(Config{
		DataDir:     t.TempDir(),
		NodeName:    "n1",
		KubeletArgs: kubeletArgs,
		Logger:      zap.NewNop(),
	}, func(context.Context) (Connection, error) { return Connection{}, errors.New("no server") }, nil)
	return err
}

// A machine without a server serves NodePorts on localhost as one with a server does. Feature gates
// belong to the process, and nothing of a server runs in this one.
func TestNew_WithoutServer_HasTheGatesOfServers(t *testing.T) {
	if err := newAgent(t); err != nil {
		t.Fatal(err)
	}
	if !utilfeature.DefaultFeatureGate.Enabled(features.KubeProxyNFTablesLocalhostNodePorts) {
		t.Error("NodePorts would not answer on localhost")
	}
}

func TestNew_UnknownFeatureGate_NamesTheArgument(t *testing.T) {
	err := newAgent(t, "feature-gates=NoSuchGate=true")
	if err == nil || !strings.Contains(err.Error(), `kubelet-arg "feature-gates=NoSuchGate=true"`) {
		t.Errorf("error is %v, want one that names the argument", err)
	}
	if err := newAgent(t); err != nil {
		t.Errorf("after a refused gate: %v", err)
	}
}
