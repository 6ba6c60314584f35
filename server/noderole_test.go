package server

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// The node of the server is a control plane's from the moment it registers, also when it registers
// again or somebody removes the label. Other nodes, among them those of other servers, keep what
// they have.
func TestServer_OwnNode_HasTheRoleOfControlPlanes(t *testing.T) {
	quietKlog(t)
	i := startInstance(t, t.TempDir())
	defer i.end(t)
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	const own = "n1" // of startInstance
	nodes := i.client.CoreV1().Nodes()
	labelled := func(what string) {
		t.Helper()
		err := wait.PollUntilContextCancel(ctx, 20*time.Millisecond, true, func(ctx context.Context) (bool, error) {
			n, err := nodes.Get(ctx, own, metav1.GetOptions{})
			if err != nil {
				return false, err
			}
			value, has := n.Labels[controlPlaneLabel]
			return has && value == "", nil
		})
		if err != nil {
			t.Fatalf("%s: the label is not there: %v", what, err)
		}
	}
	for _, name := range []string{"plain", "labelled", own} {
		if err := i.registerNode(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := nodes.Patch(ctx, "labelled", types.MergePatchType, controlPlanePatch,
		metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	labelled("registered")
	remove := []byte(`{"metadata":{"labels":{"` + controlPlaneLabel + `":null}}}`)
	if _, err := nodes.Patch(ctx, own, types.MergePatchType, remove, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	labelled("removed")
	if err := nodes.Delete(ctx, own, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := i.registerNode(ctx, own); err != nil {
		t.Fatal(err)
	}
	labelled("registered again")
	for name, want := range map[string]bool{"plain": false, "labelled": true} {
		n, err := nodes.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if _, has := n.Labels[controlPlaneLabel]; has != want {
			t.Errorf("node %s has labels %v", name, n.Labels)
		}
	}
}

// Controllers, scheduler and store are well: in a list, one by one, and in kubectl's table.
func TestServer_ComponentStatuses_OfThisProcess(t *testing.T) {
	quietKlog(t)
	i := startInstance(t, t.TempDir())
	defer i.end(t)
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	statuses := i.client.CoreV1().ComponentStatuses()
	wellSoon := func(what string, look func(ctx context.Context) (string, error)) {
		t.Helper()
		var last string
		// The parts start a moment after the server is ready.
		err := wait.PollUntilContextCancel(ctx, 20*time.Millisecond, true,
			func(ctx context.Context) (_ bool, err error) {
				last, err = look(ctx)
				return last == "", err
			})
		if err != nil {
			t.Fatalf("%s: %s, %v", what, last, err)
		}
	}
	names := []string{"controller-manager", "scheduler", "etcd-0"}
	well := func(c corev1.ComponentStatus) bool {
		return slices.ContainsFunc(c.Conditions, func(c corev1.ComponentCondition) bool {
			return c.Type == corev1.ComponentHealthy && c.Status == corev1.ConditionTrue && c.Message == "ok"
		})
	}
	wellSoon("list", func(ctx context.Context) (string, error) {
		list, err := statuses.List(ctx, metav1.ListOptions{})
		if err != nil {
			return "", err
		}
		if len(list.Items) != len(names) || slices.ContainsFunc(list.Items,
			func(c corev1.ComponentStatus) bool { return !well(c) }) {
			return fmt.Sprint(list.Items), nil
		}
		return "", nil
	})
	for _, name := range names {
		wellSoon(name, func(ctx context.Context) (string, error) {
			one, err := statuses.Get(ctx, name, metav1.GetOptions{})
			if err != nil || well(*one) {
				return "", err
			}
			return fmt.Sprint(one), nil
		})
	}
	var table metav1.Table
	data, err := i.client.CoreV1().RESTClient().Get().AbsPath("/api/v1/componentstatuses").
		SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io").DoRaw(ctx)
	if err == nil {
		err = json.Unmarshal(data, &table)
	}
	if err != nil || table.Kind != "Table" || len(table.Rows) != len(names) ||
		!slices.Contains(table.Rows[0].Cells, any("Healthy")) {
		t.Errorf("kubectl gets %s, %v", data, err)
	}
	if _, err := statuses.Get(ctx, "none", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("an unknown component: %v, want that there is none", err)
	}
	// Reading them needs a right, as before.
	anonymous := rest.AnonymousClientConfig(i.rest)
	nobody, err := kubernetes.NewForConfig(anonymous)
	if err != nil {
		t.Fatal(err)
	}
	_, err = nobody.CoreV1().ComponentStatuses().List(ctx, metav1.ListOptions{})
	if !apierrors.IsForbidden(err) && !apierrors.IsUnauthorized(err) {
		t.Errorf("an anonymous list: %v, want that it is refused", err)
	}
}
