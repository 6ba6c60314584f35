package join

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	clienttesting "k8s.io/client-go/testing"

	"github.com/mote-dev/mote/internal/joinapi"
	"github.com/mote-dev/mote/server/revocation"
)

// A node tries again what may pass, and is not sent round in circles by what does not.
func TestService_InternalErrors_SayWhetherToTryAgain(t *testing.T) {
	secrets := schema.GroupResource{Resource: "secrets"}
	for name, row := range map[string]struct {
		err  error
		want joinapi.Code
	}{
		"timeout":                {apierrors.NewTimeoutError("etcd", 1), joinapi.CodeNotReady},
		"server timeout":         {apierrors.NewServerTimeout(secrets, "get", 1), joinapi.CodeNotReady},
		"unavailable":            {apierrors.NewServiceUnavailable("starting"), joinapi.CodeNotReady},
		"busy":                   {apierrors.NewTooManyRequests("busy", 1), joinapi.CodeNotReady},
		"conflict":               {apierrors.NewConflict(secrets, "s", errors.New("changed")), joinapi.CodeNotReady},
		"storage fault":          {apierrors.NewInternalError(errors.New("disk")), joinapi.CodeNotReady},
		"rules not read yet":     {apierrors.NewForbidden(secrets, "s", errors.New("rbac")), joinapi.CodeNotReady},
		"time is up":             {context.DeadlineExceeded, joinapi.CodeNotReady},
		"certificate not signed": {fmt.Errorf("wait: %w", wait.ErrorInterrupted(nil)), joinapi.CodeNotReady},
		"API server stops": {&url.Error{Op: "Get", URL: "/", Err: errors.New("API server has stopped")},
			joinapi.CodeNotReady},
		"API server breaks off": {&url.Error{Op: "Get", URL: "/", Err: errors.New("broke off")},
			joinapi.CodeNotReady},
		"request it cannot read": {apierrors.NewBadRequest("what"), joinapi.CodeInternal},
		"object it does not take": {apierrors.NewInvalid(schema.GroupKind{Kind: "Secret"}, "s", nil),
			joinapi.CodeInternal},
		"method it does not know": {apierrors.NewMethodNotSupported(secrets, "get"), joinapi.CodeInternal},
		"not this program's user": {apierrors.NewUnauthorized("who"), joinapi.CodeInternal},
		"unknown":                 {errors.New("broken"), joinapi.CodeInternal},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, nil, withToken(nil))
			f.api.PrependReactor("get", "secrets",
				func(clienttesting.Action) (bool, runtime.Object, error) { return true, nil, row.err })
			status := map[joinapi.Code]int{joinapi.CodeNotReady: http.StatusServiceUnavailable,
				joinapi.CodeInternal: http.StatusInternalServerError}[row.want]
			for path, token := range map[string]string{joinapi.PathJoin: testToken, joinapi.PathRejoin: ""} {
				got := f.post(t, path, token, f.joining(t, "n1", secretA))
				if got.status != status || got.refusal.Code != row.want {
					t.Errorf("%s: status %d, %+v; want %d, %s", path, got.status, got.refusal, status, row.want)
				}
				if strings.Contains(got.refusal.Message, row.err.Error()) {
					t.Errorf("%s: the cause is given away: %q", path, got.refusal.Message)
				}
			}
		})
	}
}

func TestService_OwnVersionUnreadable_IsInternal(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.Cluster.KubernetesVersion = "latest" }, withToken(nil))
	if got := f.post(t, joinapi.PathJoin, testToken,
		f.joining(t, "n1", secretA)); got.status != http.StatusInternalServerError ||
		got.refusal.Code != joinapi.CodeInternal {
		t.Errorf("status %d, %+v", got.status, got.refusal)
	}
}

// A binding that cannot be read makes a node neither unknown nor another machine.
func TestService_BindingUnreadable_IsInternal(t *testing.T) {
	for name, data := range map[string]map[string][]byte{
		"empty":        nil,
		"without salt": {hashKey: []byte(strings.Repeat("0", 64))},
		"short hash":   {saltKey: []byte("ab"), hashKey: []byte("cd")},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, nil, withToken(nil), &corev1.Secret{
				ObjectMeta: metav1.ObjectMeta{Name: bindingName("n1"), Namespace: metav1.NamespaceSystem,
					Labels: map[string]string{bindingLabel: KindAgent}},
				Data: data,
			})
			for path, token := range map[string]string{joinapi.PathJoin: testToken, joinapi.PathRejoin: ""} {
				if got := f.post(t, path, token,
					f.joining(t, "n1", secretA)); got.status != http.StatusInternalServerError ||
					got.refusal.Code != joinapi.CodeInternal {
					t.Errorf("%s: status %d, %+v", path, got.status, got.refusal)
				}
			}
		})
	}
}

// Not to know what is revoked is no revocation. The wait for it ends before the answer is due.
func TestService_RevocationUnknown_IsNotReady(t *testing.T) {
	check := func(ctx context.Context) error {
		if end, ok := ctx.Deadline(); !ok || time.Until(end) > answerTimeout/2 {
			t.Errorf("the wait may last until %v", end)
		}
		return fmt.Errorf("%w: not yet", revocation.ErrNotRead)
	}
	for name, change := range map[string]func(*Config){
		"node": func(c *Config) {
			c.NodeRevoked = func(ctx context.Context, _ string) (bool, error) { return false, check(ctx) }
		},
		"certificate": func(c *Config) {
			c.Revoked = func(ctx context.Context, _ *x509.Certificate) (bool, error) { return false, check(ctx) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, change, withToken(nil))
			own := f.ca.pair(t, nodeCertificate("n1"))
			for _, path := range []string{joinapi.PathConfig, joinapi.PathTunnel} {
				got := f.send(t, f.request(t, http.MethodGet, path, "", nil), own)
				if got.status != http.StatusServiceUnavailable || got.refusal.Code != joinapi.CodeNotReady {
					t.Errorf("%s: status %d, %+v", path, got.status, got.refusal)
				}
			}
			if name != "node" {
				return
			}
			if got := f.post(t, joinapi.PathJoin, testToken,
				f.joining(t, "n1", secretA)); got.refusal.Code != joinapi.CodeNotReady {
				t.Errorf("join: status %d, %+v", got.status, got.refusal)
			}
		})
	}
}

func TestService_BodyCutShort_MayBeSentAgain(t *testing.T) {
	f := newFixture(t, nil, withToken(nil))
	f.bodyTimeout = 200 * time.Millisecond
	got := f.send(t, f.request(t, http.MethodPost, joinapi.PathRejoin, "", silent(t)))
	if got.status != http.StatusRequestTimeout || got.refusal.Code != joinapi.CodeIncomplete {
		t.Errorf("status %d, %+v", got.status, got.refusal)
	}
}
