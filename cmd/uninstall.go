package cmd

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/mote-dev/mote/agent"
	"github.com/mote-dev/mote/agent/dns"
	"github.com/mote-dev/mote/cmd/settings"
	"github.com/mote-dev/mote/internal/datadir"
	"github.com/mote-dev/mote/netproxy"
	"github.com/mote-dev/mote/runtime/recovery"
	"github.com/mote-dev/mote/server"
)

// stopPatience is how long a running mote may take to stop before it is killed; it promises to stop
// within ten seconds.
const stopPatience = 15 * time.Second

// restartPatience is how long a mote that something restarts may take to come back. The pauses of
// service managers are shorter.
const restartPatience = 10 * time.Second

// pollEvery is how often the process that was asked to stop is looked at when the kernel cannot
// tell when it ends.
const pollEvery = 100 * time.Millisecond

func (p program) uninstallCommand() *cli.Command {
	return &cli.Command{
		Name:  "uninstall",
		Usage: "stop mote and its pods on this machine and remove everything it made",
		Description: "Removes pods, their network, the cluster's data and keys. Leaves alone file systems mounted " +
			"inside the data folder,\n" +
			"the configuration in /etc/mote, and the executable itself. It is safe to repeat.",
		Flags: append(flags(dataFolderSettings), flag(configSetting),
			&cli.BoolFlag{Name: "yes", Usage: "confirm: without it, nothing is removed"}),
		Action: func(c *cli.Context) error {
			dataDir, given, err := p.dataFolder(c)
			if err != nil {
				return err
			}
			if !c.Bool("yes") {
				return fmt.Errorf("this removes the cluster in %s with all its data: repeat with --yes", dataDir)
			}
			if os.Geteuid() != 0 {
				return errNotRoot
			}
			links, err := linksTo(dataDir, given, server.DefaultDataDir)
			if err != nil {
				return err
			}
			if there, err := holdsMote(dataDir); err != nil {
				return err
			} else if !there {
				fmt.Fprintf(p.stdout, "nothing to uninstall: there is no mote's data folder at %s\n", dataDir)
				return nil
			}
			u := uninstaller{
				program:  p,
				dataDir:  dataDir,
				links:    links,
				services: p.supervisors(),
				patience: restartPatience,
			}
			return u.run(c.Context)
		},
	}
}

// dataFolderSettings are those of commands that act on the data folder and on what runs over it.
var dataFolderSettings = []settings.Setting{dataDirSetting}

// dataFolder resolves the data folder of such a command, and refuses what cannot be one. given is
// the path as it was written.
func (p program) dataFolder(c *cli.Context) (dir, given string, err error) {
	if err := noArgs(c); err != nil {
		return "", "", err
	}
	v, err := p.settings(c, dataFolderSettings)
	if err != nil {
		return "", "", err
	}
	dir = filepath.Clean(v.String("data-dir"))
	if !filepath.IsAbs(dir) || dir == "/" {
		return "", "", fmt.Errorf("data-dir %q is no folder of a mote: give the one the server was given", dir)
	}
	return dir, v.Given("data-dir"), nil
}

// linksTo returns those of paths that are themselves links to the data folder. Who made a link made
// the folder it leads to as well: mote makes neither.
func linksTo(dataDir string, paths ...string) ([]string, error) {
	var links []string
	for _, path := range paths {
		path = filepath.Clean(path)
		st, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && st.Mode().Type() != fs.ModeSymlink {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("look at data-dir: %w", err)
		}
		// One that leads nowhere does not lead here.
		if real, err := datadir.Resolve(path); err == nil && real == dataDir && !slices.Contains(links, path) {
			links = append(links, path)
		}
	}
	return links, nil
}

// holdsMote reports whether a mote's data is in a folder. The folder goes last, so without one
// there is nothing to remove anywhere: what looks like mote's on the machine is that of another
// one, such as a container's. A folder with other things in it is refused: a slip of the hand
// should not cost somebody's files.
func holdsMote(dataDir string) (bool, error) {
	entries, err := os.ReadDir(dataDir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at data-dir: %w", err)
	}
	paths := datadir.At(dataDir)
	for _, mark := range append(paths.Records(), paths.Database(), paths.TLS(), paths.Agent().Dir(),
		paths.CurrentBin()) {
		there, err := exists(mark)
		if err != nil || there {
			return there, err
		}
	}
	return false, fmt.Errorf("data-dir %s holds nothing of a mote: give the one the server was given", dataDir)
}

