package joinapi

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// Token is what a node joins with, in one of three forms:
//
//	M10<sha256 of the CA certificate, DER, in hexadecimal>::<id>.<secret>
//	<id>.<secret>
//	a password of the user's own
//
// <id>.<secret> is a Kubernetes bootstrap token. Only the first form names the cluster: with the
// others the first server that answers is believed.
type Token struct {
	// Pin is empty when the token does not name the cluster.
	Pin string
	// Secret is "<id>.<secret>" or the password.
	Secret string
}

var (
	bootstrapForm = regexp.MustCompile(`^[a-z0-9]{6}\.[a-z0-9]{16}$`)
	pinForm       = regexp.MustCompile(`^[0-9a-f]{64}$`)
	passwordForm  = regexp.MustCompile(`^[!-~]{8,255}$`)
	// foreignForm is a token of k3s, or of k0s (a compressed kubeconfig), whole or cut short.
	// Either could pass for a password.
	foreignForm = regexp.MustCompile(`^(K10[0-9a-f]{32,}|K10.*::|H4sI[A-Za-z0-9+/=]{60,}$)`)
	// cutForm is a bootstrap token that has lost its end. It could be a password, but not a likely
	// one.
	cutForm = regexp.MustCompile(`^[a-z0-9]{6}\.[a-z0-9]{0,15}$`)
)

const pinPrefix = "M10"

// ErrTokenForm says that a token has none of the forms there are.
var ErrTokenForm = errors.New("token has the wrong form")

// ParseToken reads a token. The error never quotes it.
func ParseToken(text string) (Token, error) {
	if rest, ok := strings.CutPrefix(text, pinPrefix); ok && (strings.Contains(text, "::") || len(rest) >= 32) {
		pin, secret, found := strings.Cut(rest, "::")
		if !found || !pinForm.MatchString(pin) || secret == "" {
			return Token{}, fmt.Errorf(
				"%w: it is cut short or has lost characters: paste the whole M10… token again, as the server "+
					"printed it",
				ErrTokenForm)
		}
		inner, err := ParseToken(secret)
		if err != nil || inner.Pin != "" || cutForm.MatchString(secret) {
			return Token{}, fmt.Errorf(
				"%w: what follows \"::\" is cut short or has lost characters: paste the whole M10… token again, as "+
					"the server printed it", ErrTokenForm)
		}
		return Token{Pin: pin, Secret: secret}, nil
	}
	if foreignForm.MatchString(text) {
		return Token{}, fmt.Errorf("%w: it is a token of k3s or k0s: use one of the mote server, which `mote token "+
			"create` prints there", ErrTokenForm)
	}
	if bootstrapForm.MatchString(text) || passwordForm.MatchString(text) && !strings.Contains(text, "::") {
		return Token{Secret: text}, nil
	}
	return Token{}, fmt.Errorf(
		"%w: write it as <6 characters>.<16 characters> of a-z and 0-9, paste the whole M10… token, or use a "+
			"password of 8 to 255 printable characters without spaces", ErrTokenForm)
}

// Bootstrap reports whether the secret is a Kubernetes bootstrap token, and returns its two halves.
func (t Token) Bootstrap() (id, secret string, ok bool) {
	if !bootstrapForm.MatchString(t.Secret) {
		return "", "", false
	}
	id, secret, ok = strings.Cut(t.Secret, ".")
	return id, secret, ok
}

// String is the token's text.
func (t Token) String() string {
	if t.Pin == "" {
		return t.Secret
	}
	return pinPrefix + t.Pin + "::" + t.Secret
}

// Pin is the fingerprint of a CA certificate (DER) that tokens carry.
func Pin(certificate []byte) string {
	sum := sha256.Sum256(certificate)
	return hex.EncodeToString(sum[:])
}
