package joinapi

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/mote-dev/mote/internal/clusterconfig"
)

// What nodes of other versions read and have stored must keep its form.
func TestCluster_JSON_KeepsItsForm(t *testing.T) {
	c := Cluster{
		CA:                []byte("ca"),
		Servers:           []string{"192.0.2.1:6443"},
		Config:            clusterconfig.Config{Disable: []string{"dns"}}.WithDefaults(),
		MoteVersion:       "v1",
		KubernetesVersion: "v1.37.2",
		Time:              time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	}
	const want = `{"ca":"Y2E=","servers":["192.0.2.1:6443"],` +
		`"clusterCIDRs":["10.42.0.0/16"],"serviceCIDRs":["10.43.0.0/16"],"clusterDNS":["10.43.0.10"],` +
		`"clusterDomain":"cluster.local","networkBackend":"vxlan","disable":["dns"],` +
		`"moteVersion":"v1","kubernetesVersion":"v1.37.2","time":"2026-01-02T03:04:05Z"}`
	got, err := json.Marshal(c)
	if err != nil || string(got) != want {
		t.Errorf("written as\n%s, %v; want\n%s", got, err, want)
	}
	var back Cluster
	if err := json.Unmarshal([]byte(want), &back); err != nil ||
		clusterconfig.Join(back.ClusterCIDRs) != "10.42.0.0/16" {
		t.Errorf("read as %+v, %v", back, err)
	}
	if err := json.Unmarshal([]byte(`{"clusterDNS":["resolver"]}`), &back); err == nil {
		t.Error("a name is read as an address")
	}
}
