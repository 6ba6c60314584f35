package recovery

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// realPath resolves dir, as mount points are listed by their real paths. A path that does not exist
// is returned as it is: nothing is mounted below it.
func realPath(dir string) (string, error) {
	real, err := filepath.EvalSymlinks(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return dir, nil
	}
	if err != nil {
		return "", fmt.Errorf("resolve %s: %w", dir, err)
	}
	return real, nil
}

// mountsBelow lists mount points in dir or equal to it, the deepest first. dir is a real path.
func mountsBelow(dir string) ([]string, error) {
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return nil, fmt.Errorf("list mounts below %s: %w", dir, err)
	}
	var points []string
	for _, i := range infos {
		points = append(points, i.Mountpoint)
	}
	// The kernel lists a later mount later; equal paths are stacked.
	slices.SortStableFunc(points, func(a, b string) int {
		return strings.Count(b, "/") - strings.Count(a, "/")
	})
	return points, nil
}

// unmountBelow detaches every mount below dir. Only for folders in which nobody but containerd
// mounts.
func unmountBelow(dir string) error {
	dir, err := realPath(dir)
	if err != nil {
		return err
	}
	points, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range points {
		if err := unix.Unmount(p, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) &&
			!errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", p, err))
		}
	}
	return errors.Join(errs...)
}

// RemoveTree removes a folder and its content except what is mounted inside: a mount point, its
// content and the folders above it stay. It returns those mount points. If dir is a link, it stays
// too, with the emptied folder it leads to: whoever made the link made both. Links inside are
// removed, and not followed. Removing what does not exist is no error.
func RemoveTree(dir string) (kept []string, err error) {
	if st, err := os.Lstat(dir); err == nil && st.Mode().Type() == fs.ModeSymlink {
		return removeBehindLink(dir)
	}
	if dir, err = realPath(dir); err != nil {
		return nil, fmt.Errorf("remove folder: %w", err)
	}
	points, err := mountsBelow(dir)
	if err != nil {
		return nil, err
	}
	mounted := map[string]bool{}
	above := map[string]bool{}
	for _, p := range points {
		mounted[p] = true
		for d := filepath.Dir(p); len(d) >= len(dir); d = filepath.Dir(d) {
			above[d] = true
		}
	}
	if len(points) == 0 {
		if err := os.RemoveAll(dir); err != nil {
			return nil, fmt.Errorf("remove folder: %w", err)
		}
		return nil, nil
	}
	return points, removeAround(dir, mounted, above)
}

// removeBehindLink removes the content of the folder that a link leads to.
func removeBehindLink(link string) (kept []string, err error) {
	entries, err := os.ReadDir(link)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list folder to remove: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(link, e.Name())
		if e.Type() == fs.ModeSymlink {
			if err := os.Remove(path); err != nil {
				return kept, fmt.Errorf("remove link: %w", err)
			}
			continue
		}
		left, err := RemoveTree(path)
		if err != nil {
			return kept, err
		}
		kept = append(kept, left...)
	}
	return kept, nil
}

// removeAround removes what is neither a mount point nor leads to one. Folders without mounts are
// removed whole; no mount can be hidden in them.
func removeAround(dir string, mounted, above map[string]bool) error {
	if mounted[dir] {
		return nil
	}
	if !above[dir] {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove: %w", err)
		}
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("list folder to remove: %w", err)
	}
	var errs []error
	for _, e := range entries {
		errs = append(errs, removeAround(filepath.Join(dir, e.Name()), mounted, above))
	}
	return errors.Join(errs...)
}

// RemoveEmpty removes a folder that others may use too, if it exists and is empty.
func RemoveEmpty(dir string) error {
	err := os.Remove(dir)
	if err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EBUSY) {
		return nil
	}
	return fmt.Errorf("remove empty folder: %w", err)
}
