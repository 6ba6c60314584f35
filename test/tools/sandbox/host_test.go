//go:build linux

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func addHost(t *testing.T, c HostConfig) *Host {
	t.Helper()
	needRoot(t)
	h, err := AddHost(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Remove(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// in runs a shell script in a host and returns what it printed.
func in(t *testing.T, h *Host, script string) string {
	t.Helper()
	out, err := h.Command(t.Context(), "sh", "-c", script).CombinedOutput()
	if err != nil {
		t.Errorf("on %s: %s: %v: %s", h.Name(), script, err, out)
	}
	return strings.TrimSpace(string(out))
}

// listens finds a listener on port 7777 in /proc/net/tcp or tcp6; connections that have ended stay
// in there for a minute.
var listens = regexp.MustCompile(`:1E61 [0-9A-F]+:0000 0A `)

// reaches tells whether a TCP connection comes about from one host to a port on another where
// somebody listens.
func reaches(t *testing.T, from, to *Host, address string) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	listener := to.Command(ctx, "busybox", "nc", "-l", "-p", "7777", "-e", "/bin/echo", "hello")
	if err := listener.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cancel()
		_ = listener.Wait()
	}()
	for ctx.Err() == nil && !listens.MatchString(in(t, to, "cat /proc/net/tcp /proc/net/tcp6")) {
		time.Sleep(10 * time.Millisecond)
	}
	out, _ := from.Command(ctx, "busybox", "nc", "-w", "5", address, "7777").CombinedOutput()
	return strings.Contains(string(out), "hello")
}

// startIn runs a command in a host until the test ends, or something ends it.
func startIn(t *testing.T, h *Host, name string, args ...string) (pid int, ended <-chan struct{}) {
	t.Helper()
	cmd := h.Command(context.Background(), name, args...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-done
	})
	return cmd.Process.Pid, done
}

func TestHost_Two_EachSeesItsOwn(t *testing.T) {
	needRoot(t)
	before, err := Take()
	if err != nil {
		t.Fatal(err)
	}
	a, b := addHost(t, HostConfig{Name: "a", Address: "192.168.77.11"}),
		addHost(t, HostConfig{Name: "b", Address: "192.168.77.12"})
	startIn(t, a, "sleep", "4711")
	startIn(t, b, "sleep", "4712")
	for h, want := range map[*Host]string{a: "4711", b: "4712"} {
		if got := in(t, h, "hostname"); got != h.Name() {
			t.Errorf("host name of %s is %s", h.Name(), got)
		}
		eventuallyIn(t, h, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '",
			func(ps string) bool { return strings.Contains(ps, "sleep "+want) })
		if ps := in(t, h, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"); strings.Count(ps, "sleep 471") != 1 {
			t.Errorf("%s sees processes of others: %s", h.Name(), ps)
		}
		if n := len(h.Processes("sleep 471")); n != 1 {
			t.Errorf("%d processes are taken for those of %s, want 1", n, h.Name())
		}
		in(t, h, "mkdir /run/m && mount -t tmpfs "+h.Name()+" /run/m && touch /etc/only-"+h.Name()+" /var/only-"+
			h.Name()+" /run/only-"+h.Name()+" /dev/shm/only-"+h.Name()+" "+Dir()+"/only-"+h.Name())
		in(t, h, "for d in /sys/fs/cgroup /sys/fs/cgroup/*; do [ ! -e $d/cgroup.procs ] || mkdir -p $d/only-"+h.Name()+
			"; done")
	}
	for h, other := range map[*Host]*Host{a: b, b: a} {
		if out := in(t, h, "cat /proc/mounts"); !strings.Contains(out, h.Name()+" /run/m") ||
			strings.Contains(out, other.Name()+" /run/m") {
			t.Errorf("mounts of %s:\n%s", h.Name(), out)
		}
		out := in(t, h, "ls -d /etc/only-* /var/only-* /run/only-* /dev/shm/only-* "+Dir()+
			"/only-* ; find /sys/fs/cgroup -name 'only-*'")
		if strings.Contains(out, "only-"+other.Name()) || strings.Count(out, "only-"+h.Name()) < 6 {
			t.Errorf("files and cgroups of %s:\n%s", h.Name(), out)
		}
		if out := in(t, h, "cat /proc/self/cgroup"); strings.Contains(out, "host-") || strings.Contains(out, "..") {
			t.Errorf("%s is in cgroups that are not its own:\n%s", h.Name(), out)
		}
		if out := in(t, h, "ls "+Dir()); out != "only-"+h.Name() {
			t.Errorf("disk of %s holds %q", h.Name(), out)
		}
		if _, err := os.Stat(h.Path(Dir() + "/only-" + h.Name())); err != nil {
			t.Error(err)
		}
		if !reaches(t, h, other, other.Address()) {
			t.Errorf("%s does not reach %s", h.Name(), other.Name())
		}
	}
	if a, b := in(t, a, "cat /etc/machine-id"), in(t, b, "cat /etc/machine-id"); a == b || len(a) != 32 {
		t.Errorf("machine ids %q and %q", a, b)
	}
	if out, err := exec.Command("sh", "-c", "ls /etc/only-* /var/only-* /run/only-* 2>/dev/null").Output(); err == nil {
		t.Errorf("the sandbox has its hosts' files: %s", out)
	}
	for _, h := range []*Host{a, b} {
		if err := h.Remove(); err != nil {
			t.Error(err)
		}
	}
	after, err := Take()
	if err != nil {
		t.Fatal(err)
	}
	if left := before.Added(after); len(left) > 0 {
		t.Errorf("left of the hosts: %v", left)
	}
	if out, err := exec.Command("ip", "-n", OutsideNetns, "link").CombinedOutput(); err != nil ||
		strings.Contains(string(out), "port-") {
		t.Errorf("left on the switch (%v): %s", err, out)
	}
	if left, _ := filepath.Glob(Dir() + "/hosts/*"); len(left) > 0 {
		t.Errorf("left on disk: %v", left)
	}
}

