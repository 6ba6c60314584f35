package upstream

import (
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/version"
)

// Nodes show this version as that of their container runtime.
func TestNameContainerd_NoUnknownVersion(t *testing.T) {
	NameContainerd()
	if v := version.Version; !strings.HasPrefix(v, "2.") || strings.Contains(v, "unknown") {
		t.Errorf("containerd calls itself %q", v)
	}
}
