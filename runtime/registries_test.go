package runtime

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReadRegistries_Refuses(t *testing.T) {
	for _, row := range []struct{ name, text, want string }{
		{"unknown key", "mirror:\n  docker.io: {}\n", "mirror"},
		{"rewrite, which containerd does not have",
			"mirrors:\n  docker.io:\n    endpoint: [https://a]\n    rewrite: {a: b}\n", "rewrite"},
		{"no endpoint", "mirrors:\n  docker.io: {}\n", "no endpoint"},
		{"endpoint without scheme", "mirrors:\n  docker.io:\n    endpoint: [mirror:5000]\n",
			"not an http or https URL"},
		{"host that is a path", "mirrors:\n  ../../etc:\n    endpoint: [https://a]\n", "not a registry host"},
		{"host with a scheme", "configs:\n  https://a: {}\n", "not a registry host"},
		{"certificate without key", "configs:\n  a:\n    tls: {cert_file: /dev/null}\n", "together"},
		{"missing CA", "configs:\n  a:\n    tls: {ca_file: /no/such/file}\n", "/no/such/file"},
	} {
		t.Run(row.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "registries.yaml")
			if err := os.WriteFile(file, []byte(row.text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := readRegistries(file)
			if err == nil || !strings.Contains(err.Error(), row.want) || !strings.Contains(err.Error(), file) {
				t.Errorf("error is %v, want one about %q that names the file", err, row.want)
			}
		})
	}
}

func TestRegistries_WriteHosts(t *testing.T) {
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(ca, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "registries.yaml")
	if err := os.WriteFile(file, []byte(`
mirrors:
  docker.io:
    endpoint: ["https://mirror.example:5000", "http://second.example/v2/hub"]
  "*":
    endpoint: ["https://all.example"]
configs:
  mirror.example:5000:
    auth: {username: me, password: secret}
    tls: {ca_file: `+ca+`, insecure_skip_verify: true}
  own.example:
    tls: {insecure_skip_verify: true}
`), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := readRegistries(file)
	if err != nil {
		t.Fatal(err)
	}
	certs := filepath.Join(dir, "certs")
	for range 2 { // the second time replaces the first
		if err := r.writeHosts(certs); err != nil {
			t.Fatal(err)
		}
	}
	read := func(host string) string {
		data, err := os.ReadFile(filepath.Join(certs, host, "hosts.toml"))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(data), "secret") {
			t.Errorf("%s holds the password", host)
		}
		return string(data)
	}
	hub := read("docker.io")
	first, second := strings.Index(hub, "mirror.example:5000"), strings.Index(hub, "second.example")
	if first < 0 || second < first {
		t.Errorf("mirrors are not in their order:\n%s", hub)
	}
	if !strings.Contains(hub[:second], ca) || !strings.Contains(hub[:second], "skip_verify = true") {
		t.Errorf("TLS settings of the first mirror are lost:\n%s", hub)
	}
	if strings.Contains(hub[:second], "override_path") || !strings.Contains(hub[second:], "override_path = true") {
		t.Errorf("only the second mirror has a path of its own:\n%s", hub)
	}
	if all := read("_default"); !strings.Contains(all, "https://all.example") {
		t.Errorf("mirror of all registries is lost:\n%s", all)
	}
	if own := read("own.example"); !strings.Contains(own, `"https://own.example"`) &&
		!strings.Contains(own, `'https://own.example'`) {
		t.Errorf("TLS settings of a registry without mirrors are lost:\n%s", own)
	}
	if c := r.credentials(); len(c) != 1 || c["mirror.example:5000"] == nil {
		t.Errorf("credentials are %v", c)
	}
}
