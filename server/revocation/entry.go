package revocation

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"strings"
	"time"
)

// nodePrefix begins the user names of nodes.
const nodePrefix = "system:node:"

// keepEnded is how long an entry outlives its certificate, as clocks may be set back.
const keepEnded = 30 * 24 * time.Hour

// Entry revokes either the certificate with a serial number, or all certificates of a user that
// were issued up to a moment.
type Entry struct {
	// Serial is the certificate's number in hexadecimal; empty in the entry of a user.
	Serial string `json:"serial,omitempty"`
	// User is the name that is refused; next to a serial number it is only a note.
	User string `json:"user,omitempty"`
	// IssuedBefore is the moment, inclusive: certificates of User whose validity began later are
	// not revoked.
	IssuedBefore time.Time `json:"issuedBefore,omitzero"`
	// Except lists certificates of User that were issued after the revocation. Their own dates do
	// not show that, because every signer backdates certificates.
	Except []Exception `json:"except,omitempty"`
	// MayReturn allows the node to join again; its earlier certificates stay refused.
	MayReturn bool `json:"mayReturn,omitempty"`
	// Reason, Time and By are why, when and by whom it was revoked.
	Reason string    `json:"reason,omitempty"`
	Time   time.Time `json:"time,omitzero"`
	By     string    `json:"by,omitempty"`
	// Expires is when the certificate of Serial expires.
	Expires time.Time `json:"expires,omitzero"`
}

// Exception is a certificate that an entry does not revoke.
type Exception struct {
	Serial  string    `json:"serial"`
	Expires time.Time `json:"expires,omitzero"`
}

// ForCertificate is the entry that refuses one certificate.
func ForCertificate(cert *x509.Certificate) Entry {
	return Entry{Serial: Serial(cert), User: cert.Subject.CommonName, Expires: cert.NotAfter.UTC()}
}

// ForUser is the entry that refuses all certificates of a user up to a moment.
func ForUser(name string, before time.Time) Entry {
	return Entry{User: name, IssuedBefore: before.UTC().Truncate(time.Second)}
}

// NodeUser is the name under which a node's certificates are issued.
func NodeUser(node string) string { return nodePrefix + node }

// Serial is a certificate's number as entries have it.
func Serial(cert *x509.Certificate) string { return cert.SerialNumber.Text(16) }

// ParseSerial reads a serial number in hexadecimal as programs print it: with colons, with 0x, in
// capitals.
func ParseSerial(text string) (string, error) {
	digits := strings.TrimPrefix(strings.ToLower(strings.NewReplacer(":", "", " ", "").Replace(text)), "0x")
	n, ok := new(big.Int).SetString(digits, 16)
	if !ok || strings.ContainsAny(digits, "+-_") {
		return "", fmt.Errorf("serial number %q is not hexadecimal: `mote certificate show FILE` prints that of a file",
			text)
	}
	return n.Text(16), nil
}

// ParseEntry parses an entry as stored in the ConfigMap. It is strict: an ambiguous entry is an
// error, not a guess.
func ParseEntry(text string) (Entry, error) {
	var e Entry
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&e); err != nil {
		return Entry{}, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Entry{}, errors.New("there is more than one object in it")
	}
	if e.Serial == "" && e.User == "" {
		return Entry{}, errors.New("it has neither serial nor user")
	}
	if e.Serial == "" && e.IssuedBefore.IsZero() {
		return Entry{}, errors.New("user without issuedBefore")
	}
	if e.Serial != "" {
		serial, err := ParseSerial(e.Serial)
		if err != nil {
			return Entry{}, err
		}
		e.Serial = serial
	}
	for i, x := range e.Except {
		serial, err := ParseSerial(x.Serial)
		if err != nil {
			return Entry{}, err
		}
		e.Except[i].Serial = serial
	}
	return e, nil
}

// Node is the node whose certificates are refused; empty when it is not a node's entry.
func (e Entry) Node() string {
	if name, ok := strings.CutPrefix(e.User, nodePrefix); ok && e.Serial == "" {
		return name
	}
	return ""
}

// Subject names what is refused, for a person.
func (e Entry) Subject() string {
	switch {
	case e.Serial != "" && e.User != "":
		return fmt.Sprintf("certificate %s of %s", e.Serial, e.User)
	case e.Serial != "":
		return "certificate " + e.Serial
	case e.Node() != "":
		return "node " + e.Node()
	}
	return "user " + e.User
}

// Refuses reports whether the entry revokes cert.
func (e Entry) Refuses(cert *x509.Certificate) bool {
	if e.Serial != "" {
		return e.Serial == Serial(cert)
	}
	return e.User == cert.Subject.CommonName && !cert.NotBefore.After(e.IssuedBefore) && !e.excepts(Serial(cert))
}

func (e Entry) excepts(serial string) bool {
	for _, x := range e.Except {
		if x.Serial == serial {
			return true
		}
	}
	return false
}

// since is when the entry took effect.
func (e Entry) since() time.Time {
	if e.Time.IsZero() {
		return e.IssuedBefore
	}
	return e.Time
}

// why says when and why, for logs and administrators.
func (e Entry) why() string {
	text := "revoked"
	if t := e.since(); !t.IsZero() {
		text += " " + t.UTC().Format(time.RFC3339)
	}
	if e.Reason != "" {
		text += ": " + e.Reason
	}
	return text
}

// key is the entry's key in the ConfigMap. It is for people to read; only the value has a meaning.
func (e Entry) key() string {
	if e.Serial != "" {
		return "serial-" + e.Serial
	}
	var key strings.Builder
	key.WriteString("user-")
	for _, c := range []byte(e.User) {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '.' {
			key.WriteByte(c)
		} else {
			fmt.Fprintf(&key, "_%02x", c)
		}
	}
	// Keys of a ConfigMap have 253 characters at most.
	if key.Len() > 200 {
		sum := sha256.Sum256([]byte(e.User))
		return "user-" + hex.EncodeToString(sum[:])
	}
	return key.String()
}

func (e Entry) encode() (string, error) {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	// People read and edit this: no \u003c for a < in a reason.
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(e); err != nil {
		return "", fmt.Errorf("encode entry of %s: %w", e.Subject(), err)
	}
	return strings.TrimSpace(out.String()), nil
}

// withoutEnded drops exceptions for certificates that expired long ago.
func (e Entry) withoutEnded(now time.Time) Entry {
	var kept []Exception
	for _, x := range e.Except {
		if x.Expires.IsZero() || now.Before(x.Expires.Add(keepEnded)) {
			kept = append(kept, x)
		}
	}
	e.Except = kept
	return e
}
