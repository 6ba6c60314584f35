package cmd

import (
	"bytes"
	"context"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mote-dev/mote/internal/datadir"
)

// call is one run of the command line in this process.
type call struct {
	code           int
	stdout, stderr string
}

func run(t *testing.T, env map[string]string, args ...string) call {
	t.Helper()
	var out, errOut bytes.Buffer
	p := program{
		stdin:     strings.NewReader(""),
		stdout:    &out,
		stderr:    &errOut,
		lookupEnv: func(k string) (string, bool) { v, ok := env[k]; return v, ok },
		environ: func() []string {
			var list []string
			for k, v := range env {
				list = append(list, k+"="+v)
			}
			return list
		},
	}
	code := p.run(context.Background(), append([]string{"mote"}, args...))
	return call{code, out.String(), errOut.String()}
}

// refused checks that a run ended with code 1 and one line that says each of want.
func refused(t *testing.T, c call, want ...string) {
	t.Helper()
	if c.code != 1 {
		t.Errorf("exit code is %d, want 1", c.code)
	}
	// Log lines of a phase may come before; the message itself is one line.
	var lines []string
	for line := range strings.Lines(c.stderr) {
		if strings.HasPrefix(line, "mote: ") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	if len(lines) != 1 || c.stdout != "" {
		t.Fatalf("stderr is %q and stdout %q, want one line", c.stderr, c.stdout)
	}
	for _, w := range want {
		if !strings.Contains(lines[0], w) {
			t.Errorf("message %q lacks %q", lines[0], w)
		}
	}
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestServer_BadValues(t *testing.T) {
	for _, test := range []struct {
		name string
		args []string
		want []string
	}{
		{"unknown flag", []string{"--clsuter-cidr", "10.0.0.0/16"},
			[]string{"unknown flag --clsuter-cidr", `did you mean "--cluster-cidr"?`, "mote server --help"}},
		{"unknown flag like none", []string{"--frobnicate"},
			[]string{"unknown flag --frobnicate", "mote server --help"}},
		{"flag without value", []string{"--data-dir"}, []string{"--data-dir needs a value"}},
		{"stray word", []string{"start"}, []string{`unexpected argument "start"`}},
		{"no range", []string{"--cluster-cidr", "10.42.0.0"},
			[]string{"cluster-cidr", `"10.42.0.0"`, "--cluster-cidr", "10.42.0.0/16"}},
		{"no range for services", []string{"--service-cidr", "pods"},
			[]string{"service-cidr", `"pods"`, "10.43.0.0/16"}},
		{"host bits", []string{"--cluster-cidr", "10.42.1.0/16"}, []string{"cluster-cidr", "10.42.0.0/16"}},
		{"overlap", []string{"--cluster-cidr", "10.42.0.0/15"},
			[]string{"cluster-cidr 10.42.0.0/15", "service-cidr 10.43.0.0/16", "overlap"}},
		{"pods too few", []string{"--cluster-cidr", "10.42.0.0/25"},
			[]string{"cluster-cidr 10.42.0.0/25", "too small", "/24"}},
		{"pods too many", []string{"--cluster-cidr", "128.0.0.0/1"},
			[]string{"cluster-cidr 128.0.0.0/1", "too wide", "/8"}},
		{"services too few", []string{"--service-cidr", "10.43.0.0/30", "--cluster-dns", "10.43.0.2"},
			[]string{"service-cidr 10.43.0.0/30", "too small", "/28"}},
		{"services too many", []string{"--service-cidr", "10.96.0.0/11"},
			[]string{"service-cidr 10.96.0.0/11", "too wide", "/12"}},
		{"two ranges of a family", []string{"--cluster-cidr", "10.1.0.0/16,10.2.0.0/16"},
			[]string{"cluster-cidr", "each address family"}},
		{"families differ", []string{"--cluster-cidr", "fd00:1::/48"},
			[]string{"cluster-cidr fd00:1::/48", "service-cidr 10.43.0.0/16", "families"}},
		{"one side dual", []string{"--cluster-cidr", "10.42.0.0/16,fd00:1::/48"},
			[]string{"cluster-cidr has 2", "service-cidr 1"}},
		{"DNS outside", []string{"--cluster-dns", "10.44.0.10"}, []string{"cluster-dns 10.44.0.10", "10.43.0.0/16"}},
		{"DNS on the API's address", []string{"--cluster-dns", "10.43.0.1"},
			[]string{"cluster-dns 10.43.0.1", "reserved", "10.43.0.10"}},
		{"DNS no address", []string{"--cluster-dns", "dns"}, []string{`cluster-dns "dns"`, "no IP address"}},
		{"port no number", []string{"--https-listen-port", "https"},
			[]string{`https-listen-port "https"`, "no number"}},
		{"port too high", []string{"--https-listen-port", "70000"}, []string{"https-listen-port 70000", "1 to 65535"}},
		{"port of the kubelet", []string{"--https-listen-port", "10250"},
			[]string{"https-listen-port 10250 (from --https-listen-port) is the port of the kubelet", "port=N"}},
		{"port the kubelet was moved to", []string{"--https-listen-port", "7443", "--kubelet-arg", "port=7443"},
			[]string{"https-listen-port 7443", "the kubelet"}},
		{"port of the service proxy", []string{"--https-listen-port", "10256"},
			[]string{"https-listen-port 10256", "the service proxy's health", "healthz-bind-address"}},
		{"server to join", []string{"--server", "https://192.0.2.1:6443"},
			[]string{"unknown flag --server: ", "`mote agent`", "--datastore-endpoint"}},
		{"server to join, as k3s' letter", []string{"-s", "https://192.0.2.1:6443"},
			[]string{"unknown flag -s: ", "`mote agent`", "--datastore-endpoint"}},
		{"setting of agents", []string{"--node-external-ip", "192.0.2.1"},
			[]string{"unknown flag --node-external-ip: it is a setting of `mote agent`"}},
		{"port zero", []string{"--https-listen-port", "0"}, []string{"https-listen-port 0", "1 to 65535"}},
		{"node name", []string{"--node-name", "My_Node"},
			[]string{`node-name "My_Node"`, "no DNS name", "such as my-node"}},
		{"node name too long", []string{"--node-name", strings.Repeat("a", 64)}, []string{"node-name", "63"}},
		{"data folder too deep for sockets", []string{"--data-dir", "/" + strings.Repeat("d", 80)},
			[]string{"data-dir /ddd", "81 characters", "at most 65"}},
		{"node address", []string{"--node-ip", "here"}, []string{`node-ip "here"`, "no IP address"}},
		{"node address of pods", []string{"--node-ip", "10.42.0.9"}, []string{"node-ip 10.42.0.9", "cluster-cidr"}},
		{"bind address", []string{"--bind-address", "eth0"}, []string{`bind-address "eth0"`, "no IP address"}},
		{"name in certificate", []string{"--tls-san", "a b"}, []string{`tls-san "a b"`}},
		{"domain", []string{"--cluster-domain", "cluster_local"}, []string{`cluster-domain "cluster_local"`}},
		{"network backend", []string{"--network-backend", "flannel"},
			[]string{`network-backend "flannel"`, "vxlan, host-gw, none"}},
		{"token", []string{"--token", "Secret!"}, []string{"token", "<6 characters>.<16 characters>"}},
		{"token with a wrong pin", []string{"--token", "M10abc::abcdef.0123456789abcdef"}, []string{"token", "M10"}},
		{"token twice", []string{"--token", "abcdef.0123456789abcdef", "--token-file", "/tmp/x"},
			[]string{"token", "token-file", "one of them"}},
		{"token file", []string{"--token-file", "/nowhere/token"}, []string{"token-file", "/nowhere/token"}},
		{"service to disable", []string{"--disable", "dnss"}, []string{`"dnss"`, "dns"}},
		{"service proxy argument", []string{"--kube-proxy-arg", "proxy-mode=ipvs"},
			[]string{`kube-proxy-arg "proxy-mode=ipvs"`, "nftables, iptables"}},
		{"kubelet argument", []string{"--kubelet-arg", "max-pods"}, []string{`kubelet-arg "max-pods"`, "flag=value"}},
		{"API server argument", []string{"--kube-apiserver-arg", "v"},
			[]string{`kube-apiserver-arg "v"`, "flag=value"}},
		{"label", []string{"--node-label", "a b=c"}, []string{`node-label "a b=c"`, "key=value"}},
		{"taint", []string{"--node-taint", "a=b:Never"}, []string{`node-taint "a=b:Never"`, "NoSchedule"}},
		{"durability", []string{"--datastore-durability", "some"},
			[]string{`datastore-durability "some"`, "full", "relaxed"}},
		{"datastore", []string{"--datastore-endpoint", "db:2379"},
			[]string{`datastore-endpoint "db:2379"`, "https://HOST:2379"}},
		{"datastore without a token", []string{"--datastore-endpoint", "http://db:2379"},
			[]string{"datastore-endpoint needs a token", "--token-file"}},
		{"datastore with half a certificate", []string{"--datastore-endpoint", "https://db:2379", "--datastore-keyfile",
			"/k"}, []string{"datastore-certfile and datastore-keyfile"}},
		{"datastore with files for no TLS", []string{"--datastore-endpoint", "http://db:2379", "--datastore-cafile",
			"/ca"}, []string{"datastore-cafile is for TLS"}},
		{"files for no datastore", []string{"--datastore-cafile", "/ca"},
			[]string{"datastore-cafile", "--datastore-endpoint"}},
		{"log format", []string{"--log-format", "xml"}, []string{`log-format "xml"`, "text"}},
		{"kubeconfig's mode no number", []string{"--kubeconfig-mode", "u=rw"},
			[]string{`kubeconfig-mode "u=rw"`, "--kubeconfig-mode", "0640"}},
		{"kubeconfig's mode in decimal", []string{"--kubeconfig-mode", "384"},
			[]string{`kubeconfig-mode "384"`, "octal"}},
		{"kubeconfig's mode zero", []string{"--kubeconfig-mode", "0"}, []string{`kubeconfig-mode "0"`, "octal"}},
		{"kubeconfig all may write", []string{"--kubeconfig-mode", "0666"}, []string{"kubeconfig-mode 0666", "0644"}},
		{"kubeconfig root may not read", []string{"--kubeconfig-mode", "0040"}, []string{"kubeconfig-mode 0040"}},
		{"kubeconfig's group", []string{"--kubeconfig-group", "no-such-group"},
			[]string{`kubeconfig-group "no-such-group"`, "groupadd"}},
		{"relative kubeconfig", []string{"--kubeconfig-output", "k.yaml"},
			[]string{`kubeconfig-output "k.yaml"`, "absolute"}},
		{"configuration file", []string{"--config", "/nowhere/config.yaml"}, []string{"/nowhere/config.yaml"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := filepath.Join(shortDir(t), "data")
			c := run(t, map[string]string{"MOTE_CONFIG": ""},
				append([]string{"server", "--data-dir", dir, "--node-name", "n"}, test.args...)...)
			refused(t, c, test.want...)
			if _, err := os.Stat(dir); !os.IsNotExist(err) {
				t.Errorf("the data folder was made: %v", err)
			}
			if strings.Contains(c.stderr, "Secret-Of-Mine") {
				t.Error("the message shows the token")
			}
		})
	}
}

func TestServer_BadFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "config.yaml")
	writeFile(t, path, "cluster-cdir: 10.42.0.0/16\n")
	refused(t, run(t, nil, "server", "--config", path), `unknown key "cluster-cdir"`, path,
		`did you mean "cluster-cidr"?`)
	refused(t, run(t, map[string]string{"MOTE_CONFIG": path}, "server"), `unknown key "cluster-cdir"`)
	writeFile(t, path, "cluster-cidr: 10.42.0.0/33\n")
	refused(t, run(t, nil, "server", "--config", path), `cluster-cidr "10.42.0.0/33"`, path, "no address range")
	refused(t, run(t, map[string]string{"MOTE_CLUSTER_CIDR": "ten"}, "server", "--config", path), `cluster-cidr "ten"`,
		"MOTE_CLUSTER_CIDR")
}

