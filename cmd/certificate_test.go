package cmd

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/mote-dev/mote/server/pki"
	"github.com/mote-dev/mote/server/revocation"
)

// says runs one command line and returns its code and what it said.
func says(t *testing.T, args ...string) (code int, out, errOut string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	p := program{
		stdin:     strings.NewReader(""),
		stdout:    &stdout,
		stderr:    &stderr,
		lookupEnv: func(string) (string, bool) { return "", false },
	}
	code = p.run(context.Background(), append([]string{"mote"}, args...))
	return code, stdout.String(), stderr.String()
}

// kubeconfigs makes a cluster's keys and some kubeconfigs in a folder.
func kubeconfigs(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	set, err := pki.Open(filepath.Join(dir, "tls"), pki.Names{}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := set.WriteKubeconfig(filepath.Join(dir, "admin.yaml"), "https://127.0.0.1:1",
		pki.Access{Mode: 0o600}); err != nil {
		t.Fatal(err)
	}
	for name, user := range map[string]*clientcmdapi.AuthInfo{
		"token": {Token: "s3cr3t"},
		"exec": {Exec: &clientcmdapi.ExecConfig{Command: "aws", APIVersion: "client.authentication.k8s.io/v1",
			InteractiveMode: clientcmdapi.NeverExecInteractiveMode}},
		"password": {Username: "a", Password: "b"},
		"relative": {ClientCertificate: "tls/admin.crt", ClientKey: "tls/admin.key"},
		"gone":     {ClientCertificate: "tls/gone.crt"},
		"broken":   {ClientCertificateData: []byte("x")},
	} {
		config := clientcmdapi.NewConfig()
		config.AuthInfos["someone"] = user
		if err := clientcmd.WriteToFile(*config, filepath.Join(dir, name+".yaml")); err != nil {
			t.Fatal(err)
		}
	}
	writeFile(t, filepath.Join(dir, "text.yaml"), "hello: world\n")
	writeFile(t, filepath.Join(dir, "empty.yaml"), "")
	return dir
}

func TestCertificateShow_SaysWhoseAFileIs(t *testing.T) {
	dir := kubeconfigs(t)
	var want string
	for _, file := range []string{"tls/admin.crt", "admin.yaml", "relative.yaml"} {
		code, out, errOut := says(t, "certificate", "show", "-o", "json", filepath.Join(dir, file))
		var shown []shownCertificate
		if err := json.Unmarshal([]byte(out), &shown); code != 0 || err != nil || len(shown) != 1 {
			t.Fatalf("%s: %d, %q, %q, %v", file, code, out, errOut, err)
		}
		if shown[0].User != "kubernetes-admin" || len(shown[0].Groups) != 1 || shown[0].Groups[0] != "system:masters" ||
			shown[0].Issuer != "mote-ca" {
			t.Errorf("%s: %+v", file, shown[0])
		}
		if want == "" {
			want = shown[0].Serial
		}
		if shown[0].Serial != want {
			t.Errorf("%s has serial %s, want %s", file, shown[0].Serial, want)
		}
		if code, out, _ := says(t, "certificate", "show", filepath.Join(dir, file)); code != 0 ||
			!strings.Contains(out, want) || !strings.Contains(out, "system:masters") {
			t.Errorf("%s as text: %d, %q", file, code, out)
		}
	}
}

func TestCertificate_RefusesWithOneLine(t *testing.T) {
	dir := kubeconfigs(t)
	admin := filepath.Join(dir, "admin.yaml")
	other := kubeconfigs(t)
	missing := filepath.Join(dir, "missing.yaml")
	for _, row := range []struct {
		name, said string
		args       []string
	}{
		{"token", "has a token, not a certificate",
			[]string{"revoke", "--kubeconfig", admin, filepath.Join(dir, "token.yaml")}},
		{"exec", "signs in with the program aws",
			[]string{"revoke", "--kubeconfig", admin, filepath.Join(dir, "exec.yaml")}},
		{"password", "has no certificate",
			[]string{"revoke", "--kubeconfig", admin, filepath.Join(dir, "password.yaml")}},
		{"certificate file gone", "gone.crt",
			[]string{"revoke", "--kubeconfig", admin, filepath.Join(dir, "gone.yaml")}},
		{"certificate broken", "there is no certificate in it",
			[]string{"revoke", "--kubeconfig", admin, filepath.Join(dir, "broken.yaml")}},
		{"text", "neither a kubeconfig nor a certificate",
			[]string{"revoke", "--kubeconfig", admin, filepath.Join(dir, "text.yaml")}},
		{"empty", "neither a kubeconfig nor a certificate",
			[]string{"revoke", "--kubeconfig", admin, filepath.Join(dir, "empty.yaml")}},
		{"key", "there is no certificate in it",
			[]string{"revoke", "--kubeconfig", admin, filepath.Join(dir, "tls", "admin.key")}},
		{"another cluster's", "of another one",
			[]string{"revoke", "--kubeconfig", admin, filepath.Join(other, "admin.yaml")}},
		{"missing", "is not there", []string{"revoke", "--kubeconfig", admin, missing}},
		{"no cluster", "--kubeconfig which one", []string{"revoke", "--kubeconfig", missing, admin}},
		{"nothing named", "say what is meant", []string{"revoke"}},
		{"the wrong flag", "certificate revoke " + admin, []string{"revoke", "--kubeconfig", admin}},
		{"two named", "one at a time", []string{"revoke", "--node", "pi", admin}},
		{"two files", "one at a time", []string{"revoke", admin, admin}},
		{"flag too late", "comes too late", []string{"revoke", admin, "--reason", "x"}},
		{"empty name", "--node is empty", []string{"revoke", "--node", ""}},
		{"words after list", "unexpected argument \"x\": `mote certificate list` takes", []string{"list", "x"}},
		{"show without a file", "FILE", []string{"show"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			code, out, errOut := says(t, append([]string{"certificate"}, row.args...)...)
			if code != 1 || out != "" || !strings.Contains(errOut, row.said) || strings.Count(errOut, "\n") != 1 {
				t.Errorf("%d, %q, %q; want one line with %q", code, out, errOut, row.said)
			}
			if strings.Contains(errOut, "s3cr3t") {
				t.Errorf("a secret is told: %q", errOut)
			}
		})
	}
}

func TestProgram_RefuseOwn_KnowsTheServersCertificates(t *testing.T) {
	data := t.TempDir()
	set, err := pki.Open(filepath.Join(data, "server", "tls"), pki.Names{}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{set.KubeletClient.CertFile, set.FrontProxy.CertFile, set.Admin.CertFile} {
		certs, _, err := fileCertificates(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range []struct {
			name, dir string
			serial    bool // alone, without the name
			own       bool
		}{
			{"on the server's machine", data, false, file != set.Admin.CertFile},
			{"on the server's machine, by serial", data, true, file != set.Admin.CertFile},
			{"elsewhere", t.TempDir(), false, file != set.Admin.CertFile},
		} {
			t.Run(filepath.Base(file)+"/"+row.name, func(t *testing.T) {
				p := program{lookupEnv: func(name string) (string, bool) { return row.dir, name == "MOTE_DATA_DIR" }}
				e := revocation.ForCertificate(certs[0])
				if row.serial {
					e.User = ""
				}
				if err := p.refuseOwn(e); (err != nil) != row.own {
					t.Errorf("%v", err)
				}
			})
		}
	}
	// One that was replaced is not the server's any more.
	certs, _, err := fileCertificates(set.KubeletClient.CertFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{set.KubeletClient.CertFile, set.KubeletClient.KeyFile} {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := pki.Open(filepath.Join(data, "server", "tls"), pki.Names{}, time.Now()); err != nil {
		t.Fatal(err)
	}
	p := program{lookupEnv: func(name string) (string, bool) { return data, name == "MOTE_DATA_DIR" }}
	if err := p.refuseOwn(revocation.ForCertificate(certs[0])); err != nil {
		t.Errorf("a certificate that was replaced: %v", err)
	}
}