// uninstaller removes one mote, in the order in which each step may be interrupted and the whole
// repeated: the record of what is left to do goes last.
type uninstaller struct {
	program
	// dataDir is the real path; links are links to it.
	dataDir string
	links   []string
	// services are the machine's service managers.
	services supervisors
	// patience is how long a mote that was stopped is watched for being started again.
	patience time.Duration
	// left are the mount points that stay.
	left []string
}

func (u *uninstaller) say(format string, args ...any) { fmt.Fprintf(u.stdout, format+"\n", args...) }

func (u *uninstaller) run(ctx context.Context) (err error) {
	lock, err := u.takeOver(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	node := datadir.At(u.dataDir).Agent()
	// Rules and DNS are the machine's, not the folder's: a server that had no node must leave those
	// of another mote alone.
	hadNode, err := exists(node.Dir())
	if err != nil {
		return err
	}
	left, err := recovery.Cleanup(ctx, node.Dir())
	if err != nil {
		return fmt.Errorf("remove pods: %w", err)
	}
	u.left = append(u.left, left...)
	if hadNode {
		u.say("stopped pods and removed the container runtime's state")
		err := errors.Join(netproxy.Cleanup(ctx, netproxy.CleanupConfig{
			Bridge: agent.Bridge(u.dataDir), CNIConfDir: node.CNIConf(), StateDir: node.CNI(),
		}), dns.Cleanup(""))
		if err != nil {
			return fmt.Errorf("remove pod network: %w", err)
		}
		u.say("removed the pod network and its rules")
		if err := removeDevicePlugins(kubeletHome); err != nil {
			return err
		}
	}
	if err := u.removeVolumes(node); err != nil {
		return err
	}
	if err := u.removeFiles(node); err != nil {
		return err
	}
	u.report()
	return nil
}

// report says what stays, and why.
func (u *uninstaller) report() {
	for _, path := range u.left {
		u.say("left %s: something is mounted there, and it is not mote's", path)
	}
	if len(u.links) > 0 {
		u.say("left %s and the folder it leads to, %s: mote made neither", strings.Join(u.links, " and "), u.dataDir)
	}
	if entries, err := os.ReadDir(u.dataDir); err == nil && len(entries) > 0 {
		names := make([]string, len(entries))
		for i, e := range entries {
			names[i] = e.Name()
		}
		u.say("left %s, as it has files that mote did not create: %s", u.dataDir, strings.Join(names, ", "))
	}
	if exe, err := os.Executable(); err == nil {
		u.say("left %s: remove it by hand", exe)
	}
}

// takeOver stops the mote that runs on the data folder, with what would start it again, and takes
// the folder, so that none can start while it is removed.
func (u *uninstaller) takeOver(ctx context.Context) (*datadir.Dir, error) {
	pid, err := datadir.Holder(u.dataDir)
	if err != nil {
		return nil, err
	}
	starter := u.services.parent(pid)
	services, err := u.services.stop(ctx, u.dataDir, pid)
	if err != nil {
		return nil, err
	}
	for _, name := range services {
		if u.services.keep {
			u.say("stopped the service %s", name)
		} else {
			u.say("stopped and disabled the service %s", name)
		}
	}
	if pid, err = datadir.Holder(u.dataDir); err != nil {
		return nil, err
	}
	if pid != 0 {
		if err := u.stopMote(ctx, pid); err != nil {
			return nil, err
		}
	}
	lock, err := datadir.Lock(u.dataDir)
	if errors.Is(err, datadir.ErrInUse) && pid != 0 {
		return nil, restarted(u.dataDir, starter)
	}
	if err != nil || pid == 0 {
		return lock, err
	}
	u.say("waiting %v to see that nothing starts it again", u.patience)
	watch, end := context.WithTimeout(ctx, u.patience)
	defer end()
	again, err := lock.RestartRefused(watch)
	switch {
	case err == nil && again:
		err = restarted(u.dataDir, starter)
	case err == nil:
		err = ctx.Err()
	}
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock, nil
}

// stopMote asks the process that runs on the data folder to stop, and ends it when it does not.
// Killing loses nothing: the store survives power cuts.
func (u *uninstaller) stopMote(ctx context.Context, pid int) error {
	// A process descriptor cannot come to mean another process.
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil // it ended just now, and the kernel has released its lock
	}
	if err != nil {
		return fmt.Errorf("find process %d that runs on %s: %w", pid, u.dataDir, err)
	}
	defer unix.Close(fd)
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		if err := unix.PidfdSendSignal(fd, signal, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("stop process %d that runs on %s: %w", pid, u.dataDir, err)
		}
		ended, err := waitPidfd(ctx, fd, stopPatience)
		if err != nil {
			return fmt.Errorf("wait for process %d: %w", pid, err)
		}
		if ended {
			u.say("stopped mote (process %d)", pid)
			return nil
		}
	}
	return fmt.Errorf("process %d that runs on %s does not exit: is its disk hanging?", pid, u.dataDir)
}

