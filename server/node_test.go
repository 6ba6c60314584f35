package server

import (
	"errors"
	"strings"
	"testing"

	"github.com/mote-dev/mote/internal/joinapi"
)

func TestServer_New_RefusesBadConfig(t *testing.T) {
	if _, err := New(Config{DataDir: "relative"}); err == nil || !strings.Contains(err.Error(), "data-dir") {
		t.Errorf("a relative data folder: %v", err)
	}
	if _, err := New(Config{Token: "short"}); !errors.Is(err, joinapi.ErrTokenForm) {
		t.Errorf("a token of the wrong form: %v", err)
	}
}
