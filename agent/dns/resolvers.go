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

	"github.com/mote-dev/mote/internal/resolvconf"
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
	own   []netip.Addr // our own addresses, which must not be queried
	now   func() time.Time
	log   *zap.Logger

	mu       sync.Mutex // guards the fields below
	checked  time.Time
	stamps   []fileStamp
	found    Host
	servers  []netip.AddrPort // those of found
	failures retry.Failures
}

func newHostResolvers(files []string, own []netip.Addr, now func() time.Time, log *zap.Logger) *hostResolvers {
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

// get returns the resolvers, and whether the files say something else than at the last call.
func (h *hostResolvers) get() (_ []netip.AddrPort, changed bool) {
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
	found, err := ReadHost(h.files, h.own)
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
	var servers []netip.AddrPort
	for _, ip := range found.Resolvers {
		servers = append(servers, netip.AddrPortFrom(ip, defaultPort))
	}
	changed = !slices.Equal(servers, h.servers) || !slices.Equal(found.Unusable, h.found.Unusable)
	h.found, h.servers = found, servers
	return servers, changed
}

// fault says why the host has no usable resolver; empty if it has one.
func (h *hostResolvers) fault() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.found.Fault()
}

// unusable returns the resolvers that were left out.
func (h *hostResolvers) unusable() []netip.Addr {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.found.Unusable
}

// Host is what the files of the host say about resolvers.
type Host struct {
	// Resolvers can be reached from other network namespaces than the host's.
	Resolvers []netip.Addr
	// Unusable are those that cannot, and the cluster's own DNS, which would query itself.
	Unusable []netip.Addr
	// Search and Options are those of the first file.
	Search, Options []string
}

// ReadHost reads the files that name resolvers. Of those the first with usable ones counts; a
// missing file names none. own are the addresses of the cluster's DNS. With an error, which says
// that a file exists and cannot be read, the result is what the other files say.
func ReadHost(files []string, own []netip.Addr) (Host, error) {
	var out Host
	var errs []error
	for i, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, fmt.Errorf("read resolvers: %w", err))
			}
			continue
		}
		c := resolvconf.Parse(text)
		if i == 0 {
			out.Search, out.Options = c.Search, c.Options
		}
		if len(out.Resolvers) > 0 {
			continue
		}
		for _, ip := range c.Servers {
			switch {
			case !resolvconf.Reachable(ip) || slices.Contains(own, ip):
				if !slices.Contains(out.Unusable, ip) {
					out.Unusable = append(out.Unusable, ip)
				}
			case len(out.Resolvers) < maxResolvers:
				out.Resolvers = append(out.Resolvers, ip)
			}
		}
	}
	return out, errors.Join(errs...)
}

// Remedy is what to do about a host without usable resolvers.
const Remedy = "name one that pods can reach, for this node in a file given with --resolv-conf, or for all nodes " +
	"under upstreams in the ConfigMap " + SettingsNamespace + "/" + SettingsName

// Fault says why a host has no usable resolver; empty if it has one.
func (h Host) Fault() string {
	switch {
	case len(h.Resolvers) > 0:
		return ""
	case len(h.Unusable) == 0:
		return "the host has no resolver"
	}
	texts := make([]string, len(h.Unusable))
	for i, ip := range h.Unusable {
		texts[i] = ip.String()
	}
	return "the host's only resolver is out of reach of pods (" + strings.Join(texts, ", ") + ")"
}
