package servicelb

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/procfs"
	corev1 "k8s.io/api/core/v1"

	"github.com/mote-dev/mote/internal/hostports"
)

// States of sockets in /proc/net, of the kernel's include/net/tcp_states.h. A UDP socket that is
// not connected has the state of a closed TCP one.
const (
	tcpListen = 10
	udpOpen   = 7
)

// clientAge is how long a client waits for an answer at most.
const clientAge = 30 * time.Second

// scanner finds the host's listeners.
type scanner struct {
	proc procfs.FS
	// owners are the programs' names by the inode of a listening socket.
	owners map[uint64]string
	// clients are UDP sockets on ports of clients, with when they were first seen.
	clients map[client]time.Time
}

// client is a UDP socket that may be a client's.
type client struct{ inode, port uint64 }

func newScanner() (*scanner, error) {
	proc, err := procfs.NewDefaultFS()
	if err != nil {
		return nil, fmt.Errorf("open /proc: %w", err)
	}
	return &scanner{proc: proc}, nil
}

// socket is a line of /proc/net/{tcp,udp}{,6}.
type socket struct {
	ip    net.IP
	port  uint64
	inode uint64
}

// scan returns what programs listen on, except on loopback.
//
// UDP sockets in the range that the kernel takes ports from are left out until they are a while
// old: most are clients that wait for answers, and they come and go. WireGuard's port is one, too.
func (s *scanner) scan() ([]hostports.Listener, error) {
	low, high, err := ephemeral()
	if err != nil {
		return nil, err
	}
	var found []hostports.Listener
	var inodes []uint64
	clients := make(map[client]time.Time)
	add := func(protocol corev1.Protocol, sockets []socket) {
		for _, each := range sockets {
			ip, ok := netip.AddrFromSlice(each.ip)
			if ip = ip.Unmap(); !ok || ip.IsLoopback() {
				continue
			}
			if protocol == corev1.ProtocolUDP && each.port >= low && each.port <= high {
				c := client{each.inode, each.port}
				since, seen := s.clients[c]
				if !seen {
					since = time.Now()
				}
				if clients[c] = since; time.Since(since) < clientAge {
					continue
				}
			}
			l := hostports.Listener{Port: uint16(each.port), Protocol: protocol}
			if !ip.IsUnspecified() {
				l.Address = ip
			}
			found, inodes = append(found, l), append(inodes, each.inode)
		}
	}
	tcp, err := readSockets(tcpListen, s.proc.NetTCP, s.proc.NetTCP6)
	if err != nil {
		return nil, err
	}
	add(corev1.ProtocolTCP, tcp)
	udp, err := readSockets(udpOpen, s.proc.NetUDP, s.proc.NetUDP6)
	if err != nil {
		return nil, err
	}
	add(corev1.ProtocolUDP, udp)
	s.clients = clients
	owners := s.findOwners(inodes)
	for i := range found {
		found[i].Owner = owners[inodes[i]]
	}
	return found, nil
}

// readSockets returns the sockets of a state in files of both families. A kernel without IPv6 has
// no file for it.
func readSockets[T procfs.NetTCP | procfs.NetUDP](state uint64, files ...func() (T, error)) ([]socket, error) {
	var out []socket
	for _, read := range files {
		lines, err := read()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list the host's sockets: %w", err)
		}
		for _, l := range lines {
			if l.St == state {
				out = append(out, socket{l.LocalAddr, l.LocalPort, l.Inode})
			}
		}
	}
	return out, nil
}

// ephemeral is the range that the kernel takes the ports of clients from.
func ephemeral() (low, high uint64, err error) {
	const file = "/proc/sys/net/ipv4/ip_local_port_range"
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, 0, fmt.Errorf("read the range of client ports: %w", err)
	}
	if _, err := fmt.Sscan(string(text), &low, &high); err != nil {
		return 0, 0, fmt.Errorf("read the range of client ports: %s holds %q: %w", file, text, err)
	}
	return low, high, nil
}

// findOwners returns the programs' names by inode. Looking through all processes is the expensive
// part of a scan, so it happens only if there is a listener that the last one did not have.
func (s *scanner) findOwners(inodes []uint64) map[uint64]string {
	owners, unknown := make(map[uint64]string, len(inodes)), false
	for _, i := range inodes {
		name, ok := s.owners[i]
		owners[i], unknown = name, unknown || !ok
	}
	if unknown {
		s.nameOwners(owners)
	}
	s.owners = owners
	return owners
}

// nameOwners fills in the names of programs. A process may end meanwhile, and those of other users
// may not be readable: what is not found stays without a name.
func (s *scanner) nameOwners(owners map[uint64]string) {
	processes, err := s.proc.AllProcs()
	if err != nil {
		return
	}
	for _, p := range processes {
		targets, err := p.FileDescriptorTargets()
		if err != nil {
			continue
		}
		for _, target := range targets {
			text, ok := strings.CutPrefix(target, "socket:[")
			if !ok {
				continue
			}
			inode, err := strconv.ParseUint(strings.TrimSuffix(text, "]"), 10, 64)
			if _, wanted := owners[inode]; err != nil || !wanted {
				continue
			}
			// Of several processes that share a socket it is the first.
			if name, err := p.Comm(); err == nil && owners[inode] == "" {
				owners[inode] = hostports.Printable(name)
			}
		}
	}
}
