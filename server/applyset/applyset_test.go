package applyset

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
)

// memory is an API that holds objects by resource, namespace and name, and keeps what was sent.
type memory struct {
	objects map[string]*unstructured.Unstructured
	refuse  string // the name of an object that cannot be applied
}

// at is one resource of memory in one namespace.
type at struct {
	dynamic.NamespaceableResourceInterface
	memory    *memory
	resource  schema.GroupVersionResource
	namespace string
}

func (m *memory) Resource(r schema.GroupVersionResource) dynamic.NamespaceableResourceInterface {
	return at{memory: m, resource: r}
}

func (a at) Namespace(n string) dynamic.ResourceInterface { a.namespace = n; return a }

func (a at) key(name string) string { return a.resource.Resource + "/" + a.namespace + "/" + name }

func (a at) Get(_ context.Context, name string, _ metav1.GetOptions, _ ...string) (*unstructured.Unstructured, error) {
	if u, ok := a.memory.objects[a.key(name)]; ok {
		return u.DeepCopy(), nil
	}
	return nil, apierrors.NewNotFound(a.resource.GroupResource(), name)
}

func (a at) Patch(_ context.Context, name string, t types.PatchType, data []byte, o metav1.PatchOptions,
	_ ...string) (*unstructured.Unstructured, error) {
	if t != types.ApplyPatchType || o.FieldManager != "mote" || o.Force == nil || !*o.Force {
		return nil, errors.New("not a forced server-side apply")
	}
	if name == a.memory.refuse {
		return nil, errors.New("quota exceeded")
	}
	u := &unstructured.Unstructured{}
	if err := json.Unmarshal(data, &u.Object); err != nil {
		return nil, err
	}
	u.SetUID(types.UID(a.key(name)))
	a.memory.objects[a.key(name)] = u
	return u, nil
}

func (a at) List(_ context.Context, o metav1.ListOptions) (*unstructured.UnstructuredList, error) {
	selector, err := labels.Parse(o.LabelSelector)
	if err != nil {
		return nil, err
	}
	out := &unstructured.UnstructuredList{}
	for key, u := range a.memory.objects {
		if strings.HasPrefix(key, a.resource.Resource+"/") && selector.Matches(labels.Set(u.GetLabels())) {
			out.Items = append(out.Items, *u)
		}
	}
	return out, nil
}

func (a at) Delete(_ context.Context, name string, o metav1.DeleteOptions, _ ...string) error {
	if u := a.memory.objects[a.key(name)]; u == nil || o.Preconditions == nil || *o.Preconditions.UID != u.GetUID() {
		return errors.New("deleted without its UID")
	}
	delete(a.memory.objects, a.key(name))
	return nil
}

func (m *memory) names() []string {
	var out []string
	for key := range m.objects {
		out = append(out, key)
	}
	slices.Sort(out)
	return out
}

func fixture() (*memory, Applier) {
	m := &memory{objects: map[string]*unstructured.Unstructured{}}
	mapper := meta.NewDefaultRESTMapper([]schema.GroupVersion{corev1.SchemeGroupVersion, rbacv1.SchemeGroupVersion})
	mapper.Add(corev1.SchemeGroupVersion.WithKind("ConfigMap"), meta.RESTScopeNamespace)
	mapper.Add(corev1.SchemeGroupVersion.WithKind("Service"), meta.RESTScopeNamespace)
	mapper.Add(rbacv1.SchemeGroupVersion.WithKind("ClusterRole"), meta.RESTScopeRoot)
	return m, Applier{Client: m, Mapper: mapper, Manager: "mote"}
}

func role(name string) runtime.Object {
	return &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

func service(name string) runtime.Object {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "kube-system"}}
}

func apply(t *testing.T, a Applier, objects ...runtime.Object) {
	t.Helper()
	if err := a.Apply(t.Context(), "kube-system", "set", objects); err != nil {
		t.Fatal(err)
	}
}

