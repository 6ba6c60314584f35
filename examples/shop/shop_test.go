package main

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// startShop runs the web part against a ledger, both in this process.
func startShop(t *testing.T) (web *httptest.Server, configDir, ledgerURL string) {
	t.Helper()
	l, err := openLedger(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.close)
	back := httptest.NewServer(l.handler())
	t.Cleanup(back.Close)

	configDir = t.TempDir()
	env := map[string]string{"CONFIG_DIR": configDir, "MOTD": "open", "ADMIN_PASSWORD": "secret",
		"LEDGER_URL": back.URL, "STARTUP_TIME": "0s"}
	w, err := newWeb(func(k string) string { return env[k] })
	if err != nil {
		t.Fatal(err)
	}
	front := httptest.NewServer(w.handler())
	t.Cleanup(front.Close)
	return front, configDir, back.URL
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestWeb_GreetingChanges_SeenWithoutRestart(t *testing.T) {
	web, dir, _ := startShop(t)
	for _, want := range []string{"hello", "welcome"} {
		if err := os.WriteFile(filepath.Join(dir, "greeting"), []byte(want+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, body := get(t, web.URL); !strings.HasPrefix(body, want+"\nopen\n") {
			t.Errorf("home page is %q, want greeting %q", body, want)
		}
	}
}

func TestWeb_Order_ReachesLedgerOnce(t *testing.T) {
	web, _, ledgerURL := startShop(t)
	for range 2 { // the Job may be retried
		if err := seed(t.Context(), ledgerURL); err != nil {
			t.Fatal(err)
		}
	}
	resp, err := http.Post(web.URL+"/orders", "text/plain", strings.NewReader("two apples"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		t.Errorf("order answered %s", resp.Status)
	}
	if _, body := get(t, web.URL+"/orders"); body != "first order\ntwo apples\n" {
		t.Errorf("orders are %q", body)
	}
	var out bytes.Buffer
	if err := report(t.Context(), ledgerURL, &out); err != nil || out.String() != "2 orders\n" {
		t.Errorf("report %q, %v", out.String(), err)
	}
}

func TestWeb_Admin_NeedsPasswordAndSwitchesProbes(t *testing.T) {
	web, _, _ := startShop(t)
	post := func(path, password string) int {
		req, err := http.NewRequest(http.MethodPost, web.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth("admin", password)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	if code := post("/admin/die", "wrong"); code != http.StatusUnauthorized {
		t.Errorf("wrong password answered %d", code)
	}
	if code, _ := get(t, web.URL+"/probe/live"); code != http.StatusOK {
		t.Errorf("live probe answered %d", code)
	}
	for _, row := range []struct{ name, path, probe string }{{"ready", "/admin/unready", "/probe/ready"},
		{"live", "/admin/die", "/probe/live"}} {
		t.Run(row.name, func(t *testing.T) {
			if code := post(row.path, "secret"); code != http.StatusOK {
				t.Errorf("switch answered %d", code)
			}
			if code, _ := get(t, web.URL+row.probe); code != http.StatusServiceUnavailable {
				t.Errorf("probe answered %d", code)
			}
		})
	}
}
