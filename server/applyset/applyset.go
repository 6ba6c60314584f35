package applyset

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes/scheme"
)

// Labels and annotations of ApplySets, as KEP-3659 has them.
const (
	labelID        = "applyset.kubernetes.io/id"
	labelPartOf    = "applyset.kubernetes.io/part-of"
	annotationTool = "applyset.kubernetes.io/tooling"
	annotationKind = "applyset.kubernetes.io/contains-group-kinds"
)

// tooling names who may change a set: other tools refuse one that is not theirs.
const tooling = "mote/v1"

// Applier applies sets of objects.
type Applier struct {
	// Client writes the objects.
	Client dynamic.Interface
	// Mapper knows the resources of all kinds that sets contain or contained.
	Mapper meta.RESTMapper
	// Manager is the field manager that owns what the sets declare.
	Manager string
}

// Apply makes the cluster hold the objects of a set. name is that of the ConfigMap in namespace
// that records the set. Fields that an object does not declare are left alone; those it declares
// are taken over from whoever set them. Objects of the set before are removed at the end, so a
// failure on the way removes nothing. Errors name the object.
func (a *Applier) Apply(ctx context.Context, namespace, name string, objects []runtime.Object) error {
	id := setID(namespace, name)
	members := make([]*unstructured.Unstructured, len(objects))
	kinds := map[schema.GroupKind]bool{}
	for i, o := range objects {
		u, err := convert(o)
		if err != nil {
			return err
		}
		u.SetLabels(with(u.GetLabels(), labelPartOf, id))
		members[i], kinds[u.GroupVersionKind().GroupKind()] = u, true
	}
	before, err := a.kinds(ctx, namespace, name)
	if err != nil {
		return err
	}
	// Until the old objects are gone the record has the kinds of both versions: a set that is cut
	// short must not forget what it has to remove.
	all := maps.Clone(kinds)
	for _, k := range before {
		all[k] = true
	}
	if err := a.record(ctx, namespace, name, id, all); err != nil {
		return err
	}
	applied := map[types.UID]bool{}
	for _, u := range members {
		uid, err := a.apply(ctx, u)
		if err != nil {
			return fmt.Errorf("apply %s: %w", describe(u), err)
		}
		applied[uid] = true
	}
	for k := range all {
		err := a.prune(ctx, k, id, applied)
		if meta.IsNoMatchError(err) && !kinds[k] {
			// The API does not serve the kind any more, so there is nothing left of it.
			continue
		}
		if err != nil {
			return err
		}
	}
	if len(all) == len(kinds) {
		return nil
	}
	return a.record(ctx, namespace, name, id, kinds)
}

// apply sends one object and returns its UID.
func (a *Applier) apply(ctx context.Context, u *unstructured.Unstructured) (types.UID, error) {
	resource, err := a.resource(u.GroupVersionKind(), u.GetNamespace())
	if err != nil {
		return "", err
	}
	data, err := json.Marshal(u)
	if err != nil {
		return "", err
	}
	force := true
	got, err := resource.Patch(ctx, u.GetName(), types.ApplyPatchType, data,
		metav1.PatchOptions{FieldManager: a.Manager, Force: &force})
	if err != nil {
		return "", err
	}
	return got.GetUID(), nil
}

// kinds are those that the set is on record to contain.
func (a *Applier) kinds(ctx context.Context, namespace, name string) ([]schema.GroupKind, error) {
	parent, err := a.Client.Resource(configMaps).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read set of objects %s/%s: %w", namespace, name, err)
	}
	if by := parent.GetAnnotations()[annotationTool]; by != tooling {
		return nil, fmt.Errorf("set of objects: ConfigMap %s/%s is not mote's (its annotation %s is %q): rename it",
			namespace, name, annotationTool, by)
	}
	var kinds []schema.GroupKind
	for text := range strings.SplitSeq(parent.GetAnnotations()[annotationKind], ",") {
		if text != "" {
			kinds = append(kinds, schema.ParseGroupKind(text))
		}
	}
	return kinds, nil
}

// record writes the ConfigMap that stands for the set.
func (a *Applier) record(ctx context.Context, namespace, name, id string, kinds map[schema.GroupKind]bool) error {
	texts := make([]string, 0, len(kinds))
	for k := range kinds {
		texts = append(texts, k.String())
	}
	slices.Sort(texts)
	parent, err := convert(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{
		Name:        name,
		Namespace:   namespace,
		Labels:      map[string]string{labelID: id},
		Annotations: map[string]string{annotationTool: tooling, annotationKind: strings.Join(texts, ",")},
	}})
	if err == nil {
		_, err = a.apply(ctx, parent)
	}
	if err != nil {
		return fmt.Errorf("record set of objects %s/%s: %w", namespace, name, err)
	}
	return nil
}

// prune removes the set's objects of a kind that were not applied this time.
func (a *Applier) prune(ctx context.Context, kind schema.GroupKind, id string, applied map[types.UID]bool) error {
	mapping, err := a.Mapper.RESTMapping(kind)
	if err != nil {
		return fmt.Errorf("find resource of %s: %w", kind, err)
	}
	list, err := a.Client.Resource(mapping.Resource).List(ctx,
		metav1.ListOptions{LabelSelector: labelPartOf + "=" + id})
	if err != nil {
		return fmt.Errorf("list %s of the set: %w", kind, err)
	}
	var errs []error
	for i := range list.Items {
		u := &list.Items[i]
		if applied[u.GetUID()] {
			continue
		}
		uid := u.GetUID()
		err := a.Client.Resource(mapping.Resource).Namespace(u.GetNamespace()).Delete(ctx, u.GetName(),
			metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
		if err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("remove %s: %w", describe(u), err))
		}
	}
	return errors.Join(errs...)
}

// resource is where objects of a kind are written.
func (a *Applier) resource(kind schema.GroupVersionKind, namespace string) (dynamic.ResourceInterface, error) {
	mapping, err := a.Mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if err != nil {
		return nil, fmt.Errorf("find resource of %s: %w", kind.GroupKind(), err)
	}
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		return a.Client.Resource(mapping.Resource).Namespace(namespace), nil
	}
	return a.Client.Resource(mapping.Resource), nil
}

var configMaps = corev1.SchemeGroupVersion.WithResource("configmaps")

// setID is the id of a set, by KEP-3659: a hash of the parent's name, namespace, kind and group.
func setID(namespace, name string) string {
	sum := sha256.Sum256([]byte(strings.Join([]string{name, namespace, "ConfigMap", ""}, ".")))
	return "applyset-" + base64.RawURLEncoding.EncodeToString(sum[:]) + "-v1"
}

// convert writes a typed object as what is declared of it: without status and what the API fills
// in.
func convert(o runtime.Object) (*unstructured.Unstructured, error) {
	kinds, _, err := scheme.Scheme.ObjectKinds(o)
	if err != nil {
		return nil, fmt.Errorf("find kind of %T: %w", o, err)
	}
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		return nil, fmt.Errorf("convert %T: %w", o, err)
	}
	u := &unstructured.Unstructured{Object: content}
	u.SetGroupVersionKind(kinds[0])
	delete(content, "status")
	unstructured.RemoveNestedField(content, "metadata", "creationTimestamp")
	return u, nil
}

func describe(u *unstructured.Unstructured) string {
	if u.GetNamespace() == "" {
		return u.GetKind() + " " + u.GetName()
	}
	return u.GetKind() + " " + u.GetNamespace() + "/" + u.GetName()
}

func with(labels map[string]string, key, value string) map[string]string {
	if labels == nil {
		labels = map[string]string{}
	}
	labels[key] = value
	return labels
}
