package cmd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/mote-dev/mote/internal/datadir"
	"github.com/mote-dev/mote/runtime/layout"
)

// asProgram makes this test program the command line itself, in a process of another user.
const asProgram = "TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		os.Exit(Main(context.Background(), append([]string{"mote"}, os.Args[1:]...)))
	}
	os.Exit(m.Run())
}

// nobody is a user without any rights.
const nobody = 65534

// runAs runs a command line as a user, with nothing in its environment but env.
func runAs(t *testing.T, uid uint32, env []string, args ...string) call {
	t.Helper()
	var out, errOut bytes.Buffer
	// Not by its path, which is in a folder of root's.
	c := exec.Command("/proc/self/exe", args...)
	c.Env = append([]string{asProgram + "=1", "PATH=/usr/bin:/bin"}, env...)
	c.Dir, c.Stdout, c.Stderr = "/", &out, &errOut
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	err := c.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return call{c.ProcessState.ExitCode(), out.String(), errOut.String()}
}

// rootsMote is a machine on which root's mote runs, as far as files tell: this process holds its
// data folder. It returns the environment in which commands find it.
func rootsMote(t *testing.T) (dir string, env []string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to be another user than root")
	}
	base := shortDir(t)
	if err := os.Chmod(base, 0o755); err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(base, "data")
	held, err := datadir.Open(dir, dataVersions())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = held.Close() })
	paths := datadir.At(dir)
	socket := layout.For(paths.Agent().Dir()).Socket
	for _, d := range []struct {
		path string
		mode fs.FileMode
	}{{paths.Server(), 0o700}, {paths.Database(), 0o700}, {paths.Snapshots(), 0o700}, {paths.Agent().Dir(), 0o755},
		{paths.Agent().Identity(), 0o700}, {filepath.Dir(socket), 0o711}} {
		if err := os.MkdirAll(d.path, d.mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range []string{socket, paths.StatusSocket()} {
		l, err := net.Listen("unix", s)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		if err := os.Chmod(s, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{paths.StoreFile(), filepath.Join(paths.Snapshots(), "mote-1-20270101T000000Z.db"),
		filepath.Join(base, "kubeconfig.yaml"), filepath.Join(base, "private")} {
		writeFile(t, f, "")
	}
	return dir, []string{"MOTE_DATA_DIR=" + dir, "MOTE_KUBECONFIG_OUTPUT=" + filepath.Join(base, "kubeconfig.yaml"),
		"MOTE_CONFIG=" + ""}
}

// leaves are the commands that do something, by the words that call them.
func leaves(commands []*cli.Command, above []string) map[string]bool {
	out := map[string]bool{}
	for _, c := range commands {
		path := append(slices.Clone(above), c.Name)
		if len(c.Subcommands) == 0 {
			out[strings.Join(path, " ")] = true
			continue
		}
		for name := range leaves(c.Subcommands, path) {
			out[name] = true
		}
	}
	return out
}

// Every command that needs root's rights says so to a normal user, in one line and nothing else.
func TestCommands_NormalUser_PermissionDenied(t *testing.T) {
	dir, env := rootsMote(t)
	private := filepath.Join(filepath.Dir(dir), "private")
	snapshot := filepath.Join(datadir.At(dir).Snapshots(), "mote-1-20270101T000000Z.db")
	works := map[string][]string{"version": nil, "completion": {"bash"}}
	// By the words of the command: what follows them.
	denied := map[string][]string{
		"server": nil, "agent": {"--server", "192.0.2.1", "--token", "abcdef.0123456789abcdef", "--node-name", "n1"},
		"check": nil, "status": nil, "uninstall": {"--yes"}, "store": {"--listen", "127.0.0.1:0"},
		"kubectl": {"get", "nodes"}, "ctr": {"images", "list"}, "crictl": {"ps"},
		"stop":         {"--pods"},
		"image import": {private}, "image list": nil, "image rm": {"a"},
		"snapshot save": nil, "snapshot list": nil, "snapshot check": {snapshot}, "snapshot restore": {snapshot},
		"token create": nil, "token list": nil, "token delete": {"abcdef"}, "token rotate": nil,
		"node list": nil, "node forget": {"n1"},
		"kubeconfig create":  {"--user", "erika"},
		"certificate revoke": {"--user", "erika"}, "certificate unrevoke": {"--user", "erika"},
		"certificate list": nil, "certificate show": {private},
	}
	for name := range leaves(program{}.app().Commands, nil) {
		after, isDenied := denied[name]
		if !isDenied {
			if after, isDenied = works[name]; !isDenied {
				t.Errorf("command %q is in no table of this test: say what a normal user gets from it", name)
				continue
			}
			if c := runAs(t, nobody, env, append(strings.Fields(name), after...)...); c.code != 0 || c.stderr != "" {
				t.Errorf("mote %s: code %d, %q; want that it works for everybody", name, c.code, c.stderr)
			}
			continue
		}
		t.Run(name, func(t *testing.T) {
			c := runAs(t, nobody, env, append(strings.Fields(name), after...)...)
			if name == "check" {
				// Its findings are its output.
				if n := strings.Count("\n"+c.stdout, "\nfail"); c.code != 1 || n != 1 ||
					!strings.Contains(c.stdout, "permission denied") || !strings.Contains(c.stdout, "use sudo") {
					t.Errorf("code %d, %q; want one failed check, and no more", c.code, c.stdout)
				}
				return
			}
			refused(t, c, "permission denied", "use sudo")
		})
	}
}

// A configuration file with a token in it is root's alone, and no reason for a command to act on
// other settings than the machine's.
func TestCommands_NormalUser_ConfigurationIsRoots(t *testing.T) {
	dir, env := rootsMote(t)
	config := filepath.Join(filepath.Dir(dir), "config.yaml")
	writeFile(t, config, "data-dir: "+dir+"\n")
	env = []string{"MOTE_CONFIG=" + config, env[1]}
	for _, words := range []string{"status", "image list", "snapshot list", "check", "ctr images list",
		"token rotate"} {
		refused(t, runAs(t, nobody, env, strings.Fields(words)...), "permission denied", "use sudo")
	}
}

// What needs no cluster, or another one than the machine's, works for everybody.
func TestNeedsKubeconfig(t *testing.T) {
	for _, row := range []struct {
		args string
		want bool
	}{
		{"get nodes", true},
		{"-n kube-system get pods", true},
		{"exec pod -- ls -h", true},
		{"version", true},
		{"", false},
		{"--help", false},
		{"get --help", false},
		{"version --client", false},
		{"config view", false},
		{"completion bash", false},
		{"kustomize .", false},
		{"create deployment x --image=y --dry-run=client -o yaml", false},
		{"--kubeconfig f get nodes", false},
		{"get nodes --kubeconfig=f", false},
		{"-s https://192.0.2.1:6443 get nodes", false},
	} {
		if got := needsKubeconfig(strings.Fields(row.args)); got != row.want {
			t.Errorf("kubectl %s: %v, want %v", row.args, got, row.want)
		}
	}
}

// On an agent, commands of the cluster say where to run them instead of asking localhost:8080.
func TestCommands_Agent_SayWhereToRun(t *testing.T) {
	dir := shortDir(t)
	identity := datadir.At(dir).Agent().Identity()
	if err := os.MkdirAll(identity, 0o700); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(identity, "cluster.json"),
		`{"nodeName": "n1", "cluster": {"servers": ["192.0.2.10:6443"]}}`)
	env := map[string]string{"MOTE_DATA_DIR": dir, "MOTE_KUBECONFIG_OUTPUT": filepath.Join(dir, "none.yaml")}
	for _, words := range []string{"kubectl get nodes", "token list", "node list", "kubeconfig create --user erika",
		"certificate list"} {
		t.Run(words, func(t *testing.T) {
			refused(t, run(t, env, strings.Fields(words)...), "agent", "server's machine (https://192.0.2.10:6443)",
				"--kubeconfig")
		})
	}
	// Neither a server nor an agent.
	env["MOTE_DATA_DIR"] = filepath.Join(dir, "nothing")
	refused(t, run(t, env, "kubectl", "get", "nodes"), "none.yaml is not there", "server's machine")
}

// A configuration file that cannot be used may have the setting that a command needs: acting on a
// default would be acting on another machine's.
func TestMachineSetting_ReportsFaultsOfTheFile(t *testing.T) {
	config := filepath.Join(t.TempDir(), "config.yaml")
	writeFile(t, config, "kubeconfig-outptu: /k\n")
	env := map[string]string{"MOTE_CONFIG": config}
	for _, words := range []string{"kubectl get nodes", "ctr images list", "token list"} {
		refused(t, run(t, env, strings.Fields(words)...), "kubeconfig-outptu", config)
	}
	env = map[string]string{"MOTE_CONFIG": config + ".none"}
	refused(t, run(t, env, "kubectl", "get", "nodes"), config+".none")
	// A setting that no file can change is not looked for in one.
	p := program{lookupEnv: func(name string) (string, bool) {
		v, ok := map[string]string{"MOTE_CONFIG": config, "MOTE_DATA_DIR": "/d"}[name]
		return v, ok
	}}
	if dir, err := p.machineSetting("data-dir", "/otherwise"); dir != "/d" || err != nil {
		t.Errorf("data-dir is %q, %v; want /d", dir, err)
	}
}

func TestDeniedRemedy(t *testing.T) {
	if got := deniedRemedy(fs.ErrPermission, 0); got != "" {
		t.Errorf("root is told %q", got)
	}
	for _, row := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("open it: %w", unix.EACCES), "use sudo"},
		{fmt.Errorf("stop it: %w", unix.EPERM), "permission denied, use sudo"},
		{errNotRoot, ""},
		{unix.ENOENT, ""},
		{&net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", unix.EPERM)}, ""},
	} {
		if got := deniedRemedy(row.err, nobody); got != row.want {
			t.Errorf("remedy of %q is %q, want %q", row.err, got, row.want)
		}
	}
}
