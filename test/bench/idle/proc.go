package main

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

// memory is a process's, in megabytes (10^6 bytes), as the kernel counts it.
type memory struct {
	// anonymous is what the process itself filled: heaps and stacks. It cannot be dropped.
	anonymous float64
	// file is mapped pages of files, above all of the executable: clean, shared, and dropped when memory is short.
	file    float64
	threads int
}

func memoryOf(pid int) (memory, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return memory{}, fmt.Errorf("read memory: %w", err)
	}
	rss, anonymous := kilobytes(data, "Rss:"), kilobytes(data, "Anonymous:")
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return memory{}, fmt.Errorf("read threads: %w", err)
	}
	return memory{
		anonymous: anonymous * 1024 / 1e6, file: (rss - anonymous) * 1024 / 1e6, threads: int(kilobytes(status, "Threads:")),
	}, nil
}

// kilobytes reads the number after a key of a /proc file.
func kilobytes(data []byte, key string) float64 {
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

// othersMemory sums the proportional share of all processes but this one, the sandbox's first and pid: shims and the pods themselves.
func othersMemory(pid int) (megabytes float64, processes int) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		n, err := strconv.Atoi(filepath.Base(d))
		if err != nil || n == pid || n == 1 || n == os.Getpid() {
			continue
		}
		// A process that ended meanwhile counts for nothing.
		data, err := os.ReadFile(filepath.Join(d, "smaps_rollup"))
		if err != nil {
			continue
		}
		megabytes += kilobytes(data, "Pss:") * 1024 / 1e6
		processes++
	}
	return megabytes, processes
}

// cpuTime is user and system time of all the process's threads so far. The kernel counts in hundredths of a second.
func cpuTime(pid int) (time.Duration, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("read CPU time: %w", err)
	}
	// The name in parentheses may hold blanks; fields are counted from behind it.
	_, after, ok := bytes.Cut(data, []byte(") "))
	f := strings.Fields(string(after))
	if !ok || len(f) < 13 {
		return 0, fmt.Errorf("read CPU time: unknown form of stat")
	}
	var ticks int64
	for _, s := range f[11:13] {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read CPU time: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}

// diskUse sums what the files of a folder occupy, in bytes.
func diskUse(dir string) int64 {
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
