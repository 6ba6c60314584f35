package dns

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/mote-dev/mote/internal/retry"
)

const (
	// rereadAfter is the shortest time between two checks of the resolver files for changes.
	rereadAfter = 2 * time.Second
	// maxResolvers bounds how many resolvers are used; libc uses three.
	maxResolvers = 4
)

// hostResolvers finds the host's upstream resolvers and follows changes of the files that name
// them.
type hostResolvers struct {
	files []string
	own   []netip.AddrPort // our own addresses, which must not be queried
	now   func() time.Time
	log   *zap.Logger

	mu       sync.Mutex // guards the fields below
	checked  time.Time
	stamps   []fileStamp
	servers  []netip.AddrPort
	failures retry.Failures
}

func newHostResolvers(files []string, own []netip.AddrPort, now func() time.Time, log *zap.Logger) *hostResolvers {
	return &hostResolvers{
		files: files,
		own:   own,
		now:   now,
		log:   log,
	}
}

// fileStamp distinguishes versions of a file.
type fileStamp struct {
	modified time.Time
	size     int64
}

// get returns the resolvers, and whether they differ from the last call's.
func (h *hostResolvers) get() (servers []netip.AddrPort, changed bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.now()
	if !h.checked.IsZero() && now.Sub(h.checked) < rereadAfter && !now.Before(h.checked) {
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
	found, err := hostResolversIn(h.files, h.own)
	if err != nil {
		// The stamps stay as they were, so the files are read again soon.
		if h.failures.News(err) {
			h.log.Warn("the host's resolvers cannot be read; the ones known so far stay in use", zap.Error(err))
		}
		if len(h.servers) > 0 {
			return h.servers, false
		}
	} else {
		h.stamps = stamps
		h.failures.Recovered()
	}
	changed = !slices.Equal(found, h.servers)
	h.servers = found
	return found, changed
}

// HostFiles are where the host's resolvers are found, best first. With systemd-resolved,
// /etc/resolv.conf names a stub on loopback that no pod can reach, and the real ones are in the
// second file.
func HostFiles() []string { return []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"} }

// HostResolvers reads the resolvers that can be reached from other network namespaces than the
// host's, from the first of files that names any. own are the addresses of the cluster's DNS, which
// would query itself. With an error, which says that a file exists and cannot be read, the result
// is what the other files name.
func HostResolvers(files []string, own []netip.Addr) ([]netip.Addr, error) {
	at := make([]netip.AddrPort, len(own))
	for i, a := range own {
		at[i] = netip.AddrPortFrom(a, defaultPort)
	}
	found, err := hostResolversIn(files, at)
	var out []netip.Addr
	for _, r := range found {
		out = append(out, r.Addr())
	}
	return out, err
}

func hostResolversIn(files []string, own []netip.AddrPort) ([]netip.AddrPort, error) {
	var errs []error
	for _, file := range files {
		found, err := usableResolvers(file, own)
		if err != nil {
			errs = append(errs, err)
		}
		if len(found) > 0 {
			return found, errors.Join(errs...)
		}
	}
	return nil, errors.Join(errs...)
}

// usableResolvers reads a resolv.conf; a missing one names none. Loopback addresses are left out: a
// stub listens there that forwards to some other resolver, perhaps to us. So are our own addresses.
func usableResolvers(file string, own []netip.AddrPort) ([]netip.AddrPort, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read resolvers: %w", err)
	}
	var out []netip.AddrPort
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		ip, err := netip.ParseAddr(fields[1])
		if err != nil {
			continue
		}
		if a := netip.AddrPortFrom(ip.Unmap(), defaultPort); usable(a, own) && !slices.Contains(out, a) &&
			len(out) < maxResolvers {
			out = append(out, a)
		}
	}
	return out, nil
}

// usable reports whether a resolver can be queried without querying ourselves.
func usable(a netip.AddrPort, own []netip.AddrPort) bool {
	ip := a.Addr()
	if ip.IsLoopback() || ip.IsUnspecified() || ip.IsMulticast() {
		return false
	}
	return !slices.ContainsFunc(own, func(o netip.AddrPort) bool { return o.Addr() == ip })
}
