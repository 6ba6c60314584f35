package cmd

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mote-dev/mote/internal/datadir"
)

// TestSupervisors_Stop has a machine of files and a list of the commands that were run on it.
func TestSupervisors_Stop(t *testing.T) {
	const show = "systemctl show --property="
	installed := func(properties string) map[string]string {
		return map[string]string{show + "LoadState,ExecStart,Environment -- mote.service": properties}
	}
	const dir = "/var/lib/mote"
	loaded := "LoadState=loaded\nEnvironment=\nExecStart={ path=/usr/local/bin/mote ; " +
		"argv[]=/usr/local/bin/mote server%s ; ignore_errors=no ; pid=0 }\n"
	none := installed("LoadState=not-found\n")
	with := func(a map[string]string, more ...string) map[string]string {
		b := map[string]string{}
		for k, v := range a {
			b[k] = v
		}
		for i := 0; i < len(more); i += 2 {
			b[more[i]] = more[i+1]
		}
		return b
	}
	systemd := map[string]string{"/run/systemd/system/": ""}
	openrc := map[string]string{"/run/openrc/": "", "/etc/init.d/mote": "", "/etc/runlevels/default/mote": "",
		"/etc/runlevels/boot/other": ""}
	const enabled, byHand = "UnitFileState=enabled\n", "UnitFileState=\n"
	for _, test := range []struct {
		name    string
		pid     int
		files   map[string]string
		answers map[string]string // of commands; all others answer nothing
		want    []string
		ran     []string // but for those that only look
	}{
		{"no service manager", 7, nil, nil, nil, nil},
		{"systemd, the unit of install.sh", 7, with(systemd, "/proc/7/cgroup", "0::/system.slice/mote.service\n"),
			map[string]string{show + "MainPID -- mote.service": "MainPID=7\n",
				show + "UnitFileState -- mote.service": enabled},
			[]string{"mote.service"}, []string{"systemctl stop -- mote.service", "systemctl disable -- mote.service"}},
		{"systemd, cgroups of version 1", 7,
			with(systemd, "/proc/7/cgroup", "3:cpu:/\n1:name=systemd:/system.slice/mote.service\n"),
			map[string]string{show + "MainPID -- mote.service": "MainPID=7\n",
				show + "UnitFileState -- mote.service": enabled},
			[]string{"mote.service"}, []string{"systemctl stop -- mote.service", "systemctl disable -- mote.service"}},
		{"systemd, a unit of another name", 7, with(systemd, "/proc/7/cgroup", "0::/system.slice/k8s@a.service\n"),
			with(none, show+"MainPID -- k8s@a.service", "MainPID=7\n", show+"UnitFileState -- k8s@a.service", enabled),
			[]string{"k8s@a.service"},
			[]string{"systemctl stop -- k8s@a.service", "systemctl disable -- k8s@a.service"}},
		{"systemd-run, which nothing starts at boot", 7,
			with(systemd, "/proc/7/cgroup", "0::/system.slice/run-1.service\n"),
			with(none, show+"MainPID -- run-1.service", "MainPID=7\n", show+"UnitFileState -- run-1.service", byHand),
			[]string{"run-1.service"}, []string{"systemctl stop -- run-1.service"}},
		{"by hand over ssh: sshd's unit is not mote's", 7,
			with(systemd, "/proc/7/cgroup", "0::/system.slice/ssh.service\n"),
			with(none, show+"MainPID -- ssh.service", "MainPID=3\n"), nil, nil},
		{"by hand in a session", 7, with(systemd, "/proc/7/cgroup", "0::/user.slice/user-0.slice/session-3.scope\n"),
			none, nil, nil},
		{"by hand, and the unit fails to start all the time", 7,
			with(systemd, "/proc/7/cgroup", "0::/user.slice/user-0.slice/session-3.scope\n"),
			with(installed(fmt.Sprintf(loaded, "")), show+"UnitFileState -- mote.service", enabled),
			[]string{"mote.service"}, []string{"systemctl stop -- mote.service", "systemctl disable -- mote.service"}},
		{"not running, the unit is about to start it", 0, systemd,
			with(installed(fmt.Sprintf(loaded, "")), show+"UnitFileState -- mote.service", enabled),
			[]string{"mote.service"}, []string{"systemctl stop -- mote.service", "systemctl disable -- mote.service"}},
		{"the unit's data folder is another, by flag", 0, systemd,
			installed(fmt.Sprintf(loaded, " --data-dir /srv/other")), nil, nil},
		{"by flag with =", 0, systemd, installed(fmt.Sprintf(loaded, " --data-dir=/srv/other --debug")), nil, nil},
		{"by variable", 0, systemd, installed(strings.Replace(fmt.Sprintf(loaded, ""), "Environment=",
			"Environment=A=b MOTE_DATA_DIR=/srv/other", 1)), nil, nil},
		{"by the file of variables", 0, with(systemd, "/etc/default/mote", "# x\nMOTE_DATA_DIR=\"/srv/other\"\n"),
			installed(fmt.Sprintf(loaded, "")), nil, nil},
		{"OpenRC, by the process that watches it", 7, with(openrc, "/proc/7/status", "Name:\tmote\nPPid:\t5\n",
			"/proc/5/cmdline", "supervise-daemon\x00mote\x00--start\x00"), nil,
			[]string{"mote"}, []string{"rc-service mote stop", "rc-update del mote default"}},
		{"OpenRC, a service of another name", 7, with(openrc, "/proc/7/status", "Name:\tmote\nPPid:\t5\n",
			"/proc/5/cmdline", "/sbin/supervise-daemon\x00k8s\x00--start\x00",
			"/etc/conf.d/mote", "command_args='server --data-dir /srv/other'\n"), nil,
			[]string{"k8s"}, []string{"rc-service k8s stop"}},
		{"OpenRC, not running", 0, openrc, nil,
			[]string{"mote"}, []string{"rc-service mote stop", "rc-update del mote default"}},
		{"OpenRC, on another folder", 0, with(openrc, "/etc/conf.d/mote", "export MOTE_DATA_DIR=/srv/other\n"),
			nil, nil, nil},
		{"OpenRC without the service", 0, map[string]string{"/run/openrc/": ""}, nil, nil, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			root := t.TempDir()
			for path, content := range test.files {
				file := filepath.Join(root, path)
				if strings.HasSuffix(path, "/") {
					file = filepath.Join(file, "x")
				}
				if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
					t.Fatal(err)
				}
				writeFile(t, file, content)
			}
			var ran []string
			s := supervisors{
				program: program{stdout: io.Discard},
				root:    root,
				run: func(_ context.Context, name string, args ...string) (string, error) {
					command := name + " " + strings.Join(args, " ")
					if strings.HasPrefix(command, show) {
						answer, ok := test.answers[command]
						if !ok {
							t.Errorf("asked %q", command)
						}
						return answer, nil
					}
					ran = append(ran, command)
					return "", nil
				},
			}
			// The configuration file of this machine is nobody's here.
			t.Setenv("MOTE_CONFIG", filepath.Join(root, "none.yaml"))
			got, err := s.stop(t.Context(), dir, test.pid)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got, test.want) || !slices.Equal(ran, test.ran) {
				t.Errorf("stopped %q by %q, want %q by %q", got, ran, test.want, test.ran)
			}
		})
	}
}

