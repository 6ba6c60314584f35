package dns

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	wire "github.com/miekg/dns"
)

// The settings' ConfigMap and its keys.
const (
	// SettingsNamespace and SettingsName name the ConfigMap that configures DNS.
	SettingsNamespace = "kube-system"
	SettingsName      = "mote-dns"

	keyUpstreams   = "upstreams"
	keyStubDomains = "stub-domains"
	keyHosts       = "hosts"
)

// stub is a domain with its own resolvers.
type stub struct {
	domain  string // fully qualified, lower case
	servers []netip.AddrPort
}

// settings is the content of the ConfigMap. The zero value changes nothing.
type settings struct {
	upstreams []netip.AddrPort // instead of the host's
	stubs     []stub           // longest domain first
	hosts     map[string][]netip.Addr
	names     map[netip.Addr]string // for reverse questions: the first name of each address
}

// parseSettings parses the data of the ConfigMap and reports every error in it.
func parseSettings(data map[string]string, zone string, own []netip.AddrPort) (settings, error) {
	var out settings
	var errs []error
	for key, text := range data {
		var err error
		switch key {
		case keyUpstreams:
			out.upstreams, err = parseServers(strings.Fields(stripComments(text)), own)
		case keyStubDomains:
			out.stubs, err = parseStubs(text, zone, own)
		case keyHosts:
			out.hosts, out.names, err = parseHosts(text, zone)
		default:
			err = fmt.Errorf("unknown key; known are %s, %s, %s", keyUpstreams, keyStubDomains, keyHosts)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", key, err))
		}
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return out, errors.Join(errs...)
}

// stripComments removes everything after a # from each line.
func stripComments(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(strings.TrimRight(line, "\r\n"), "#")
		b.WriteString(line)
		b.WriteByte('\n')
	}
	return b.String()
}

func parseServers(fields []string, own []netip.AddrPort) ([]netip.AddrPort, error) {
	var out []netip.AddrPort
	for _, text := range fields {
		a, err := parseServer(text)
		if err != nil {
			return nil, err
		}
		if slices.Contains(own, a) {
			return nil, fmt.Errorf("%s is the cluster DNS itself", a)
		}
		out = append(out, a)
	}
	return out, nil
}

func parseStubs(text, zone string, own []netip.AddrPort) ([]stub, error) {
	var out []stub
	for line := range strings.Lines(stripComments(text)) {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		domain, err := domainName(fields[0])
		if err != nil {
			return nil, err
		}
		if domain == zone || strings.HasSuffix(domain, "."+zone) {
			return nil, fmt.Errorf("%s belongs to the cluster", fields[0])
		}
		servers, err := parseServers(fields[1:], own)
		if err == nil && len(servers) == 0 {
			err = errors.New("no resolver given")
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", fields[0], err)
		}
		out = append(out, stub{domain, servers})
	}
	slices.SortStableFunc(out, func(a, b stub) int { return len(b.domain) - len(a.domain) })
	return out, nil
}

func parseHosts(text, zone string) (map[string][]netip.Addr, map[netip.Addr]string, error) {
	hosts, names := make(map[string][]netip.Addr), make(map[netip.Addr]string)
	for line := range strings.Lines(stripComments(text)) {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		ip, err := netip.ParseAddr(fields[0])
		if err != nil {
			return nil, nil, fmt.Errorf("%q is not an address", fields[0])
		}
		ip = ip.Unmap()
		if len(fields) == 1 {
			return nil, nil, fmt.Errorf("no name for %s", ip)
		}
		for _, text := range fields[1:] {
			name, err := domainName(text)
			if err != nil {
				return nil, nil, err
			}
			if name == zone || strings.HasSuffix(name, "."+zone) {
				return nil, nil, fmt.Errorf("%s belongs to the cluster", text)
			}
			hosts[name] = append(hosts[name], ip)
			if names[ip] == "" {
				names[ip] = name
			}
		}
	}
	return hosts, names, nil
}

// static answers from the hosts in the settings.
func (s settings) static(q question) (answer, bool) {
	if ips, ok := s.hosts[q.name]; ok {
		return answer{records: addresses(q.original, q.qtype, ips)}, true
	}
	if ip, ok := reverseAddr(q.name); ok && s.names[ip] != "" {
		if q.qtype != wire.TypePTR {
			return answer{}, true
		}
		return answer{records: []wire.RR{&wire.PTR{Hdr: header(q.original, wire.TypePTR), Ptr: s.names[ip]}}}, true
	}
	return answer{}, false
}

// serversFor returns the resolvers for a name; nil means the host's.
func (s settings) serversFor(name string) []netip.AddrPort {
	for _, each := range s.stubs {
		if name == each.domain || strings.HasSuffix(name, "."+each.domain) {
			return each.servers
		}
	}
	return s.upstreams
}
