package join

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/mote-dev/mote/server/revocation"
)

// ErrServerNode means that a node is a server's own and cannot be forgotten.
var ErrServerNode = errors.New("it is a server's own node")

// NodeInfo describes a node and how it joined.
type NodeInfo struct {
	Name string `json:"name"`
	// Kind is KindServer or KindAgent; empty if the name is bound to no machine.
	Kind string `json:"kind"`
	// Status is "Ready", "NotReady", or "Unregistered" for a machine that has joined and whose
	// kubelet has not registered yet.
	Status  string    `json:"status"`
	Version string    `json:"version,omitempty"`
	Address string    `json:"address,omitempty"`
	Since   time.Time `json:"since"`
}

// ListNodes returns all nodes and all names that machines have joined under.
func ListNodes(ctx context.Context, client kubernetes.Interface) ([]NodeInfo, error) {
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	bindings, err := client.CoreV1().Secrets(metav1.NamespaceSystem).List(ctx,
		metav1.ListOptions{LabelSelector: bindingLabel})
	if err != nil {
		return nil, fmt.Errorf("list names of nodes: %w", err)
	}
	found := map[string]NodeInfo{}
	for i := range bindings.Items {
		b := &bindings.Items[i]
		if name, ok := strings.CutSuffix(b.Name, bindingSuffix); ok {
			found[name] = NodeInfo{
				Name:   name,
				Kind:   b.Labels[bindingLabel],
				Status: "Unregistered",
				Since:  b.CreationTimestamp.Time,
			}
		}
	}
	for i := range nodes.Items {
		n := &nodes.Items[i]
		info := NodeInfo{
			Name:    n.Name,
			Kind:    found[n.Name].Kind,
			Status:  "NotReady",
			Version: n.Status.NodeInfo.KubeletVersion,
			Since:   n.CreationTimestamp.Time,
		}
		for _, c := range n.Status.Conditions {
			if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
				info.Status = "Ready"
			}
		}
		for _, a := range n.Status.Addresses {
			if a.Type == corev1.NodeInternalIP && info.Address == "" {
				info.Address = a.Address
			}
		}
		found[n.Name] = info
	}
	list := make([]NodeInfo, 0, len(found))
	for _, info := range found {
		// A server without a node has only its name reserved.
		if info.Kind == KindServer && info.Status == "Unregistered" {
			continue
		}
		list = append(list, info)
	}
	slices.SortFunc(list, func(a, b NodeInfo) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// ForgetNode removes a node's objects, so that another machine can join under its name, and revokes
// all certificates it has had until now. It reports whether there was anything to remove, and is
// safe to repeat.
func ForgetNode(ctx context.Context, client kubernetes.Interface, name string, now time.Time) (bool, error) {
	secrets := client.CoreV1().Secrets(metav1.NamespaceSystem)
	binding, err := secrets.Get(ctx, bindingName(name), metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return false, fmt.Errorf("read name of node %s: %w", name, err)
	}
	if err == nil && binding.Labels[bindingLabel] == KindServer {
		return false, fmt.Errorf("forget node %s: %w", name, ErrServerNode)
	}
	bound := err == nil
	_, err = client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return false, fmt.Errorf("read node %s: %w", name, err)
	}
	there := bound || err == nil
	// First, or a kubelet that is still running would create its Node again.
	if err := revokeForgotten(ctx, client, name, there, now); err != nil {
		return false, err
	}
	for _, step := range []struct {
		what   string
		remove func() error
	}{
		{"node", func() error { return client.CoreV1().Nodes().Delete(ctx, name, metav1.DeleteOptions{}) }},
		{"lease of node", func() error {
			return client.CoordinationV1().Leases(corev1.NamespaceNodeLease).Delete(ctx, name, metav1.DeleteOptions{})
		}},
		// Last: until then the name stays taken.
		{"name of node", func() error { return secrets.Delete(ctx, bindingName(name), metav1.DeleteOptions{}) }},
	} {
		if err := step.remove(); err != nil && !apierrors.IsNotFound(err) {
			return there, fmt.Errorf("remove %s %s: %w", step.what, name, err)
		}
	}
	return there, nil
}

func revokeForgotten(ctx context.Context, client kubernetes.Interface, name string, there bool, now time.Time) error {
	if !there {
		// Perhaps it was revoked, and then removed by other means.
		if _, err := revocation.Readmit(ctx, client, name); err != nil {
			return fmt.Errorf("let node %s join again: %w", name, err)
		}
		return nil
	}
	// Times on the wire and in certificates have whole seconds.
	entry := revocation.ForUser(revocation.NodeUser(name), now.Add(time.Second))
	entry.MayReturn, entry.Reason, entry.Time = true, "the node was forgotten", now.UTC().Truncate(time.Second)
	if err := revocation.Add(ctx, client, entry); err != nil {
		return fmt.Errorf("revoke certificates of node %s: %w", name, err)
	}
	return nil
}