// A service that does not stop leaves everything as it is.
func TestSupervisors_Stop_Fails(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "/run/systemd/system"), 0o755); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("exit status 1: bus is down")
	s := supervisors{root: root, run: func(_ context.Context, _ string, args ...string) (string, error) {
		if args[0] == "show" {
			return "LoadState=loaded\nExecStart={ path=/m ; argv[]=/m server --data-dir /d ; }\n", nil
		}
		return "", broken
	}}
	if _, err := s.stop(t.Context(), "/d", 0); !errors.Is(err, broken) || !strings.Contains(err.Error(), "by hand") {
		t.Errorf("error is %v", err)
	}
}

// runOn starts a process that holds a data folder's lock as a mote does, again and again if asked
// to.
func runOn(t *testing.T, dataDir string, again bool) *exec.Cmd {
	t.Helper()
	if _, err := exec.LookPath("flock"); err != nil {
		t.Skip("needs flock of util-linux")
	}
	script := `while :; do
		sh -c 'exec 9<>"$0"; flock -n 9 || exit 1; echo $$ >"$0"; echo up; exec sleep 1000' "$0" && exit
		$1 || exit 0
	done`
	keeps := "false"
	if again {
		keeps = "true"
	}
	cmd := exec.Command("sh", "-c", script, filepath.Join(dataDir, "mote.lock"), keeps)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		if pid, err := datadir.Holder(dataDir); err == nil && pid != 0 {
			if p, err := os.FindProcess(pid); err == nil {
				_ = p.Kill()
			}
		}
		_ = cmd.Wait()
	})
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return cmd
}

