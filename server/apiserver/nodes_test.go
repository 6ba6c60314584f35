package apiserver

import (
	"context"
	"net"
	"testing"

	"k8s.io/apimachinery/pkg/runtime"
	genericapirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/storage"
	api "k8s.io/kubernetes/pkg/apis/core"
)

// oneNode is a storage that has one node.
type oneNode struct {
	storage.Interface
	node *api.Node
}

func (s oneNode) Get(_ context.Context, _ string, _ storage.GetOptions, into runtime.Object) error {
	*into.(*api.Node) = *s.node
	return nil
}

type hosts map[string]string

func (hosts) DialContext(context.Context, string, string) (net.Conn, error) {
	return nil, net.ErrClosed
}
func (h hosts) HostOf(node string) string { return h[node] }

func TestProxiedNodes_Get(t *testing.T) {
	node := &api.Node{}
	node.Name = "a"
	// Room behind the last one, as in a slice that others share.
	node.Status.Addresses = append(make([]api.NodeAddress, 0, 4), api.NodeAddress{Type: api.NodeHostName, Address: "a"})
	for _, row := range []struct {
		name  string
		info  *genericapirequest.RequestInfo
		hosts hosts
		want  int
	}{
		{"proxy", &genericapirequest.RequestInfo{Resource: "nodes", Subresource: "proxy"}, hosts{"a": "192.0.2.1"}, 2},
		{"proxy of a node without an address of its own",
			&genericapirequest.RequestInfo{Resource: "nodes", Subresource: "proxy"}, hosts{}, 1},
		{"the object", &genericapirequest.RequestInfo{Resource: "nodes"}, hosts{"a": "192.0.2.1"}, 1},
		{"logs", &genericapirequest.RequestInfo{Resource: "pods", Subresource: "log"}, hosts{"a": "192.0.2.1"}, 1},
		{"no request", nil, hosts{"a": "192.0.2.1"}, 1},
	} {
		t.Run(row.name, func(t *testing.T) {
			ctx := t.Context()
			if row.info != nil {
				ctx = genericapirequest.WithRequestInfo(ctx, row.info)
			}
			var got api.Node
			if err := (proxiedNodes{Interface: oneNode{node: node}, network: row.hosts}).Get(ctx, "/minions/a",
				storage.GetOptions{}, &got); err != nil {
				t.Fatal(err)
			}
			if len(got.Status.Addresses) != row.want {
				t.Errorf("addresses are %v", got.Status.Addresses)
			}
			if first := got.Status.Addresses[0]; row.want == 2 &&
				(first.Type != proxyHost || first.Address != "192.0.2.1") {
				t.Errorf("the first address is %v", first)
			}
			if len(node.Status.Addresses) != 1 || node.Status.Addresses[:2][1].Type != "" {
				t.Error("the stored node has changed")
			}
		})
	}
}
