package e2e

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/mote-dev/mote/test/tools/sandbox"
)

// TestServer_BadInput_RefusedBeforeAnythingChanges starts servers that must not start: each says in
// one line what is wrong and what to do, and leaves nothing.
func TestServer_BadInput_RefusedBeforeAnythingChanges(t *testing.T) {
	options.NeedMote(t)
	busy, err := net.Listen("tcp", ":16443")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()

	config := func(text string) func(*testing.T, string) {
		return func(t *testing.T, _ string) {
			if err := os.MkdirAll("/etc/mote", 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile("/etc/mote/config.yaml", []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			removeAtEnd(t, "/etc/mote")
		}
	}
	file := func(path, content string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			full := filepath.Join(dir, path)
			if err := os.MkdirAll(filepath.Dir(full), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(full, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, row := range []struct {
		name  string
		args  []string
		env   []string
		setUp func(t *testing.T, dataDir string)
		says  []string // all of these
	}{
		{name: "unknown flag", args: []string{"--colour=red"}, says: []string{"colour"}},
		{name: "unknown config key", setUp: config("colour: red\n"), says: []string{"colour", "config.yaml"}},
		{name: "config is no YAML", setUp: config("a: [\n"), says: []string{"config.yaml"}},
		{name: "bad value in environment", env: []string{"MOTE_CLUSTER_CIDR=many"}, says: []string{"many"}},
		{name: "port out of range", args: []string{"--https-listen-port=70000"}, says: []string{"70000"}},
		{name: "port in use", args: []string{"--https-listen-port=16443"}, says: []string{"16443", "in use"}},
		{name: "CIDRs overlap", args: []string{"--cluster-cidr=10.42.0.0/16", "--service-cidr=10.42.128.0/17"},
			says: []string{"10.42.0.0/16", "overlap"}},
		{name: "cluster CIDR is none", args: []string{"--cluster-cidr=10.42.0.0"}, says: []string{"10.42.0.0"}},
		{name: "cluster CIDR too small", args: []string{"--cluster-cidr=10.42.0.0/28"},
			says: []string{"10.42.0.0/28", "small"}},
		{name: "service CIDR too small", args: []string{"--service-cidr=10.43.0.0/30", "--cluster-dns=10.43.0.2"},
			says: []string{"10.43.0.0/30", "small"}},
		{name: "cluster DNS outside the service CIDR", args: []string{"--cluster-dns=10.99.0.10"},
			says: []string{"10.99.0.10"}},
		{name: "network backend that is none", env: []string{"MOTE_NETWORK_BACKEND=pigeon"},
			says: []string{"network-backend", "pigeon", "vxlan, host-gw, none"}},
		{name: "node name no DNS label", args: []string{"--node-name=Not_A_Label"}, says: []string{"Not_A_Label"}},
		{name: "token of the wrong form", args: []string{"--token=hello"}, says: []string{"token"}},
		{name: "node name too long", args: []string{"--node-name=" + strings.Repeat("a", 40) + "." +
			strings.Repeat("b", 30)}, says: []string{"71 characters"}},
		{name: "kubelet flag that is none", args: []string{"--kubelet-arg=max-podz=50"}, says: []string{"max-podz=50"}},
		{name: "label of Kubernetes' own", args: []string{"--node-label=node-role.kubernetes.io/worker=true"},
			says: []string{"node-role.kubernetes.io/worker"}},
		{name: "registries file missing", args: []string{"--registries-file=/nowhere/r.yaml"},
			says: []string{"/nowhere/r.yaml"}},
		{name: "API server flag that is none", args: []string{"--kube-apiserver-arg=colour=red"},
			says: []string{"kube-apiserver-arg", "colour"}},
		{name: "node IP is none", args: []string{"--node-ip=300.1.1.1"}, says: []string{"300.1.1.1"}},
		{name: "word that is no flag", args: []string{"fast"}, says: []string{"fast"}},
		{name: "damaged store", setUp: file("server/db/state.db", strings.Repeat("this is no database ", 1000)),
			says: []string{"state.db"}},
		{name: "damaged CA", setUp: file("server/tls/ca.crt", "-----BEGIN CERTIFICATE-----\nnonsense\n"),
			says: []string{"ca"}},
		{name: "data folder is a file", setUp: func(t *testing.T, dir string) {
			if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(dir, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, says: []string{"data"}},
		{name: "data folder not writable", args: []string{"--data-dir=/proc/mote"}, says: []string{"/proc/mote"}},
		{name: "data folder behind a link that leads nowhere", setUp: func(t *testing.T, dir string) {
			if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink("/mnt/not-mounted/mote", dir); err != nil {
				t.Fatal(err)
			}
		}, says: []string{"data-dir", "is a link to /mnt/not-mounted/mote", "mount its disk"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := filepath.Join(sandbox.Dir(), "bad", "data")
			removeAtEnd(t, filepath.Dir(dir))
			if row.setUp != nil {
				row.setUp(t, dir)
			}
			before := snapshot(t)
			args := []string{"server", "--data-dir", dir, "--kubeconfig-output",
				filepath.Join(sandbox.Dir(), "bad", "kubeconfig"), "--node-name", "bad", "--https-listen-port", "16444"}
			said := refusedIn(t, row.env, append(args, row.args...)...)
			for _, want := range row.says {
				if !strings.Contains(said, want) {
					t.Errorf("said %q, want %q in it", said, want)
				}
			}
			t.Log(said)
			if left := before.Added(snapshot(t)); len(left) > 0 {
				t.Errorf("left behind: %s", strings.Join(left[:min(len(left), 10)], ", "))
				// The next row must find what this one found.
				if err := sandbox.PowerCut(before); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
	for _, row := range []struct {
		name string
		args []string
	}{
		{"unknown command", []string{"fly"}},
		{"uninstall without consent", []string{"uninstall", "--data-dir", sandbox.Dir()}},
		{"uninstall of a folder that is not mote's", []string{"uninstall", "--yes", "--data-dir", "/etc"}},
		{"import without a running server", []string{"image", "import", "--data-dir",
			filepath.Join(sandbox.Dir(), "nobody"), filepath.Join(options.Images, "busybox.tar")}},
	} {
		t.Run(row.name, func(t *testing.T) {
			before := snapshot(t)
			t.Log(refusedByMote(t, row.args...))
			if after := snapshot(t); !slices.Equal(before[sandbox.Files], after[sandbox.Files]) {
				t.Error("files were changed")
			}
		})
	}
	t.Run("not root", func(t *testing.T) {
		said := refusedByUnprivileged(t, "server", "--data-dir", filepath.Join(sandbox.Dir(), "bad"))
		if !strings.Contains(said, "root") {
			t.Errorf("said %q", said)
		}
	})
}

// refusedByUnprivileged is refusedByMote as a user who may do nothing.
func refusedByUnprivileged(t *testing.T, args ...string) string {
	t.Helper()
	// The executable's folder may be closed to others; a copy is not.
	data, err := os.ReadFile(options.Mote)
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(sandbox.Dir(), "mote-for-all")
	if err := os.WriteFile(bin, data, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(bin)
	cmd := exec.CommandContext(t.Context(), bin, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("%v, want exit code 1", err)
	}
	return strings.TrimSpace(string(out))
}

func removeAtEnd(t *testing.T, dir string) {
	t.Helper()
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
}
