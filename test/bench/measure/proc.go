package measure

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Memory is a process's, in megabytes (10^6 bytes), as the kernel counts it.
type Memory struct {
	// Anonymous is what the process itself filled: heaps and stacks. It cannot be dropped.
	Anonymous float64
	// File is mapped pages of files, above all of the executable: clean, shared, and dropped when
	// memory is short.
	File float64
	// PSS is both, pages that several processes map divided among them.
	PSS     float64
	Threads int
}

// MemoryOf reads the memory of a process.
func MemoryOf(pid int) (Memory, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return Memory{}, fmt.Errorf("read memory: %w", err)
	}
	rss, anonymous := numberIn(data, "Rss:"), numberIn(data, "Anonymous:")
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return Memory{}, fmt.Errorf("read threads: %w", err)
	}
	return Memory{
		Anonymous: anonymous * 1024 / 1e6,
		File:      (rss - anonymous) * 1024 / 1e6,
		PSS:       numberIn(data, "Pss:") * 1024 / 1e6,
		Threads:   int(numberIn(status, "Threads:")),
	}, nil
}

func (m Memory) plus(o Memory) Memory {
	return Memory{
		Anonymous: m.Anonymous + o.Anonymous,
		File:      m.File + o.File,
		PSS:       m.PSS + o.PSS,
		Threads:   m.Threads + o.Threads,
	}
}

// numberIn reads the number after a key of a /proc file.
func numberIn(data []byte, key string) float64 {
	for line := range bytes.Lines(data) {
		if f := strings.Fields(string(line)); len(f) > 1 && f[0] == key {
			n, err := strconv.ParseFloat(f[1], 64)
			if err != nil {
				return 0
			}
			return n
		}
	}
	return 0
}

// othersMemory sums the proportional share of all processes but those given, the sandbox's first
// and this one: shims and the pods themselves.
func othersMemory(measured map[int]bool) (megabytes float64, processes int) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		n, err := strconv.Atoi(filepath.Base(d))
		if err != nil || measured[n] || n == 1 || n == os.Getpid() {
			continue
		}
		// A process that ended meanwhile counts for nothing.
		data, err := os.ReadFile(filepath.Join(d, "smaps_rollup"))
		if err != nil {
			continue
		}
		megabytes += numberIn(data, "Pss:") * 1024 / 1e6
		processes++
	}
	return megabytes, processes
}

// cpuTime is user and system time of all the process's threads so far, and of the programs it ran
// and waited for, such as nft. The kernel counts in hundredths of a second.
func cpuTime(pid int) (time.Duration, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("read CPU time: %w", err)
	}
	// The name in parentheses may hold blanks; fields are counted from behind it.
	_, after, ok := bytes.Cut(data, []byte(") "))
	f := strings.Fields(string(after))
	if !ok || len(f) < 15 {
		return 0, fmt.Errorf("read CPU time: unknown form of stat")
	}
	var ticks int64
	for _, s := range f[11:15] {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read CPU time: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}

// writtenBytes is what the process has caused to be written to disks so far, in whole blocks of the
// file system.
func writtenBytes(pid int) (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	if err != nil {
		return 0, fmt.Errorf("read bytes written: %w", err)
	}
	return numberIn(data, "write_bytes:"), nil
}

// DiskUse sums what the files of a folder occupy, in bytes.
func DiskUse(dir string) int64 {
	var total int64
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		// Files come and go; what is gone occupies nothing.
		if err != nil || !d.Type().IsRegular() {
			return nil
		}
		if info, err := d.Info(); err == nil {
			total += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return nil
	})
	return total
}

// Warm reads files once, so that a start is not measured by whether the disk's cache happens to
// hold them, and returns their size.
func Warm(files []string) (megabytes float64, err error) {
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			return 0, fmt.Errorf("read executable: %w", err)
		}
		megabytes += float64(len(data)) / 1e6
	}
	return megabytes, nil
}
