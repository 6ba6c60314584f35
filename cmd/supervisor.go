package cmd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/mote-dev/mote/internal/datadir"
	"github.com/mote-dev/mote/server"
)

// serviceName is what install.sh calls the service, under every service manager.
const serviceName = "mote"

// supervisors are the service managers of a machine, as far as uninstalling needs them.
type supervisors struct {
	program
	// root is where the machine's files are, "" for this one.
	root string
	// keep leaves services enabled, so that they start again with the machine.
	keep bool
	// run runs a command of the machine and returns its output.
	run func(ctx context.Context, name string, args ...string) (string, error)
}

func (p program) supervisors() supervisors {
	return supervisors{program: p, run: func(ctx context.Context, name string, args ...string) (string, error) {
		out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, strings.Join(strings.Fields(string(out)), " "))
		}
		return string(out), err
	}}
}

// stop stops and disables the services that run mote on a data folder: the one whose process pid
// is, if that is not 0, and the one that install.sh made, which may be about to start it again. It
// returns what it stopped, each as the manager's users write it.
func (s supervisors) stop(ctx context.Context, dataDir string, pid int) ([]string, error) {
	systemd, err := exists(filepath.Join(s.root, "/run/systemd/system"))
	if err != nil {
		return nil, err
	}
	if systemd {
		return s.stopUnits(ctx, dataDir, pid)
	}
	openrc, err := exists(filepath.Join(s.root, "/run/openrc"))
	if err != nil || !openrc {
		return nil, err
	}
	return s.stopOpenRC(ctx, dataDir, pid)
}

// stopUnits stops and disables units of systemd.
func (s supervisors) stopUnits(ctx context.Context, dataDir string, pid int) ([]string, error) {
	var units []string
	if pid != 0 {
		unit, err := s.unitOf(ctx, pid)
		if err != nil {
			return nil, err
		}
		if unit != "" {
			units = append(units, unit)
		}
	}
	installed := serviceName + ".service"
	if !slices.Contains(units, installed) {
		show, err := s.show(ctx, installed, "LoadState", "ExecStart", "Environment")
		if err != nil {
			return nil, err
		}
		if show["LoadState"] == "loaded" {
			environment, err := s.environment("/etc/default/mote")
			if err != nil {
				return nil, err
			}
			for _, word := range strings.Fields(show["Environment"]) {
				name, value, _ := strings.Cut(word, "=")
				environment[name] = value
			}
			_, argv, _ := strings.Cut(show["ExecStart"], "argv[]=")
			argv, _, _ = strings.Cut(argv, " ;")
			if ours, err := s.runsOn(dataDir, strings.Fields(argv), environment); err != nil {
				return nil, err
			} else if ours {
				units = append(units, installed)
			}
		}
	}
	for _, unit := range units {
		if _, err := s.run(ctx, "systemctl", "stop", "--", unit); err != nil {
			return nil, fmt.Errorf("stop the service that runs mote on %s (%w): "+
				"stop and disable %s by hand, then repeat", dataDir, err, unit)
		}
		if s.keep {
			continue
		}
		show, err := s.show(ctx, unit, "UnitFileState")
		if err != nil {
			return nil, err
		}
		if !strings.HasPrefix(show["UnitFileState"], "enabled") {
			continue // made for this run only, or by hand: nothing starts it at boot
		}
		if _, err := s.run(ctx, "systemctl", "disable", "--", unit); err != nil {
			return nil, fmt.Errorf("disable the service that ran mote on %s (%w): disable %s by hand, then repeat",
				dataDir, err, unit)
		}
	}
	return units, nil
}

// unitOf returns the unit whose main process pid is. A process that was started by hand is in
// somebody's unit too, such as that of sshd, which is not to be stopped.
func (s supervisors) unitOf(ctx context.Context, pid int) (string, error) {
	data, err := os.ReadFile(filepath.Join(s.root, "/proc", strconv.Itoa(pid), "cgroup"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil // it has ended
	}
	if err != nil {
		return "", fmt.Errorf("find the service of process %d: %w", pid, err)
	}
	for line := range strings.Lines(string(data)) {
		unit := filepath.Base(strings.TrimSpace(line))
		if !strings.HasSuffix(unit, ".service") {
			continue
		}
		show, err := s.show(ctx, unit, "MainPID")
		if err != nil {
			return "", err
		}
		if show["MainPID"] == strconv.Itoa(pid) {
			return unit, nil
		}
	}
	return "", nil
}

// show returns properties of a unit, which need not exist.
func (s supervisors) show(ctx context.Context, unit string, properties ...string) (map[string]string, error) {
	out, err := s.run(ctx, "systemctl", "show", "--property="+strings.Join(properties, ","), "--", unit)
	if err != nil {
		return nil, fmt.Errorf("ask systemd for %s: %w", unit, err)
	}
	found := map[string]string{}
	for line := range strings.Lines(out) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		found[name] = value
	}
	return found, nil
}

