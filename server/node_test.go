package server

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/mote-dev/mote/internal/joinapi"
)

// answers is a transport that gives its statuses in order and then the last one.
type answers struct {
	statuses []int
	asked    int
}

func (a *answers) RoundTrip(*http.Request) (*http.Response, error) {
	status := a.statuses[min(a.asked, len(a.statuses)-1)]
	a.asked++
	return &http.Response{StatusCode: status, Body: io.NopCloser(strings.NewReader(""))}, nil
}

func TestPatient_RoundTrip(t *testing.T) {
	const forbidden, ok = http.StatusForbidden, http.StatusOK
	for _, row := range []struct {
		name, method, path string
		statuses           []int
		want, asked        int
	}{
		{"waits for the authorizer", http.MethodGet, "/api/v1/namespaces/a/configmaps", []int{forbidden, forbidden, ok}, ok, 3},
		{"gives up", http.MethodGet, "/api/v1/namespaces/a/secrets/b", []int{forbidden}, forbidden, refusalRetries + 1},
		{"asks once for other things", http.MethodGet, "/api/v1/pods", []int{forbidden, ok}, forbidden, 1},
		{"never repeats a write", http.MethodPost, "/api/v1/namespaces/a/secrets", []int{forbidden, ok}, forbidden, 1},
		{"leaves other failures alone", http.MethodGet, "/api/v1/namespaces/a/secrets/b", []int{http.StatusNotFound, ok}, http.StatusNotFound, 1},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				next := &answers{statuses: row.statuses}
				r, err := http.NewRequestWithContext(t.Context(), row.method, "https://mote.in-process"+row.path, nil)
				if err != nil {
					t.Fatal(err)
				}
				response, err := patient{next}.RoundTrip(r)
				if err != nil {
					t.Fatal(err)
				}
				if response.StatusCode != row.want || next.asked != row.asked {
					t.Errorf("status %d after %d requests, want %d after %d", response.StatusCode, next.asked, row.want, row.asked)
				}
			})
		})
	}
}

func TestServer_New_RefusesBadConfig(t *testing.T) {
	if _, err := New(Config{DataDir: "relative"}); err == nil || !strings.Contains(err.Error(), "data-dir") {
		t.Errorf("a relative data folder: %v", err)
	}
	if _, err := New(Config{Token: "short"}); !errors.Is(err, joinapi.ErrTokenForm) {
		t.Errorf("a token of the wrong form: %v", err)
	}
}
