package join

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/mote-dev/mote/internal/joinapi"
	"github.com/mote-dev/mote/server/revocation"
)

var pin = strings.Repeat("0f", 32)

func TestTokens(t *testing.T) {
	api := fake.NewClientset()
	text, err := CreateToken(t.Context(), api, time.Hour, "for the shed")
	if err != nil {
		t.Fatal(err)
	}
	id, secret, ok := joinapi.Token{Secret: text}.Bootstrap()
	if !ok {
		t.Fatalf("%q is no bootstrap token", text)
	}
	if _, err := CreateToken(t.Context(), api, 0, ""); err != nil {
		t.Fatal(err)
	}
	list, err := ListTokens(t.Context(), api)
	if err != nil || len(list) != 2 {
		t.Fatalf("tokens are %v (%v)", list, err)
	}
	shown, err := json.Marshal(list)
	if err != nil || strings.Contains(string(shown), secret) {
		t.Errorf("the list shows a secret: %s (%v)", shown, err)
	}
	for _, info := range list {
		if (info.ID == id) != (info.Description == "for the shed") || (info.ID == id) != (info.Expires != nil) ||
			info.Expired {
			t.Errorf("token %s is %+v", info.ID, info)
		}
	}
	if err := DeleteToken(t.Context(), api, id); err != nil {
		t.Fatal(err)
	}
	if err := DeleteToken(t.Context(), api, id); !errors.Is(err, ErrNoToken) {
		t.Errorf("deleted twice: %v", err)
	}
}

func TestEnsureServerToken(t *testing.T) {
	api := fake.NewClientset()
	file := filepath.Join(t.TempDir(), "token")
	ensure := func(given joinapi.Token) joinapi.Token {
		t.Helper()
		token, err := EnsureServerToken(t.Context(), api, file, pin, given)
		if err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(file)
		if err != nil || string(data) != token.String()+"\n" || token.Pin != pin {
			t.Errorf("the file has %q (%v), the token is %s", data, err, token)
		}
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("the file's mode is %v (%v)", info.Mode(), err)
		}
		return token
	}
	only := func(want joinapi.Token) {
		t.Helper()
		list, err := ListTokens(t.Context(), api)
		id, _, _ := want.Bootstrap()
		if err != nil || len(list) != 1 || list[0].ID != id || !list[0].Server {
			t.Errorf("tokens are %+v (%v), want %s alone", list, err, id)
		}
	}
	first := ensure(joinapi.Token{})
	only(first)
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if again := ensure(joinapi.Token{}); again != first {
		t.Error("the second start made another token")
	}
	if err := os.WriteFile(file, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if again := ensure(joinapi.Token{}); again != first {
		t.Error("a damaged file made another token")
	}
	// A password stays out of the file and of the API.
	if again := ensure(joinapi.Token{Secret: "correct-horse"}); again != first {
		t.Error("a password made another token")
	}
	id, _, _ := first.Bootstrap()
	if err := DeleteToken(t.Context(), api, id); err != nil {
		t.Fatal(err)
	}
	second := ensure(joinapi.Token{})
	if second == first {
		t.Error("a revoked token came back")
	}
	rotated, err := RotateServerToken(t.Context(), api, file, pin)
	if err != nil || rotated == second {
		t.Fatalf("rotated to %s (%v)", rotated, err)
	}
	only(rotated)
	if again := ensure(joinapi.Token{}); again != rotated {
		t.Error("a start after rotation made another token")
	}

	given := joinapi.Token{Secret: testToken}
	if got := ensure(given); got.Secret != testToken {
		t.Errorf("the given token became %s", got)
	}
	ensure(given)
	only(given)
	if _, err := RotateServerToken(t.Context(), api, file, pin); !errors.Is(err, ErrTokenGiven) {
		t.Errorf("a given token was rotated: %v", err)
	}
	given.Secret = "abcdef.fedcba9876543210"
	ensure(given)
	only(given)
	last := ensure(joinapi.Token{})
	only(last)
	if last.Secret == given.Secret {
		t.Error("a token that is given no more is still valid")
	}
}

func TestForgetNode(t *testing.T) {
	binding, err := newBinding("n1", secretA)
	if err != nil {
		t.Fatal(err)
	}
	api := fake.NewClientset(nodeAt("n1", "192.0.2.11"), nodeAt("n2", "192.0.2.12"), binding,
		&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "n1", Namespace: corev1.NamespaceNodeLease}})
	if err := ReserveNode(t.Context(), api, ownNode, true); err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, false} {
		if there, err := ForgetNode(t.Context(), api, "n1", time.Now()); err != nil || there != want {
			t.Errorf("time %d: there was something: %v (%v), want %v", i+1, there, err, want)
		}
	}
	entries, faults, err := revocation.Read(t.Context(), api)
	if err != nil || len(faults) > 0 || len(entries) != 1 || entries[0].Node() != "n1" || !entries[0].MayReturn {
		t.Errorf("revoked is %+v (%v, %v), want what n1 had, and that it may return", entries, faults, err)
	}
	for what, err := range map[string]error{
		"node": get(api.CoreV1().Nodes().Get(t.Context(), "n1", metav1.GetOptions{})),
		"binding": get(api.CoreV1().Secrets(metav1.NamespaceSystem).Get(t.Context(), bindingName("n1"),
			metav1.GetOptions{})),
		"lease": get(api.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(t.Context(), "n1",
			metav1.GetOptions{})),
	} {
		if !apierrors.IsNotFound(err) {
			t.Errorf("the %s is still there (%v)", what, err)
		}
	}
	if _, err := ForgetNode(t.Context(), api, ownNode, time.Now()); !errors.Is(err, ErrServerNode) {
		t.Errorf("the server's own: %v", err)
	}
	list, err := ListNodes(t.Context(), api)
	if err != nil || len(list) != 1 || list[0].Name != "n2" || list[0].Address != "192.0.2.12" {
		t.Errorf("nodes are %+v (%v)", list, err)
	}
}

func get[T any](_ T, err error) error { return err }

func TestReserveNode(t *testing.T) {
	binding, err := newBinding("n1", secretA)
	if err != nil {
		t.Fatal(err)
	}
	api := fake.NewClientset(binding)
	if err := ReserveNode(t.Context(), api, "n1", true); err == nil || !strings.Contains(err.Error(), "--node-name") {
		t.Errorf("an agent's name: %v", err)
	}
	for _, name := range []string{"one", "two", "two"} {
		if err := ReserveNode(t.Context(), api, name, true); err != nil {
			t.Fatal(err)
		}
	}
	list, err := api.CoreV1().Secrets(metav1.NamespaceSystem).List(t.Context(),
		metav1.ListOptions{LabelSelector: bindingLabel + "=" + KindServer})
	if err != nil || len(list.Items) != 1 || list.Items[0].Name != "two"+bindingSuffix {
		t.Errorf("names of servers are %v (%v), want two", list.Items, err)
	}
}
