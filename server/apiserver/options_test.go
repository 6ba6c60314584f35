package apiserver

import (
	"errors"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/mote-dev/mote/server/nodeclaims"
	"github.com/mote-dev/mote/server/pki"
)

// What holds nodes to what is theirs stays on, whatever plugins the user enables, and is not
// disabled.
func TestNewOptions_NodesAreBounded(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	bounds := []string{"NodeRestriction", nodeclaims.PluginName}
	for _, args := range [][]string{nil, {"enable-admission-plugins=PodNodeSelector"},
		{"enable-admission-plugins=NodeRestriction"}, {"disable-admission-plugins=PodSecurity"}} {
		o, err := newOptions(Config{PKI: &pki.Set{}, Listener: listener, ExtraArgs: args})
		if err != nil {
			t.Fatal(err)
		}
		admission := o.Admission.GenericAdmission
		for _, name := range bounds {
			if !slices.Contains(admission.EnablePlugins, name) ||
				!slices.Contains(admission.RecommendedPluginOrder, name) {
				t.Errorf("with %v %s is not among %v", args, name, admission.EnablePlugins)
			}
		}
		if err := errors.Join(admission.Validate()...); err != nil {
			t.Errorf("with %v: %v", args, err)
		}
	}
	for _, name := range bounds {
		o, err := newOptions(Config{PKI: &pki.Set{}, Listener: listener,
			ExtraArgs: []string{"disable-admission-plugins=" + name}})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(o.Admission.Validate()...); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s is disabled: %v", name, err)
		}
	}
}
