package resolvconf

import (
	"net/netip"
	"slices"
	"strings"
)

// Default is the file that names the host's resolvers, unless a setting names another one.
const Default = "/etc/resolv.conf"

// systemd is where systemd-resolved names the resolvers behind its stub on loopback.
const systemd = "/run/systemd/resolve/resolv.conf"

// Files are where the host's resolvers are found, best first. file is what the setting resolv-conf
// names; empty means [Default]. With systemd-resolved that file may name a stub on loopback, and
// the second one the real resolvers.
func Files(file string) []string {
	if file == "" {
		file = Default
	}
	if file == systemd {
		return []string{file}
	}
	return []string{file, systemd}
}

// Config is the content of a resolv.conf.
type Config struct {
	// Servers are the name servers in the file's order, without repetitions.
	Servers []netip.Addr
	// Search are the search domains, Options the resolver's options.
	Search, Options []string
}

// Parse reads the text of a resolv.conf as libc does: it skips what it does not know, and of
// several lines with search domains the last counts.
func Parse(text []byte) Config {
	var c Config
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			ip, err := netip.ParseAddr(fields[1])
			if ip = ip.Unmap(); err == nil && !slices.Contains(c.Servers, ip) {
				c.Servers = append(c.Servers, ip)
			}
		case "search":
			c.Search = domains(fields[1:])
		case "domain":
			c.Search = domains(fields[1:2])
		case "options":
			c.Options = append(c.Options, fields[1:]...)
		}
	}
	return c
}

// domains drops the root, which adds nothing to a name, and closing dots.
func domains(fields []string) []string {
	var out []string
	for _, f := range fields {
		if f = strings.TrimSuffix(f, "."); f != "" {
			out = append(out, f)
		}
	}
	return out
}

// Reachable reports whether a resolver may be reached from other network namespaces than the
// host's. One on loopback is a stub that forwards to another resolver, perhaps to the cluster's.
func Reachable(ip netip.Addr) bool {
	return !ip.IsLoopback() && !ip.IsUnspecified() && !ip.IsMulticast()
}
