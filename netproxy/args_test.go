package netproxy

import (
	"reflect"
	"strings"
	"testing"
)

func TestParseArgs(t *testing.T) {
	for _, row := range []struct {
		name string
		args []string
		want Args
		bad  []string
	}{
		{name: "none", want: Args{HealthzAddress: "0.0.0.0:10256", MetricsAddress: "127.0.0.1:10249"}},
		{
			name: "all", args: []string{"proxy-mode=iptables", "--nodeport-addresses=192.168.1.0/24,fd00::/8",
				"healthz-bind-address=", "metrics-bind-address=0.0.0.0"},
			want: Args{Mode: "iptables", NodePortAddresses: []string{"192.168.1.0/24", "fd00::/8"},
				MetricsAddress: "0.0.0.0:10249"},
		},
		{
			name: "the last wins", args: []string{"metrics-bind-address=0.0.0.0:1", "metrics-bind-address=[::1]:2"},
			want: Args{HealthzAddress: "0.0.0.0:10256", MetricsAddress: "[::1]:2"},
		},
		{
			name: "faults", args: []string{"proxy-mode=ipvs", "nodeport-addresses=primary", "healthz-bind-address=here",
				"cluster-cidr=10.0.0.0/8"},
			bad: []string{`"proxy-mode=ipvs"`, `"primary" is no range`, `"healthz-bind-address=here"`,
				`"cluster-cidr=10.0.0.0/8" is not supported`},
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			got, err := ParseArgs(row.args)
			if row.bad == nil {
				if err != nil || !reflect.DeepEqual(got, row.want) {
					t.Errorf("%+v, %v; want %+v", got, err, row.want)
				}
				return
			}
			for _, want := range row.bad {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("error is %v, want %s in it", err, want)
				}
			}
		})
	}
}
