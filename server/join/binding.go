package join

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/mote-dev/mote/internal/joinapi"
)

// A node name belongs to the machine that joined with it first: a Secret with this name and label
// in kube-system holds a hash of that machine's secret.
const (
	bindingSuffix = ".node-secret.mote"
	// bindingLabel's value is the kind of machine that has the name.
	bindingLabel = "mote.dev/node-secret"
	// Keys of the secret's data, both in hexadecimal.
	saltKey, hashKey = "salt", "hash"
)

// Kinds of machines that nodes run on.
const (
	KindAgent  = "agent"
	KindServer = "server"
)

// bindingName is the name of the Secret that a node's name is bound by.
func bindingName(node string) string { return node + bindingSuffix }

// bind gives a free name to the machine with the secret and refuses a name that another machine
// has.
func (s *Service) bind(ctx context.Context, from netip.Prefix, node, secret string) error {
	if node == s.config.NodeName {
		return refuse(joinapi.CodeNameTaken, "node name %s is the server's own: choose another with --node-name", node)
	}
	secrets := s.client.CoreV1().Secrets(metav1.NamespaceSystem)
	ok, tooMany, err := s.joins.attempt(ctx, from, func() (bool, error) {
		binding, err := secrets.Get(ctx, bindingName(node), metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			// A node from before names were bound, or another server's.
			if _, err := s.client.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
				return false, err
			}
			if binding, err = newBinding(node, secret); err != nil {
				return false, err
			}
			_, err = secrets.Create(ctx, binding, metav1.CreateOptions{})
			if err == nil {
				return true, nil
			}
			// Another machine was faster, at this server or at another.
			if apierrors.IsAlreadyExists(err) {
				binding, err = secrets.Get(ctx, bindingName(node), metav1.GetOptions{})
			}
		}
		if err != nil {
			return false, err
		}
		return bound(binding, secret)
	})
	switch {
	case err != nil:
		return fmt.Errorf("bind node name %s: %w", node, err)
	case tooMany:
		return errTooManySecrets
	case !ok:
		return refuse(joinapi.CodeNameTaken,
			"a node of the name %s has joined before: choose another --node-name, or let this machine in with `mote "+
				"node forget %s` on the server", node, node)
	}
	return nil
}

// prove refuses a machine that does not have the secret its name is bound to.
func (s *Service) prove(ctx context.Context, from netip.Prefix, node, secret string) error {
	ok, tooMany, err := s.rejoins.attempt(ctx, from, func() (bool, error) {
		binding, err := s.client.CoreV1().Secrets(metav1.NamespaceSystem).Get(ctx, bindingName(node),
			metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		return bound(binding, secret)
	})
	switch {
	case err != nil:
		return fmt.Errorf("check secret of node %s: %w", node, err)
	case tooMany:
		return errTooManySecrets
	case !ok:
		// The same answer for a name that is not bound: strangers must not learn names.
		return refuse(joinapi.CodeNodeUnknown,
			"node %s is not known with this secret: it was forgotten, or another machine has the name; join again "+
				"with a token", node)
	}
	return nil
}

var errTooManySecrets = refuse(joinapi.CodeTooManyRequests,
	"too many wrong node secrets were tried, and this is one: wait a minute, then try again, or join again with a "+
		"token")

func newBinding(node, secret string) (*corev1.Secret, error) {
	salt := make([]byte, 16)
	if _, err := rand.Read(salt); err != nil {
		return nil, fmt.Errorf("make salt: %w", err)
	}
	text := hex.EncodeToString(salt)
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: bindingName(node), Namespace: metav1.NamespaceSystem,
			Labels: map[string]string{bindingLabel: KindAgent}},
		Data: map[string][]byte{saltKey: []byte(text), hashKey: []byte(hashOf(text, secret))},
	}, nil
}

// hashOf does not need a slow hash: the secret is 32 random bytes.
func hashOf(salt, secret string) string {
	sum := sha256.Sum256([]byte(salt + secret))
	return hex.EncodeToString(sum[:])
}

// bound reports whether secret is the one the name is bound to. A binding that somebody has changed
// leaves that open: it is an error, which makes the node neither unknown nor another machine.
func bound(binding *corev1.Secret, secret string) (bool, error) {
	if binding.Labels[bindingLabel] == KindServer {
		return false, nil
	}
	salt, want := binding.Data[saltKey], binding.Data[hashKey]
	if len(salt) == 0 || len(want) != 2*sha256.Size {
		return false, fmt.Errorf(
			"read secret %s/%s: it holds no salt and hash of a node's secret: remove it with `mote node forget %s` "+
				"and join again",
			metav1.NamespaceSystem, binding.Name, strings.TrimSuffix(binding.Name, bindingSuffix))
	}
	return subtle.ConstantTimeCompare([]byte(hashOf(string(salt), secret)), want) == 1, nil
}

// ReserveNode reserves the name of a server's own node. alone means that the cluster has no other
// server, so that the names of former servers become free.
func ReserveNode(ctx context.Context, client kubernetes.Interface, node string, alone bool) error {
	secrets := client.CoreV1().Secrets(metav1.NamespaceSystem)
	have, err := secrets.Get(ctx, bindingName(node), metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		_, err = secrets.Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{
			Name: bindingName(node), Namespace: metav1.NamespaceSystem,
			Labels: map[string]string{bindingLabel: KindServer},
		}}, metav1.CreateOptions{})
	case err == nil && have.Labels[bindingLabel] != KindServer:
		return fmt.Errorf(
			"node-name %s belongs to a machine that joined as an agent: choose another --node-name for this server",
			node)
	}
	if err != nil {
		return fmt.Errorf("keep name of node %s: %w", node, err)
	}
	if !alone {
		return nil
	}
	former, err := secrets.List(ctx, metav1.ListOptions{LabelSelector: bindingLabel + "=" + KindServer})
	if err != nil {
		return fmt.Errorf("list names of servers: %w", err)
	}
	for i := range former.Items {
		if name := former.Items[i].Name; name != bindingName(node) {
			if err := secrets.Delete(ctx, name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
				return fmt.Errorf("free name of former server: %w", err)
			}
		}
	}
	return nil
}
