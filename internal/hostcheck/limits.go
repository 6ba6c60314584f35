package hostcheck

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// filesRemedy is how the limit of a process's open files is raised, as a service and in a shell.
const filesRemedy = "raise the limit of open files, with LimitNOFILE=1048576 in the service's unit, " +
	"or `ulimit -n 1048576`"

// WithLimit adds to an error that a limit of the kernel caused which limit that is, and how to
// raise it. It returns other errors as they are.
func WithLimit(err error) error {
	if remedy := LimitRemedy(err); remedy != "" && !strings.Contains(err.Error(), remedy) {
		return fmt.Errorf("%w: %s", err, remedy)
	}
	return err
}

// LimitRemedy says which of the kernel's limits caused an error and how to raise it, or "" if none
// did. The kernel has one word for two limits, too many open files: who asks for an inotify
// instance gets it also when all instances are taken.
func LimitRemedy(err error) string {
	switch {
	case errors.Is(err, unix.EMFILE):
		if fd, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0); errors.Is(err, unix.EMFILE) {
			return filesRemedy
		} else if err == nil {
			_ = unix.Close(fd)
		}
		h := machine{}
		// Advice can do with fewer than there are.
		used, _ := h.InotifyInUse()
		return setSysctl(fmt.Sprintf("fs.inotify.max_user_instances=%d", wantedInstances(used)))
	case errors.Is(err, unix.ENFILE):
		return setSysctl("fs.file-max=1048576")
	case errors.Is(err, unix.ENOSPC) && aboutWatches(err):
		return setSysctl(fmt.Sprintf("fs.inotify.max_user_watches=%d", wantInotifyWatches*8))
	}
	return ""
}

// aboutWatches reports whether an error of no space is that of adding a watch. It decides about
// nothing but the advice.
func aboutWatches(err error) bool {
	text := strings.ToLower(err.Error())
	return strings.Contains(text, "notify") || strings.Contains(text, "watch")
}

// setSysctl says how to set kernel settings, now and for the next boot.
func setSysctl(settings ...string) string {
	return "run `sysctl -w " + strings.Join(settings, " ") +
		"`, and write that into /etc/sysctl.d/90-mote.conf for the next boot"
}