// A host with both families, and one that has IPv6 alone, reach each other and are reached, also
// after a power cut and a move.
func TestHost_IPv6_Reached(t *testing.T) {
	needRoot(t)
	if _, err := os.Stat("/proc/net/if_inet6"); err != nil {
		t.Skip("the kernel has no IPv6: /proc/net/if_inet6 is missing")
	}
	a, b := addHost(t, HostConfig{Name: "a", Address: "192.168.77.11", Address6: "fd77::11"}),
		addHost(t, HostConfig{Name: "b", Address: "fd77::12"})
	look := func(when string) {
		t.Helper()
		for _, way := range []struct {
			from, to *Host
			address  string
		}{{a, b, b.Address()}, {b, a, a.Address6()}, {a, a, a.Address()}, {a, a, a.Address6()}, {nil, a, a.Address()},
			{nil, a, a.Address6()}, {nil, b, b.Address()}} {
			if !reaches(t, way.from, way.to, way.address) {
				t.Errorf("%s, %s is not reached", when, way.address)
			}
		}
		for h, want := range map[*Host]string{a: OutsideIP, b: ""} {
			got := in(t, h, "ip route show default")
			if want == "" && got != "" || !strings.Contains(got, want) {
				t.Errorf("%s, %s has the default route %q", when, h.Name(), got)
			}
			if got := in(t, h, "ip -6 route show default"); !strings.Contains(got, "via "+OutsideIP6+" dev eth0") {
				t.Errorf("%s, %s has the default route %q", when, h.Name(), got)
			}
		}
	}
	look("at first")
	if err := a.PowerCut(); err != nil {
		t.Fatal(err)
	}
	if err := a.Boot(); err != nil {
		t.Fatal(err)
	}
	look("after a power cut")
	if err := a.Move("192.168.77.21"); err != nil {
		t.Fatal(err)
	}
	look("after a move")
}

func eventuallyIn(t *testing.T, h *Host, script string, ok func(string) bool) {
	t.Helper()
	var out string
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if out = in(t, h, script); ok(out) {
			return
		}
	}
	t.Errorf("on %s: %s: still %s", h.Name(), script, out)
}

func TestHost_PowerCut_DiskAndAddressStay(t *testing.T) {
	h := addHost(t, HostConfig{Name: "a", Address: "192.168.77.11"})
	_, ended := startIn(t, h, "sleep", "4711")
	in(t, h, "setsid sleep 4711 >/dev/null 2>&1 </dev/null &")
	in(t, h, "echo kept | tee /etc/kept /var/kept "+Dir()+
		"/kept; echo lost > /run/lost; ip netns add lost; for d in /sys/fs/cgroup/memory /sys/fs/cgroup; do [ ! -e $d/cgroup.procs ] || { mkdir $d/lost; break; }; done")
	boot, machine := in(t, h, "cat /proc/sys/kernel/random/boot_id"), in(t, h, "cat /etc/machine-id")
	if err := h.PowerCut(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Error("a command outlived the power cut")
	}
	if pids := pidsOf("sleep 4711"); len(pids) > 0 {
		t.Errorf("processes %v outlived the power cut", pids)
	}
	if _, err := h.Command(t.Context(), "true").CombinedOutput(); !errors.Is(err, ErrOff) {
		t.Errorf("a command on a host without power: %v, want %v", err, ErrOff)
	}
	if err := h.Boot(); err != nil {
		t.Fatal(err)
	}
	if out := in(t, h, "cat /etc/kept /var/kept "+Dir()+"/kept"); out != "kept\nkept\nkept" {
		t.Errorf("of the disk is left %q", out)
	}
	if out := in(t, h, "ls /run/lost /run/netns 2>/dev/null; find /sys/fs/cgroup -name lost"); out != "" {
		t.Errorf("outlived the power cut: %s", out)
	}
	if now := in(t, h, "cat /proc/sys/kernel/random/boot_id"); now == boot {
		t.Errorf("boot id is still %s", now)
	}
	if now := in(t, h, "cat /etc/machine-id"); now != machine {
		t.Errorf("machine id is %s, was %s", now, machine)
	}
	if out, err := exec.Command("busybox", "ping", "-c", "1", "-W", "2", h.Address()).CombinedOutput(); err != nil {
		t.Errorf("the sandbox does not reach it: %v: %s", err, out)
	}
}

