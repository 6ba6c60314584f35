package hostcheck

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// listening is the state column of a socket that listens.
const listening = "0A"

// portOwner names the process that listens on a port, as "nginx (process 12)", or returns nothing
// when that cannot be told: another user's process, or one in another PID namespace.
func portOwner(proc, address string) string {
	_, portText, err := net.SplitHostPort(address)
	if err != nil {
		return ""
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return ""
	}
	var inodes []string
	for _, table := range []string{"net/tcp", "net/tcp6"} {
		inodes = append(inodes, listeners(filepath.Join(proc, table), port)...)
	}
	if len(inodes) == 0 {
		return ""
	}
	// A process' own list of descriptors is the only place that ties it to a socket.
	fds, err := filepath.Glob(filepath.Join(proc, "[0-9]*", "fd", "*"))
	if err != nil {
		return ""
	}
	for _, fd := range fds {
		target, err := os.Readlink(fd)
		if err != nil {
			continue
		}
		inode, found := strings.CutPrefix(target, "socket:[")
		if !found || !slices.Contains(inodes, strings.TrimSuffix(inode, "]")) {
			continue
		}
		process := filepath.Dir(filepath.Dir(fd))
		name, err := os.ReadFile(filepath.Join(process, "comm"))
		if err != nil {
			continue
		}
		return fmt.Sprintf("%s (process %s)", strings.TrimSpace(string(name)), filepath.Base(process))
	}
	return ""
}

// listeners returns the inodes of the sockets that listen on a port.
func listeners(table string, port uint64) []string {
	f, err := os.Open(table)
	if err != nil {
		return nil
	}
	defer f.Close()
	var inodes []string
	for scanner := bufio.NewScanner(f); scanner.Scan(); {
		fields := strings.Fields(scanner.Text())
		if len(fields) < 10 || fields[3] != listening {
			continue
		}
		_, hex, found := strings.Cut(fields[1], ":")
		if n, err := strconv.ParseUint(hex, 16, 16); found && err == nil && n == port {
			inodes = append(inodes, fields[9])
		}
	}
	return inodes
}
