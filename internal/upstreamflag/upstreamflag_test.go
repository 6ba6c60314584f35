package upstreamflag

import (
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func TestApply_LastWinsAndFaultsAreNamed(t *testing.T) {
	flags := pflag.NewFlagSet("kubelet", pflag.ContinueOnError)
	pods := flags.Int("max-pods", 110, "")
	args := []string{"max-pods=20", "--max-pods=30"}
	if err := Apply(flags, "kubelet-arg", args); err != nil || *pods != 30 {
		t.Errorf("max-pods is %d, %v; want 30", *pods, err)
	}
	if v := Value(args, "max-pods", "110"); v != "30" {
		t.Errorf("value is %s, want 30", v)
	}
	if v := Value(args, "port", "10250"); v != "10250" {
		t.Errorf("value is %s, want the default", v)
	}
	for _, bad := range []string{"max-pods=many", "no-such-flag=1"} {
		if err := Apply(flags, "kubelet-arg", []string{bad}); err == nil ||
			!strings.Contains(err.Error(), `kubelet-arg "`+bad+`"`) {
			t.Errorf("%s: error is %v, want one that names it", bad, err)
		}
	}
}

func TestUnused_Refuse(t *testing.T) {
	logs := pflag.NewFlagSet("logs", pflag.ContinueOnError)
	logs.Int("v", 0, "")
	logs.String("vmodule", "", "")
	u := Unused{}
	u.AddSection(logs, "mote has one log: set --debug")
	u.Add("profiling", "there is no port for it", "false")
	err := u.Refuse("kubelet-arg", []string{"max-pods=7", "--v=4", "profiling=false", "profiling=true", "vmodule="})
	if err == nil {
		t.Fatal("nothing is refused")
	}
	want := `kubelet-arg "--v=4" has no effect in mote: remove it: mote has one log: set --debug
kubelet-arg "profiling=true" has no effect in mote: remove it: there is no port for it
kubelet-arg "vmodule=" has no effect in mote: remove it: mote has one log: set --debug`
	if err.Error() != want {
		t.Errorf("error is\n%v, want\n%s", err, want)
	}
}