func TestApplier_Apply_RemovesWhatTheSetLost(t *testing.T) {
	m, a := fixture()
	apply(t, a, role("a"), role("b"), service("dns"))
	want := []string{"clusterroles//a", "clusterroles//b", "configmaps/kube-system/set", "services/kube-system/dns"}
	if got := m.names(); !slices.Equal(got, want) {
		t.Fatalf("there are %q, want %q", got, want)
	}
	// Another set's, and one of a user's.
	m.objects["clusterroles//other"] = &unstructured.Unstructured{
		Object: map[string]any{"metadata": map[string]any{"labels": map[string]any{labelPartOf: "applyset-x-v1"}}}}
	m.objects["clusterroles//user"] = &unstructured.Unstructured{Object: map[string]any{}}
	apply(t, a, role("b"))
	want = []string{"clusterroles//b", "clusterroles//other", "clusterroles//user", "configmaps/kube-system/set"}
	if got := m.names(); !slices.Equal(got, want) {
		t.Errorf("there are %q, want %q", got, want)
	}
	parent := m.objects["configmaps/kube-system/set"]
	if got := parent.GetAnnotations()[annotationKind]; got != "ClusterRole.rbac.authorization.k8s.io" {
		t.Errorf("the record has kinds %q", got)
	}
}

func TestApplier_Apply_AFailureRemovesNothingAndIsMadeUpFor(t *testing.T) {
	m, a := fixture()
	apply(t, a, role("a"), service("dns"))
	m.refuse = "b"
	err := a.Apply(t.Context(), "kube-system", "set", []runtime.Object{role("b")})
	if err == nil || err.Error() != "apply ClusterRole b: quota exceeded" {
		t.Errorf("got %v", err)
	}
	if m.objects["services/kube-system/dns"] == nil || m.objects["clusterroles//a"] == nil {
		t.Errorf("removed before all was applied: %q", m.names())
	}
	m.refuse = ""
	apply(t, a, role("b"))
	if got, want := m.names(), []string{"clusterroles//b", "configmaps/kube-system/set"}; !slices.Equal(got, want) {
		t.Errorf("there are %q, want %q", got, want)
	}
}

func TestApplier_Apply_LeavesOthersSetsAlone(t *testing.T) {
	m, a := fixture()
	m.objects["configmaps/kube-system/set"] = &unstructured.Unstructured{Object: map[string]any{}}
	if err := a.Apply(t.Context(), "kube-system", "set", []runtime.Object{role("a")}); err == nil ||
		!strings.Contains(err.Error(), "is not mote's") {
		t.Errorf("a ConfigMap of somebody else is taken over: %v", err)
	}
	if len(m.objects) != 1 {
		t.Errorf("objects were applied: %q", m.names())
	}
}

func TestApplier_Apply_AKindItAppliedMustBePrunable(t *testing.T) {
	m, a := fixture()
	apply(t, a, role("a"))
	// This mapper knows each kind of a version, and none without one.
	mapper := meta.NewDefaultRESTMapper(nil)
	mapper.Add(corev1.SchemeGroupVersion.WithKind("ConfigMap"), meta.RESTScopeNamespace)
	mapper.Add(rbacv1.SchemeGroupVersion.WithKind("ClusterRole"), meta.RESTScopeRoot)
	a.Mapper = mapper
	err := a.Apply(t.Context(), "kube-system", "set", []runtime.Object{role("b")})
	if !meta.IsNoMatchError(err) {
		t.Errorf("got %v with %q left; want that the kind is not found", err, m.names())
	}
}

func TestApplier_Apply_AKindTheAPIDroppedIsNoError(t *testing.T) {
	_, a := fixture()
	apply(t, a, role("a"), service("dns"))
	mapper := meta.NewDefaultRESTMapper([]schema.GroupVersion{corev1.SchemeGroupVersion})
	mapper.Add(corev1.SchemeGroupVersion.WithKind("ConfigMap"), meta.RESTScopeNamespace)
	mapper.Add(corev1.SchemeGroupVersion.WithKind("Service"), meta.RESTScopeNamespace)
	a.Mapper = mapper
	apply(t, a, service("dns"))
}

func TestConvert_DeclaresOnlyWhatIsMeant(t *testing.T) {
	u, err := convert(service("dns"))
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(u)
	const want = `{"apiVersion":"v1","kind":"Service","metadata":{"name":"dns","namespace":"kube-system"},"spec":{}}`
	if err != nil || string(data) != want {
		t.Errorf("declared is %s, %v; want %s", data, err, want)
	}
}