func TestCommands_BadWords(t *testing.T) {
	for _, test := range []struct {
		args []string
		want []string
	}{
		{[]string{"serve"}, []string{`unknown command "serve"`, `did you mean "server"?`, "mote --help"}},
		{[]string{"image"}, []string{"needs a command", "import, list, rm"}},
		{[]string{"image", "imprt"}, []string{`unknown command "imprt"`, `did you mean "import"?`}},
		{[]string{"image", "import"}, []string{"needs a FILE"}},
		{[]string{"image", "import", "file.tar", "--data-dir", "/x"}, []string{"--data-dir comes too late"}},
		{[]string{"image", "import", "--data-dir", "/nowhere", "file.tar"}, []string{"no mote runs", "--data-dir"}},
		{[]string{"image", "list", "--data-dir", "/nowhere"}, []string{"no mote runs"}},
		{[]string{"image", "list", "all"}, []string{`unexpected argument "all"`}},
		{[]string{"version", "-o", "yaml"}, []string{`output form "yaml"`, "text or json"}},
		{[]string{"completion", "tcsh"}, []string{`"tcsh"`, "bash|zsh|fish"}},
		{[]string{"store", "--data-dir", "relative"}, []string{`data-dir "relative"`, "absolute"}},
		{[]string{"store", "--cert-file", "x"}, []string{"key-file", "give both"}},
		{[]string{"store", "--listen", "256.0.0.1:1"}, []string{"256.0.0.1:1", "--listen"}},
		{[]string{"snapshot", "restore"}, []string{"mote snapshot restore", "FILE"}},
		{[]string{"snapshot", "restore", "--data-dir", "/nowhere", "/nowhere.db"},
			[]string{"/nowhere.db", "not there"}},
		{[]string{"snapshot", "save", "--data-dir", "/nowhere"}, []string{"no store in /nowhere"}},
		{[]string{"stop", "--pods", "--data-dir", "/nowhere/at/all"}, []string{"no mote's data folder at /nowhere"}},
		{[]string{"stop", "--data-dir", "relative"}, []string{`data-dir "relative"`}},
		{[]string{"stop", "pods"}, []string{`unexpected argument "pods"`}},
		{[]string{"uninstall", "--data-dir", "/nowhere"}, []string{"/nowhere", "--yes"}},
		{[]string{"uninstall", "--data-dir", "/etc", "--yes"}, []string{"/etc"}},
		{[]string{"uninstall", "--data-dir", "/", "--yes"}, []string{`data-dir "/"`}},
	} {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			refused(t, run(t, nil, test.args...), test.want...)
		})
	}
}

