package revocation

import (
	"context"
	"crypto/x509"
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"
)

// Namespace and Name identify the ConfigMap that stores the list. Each entry has a key of its own,
// so that concurrent writers keep each other's entries and a damaged one affects no other.
const (
	Namespace = metav1.NamespaceSystem
	Name      = "mote-revoked"
)

// Read returns the entries of the list in the order of their keys, and in unreadable an error for
// each that does not parse.
func Read(ctx context.Context, client kubernetes.Interface) (entries []Entry, unreadable []error, err error) {
	object, err := client.CoreV1().ConfigMaps(Namespace).Get(ctx, Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read list of revoked certificates: %w", err)
	}
	for _, key := range slices.Sorted(maps.Keys(object.Data)) {
		e, err := ParseEntry(object.Data[key])
		if err != nil {
			unreadable = append(unreadable, entryError(key, err))
			continue
		}
		entries = append(entries, e)
	}
	return entries, unreadable, nil
}

func entryError(key string, err error) error {
	return fmt.Errorf("entry %q of configmap %s/%s cannot be read: %w", key, Namespace, Name, err)
}

// Add puts entries on the list. An entry for a user who is on it already replaces the earlier one,
// exceptions included: certificates issued since then are refused as well.
func Add(ctx context.Context, client kubernetes.Interface, entries ...Entry) error {
	_, err := edit(ctx, client, func(data map[string]string) error {
		for _, e := range entries {
			if old, err := ParseEntry(data[e.key()]); err == nil && e.Serial == "" &&
				old.IssuedBefore.After(e.IssuedBefore) {
				// A clock that is behind must not readmit anyone.
				e.IssuedBefore = old.IssuedBefore
			}
			text, err := e.encode()
			if err != nil {
				return err
			}
			data[e.key()] = text
		}
		return nil
	})
	return err
}

// Remove takes the entries that match off the list and returns them.
func Remove(ctx context.Context, client kubernetes.Interface, match func(Entry) bool) ([]Entry, error) {
	var removed []Entry
	_, err := edit(ctx, client, func(data map[string]string) error {
		removed = nil
		for key, text := range data {
			if e, err := ParseEntry(text); err == nil && match(e) {
				removed = append(removed, e)
				delete(data, key)
			}
		}
		return nil
	})
	return removed, err
}

// Admit excepts a certificate that was just issued from the revocation of its user. It returns the
// ConfigMap if that changed it, else nil.
func Admit(ctx context.Context, client kubernetes.Interface, cert *x509.Certificate) (*corev1.ConfigMap, error) {
	return editUsers(ctx, client, func(e *Entry) bool {
		if !e.Refuses(cert) {
			return false
		}
		e.Except = append(e.Except, Exception{Serial: Serial(cert), Expires: cert.NotAfter.UTC()})
		return true
	})
}

// Readmit lets a revoked node join again and reports whether it was revoked. Its old certificates
// stay refused; the one it gets when it joins has to be admitted.
func Readmit(ctx context.Context, client kubernetes.Interface, node string) (bool, error) {
	object, err := editUsers(ctx, client, func(e *Entry) bool {
		if e.Node() != node || e.MayReturn {
			return false
		}
		e.MayReturn = true
		return true
	})
	return object != nil, err
}

// editUsers changes entries of users; change reports whether it changed the one it is given.
func editUsers(ctx context.Context, client kubernetes.Interface, change func(*Entry) bool) (*corev1.ConfigMap, error) {
	return edit(ctx, client, func(data map[string]string) error {
		for key, text := range data {
			e, err := ParseEntry(text)
			if err != nil || e.Serial != "" || !change(&e) {
				continue
			}
			if data[key], err = e.encode(); err != nil {
				return err
			}
		}
		return nil
	})
}

// edit changes the ConfigMap's entries and returns it, or nil if change changed nothing. Entries
// that do not parse are left alone.
func edit(ctx context.Context, client kubernetes.Interface, change func(map[string]string) error) (*corev1.ConfigMap,
	error) {
	api := client.CoreV1().ConfigMaps(Namespace)
	var written *corev1.ConfigMap
	again := func(err error) bool { return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) }
	err := retry.OnError(retry.DefaultBackoff, again, func() error {
		written = nil
		object, err := api.Get(ctx, Name, metav1.GetOptions{})
		missing := apierrors.IsNotFound(err)
		switch {
		case missing:
			object = &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: Name, Namespace: Namespace}}
		case err != nil:
			return err
		}
		before := maps.Clone(object.Data)
		if object.Data == nil {
			object.Data = map[string]string{}
		}
		if err := change(object.Data); err != nil {
			return err
		}
		if maps.Equal(before, object.Data) {
			return nil
		}
		prune(object.Data, time.Now())
		if missing {
			written, err = api.Create(ctx, object, metav1.CreateOptions{})
		} else {
			written, err = api.Update(ctx, object, metav1.UpdateOptions{})
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("write list of revoked certificates: %w", err)
	}
	return written, nil
}

// prune removes entries and exceptions whose certificate expired long ago.
func prune(data map[string]string, now time.Time) {
	for key, text := range data {
		e, err := ParseEntry(text)
		if err != nil {
			continue
		}
		if e.Serial != "" && !e.Expires.IsZero() && now.After(e.Expires.Add(keepEnded)) {
			delete(data, key)
			continue
		}
		if kept := e.withoutEnded(now); len(kept.Except) != len(e.Except) {
			if text, err := kept.encode(); err == nil {
				data[key] = text
			}
		}
	}
}
