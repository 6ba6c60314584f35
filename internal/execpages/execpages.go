package execpages

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// mapping is a piece of a file in a process's memory.
type mapping struct {
	start, end uintptr
}

// Release lets the kernel drop every page of the executable that is mapped and cannot have been
// written to: code, tables, embedded files. What is needed after all is read again from the file,
// in the small pieces the kernel reads when a file is not yet in its cache. Pages that another
// process has mapped too stay. It needs Linux 5.4.
func Release() error {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("find executable: %w", err)
	}
	return release(exe)
}

func release(file string) error {
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return fmt.Errorf("open memory map: %w", err)
	}
	defer maps.Close()
	found, err := readOnly(maps, file)
	if err != nil {
		return err
	}
	var faults []error
	for _, m := range found {
		// Not unix.Madvise, which wants a slice: this memory is not Go's.
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_PAGEOUT); errno != 0 {
			faults = append(faults, fmt.Errorf("page out %#x to %#x of %s: %w", m.start, m.end, file, errno))
		}
	}
	return errors.Join(faults...)
}

// readOnly lists the mappings of file in a /proc/PID/maps that were not made writable. Those may
// hold what is nowhere else.
func readOnly(maps io.Reader, file string) ([]mapping, error) {
	var found []mapping
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		// start-end permissions offset device inode path; the path may hold blanks.
		f := strings.SplitN(lines.Text(), " ", 6)
		if len(f) < 6 || strings.TrimLeft(f[5], " ") != file || !strings.HasPrefix(f[1], "r-") {
			continue
		}
		start, end, _ := strings.Cut(f[0], "-")
		from, err := strconv.ParseUint(start, 16, 64)
		if err != nil {
			return nil, fmt.Errorf("read memory map: %w", err)
		}
		to, err := strconv.ParseUint(end, 16, 64)
		if err != nil {
			return nil, fmt.Errorf("read memory map: %w", err)
		}
		found = append(found, mapping{uintptr(from), uintptr(to)})
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read memory map: %w", err)
	}
	return found, nil
}