func pidsOf(command string) []int {
	return FindProcesses(func(c string) bool { return strings.HasPrefix(c, command) })
}

func TestHost_Network_PartitionedMovedAndBehindNAT(t *testing.T) {
	a, b := addHost(t, HostConfig{Name: "a", Address: "192.168.77.11"}),
		addHost(t, HostConfig{Name: "b", Address: "192.168.77.12", NAT: true})
	if !reaches(t, b, a, a.Address()) {
		t.Error("no way out through the router")
	}
	for _, address := range []string{b.Address(), b.OuterAddress()} {
		if reaches(t, a, b, address) {
			t.Errorf("%s behind the router is reached", address)
		}
	}
	for _, h := range []*Host{a, b} {
		if err := h.Partition(); err != nil {
			t.Fatal(err)
		}
		if reaches(t, b, a, a.Address()) {
			t.Errorf("with %s cut off, packets pass", h.Name())
		}
		if out := in(t, h, "cat /sys/class/net/eth0/carrier"); out != "1" {
			t.Errorf("%s notices that it is cut off", h.Name())
		}
		if err := h.Heal(); err != nil {
			t.Fatal(err)
		}
		if !reaches(t, b, a, a.Address()) {
			t.Errorf("with %s no longer cut off, no packets pass", h.Name())
		}
	}
	if err := a.Move("192.168.77.13"); err != nil {
		t.Fatal(err)
	}
	if err := b.Move("192.168.77.14"); err != nil {
		t.Fatal(err)
	}
	if a.Address() != "192.168.77.13" || !reaches(t, b, a, "192.168.77.13") {
		t.Error("not reached under its new address")
	}
	if reaches(t, b, a, "192.168.77.11") {
		t.Error("still reached under its old address")
	}
	// A reboot does not undo it.
	for _, h := range []*Host{a, b} {
		if err := h.PowerCut(); err != nil {
			t.Fatal(err)
		}
		if err := h.Boot(); err != nil {
			t.Fatal(err)
		}
	}
	if !reaches(t, b, a, "192.168.77.13") {
		t.Error("not reached after a reboot")
	}
}

func TestHost_Command_LikeAnyOther(t *testing.T) {
	h := addHost(t, HostConfig{Name: "a", Address: "192.168.77.11"})
	cmd := h.Command(t.Context(), "sh", "-c", "cat; cat <&3; echo $GREETING; pwd; exit 7")
	extra, err := os.Open("/etc/hostname")
	if err != nil {
		t.Fatal(err)
	}
	defer extra.Close()
	cmd.Stdin, cmd.Dir, cmd.ExtraFiles = strings.NewReader("from stdin\n"), "/var", []*os.File{extra}
	cmd.Env = append(cmd.Env, "GREETING=hello")
	out, err := cmd.Output()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("ended with %v, want exit code 7", err)
	}
	name, _ := os.ReadFile("/etc/hostname")
	if want := "from stdin\n" + string(name) + "hello\n/var\n"; string(out) != want {
		t.Errorf("printed %q, want %q", out, want)
	}

	talk := h.Command(t.Context(), "cat")
	stdin, err := talk.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := talk.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := talk.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(stdin, "one\n"); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 4)
	if _, err := io.ReadFull(stdout, line); err != nil || string(line) != "one\n" {
		t.Errorf("echoed %q, %v", line, err)
	}
	if err := talk.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := talk.Wait(); err == nil || talk.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM {
		t.Errorf("ended with %v, want SIGTERM", err)
	}
	if err := h.Command(t.Context(), "no-such-program").Run(); !errors.As(err, &exit) || exit.ExitCode() != 127 {
		t.Errorf("a program that is not there: %v, want exit code 127", err)
	}
}

