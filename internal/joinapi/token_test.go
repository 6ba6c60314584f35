package joinapi

import (
	"errors"
	"strings"
	"testing"
)

func TestParseToken(t *testing.T) {
	pin := strings.Repeat("0f", 32)
	for _, row := range []struct {
		name, text  string
		pin, secret string
		bootstrap   bool
		bad         bool
	}{
		{
			name:      "pinned",
			text:      "M10" + pin + "::abcdef.0123456789abcdef",
			pin:       pin,
			secret:    "abcdef.0123456789abcdef",
			bootstrap: true,
		},
		{
			name:   "pinned password",
			text:   "M10" + pin + "::correct-horse",
			pin:    pin,
			secret: "correct-horse",
		},
		{
			name:      "bootstrap",
			text:      "abcdef.0123456789abcdef",
			secret:    "abcdef.0123456789abcdef",
			bootstrap: true,
		},
		{name: "password", text: "correct-horse", secret: "correct-horse"},
		{name: "password like a pin", text: "M10-is-a-road", secret: "M10-is-a-road"},
		{name: "cut in the pin", text: "M10" + pin[:40], bad: true},
		{name: "cut before the secret", text: "M10" + pin + "::", bad: true},
		{name: "cut in the secret", text: "M10" + pin + "::abcdef", bad: true},
		{name: "cut in the last characters", text: "M10" + pin + "::abcdef.0123456789abcde", bad: true},
		{name: "cut behind the dot", text: "M10" + pin + "::abcdef.01", bad: true},
		{name: "password of that look without a pin", text: "abcdef.01", secret: "abcdef.01"},
		{name: "short pin", text: "M10abc::abcdef.0123456789abcdef", bad: true},
		{name: "too short", text: "abc", bad: true},
		{name: "with a space", text: "two words here", bad: true},
		{name: "empty", text: "", bad: true},
	} {
		t.Run(row.name, func(t *testing.T) {
			token, err := ParseToken(row.text)
			if row.bad {
				if !errors.Is(err, ErrTokenForm) || (row.text != "" && strings.Contains(err.Error(), row.text)) {
					t.Fatalf("error is %v, want ErrTokenForm without the token", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			_, _, bootstrap := token.Bootstrap()
			if token.Pin != row.pin || token.Secret != row.secret || bootstrap != row.bootstrap ||
				token.String() != row.text {
				t.Errorf("got %+v, bootstrap %v, text %q", token, bootstrap, token)
			}
		})
	}
}
