package cmd

import (
	"bytes"
	"crypto/x509"
	"math/big"
	"strings"
	"testing"
	"time"
)

// The signer dates certificates back by five minutes, long ones together with their end: that is
// all that was asked for.
func TestSayIssued_OnlyLessIsCalledLess(t *testing.T) {
	const backdate = 5 * time.Minute
	now := time.Now()
	for _, row := range []struct {
		name       string
		ttl        time.Duration
		from, to   time.Time
		saysIsLess bool
	}{
		{"long", 720 * time.Hour, now.Add(-backdate), now.Add(720*time.Hour - backdate), false},
		{"short", 10 * time.Minute, now.Add(-backdate), now.Add(10 * time.Minute), false},
		{"cut by the signer", 1000 * time.Hour, now.Add(-backdate), now.Add(720*time.Hour - backdate), true},
	} {
		t.Run(row.name, func(t *testing.T) {
			var out bytes.Buffer
			program{stdout: &out}.sayIssued("/f", "https://192.0.2.1:6443", wantedUser{name: "jane", ttl: row.ttl},
				&x509.Certificate{NotBefore: row.from, NotAfter: row.to, SerialNumber: big.NewInt(1)}, false)
			if says := strings.Contains(out.String(), "less than"); says != row.saysIsLess {
				t.Errorf("says that it is less: %v, want %v:\n%s", says, row.saysIsLess, out.String())
			}
		})
	}
}
