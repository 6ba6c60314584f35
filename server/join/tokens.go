package join

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"
	bootstrapapi "k8s.io/cluster-bootstrap/token/api"
	bootstraputil "k8s.io/cluster-bootstrap/token/util"
	bootstrapsecrets "k8s.io/cluster-bootstrap/util/secrets"

	"github.com/mote-dev/mote/internal/atomicfile"
	"github.com/mote-dev/mote/internal/joinapi"
)

var (
	// ErrNoToken means that there is no token of an id.
	ErrNoToken = errors.New("there is no such token")
	// ErrTokenGiven means that the server's token is a setting of its user's, who alone can change
	// it.
	ErrTokenGiven = errors.New("the server's token is the one its --token or --token-file gives")
)

// serverLabel marks the server's own token: its value says who made it.
const (
	serverLabel = "mote.dev/server-token"
	byServer    = "made"
	byUser      = "given"
)

// serverDescription is what people see of the server's own token in a list.
const serverDescription = "token of the server"

// TokenInfo is what may be shown of a token.
type TokenInfo struct {
	ID          string `json:"id"`
	Description string `json:"description"`
	// Expires is nil for a token that does not.
	Expires *time.Time `json:"expires"`
	Expired bool       `json:"expired"`
	// Server marks the token of the server's join command.
	Server bool `json:"server"`
}

// CreateToken makes a bootstrap token that lets nodes join for ttl; zero means until it is deleted.
func CreateToken(ctx context.Context, client kubernetes.Interface, ttl time.Duration, description string) (string,
	error) {
	return create(ctx, client, "", ttl, description, nil)
}

// create makes a token; an empty text means a random one.
func create(ctx context.Context, client kubernetes.Interface, text string, ttl time.Duration, description string,
	labels map[string]string) (string, error) {
	if text == "" {
		var err error
		if text, err = bootstraputil.GenerateBootstrapToken(); err != nil {
			return "", fmt.Errorf("make token: %w", err)
		}
	}
	id, secret, _ := strings.Cut(text, ".")
	data := map[string][]byte{
		bootstrapapi.BootstrapTokenIDKey: []byte(id), bootstrapapi.BootstrapTokenSecretKey: []byte(secret),
		bootstrapapi.BootstrapTokenUsageAuthentication: []byte("true"),
	}
	if description != "" {
		data[bootstrapapi.BootstrapTokenDescriptionKey] = []byte(description)
	}
	if ttl > 0 {
		data[bootstrapapi.BootstrapTokenExpirationKey] = []byte(time.Now().Add(ttl).UTC().Format(time.RFC3339))
	}
	_, err := client.CoreV1().Secrets(metav1.NamespaceSystem).Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: bootstraputil.BootstrapTokenSecretName(id), Labels: labels},
		Type:       bootstrapapi.SecretTypeBootstrapToken, Data: data,
	}, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("store token %s: %w", id, err)
	}
	return text, nil
}

// ListTokens returns all tokens, without what is secret of them, by id.
func ListTokens(ctx context.Context, client kubernetes.Interface) ([]TokenInfo, error) {
	list, err := client.CoreV1().Secrets(metav1.NamespaceSystem).List(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("type", string(bootstrapapi.SecretTypeBootstrapToken)).String(),
	})
	if err != nil {
		return nil, fmt.Errorf("list tokens: %w", err)
	}
	tokens := []TokenInfo{}
	for i := range list.Items {
		secret := &list.Items[i]
		id, ok := bootstrapsecrets.ParseName(secret.Name)
		if !ok || secret.Type != bootstrapapi.SecretTypeBootstrapToken {
			continue
		}
		info := TokenInfo{
			ID:          id,
			Description: bootstrapsecrets.GetData(secret, bootstrapapi.BootstrapTokenDescriptionKey),
			Expired:     bootstrapsecrets.HasExpired(secret, time.Now()),
			Server:      secret.Labels[serverLabel] != "",
		}
		if end, err := time.Parse(time.RFC3339,
			bootstrapsecrets.GetData(secret, bootstrapapi.BootstrapTokenExpirationKey)); err == nil {
			info.Expires = &end
		}
		tokens = append(tokens, info)
	}
	slices.SortFunc(tokens, func(a, b TokenInfo) int { return strings.Compare(a.ID, b.ID) })
	return tokens, nil
}

// DeleteToken revokes a token at once. It returns ErrNoToken if there is none.
func DeleteToken(ctx context.Context, client kubernetes.Interface, id string) error {
	err := client.CoreV1().Secrets(metav1.NamespaceSystem).Delete(ctx, bootstraputil.BootstrapTokenSecretName(id),
		metav1.DeleteOptions{})
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("%w: %s", ErrNoToken, id)
	}
	if err != nil {
		return fmt.Errorf("delete token %s: %w", id, err)
	}
	return nil
}

