//go:build linux

package sandbox

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ErrOff means that a host has no power: it was cut, or its first process was killed.
var ErrOff = errors.New("host is off")

// HostConfig says what kind of machine a [Host] is.
type HostConfig struct {
	// Name is also its host name. Interfaces are named after it, so it is short.
	Name string
	// Address is the one the sandbox and other hosts see it at, in 192.168.77.0/24; or in
	// fd77::/64, for a host without IPv4.
	Address string
	// Address6 is a further one, in fd77::/64. Empty for a host without IPv6, or with an Address of
	// that kind.
	Address6 string
	// NAT puts it behind a router of its own, which has Address and lets nothing in that was not
	// asked for.
	NAT bool
}

// Host is a machine within the sandbox, with processes, mounts, network, host name and cgroups of
// its own. /etc, /opt, /usr and /var are copies of the sandbox's, Dir is an empty folder of its own
// on a real disk, the rest is seen as it is. What is on its disk, which is all of these, outlives a
// power cut.
type Host struct {
	config HostConfig
	dir    string // of the sandbox, with all that is on the disk
	groups *cgroups

	power    *exec.Cmd     // the process that started the host's first, and ends after it; nil while it was never on
	off      chan struct{} // closed once power has ended
	complain *bytes.Buffer // what power said; to be read after off
	first    int           // the host's process 1, as the sandbox numbers it
}

// hostVariable tells the processes that start a host which.
const hostVariable = "SANDBOX_HOST"

var hostNames = regexp.MustCompile(`^[a-z][a-z0-9-]{0,8}$`)

// AddHost makes a host and boots it. It goes with the sandbox; [Host.Remove] throws it away
// earlier.
func AddHost(c HostConfig) (*Host, error) {
	if !hostNames.MatchString(c.Name) {
		return nil, fmt.Errorf("add host %q: the name must be of one to nine letters, digits and dashes", c.Name)
	}
	if err := c.checkAddresses(); err != nil {
		return nil, fmt.Errorf("add host %s: %w", c.Name, err)
	}
	if c.hasIPv6() {
		if err := connectIPv6(); err != nil {
			return nil, fmt.Errorf("add host %s: %w", c.Name, err)
		}
	}
	h := &Host{config: c, dir: hostDir(c.Name)}
	for _, d := range []string{h.disk(), h.layers()} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, fmt.Errorf("add host %s: %w", c.Name, err)
		}
	}
	if _, err := raised(); err != nil {
		return nil, fmt.Errorf("add host %s: %w", c.Name, errors.Join(err, h.Remove()))
	}
	if err := errors.Join(h.identify(), h.installRouter()); err != nil {
		return nil, fmt.Errorf("add host %s: %w", c.Name, errors.Join(err, h.Remove()))
	}
	if err := h.Boot(); err != nil {
		return nil, errors.Join(err, h.Remove())
	}
	return h, nil
}

// identify writes what no two machines have in common.
func (h *Host) identify() error {
	etc := filepath.Join(h.layers(), "etc/upper")
	if err := os.MkdirAll(etc, 0o755); err != nil {
		return fmt.Errorf("make overlay folder: %w", err)
	}
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return fmt.Errorf("draw machine id: %w", err)
	}
	if err := os.WriteFile(filepath.Join(etc, "machine-id"), fmt.Appendf(nil, "%x\n", id), 0o444); err != nil {
		return fmt.Errorf("write machine id: %w", err)
	}
	return nil
}

// hostDir is hidden from hosts by their disk.
func hostDir(name string) string { return filepath.Join(Dir(), "hosts", name) }

func (h *Host) disk() string   { return filepath.Join(h.dir, "disk") }
func (h *Host) layers() string { return filepath.Join(h.dir, "layers") }

// Name is the host's name.
func (h *Host) Name() string { return h.config.Name }

// Path is where the sandbox finds a file that the host has at path, which is below Dir; the same if
// h is nil.
func (h *Host) Path(path string) string {
	if h == nil {
		return path
	}
	return filepath.Join(h.disk(), strings.TrimPrefix(path, Dir()))
}

// Boot gives the host power. Its disk and addresses are what they were.
func (h *Host) Boot() error {
	if err := h.boot(); err != nil {
		return fmt.Errorf("boot host %s: %w", h.config.Name, err)
	}
	return nil
}

