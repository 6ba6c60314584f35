package hostcheck

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"golang.org/x/sys/unix"
)

// errLacks is wrapped by errors that say that the host does not have something. Any other error of
// a trial says only that the trial failed.
var errLacks = errors.New("the host lacks it")

// noErrnos are what the kernel answers when it does not have, or does not allow, what was tried.
var noErrnos = []error{unix.ENOENT, unix.ENOTDIR, unix.ENODEV, unix.ENOSYS, unix.EOPNOTSUPP, unix.EAFNOSUPPORT,
	unix.EPROTONOSUPPORT, unix.EINVAL, unix.EPERM, unix.EACCES, unix.EROFS}

// lacks reports whether an error of a trial says no, instead of that nobody knows.
func lacks(err error) bool {
	return errors.Is(err, errLacks) || slices.ContainsFunc(noErrnos, func(no error) bool { return errors.Is(err, no) })
}

// lack marks an error as one that says no, and keeps its text.
type lack struct{ error }

func (lack) Is(target error) bool { return target == errLacks }
func (l lack) Unwrap() error      { return l.error }

// unknown is the result of a check that could not be made. It is no failure: what is missing shows
// when mote needs it, with its own error.
func unknown(name string, err error) []Result {
	remedy := LimitRemedy(err)
	if remedy == "" {
		remedy = "find out why this cannot be checked; mote starts, and reports it if it is missing"
	}
	return warn(name, fmt.Sprintf("unknown: %v", err), remedy)
}

// missing reports whether an error of reading a file says that there is none.
func missing(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) }
