package dns

import (
	"bufio"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// rereadAfter is how often resolver files are looked at for changes, at most.
const rereadAfter = 2 * time.Second

// maxResolvers bounds how many resolvers are used; libc uses three.
const maxResolvers = 4

// hostResolvers finds the host's upstream resolvers and follows changes of the files that name them.
type hostResolvers struct {
	files []string
	own   []netip.AddrPort // our addresses, which must not be asked
	now   func() time.Time

	mu      sync.Mutex // guards the fields below
	checked time.Time
	stamps  []fileStamp
	servers []netip.AddrPort
}

// fileStamp tells one version of a file from another.
type fileStamp struct {
	modified time.Time
	size     int64
}

// get returns the resolvers, and whether they differ from the last call's.
func (h *hostResolvers) get() (servers []netip.AddrPort, changed bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.now()
	if h.stamps != nil && now.Sub(h.checked) < rereadAfter && !now.Before(h.checked) {
		return h.servers, false
	}
	h.checked = now
	stamps := make([]fileStamp, len(h.files))
	for i, file := range h.files {
		// Stat follows links: network managers swap what /etc/resolv.conf points to.
		if info, err := os.Stat(file); err == nil {
			stamps[i] = fileStamp{info.ModTime(), info.Size()}
		}
	}
	if slices.Equal(stamps, h.stamps) {
		return h.servers, false
	}
	h.stamps = stamps
	found := hostResolversIn(h.files, h.own)
	changed = !slices.Equal(found, h.servers)
	h.servers = found
	return found, changed
}

// HostFiles are where the host's resolvers are found, best first. With
// systemd-resolved, /etc/resolv.conf names a stub on loopback that no pod can
// reach, and the real ones are in the second file.
func HostFiles() []string { return []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"} }

// HostResolvers reads the resolvers that others than the host's own processes
// can ask, from the first of files that names any. own are addresses of the
// cluster's DNS, which would ask themselves.
func HostResolvers(files []string, own []netip.Addr) []netip.Addr {
	at := make([]netip.AddrPort, len(own))
	for i, a := range own {
		at[i] = netip.AddrPortFrom(a, defaultPort)
	}
	var out []netip.Addr
	for _, r := range hostResolversIn(files, at) {
		out = append(out, r.Addr())
	}
	return out
}

func hostResolversIn(files []string, own []netip.AddrPort) []netip.AddrPort {
	for _, file := range files {
		if found := usableResolvers(file, own); len(found) > 0 {
			return found
		}
	}
	return nil
}

// usableResolvers reads a resolv.conf. Loopback addresses are left out: there sits a stub that asks somebody else, and that
// may well be us. So are our own addresses.
func usableResolvers(file string, own []netip.AddrPort) []netip.AddrPort {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) || err != nil {
		return nil
	}
	defer f.Close()
	var out []netip.AddrPort
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		ip, err := netip.ParseAddr(fields[1])
		if err != nil {
			continue
		}
		if a := netip.AddrPortFrom(ip.Unmap(), defaultPort); usable(a, own) && !slices.Contains(out, a) && len(out) < maxResolvers {
			out = append(out, a)
		}
	}
	return out
}

// usable tells whether a resolver can be asked without asking ourselves.
func usable(a netip.AddrPort, own []netip.AddrPort) bool {
	ip := a.Addr()
	if ip.IsLoopback() || ip.IsUnspecified() || ip.IsMulticast() {
		return false
	}
	return !slices.ContainsFunc(own, func(o netip.AddrPort) bool { return o.Addr() == ip })
}