func TestAddHost_BadConfig_Refused(t *testing.T) {
	needRoot(t)
	for _, c := range []HostConfig{
		{Name: "a"}, {Name: "a", Address: "192.168.77"}, {Address: "192.168.77.11"},
		{Name: "../a", Address: "192.168.77.11"}, {Name: "much-too-long", Address: "192.168.77.11"},
		{Name: "a", Address: "192.168.77.11", Address6: "fd77"},
		{Name: "a", Address: "192.168.77.11", Address6: "192.168.77.12"}, {Name: "a", Address6: "fd77::11"},
		{Name: "a", Address: "fd77::11", Address6: "fd77::12"}, {
			Name:     "a",
			Address:  "192.168.77.11",
			Address6: "fd77::11",
			NAT:      true,
		},
	} {
		if h, err := AddHost(c); err == nil {
			t.Errorf("%+v was accepted", c)
			_ = h.Remove()
		}
	}
}

// victim is a test with two hosts that never ends.
func victim() int {
	for i, name := range []string{"a", "b"} {
		h, err := AddHost(HostConfig{Name: name, Address: fmt.Sprintf("192.168.77.%d", 11+i), NAT: i == 1})
		if err != nil {
			fmt.Println(err)
			return 1
		}
		if err := h.Command(context.Background(), "sleep", victimSleep()).Start(); err != nil {
			fmt.Println(err)
			return 1
		}
	}
	fmt.Println("ready")
	select {}
}

// victimSleep is told from that of another run on the same machine by the sandbox's folder.
func victimSleep() string { return "99999999" + strings.TrimPrefix(Dir(), "/tmp/mote-e2e-") }

func TestRun_Killed_HostsGoToo(t *testing.T) {
	if !*asKiller {
		t.Skip("needs root; pass -killer")
	}
	limit, err := readNumber(instances.file)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name  string
		depth int // how many processes lie between
		clean bool
	}{{"outermost process", 0, false}, {"the test", 2, true}} {
		t.Run(row.name, func(t *testing.T) {
			cmd := exec.Command("/proc/self/exe", "-victim")
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			outermost := cmd.Process.Pid
			t.Cleanup(func() { _ = cmd.Process.Kill() })
			ready := make([]byte, 6)
			if _, err := io.ReadFull(out, ready); err != nil || string(ready) != "ready\n" {
				t.Errorf("the victim said %q, %v", ready, err)
			}
			sleep := "sleep 99999999" + strconv.Itoa(outermost)
			if n := countOf(sleep, 2); n != 2 {
				t.Errorf("%d commands run in the hosts, want 2", n)
			}
			target := outermost
			for range row.depth {
				if target = childOf(target); target == 0 {
					t.Fatal("the victim has too few processes")
				}
			}
			if err := syscall.Kill(target, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			if n := countOf(sleep, 0); n != 0 {
				t.Errorf("%d processes of hosts are left", n)
			}
			groups, err := hierarchies()
			if err != nil {
				t.Fatal(err)
			}
			left := []string{fmt.Sprintf("/tmp/mote-e2e-%d", outermost)}
			for _, h := range groups {
				left = append(left, filepath.Join(h.mountPoint, h.home, fmt.Sprintf("mote-e2e-%d", outermost)),
					filepath.Join(h.mountPoint, fmt.Sprintf("mote-e2e-%d", outermost)))
			}
			left = slices.DeleteFunc(left, func(dir string) bool {
				_, err := os.Stat(dir)
				return err != nil
			})
			if row.clean && len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
			// Another sandbox may run beside this test and still need it.
			if now, err := readNumber(instances.file); row.clean && limit != instances.enough && now != limit &&
				!inUse(instances.record) {
				t.Errorf("%s is %d (%v), before %d", instances.file, now, err, limit)
			}
			// Nobody was there to do it.
			for _, dir := range left[min(1, len(left)):] {
				if err := RemoveCgroupTree(dir); err != nil {
					t.Error(err)
				}
			}
			_ = os.RemoveAll(fmt.Sprintf("/tmp/mote-e2e-%d", outermost))
		})
	}
}

// inUse reports whether a file is locked.
func inUse(name string) bool {
	f, err := os.Open(name)
	if err != nil {
		return false
	}
	defer f.Close()
	return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil
}

// countOf waits a while for as many processes as wanted, and returns how many there are.
func countOf(command string, want int) int {
	for end := time.Now().Add(10 * time.Second); len(pidsOf(command)) != want && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	return len(pidsOf(command))
}

// childOf is 0 if a process has none. Each of its threads has some of its own.
func childOf(pid int) int {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, l := range lists {
		data, _ := os.ReadFile(l)
		if f := strings.Fields(string(data)); len(f) > 0 {
			child, _ := strconv.Atoi(f[0])
			return child
		}
	}
	return 0
}