// waitPidfd reports whether a process ended in time.
func waitPidfd(ctx context.Context, fd int, patience time.Duration) (bool, error) {
	deadline := time.Now().Add(patience)
	for time.Now().Before(deadline) && ctx.Err() == nil {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(pollEvery.Milliseconds()))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return false, err
		}
		if n > 0 {
			return true, nil
		}
	}
	return false, ctx.Err()
}

// removeVolumes unmounts what the kubelet mounted for pods and removes its folder. Unmounting
// deletes nothing but the memory of secrets and the like; a folder that something else is still
// mounted in stays.
func (u *uninstaller) removeVolumes(node datadir.Agent) error {
	// First, as the kubelet's folder tells whose logs these are.
	if err := removePodLogs(agent.PodLogsDir(u.dataDir), node); err != nil {
		return err
	}
	if err := unmountPods(node); err != nil {
		return err
	}
	return u.remove(node.Kubelet())
}

// removeFiles removes the rest: the server's part, what this package made, logs of pods and
// cgroups, and the folder itself when nothing else is in it.
func (u *uninstaller) removeFiles(node datadir.Agent) error {
	paths := node.Paths()
	// Before the authority, which tells whose they are.
	if err := u.removeOutside(); err != nil {
		return err
	}
	for _, path := range []string{node.Dir(), paths.Server(), paths.Bin()} {
		if err := u.remove(path); err != nil {
			return err
		}
	}
	if err := removeContainerLogLinks("/var/log/containers"); err != nil {
		return err
	}
	used, err := removeCgroups(agent.CgroupRoot(u.dataDir))
	if err != nil {
		return err
	}
	for _, dir := range used {
		u.say("left cgroup %s: processes of another node run in it", dir)
	}
	if cache, err := datadir.UserCache(); err == nil {
		if err := os.RemoveAll(cache); err != nil {
			return fmt.Errorf("remove unpacked tools: %w", err)
		}
	}
	for _, record := range paths.Records() {
		if err := os.Remove(record); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove record of data-dir: %w", err)
		}
	}
	was, err := exists(u.dataDir)
	if err != nil {
		return err
	}
	if len(u.links) == 0 {
		if err := recovery.RemoveEmpty(u.dataDir); err != nil {
			return err
		}
	}
	is, err := exists(u.dataDir)
	if err != nil {
		return err
	}
	if was && !is {
		u.say("removed %s", u.dataDir)
	}
	return nil
}

// removeOutside removes the files mote made outside of the data folder. Another mote may have
// written its own to the same place since: that one stays.
func (u *uninstaller) removeOutside() error {
	files, err := datadir.Outside(u.dataDir)
	if err != nil {
		return err
	}
	// A file says whose it is by the authority in it. Without ours, as after an uninstall that was
	// interrupted later than here, any file that is there again is somebody else's.
	authority, err := os.ReadFile(filepath.Join(datadir.At(u.dataDir).TLS(), "ca.crt"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read the cluster's authority, which tells its files from others: %w", err)
	}
	for _, path := range files {
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("look at file to remove: %w", err)
		}
		if len(authority) == 0 || !bytes.Contains(data, []byte(base64.StdEncoding.EncodeToString(authority))) {
			u.say("left %s: it belongs to another cluster", path)
			continue
		}
		if err := errors.Join(os.Remove(path), recovery.RemoveEmpty(filepath.Dir(path))); err != nil {
			return fmt.Errorf("remove %s: %w", path, err)
		}
		u.say("removed %s", path)
	}
	return nil
}

func (u *uninstaller) remove(path string) error {
	left, err := recovery.RemoveTree(path)
	if err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	for _, l := range left {
		if !slices.Contains(u.left, l) {
			u.left = append(u.left, l)
		}
	}
	return nil
}
