package join

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"net/http"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	bootstrapapi "k8s.io/cluster-bootstrap/token/api"
	bootstraputil "k8s.io/cluster-bootstrap/token/util"
	bootstrapsecrets "k8s.io/cluster-bootstrap/util/secrets"

	"github.com/mote-dev/mote/internal/joinapi"
)

// passwordID is the id of who joins with the password instead of a token.
const passwordID = "password"

// checkToken returns the id of the token in r's header. It never says what was wrong with a token
// that is not accepted.
func (s *Service) checkToken(ctx context.Context, r *http.Request, from netip.Prefix) (id string, err error) {
	text, bearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	token, formErr := joinapi.ParseToken(text)
	attempt := s.joins.attempt
	if _, _, strong := token.Bootstrap(); !strong && s.config.Password != "" {
		attempt = s.joins.attemptGuessable
	}
	ok, tooMany, err := attempt(ctx, from, func() (right bool, err error) {
		if !bearer || formErr != nil {
			return false, nil
		}
		id, right, err = s.tokenRight(ctx, token)
		return right, err
	})
	switch {
	case err != nil:
		return "", fmt.Errorf("check token: %w", err)
	case tooMany:
		return "", refuse(joinapi.CodeTooManyRequests,
			"too many wrong tokens were tried: wait a minute, then try again; a valid one of the form "+
				"<id>.<secret> is let in meanwhile")
	case !ok:
		return "", refuse(joinapi.CodeTokenInvalid,
			"the token is not accepted: it is unknown, expired or revoked; `mote token create` on the server prints "+
				"another")
	}
	return id, nil
}

func (s *Service) tokenRight(ctx context.Context, token joinapi.Token) (id string, right bool, err error) {
	if s.config.Password != "" {
		// Hashed, so that not even the length shows.
		given := sha256.Sum256([]byte(token.Secret))
		if subtle.ConstantTimeCompare(given[:], s.password[:]) == 1 {
			return passwordID, true, nil
		}
	}
	id, given, ok := token.Bootstrap()
	if !ok {
		return "", false, nil
	}
	// Not from a cache: a token is revoked the moment it is deleted.
	secret, err := s.client.CoreV1().Secrets(metav1.NamespaceSystem).Get(ctx,
		bootstraputil.BootstrapTokenSecretName(id), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return "", false, nil
	}
	if err != nil {
		return "", false, err
	}
	return id, s.secretLetsIn(secret, id, given), nil
}

func (s *Service) secretLetsIn(secret *corev1.Secret, id, given string) bool {
	right := subtle.ConstantTimeCompare([]byte(given), secret.Data[bootstrapapi.BootstrapTokenSecretKey]) == 1
	return right &&
		secret.Type == bootstrapapi.SecretTypeBootstrapToken && secret.DeletionTimestamp == nil &&
		bootstrapsecrets.GetData(secret, bootstrapapi.BootstrapTokenIDKey) == id &&
		bootstrapsecrets.GetData(secret, bootstrapapi.BootstrapTokenUsageAuthentication) == "true" &&
		!bootstrapsecrets.HasExpired(secret, s.config.Now())
}