// stopOpenRC stops services of OpenRC and takes them out of all runlevels.
func (s supervisors) stopOpenRC(ctx context.Context, dataDir string, pid int) ([]string, error) {
	var names []string
	if parent := s.parent(pid); len(parent.args) > 1 && filepath.Base(parent.args[0]) == "supervise-daemon" {
		names = append(names, parent.args[1])
	}
	script, err := exists(filepath.Join(s.root, "/etc/init.d", serviceName))
	if err != nil {
		return nil, err
	}
	if script && !slices.Contains(names, serviceName) {
		environment, err := s.environment("/etc/conf.d/" + serviceName)
		if err != nil {
			return nil, err
		}
		if ours, err := s.runsOn(dataDir, strings.Fields(environment["command_args"]), environment); err != nil {
			return nil, err
		} else if ours {
			names = append(names, serviceName)
		}
	}
	for _, name := range names {
		if _, err := s.run(ctx, "rc-service", name, "stop"); err != nil {
			return nil, fmt.Errorf("stop the service that runs mote on %s (%w): "+
				"stop service %s and remove it from its runlevels by hand, then repeat", dataDir, err, name)
		}
		if s.keep {
			continue
		}
		levels, err := filepath.Glob(filepath.Join(s.root, "/etc/runlevels/*", name))
		if err != nil {
			return nil, fmt.Errorf("look for runlevels of service %s: %w", name, err)
		}
		for _, level := range levels {
			level = filepath.Base(filepath.Dir(level))
			if _, err := s.run(ctx, "rc-update", "del", name, level); err != nil {
				return nil, fmt.Errorf("remove service %s from runlevel %s: %w", name, level, err)
			}
		}
	}
	return names, nil
}

// runsOn reports whether a service with these arguments and this environment runs mote on a data
// folder.
func (s supervisors) runsOn(dataDir string, args []string, environment map[string]string) (bool, error) {
	of := s.program
	of.lookupEnv = func(name string) (string, bool) {
		value, ok := environment[name]
		return value, ok
	}
	if config := argument(args, configSetting.Name); config != "" {
		environment[configSetting.Env()] = config
	}
	if dir := argument(args, dataDirSetting.Name); dir != "" {
		environment[dataDirSetting.Env()] = dir
	}
	dir, err := of.machineSetting(dataDirSetting.Name, server.DefaultDataDir)
	if err != nil {
		return false, fmt.Errorf("find out which data-dir service %s uses: %w", serviceName, err)
	}
	return filepath.Clean(dir) == dataDir, nil
}

// argument returns the value of a flag among arguments, the last one's as when mote reads them.
func argument(args []string, name string) string {
	value := ""
	for i, arg := range args {
		flag := strings.TrimPrefix(strings.TrimPrefix(arg, "-"), "-")
		if flag == arg {
			continue
		}
		if v, ok := strings.CutPrefix(flag, name+"="); ok {
			value = v
		} else if flag == name && i+1 < len(args) {
			value = args[i+1]
		}
	}
	return value
}

// environment reads the assignments in a file for services; there need not be one.
func (s supervisors) environment(path string) (map[string]string, error) {
	found := map[string]string{}
	data, err := os.ReadFile(filepath.Join(s.root, path))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read settings of the service: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		name, value, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "export "), "=")
		if ok {
			found[name] = strings.Trim(value, `"'`)
		}
	}
	return found, nil
}

// starter is the process that started another one.
type starter struct {
	pid  int
	args []string
}

func (s starter) String() string {
	return fmt.Sprintf("%s (process %d)", filepath.Base(s.args[0]), s.pid)
}

// parent returns the process that started pid, without arguments if that cannot be told: it has
// ended, or is the one that all processes without a parent have.
func (s supervisors) parent(pid int) starter {
	if pid == 0 {
		return starter{}
	}
	status, err := os.ReadFile(filepath.Join(s.root, "/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		return starter{}
	}
	_, after, _ := strings.Cut(string(status), "\nPPid:")
	number, _, _ := strings.Cut(after, "\n")
	ppid, err := strconv.Atoi(strings.TrimSpace(number))
	if err != nil || ppid <= 1 {
		return starter{}
	}
	cmdline, err := os.ReadFile(filepath.Join(s.root, "/proc", strconv.Itoa(ppid), "cmdline"))
	if err != nil || len(cmdline) == 0 {
		return starter{}
	}
	return starter{ppid, strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00")}
}

// restarted is the error of a mote that something starts again while it is uninstalled.
func restarted(dataDir string, by starter) error {
	who := "something"
	if len(by.args) > 0 {
		who = by.String()
	}
	return fmt.Errorf("%w: %s starts mote on %s again whenever it ends: end that first, then repeat; "+
		"nothing was removed", datadir.ErrInUse, who, dataDir)
}