func TestUninstaller_TakeOver(t *testing.T) {
	// Whatever runs services on the machine of the test knows none of ours.
	idle := supervisors{run: func(context.Context, string, ...string) (string, error) { return "", nil }}
	take := func(t *testing.T, patience time.Duration, prepare func(dataDir string)) (*uninstaller, error) {
		u, _, _ := machine(t)
		prepare(u.dataDir)
		u.services, u.patience = idle, patience
		lock, err := u.takeOver(t.Context())
		if err == nil {
			t.Cleanup(func() { _ = lock.Close() })
		}
		return u, err
	}
	refused := func(t *testing.T, u *uninstaller) {
		t.Helper()
		if _, err := datadir.Open(u.dataDir, dataVersions()); !errors.Is(err, datadir.ErrInUse) {
			t.Errorf("a mote that is started meanwhile: %v, want that the folder is in use", err)
		}
	}
	t.Run("nothing runs", func(t *testing.T) {
		u, err := take(t, time.Hour, func(string) {})
		if err != nil {
			t.Fatal(err)
		}
		refused(t, u)
	})
	t.Run("started by hand", func(t *testing.T) {
		u, err := take(t, 300*time.Millisecond, func(dir string) { runOn(t, dir, false) })
		if err != nil {
			t.Fatal(err)
		}
		if out := u.stdout.(*bytes.Buffer).String(); !strings.Contains(out, "stopped mote") {
			t.Errorf("says %q", out)
		}
		refused(t, u)
	})
	// A shell loop, runit, a container: nothing that mote could tell to stop.
	t.Run("something starts it again", func(t *testing.T) {
		var loop *exec.Cmd
		u, err := take(t, time.Hour, func(dir string) { loop = runOn(t, dir, true) })
		if want := fmt.Sprintf("sh (process %d)", loop.Process.Pid); !errors.Is(err, datadir.ErrInUse) ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("error is %v, want one that names %s", err, want)
		}
		if _, err := os.Stat(datadir.At(u.dataDir).StoreFile()); err != nil {
			t.Errorf("the store of the mote that goes on: %v", err)
		}
	})
}

// Cgroups with processes in them are another kubelet's: ours were killed before.
func TestInUse(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "kubepods")
	if used, err := inUse(dir); used || err != nil {
		t.Errorf("where there is none: %v, %v", used, err)
	}
	for path, processes := range map[string]string{"": "", "burstable": "", "burstable/pod1": ""} {
		if err := os.MkdirAll(filepath.Join(dir, path), 0o755); err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(dir, path, "cgroup.procs"), processes)
	}
	if used, err := inUse(dir); used || err != nil {
		t.Errorf("empty: %v, %v", used, err)
	}
	writeFile(t, filepath.Join(dir, "burstable/pod1/cgroup.procs"), "12\n")
	if used, err := inUse(dir); !used || err != nil {
		t.Errorf("with a process: %v, %v", used, err)
	}
}

// Stopping leaves a service as it is: it starts again with the machine.
func TestSupervisors_Stop_KeepsTheServiceEnabled(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"/run/systemd/system", "/proc/7"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	writeFile(t, filepath.Join(root, "/proc/7/cgroup"), "0::/system.slice/mote.service\n")
	var ran []string
	s := supervisors{root: root, keep: true, run: func(_ context.Context, name string, args ...string) (string, error) {
		command := strings.Join(append([]string{name}, args...), " ")
		if strings.Contains(command, " show ") {
			return "MainPID=7\nUnitFileState=enabled\n", nil
		}
		ran = append(ran, command)
		return "", nil
	}}
	stopped, err := s.stop(t.Context(), "/var/lib/mote", 7)
	if err != nil || !slices.Equal(stopped, []string{"mote.service"}) ||
		!slices.Equal(ran, []string{"systemctl stop -- mote.service"}) {
		t.Errorf("stopped %q by %q, %v", stopped, ran, err)
	}
}
