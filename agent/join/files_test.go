package join

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
)

// asFolder replaces a file by a folder: it exists, and not even root can read it.
func asFolder(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
}

// Only a file that was read and does not parse is damaged. One that cannot be read may be fine the
// next time: the error has its cause, and the file stays.
func TestJoin_UnreadableFile_KeepsCauseAndState(t *testing.T) {
	for _, name := range []string{clusterName, caName, clientName} {
		t.Run(name, func(t *testing.T) {
			f := newFakeServer(t)
			c := configFor(t, f.token(), f.URL)
			if _, err := Join(quick(t), c); err != nil {
				t.Fatal(err)
			}
			path := folder(c.Dir).path(name)
			asFolder(t, path)
			_, err := Join(quick(t), c)
			if !errors.Is(err, syscall.EISDIR) || !strings.Contains(err.Error(), path) {
				t.Errorf("error is %v, want the cause and %s", err, path)
			}
			if err != nil && (strings.Contains(err.Error(), "damaged") || strings.Contains(err.Error(), "remove")) {
				t.Errorf("message %q calls it damaged", err)
			}
			if info, err := os.Stat(path); err != nil || !info.IsDir() {
				t.Errorf("the file was replaced: %v", err)
			}
		})
	}
}

// The node's name is bound to the secret, so a new one is of no use.
func TestFolder_Secret_Damaged_IsNotReplaced(t *testing.T) {
	f := folder(t.TempDir())
	if err := os.WriteFile(f.path(secretName), []byte("cut\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := f.secret()
	if err == nil || !strings.Contains(err.Error(), "damaged") || !strings.Contains(err.Error(), "mote node forget") {
		t.Errorf("error is %v, want what to do", err)
	}
	if data, err := os.ReadFile(f.path(secretName)); err != nil || string(data) != "cut\n" {
		t.Errorf("the secret is now %q, %v", data, err)
	}
}

func TestFolder_Certificate_Damaged_IsRequestedAnew(t *testing.T) {
	f := folder(t.TempDir())
	if err := os.WriteFile(f.path(clientName), []byte("cut"), 0o600); err != nil {
		t.Fatal(err)
	}
	if own, err := f.certificate(zap.NewNop()); own != nil || err != nil {
		t.Errorf("certificate is %v, %v", own, err)
	}
}

// A certificate that has expired by both clocks does not mean that this machine's clock is wrong.
func TestJoin_ServerCertificateExpired_IsNoClockError(t *testing.T) {
	f := newFakeServer(t)
	ca := f.ca
	past := *ca
	past.NotAfter = time.Now().Add(-time.Minute)
	f.ca = &past
	expired := f.listen(t)
	f.ca = ca
	j := &joiner{
		config: configFor(t, f.token()),
		folder: folder(t.TempDir()),
		ca:     ca,
		caPEM:  f.caPEM,
	}
	j.config.Now = time.Now
	_, err := j.attempt(quick(t), strings.TrimPrefix(expired.URL, "https://"))
	if !errors.Is(err, ErrUnreachable) || errors.Is(err, ErrClock) ||
		!strings.Contains(err.Error(), "certificate is not valid") {
		t.Errorf("error is %v", err)
	}
}