// EnsureServerToken returns the token of the server's join command and keeps it in file. It is the
// given one if that is a bootstrap token, else the one the cluster has for this, else a new one:
// what was deleted does not come back.
func EnsureServerToken(ctx context.Context, client kubernetes.Interface, file, pin string,
	given joinapi.Token) (joinapi.Token, error) {
	if _, _, ok := given.Bootstrap(); ok {
		return ensureGiven(ctx, client, file, pin, given.Secret)
	}
	// A token that was given and is no more is revoked by that.
	made, err := client.CoreV1().Secrets(metav1.NamespaceSystem).List(ctx,
		metav1.ListOptions{LabelSelector: serverLabel + "=" + byServer})
	if err != nil {
		return joinapi.Token{}, fmt.Errorf("list tokens of the server: %w", err)
	}
	for i := range made.Items {
		secret := &made.Items[i]
		text := bootstraputil.TokenFromIDAndSecret(bootstrapsecrets.GetData(secret, bootstrapapi.BootstrapTokenIDKey),
			bootstrapsecrets.GetData(secret, bootstrapapi.BootstrapTokenSecretKey))
		if secret.Type == bootstrapapi.SecretTypeBootstrapToken && bootstraputil.IsValidBootstrapToken(text) &&
			!bootstrapsecrets.HasExpired(secret, time.Now()) {
			return writeTokenFile(file, pin, text)
		}
	}
	return newServerToken(ctx, client, file, pin)
}

// ensureGiven makes the user's token one of the cluster.
func ensureGiven(ctx context.Context, client kubernetes.Interface, file, pin, text string) (joinapi.Token, error) {
	id, secret, _ := strings.Cut(text, ".")
	secrets := client.CoreV1().Secrets(metav1.NamespaceSystem)
	name := bootstraputil.BootstrapTokenSecretName(id)
	have, err := secrets.Get(ctx, name, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return joinapi.Token{}, fmt.Errorf("read token %s: %w", id, err)
	}
	right := err == nil && have.Labels[serverLabel] == byUser &&
		bootstrapsecrets.GetData(have, bootstrapapi.BootstrapTokenSecretKey) == secret
	if !right {
		if err == nil {
			// Its type cannot be changed, so it is made anew.
			if err := secrets.Delete(ctx, name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
				return joinapi.Token{}, fmt.Errorf("replace token %s: %w", id, err)
			}
		}
		if _, err := create(ctx, client, text, 0, serverDescription+", given with --token",
			map[string]string{serverLabel: byUser}); err != nil {
			return joinapi.Token{}, err
		}
	}
	token, err := writeTokenFile(file, pin, text)
	if err != nil {
		return token, err
	}
	return token, dropServerTokens(ctx, client, name)
}

// newServerToken replaces the server's token: the new one counts, and is on disk, before the former
// one is gone.
func newServerToken(ctx context.Context, client kubernetes.Interface, file, pin string) (joinapi.Token, error) {
	text, err := create(ctx, client, "", 0, serverDescription, map[string]string{serverLabel: byServer})
	if err != nil {
		return joinapi.Token{}, err
	}
	token, err := writeTokenFile(file, pin, text)
	if err != nil {
		return token, err
	}
	id, _, _ := token.Bootstrap()
	return token, dropServerTokens(ctx, client, bootstraputil.BootstrapTokenSecretName(id))
}

// dropServerTokens deletes tokens that were the server's, but one.
func dropServerTokens(ctx context.Context, client kubernetes.Interface, but string) error {
	secrets := client.CoreV1().Secrets(metav1.NamespaceSystem)
	list, err := secrets.List(ctx, metav1.ListOptions{LabelSelector: serverLabel})
	if err != nil {
		return fmt.Errorf("list tokens of the server: %w", err)
	}
	for i := range list.Items {
		if name := list.Items[i].Name; name != but {
			if err := secrets.Delete(ctx, name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
				return fmt.Errorf("delete former token of the server: %w", err)
			}
		}
	}
	return nil
}

// RotateServerToken replaces the server's token and the file it is kept in, and revokes the former
// one.
func RotateServerToken(ctx context.Context, client kubernetes.Interface, file, pin string) (joinapi.Token, error) {
	given, err := client.CoreV1().Secrets(metav1.NamespaceSystem).List(ctx,
		metav1.ListOptions{LabelSelector: serverLabel + "=" + byUser})
	if err != nil {
		return joinapi.Token{}, fmt.Errorf("list tokens of the server: %w", err)
	}
	if len(given.Items) > 0 {
		return joinapi.Token{},
			fmt.Errorf("%w: change it there, or leave it out, and restart the server", ErrTokenGiven)
	}
	return newServerToken(ctx, client, file, pin)
}

// writeTokenFile keeps the token in the form that names the cluster.
func writeTokenFile(file, pin, secret string) (joinapi.Token, error) {
	token := joinapi.Token{Pin: pin, Secret: secret}
	text := token.String() + "\n"
	if have, err := os.ReadFile(file); err == nil && string(have) == text {
		// Its mode may have been changed.
		if err := os.Chmod(file, 0o600); err != nil {
			return token, fmt.Errorf("protect token of the server: %w", err)
		}
		return token, nil
	}
	return token, atomicfile.Write(file, []byte(text), 0o600)
}