// shortDir is a folder whose path leaves room for sockets; those of the testing package have the
// test's name in them.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "mote-cmd-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// The rest needs a data folder, and with it root.
func TestServer_HostRefuses(t *testing.T) {
	if os.Geteuid() != 0 {
		dir := filepath.Join(t.TempDir(), "data")
		refused(t, run(t, nil, "server", "--data-dir", dir), "root", "sudo")
		t.Skip("needs root")
	}
	server := func(t *testing.T, dir string, args ...string) call {
		t.Helper()
		return run(t, nil,
			append([]string{"server", "--data-dir", dir, "--node-name", "n", "--disable-agent", "--kubeconfig-output",
				filepath.Join(t.TempDir(), "k")}, args...)...)
	}
	t.Run("port in use", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		_, port, _ := net.SplitHostPort(l.Addr().String())
		dir := filepath.Join(t.TempDir(), "a", "data")
		refused(t, server(t, dir, "--https-listen-port", port, "--bind-address", "127.0.0.1"), "port "+port,
			"API server", "in use by cmd.test", "--https-listen-port")
		if _, err := os.Stat(filepath.Dir(dir)); !os.IsNotExist(err) {
			t.Errorf("folders were made: %v", err)
		}
	})
	t.Run("another mote", func(t *testing.T) {
		dir := t.TempDir()
		held, err := datadir.Open(dir, dataVersions())
		if err != nil {
			t.Fatal(err)
		}
		defer held.Close()
		refused(t, server(t, dir), "data-dir is in use", "another mote (process ", dir, "--data-dir")
	})
	t.Run("newer mote", func(t *testing.T) {
		dir := t.TempDir()
		writeFile(t, filepath.Join(dir, "version"), "layout 99\nmote v9.0.0\nkubernetes v1.99.0\n")
		refused(t, server(t, dir), "newer mote", "v9.0.0", dir)
		entries := list(t, dir)
		if len(entries) != 1 {
			t.Errorf("the folder was changed: %v", entries)
		}
	})
	says := map[string]string{
		"damaged store":     "damaged",
		"damaged authority": "damaged",
		"authority in half": "is missing",
		"damaged key":       "damaged",
	}
	for name, files := range map[string]map[string]string{
		"damaged store":     {"server/db/state.db": "this is no database at all"},
		"damaged authority": {"server/tls/ca.crt": "-----BEGIN CERTIFICATE-----\nnonsense\n"},
		"authority in half": {
			"server/tls/front-proxy-ca.key": "-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n"},
		"damaged key": {"server/tls/service-account.key": "\x00\x00\x00"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			var path string
			for file, content := range files {
				path = filepath.Join(dir, file)
				if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				writeFile(t, path, content)
			}
			before := list(t, dir)
			refused(t, server(t, dir), strings.TrimSuffix(path, filepath.Ext(path)), says[name])
			if after := list(t, dir); strings.Join(after, " ") != strings.Join(before, " ") {
				t.Errorf("the folder was changed: %v", after)
			}
		})
	}
	t.Run("data-dir below a file", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		writeFile(t, file, "")
		refused(t, server(t, filepath.Join(file, "data")), "data-dir", file, "not a folder")
	})
}

func list(t *testing.T, dir string) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if path != dir {
			names = append(names, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}