func (h *Host) boot() error {
	if h.On() {
		return errors.New("it is on already")
	}
	groups, err := makeCgroups("host-" + h.config.Name)
	if err != nil {
		return err
	}
	h.groups = groups
	ready, furnished, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make pipe: %w", err)
	}
	defer ready.Close()
	cmd, said := again("host"), &bytes.Buffer{}
	cmd.Env = append(cmd.Env, hostVariable+"="+h.config.Name)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = nil, said, said
	cmd.ExtraFiles = []*os.File{furnished}
	// What a terminal sends is the test's to answer.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = cmd.Start()
	furnished.Close()
	if err != nil {
		groups.remove()
		return fmt.Errorf("start first process: %w", err)
	}
	off := make(chan struct{})
	h.power, h.off, h.complain = cmd, off, said
	go func() {
		defer close(off)
		// Whatever it was: the host is off.
		_ = cmd.Wait()
	}()
	if err := h.listen(ready); err != nil {
		return errors.Join(err, h.cut())
	}
	if err := h.plugIn(); err != nil {
		return errors.Join(err, h.cut())
	}
	return nil
}

// listen waits for the host's first process to say its number, which it does when all is furnished.
func (h *Host) listen(ready *os.File) error {
	if err := ready.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return fmt.Errorf("wait for first process: %w", err)
	}
	line := make([]byte, 32)
	n, err := ready.Read(line)
	if err != nil {
		// It has ended, or is about to be.
		_ = h.power.Process.Kill()
		<-h.off
		return fmt.Errorf("wait for first process: %w: %s", err, strings.TrimSpace(h.complain.String()))
	}
	if h.first, err = strconv.Atoi(strings.TrimSpace(string(line[:n]))); err != nil {
		return fmt.Errorf("read number of first process: %w", err)
	}
	return nil
}

// On reports whether the host has power.
func (h *Host) On() bool {
	if h.power == nil {
		return false
	}
	select {
	case <-h.off:
		return false
	default:
		return true
	}
}

// PowerCut ends the host as a failing power supply does: all of it is gone at once but what is on
// its disk. Commands that run in it have to be waited for by whoever started them, before or
// meanwhile.
func (h *Host) PowerCut() error {
	if err := h.cut(); err != nil {
		return fmt.Errorf("cut power of host %s: %w", h.config.Name, err)
	}
	return nil
}

func (h *Host) cut() error {
	if h.On() {
		// The kernel takes all others of its namespace along.
		if err := syscall.Kill(h.first, syscall.SIGKILL); h.first == 0 || err != nil {
			_ = h.power.Process.Kill()
		}
		select {
		case <-h.off:
		case <-time.After(20 * time.Second):
			return errors.New("not off after 20 s: is there a command nobody waits for?")
		}
	}
	h.first = 0
	if h.groups == nil {
		return nil
	}
	for _, tree := range h.groups.list {
		if err := RemoveCgroupTree(h.groups.dir(tree)); err != nil {
			return err
		}
	}
	return nil
}

// Remove throws the host away, with its disk and its router.
func (h *Host) Remove() error {
	errs := []error{h.cut(), h.uninstallRouter()}
	if err := os.RemoveAll(h.dir); err != nil {
		errs = append(errs, fmt.Errorf("remove disk: %w", err))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove host %s: %w", h.config.Name, err)
	}
	return nil
}

// Processes lists those of the host and of the containers in it, as the sandbox numbers them, whose
// command line begins so.
func (h *Host) Processes(command string) []int {
	if h.groups == nil {
		return nil
	}
	var pids []int
	for _, p := range processes() {
		if strings.HasPrefix(p.command, command) && h.groups.hold(p.pid) {
			pids = append(pids, p.pid)
		}
	}
	return pids
}

// outsideHost is the process that starts a host's first one, as outside does for the sandbox. It
// never ends before that.
func outsideHost() (int, error) {
	list, err := hierarchies()
	if err != nil {
		return 0, err
	}
	cmd := again("host-init")
	cmd.ExtraFiles = []*os.File{os.NewFile(3, "ready")}
	return launch(cmd, &cgroups{name: "host-" + os.Getenv(hostVariable), list: list})
}

// firstOfHost is process 1 of a host. What runs there is started from outside, see [Cmd]; orphans
// fall to this process.
func firstOfHost() (int, error) {
	// While /proc is still the sandbox's.
	number, err := os.Readlink("/proc/self")
	if err != nil {
		return 0, fmt.Errorf("read own number: %w", err)
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	name := os.Getenv(hostVariable)
	m := machine{hostname: name, layers: filepath.Join(hostDir(name), "layers"),
		disk: filepath.Join(hostDir(name), "disk")}
	if err := m.furnish(); err != nil {
		return 0, err
	}
	if err := os.MkdirAll(layersDir, 0o755); err != nil {
		return 0, fmt.Errorf("make folder for boot id: %w", err)
	}
	if err := newBootID(nil); err != nil {
		return 0, err
	}
	ready := os.NewFile(3, "ready")
	if _, err := fmt.Fprintln(ready, number); err != nil {
		return 0, fmt.Errorf("say that the host is ready: %w", err)
	}
	if err := ready.Close(); err != nil {
		return 0, fmt.Errorf("say that the host is ready: %w", err)
	}
	for range ended {
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); err != nil || pid == 0 {
				break
			}
		}
	}
	return 0, nil
}
