package dns

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	wire "github.com/miekg/dns"
)

const (
	// recordTTL is the TTL of the cluster's records and of denials, in seconds.
	recordTTL = 5
	// schemaVersion is the version of the Kubernetes DNS specification that this implements.
	schemaVersion = "1.1.0"
	// srvWeight is the weight of every SRV record: all endpoints are equal.
	srvWeight = 100
	// maxAliases bounds a chain of external names within the cluster.
	maxAliases = 8
)

// zone answers for the cluster's domain.
type zone struct {
	origin string // the domain, fully qualified, lower case
	addrs  []netip.Addr
	ranges []netip.Prefix // addresses that no other DNS server has names for
	index  func() *index
	start  uint32 // serial of the zone
}

func newZone(c Config, listen []netip.AddrPort, current func() *index) *zone {
	z := &zone{
		origin: c.ClusterDomain,
		ranges: c.ClusterCIDRs,
		index:  current,
		start:  uint32(time.Now().Unix()),
	}
	for _, a := range listen {
		z.addrs = append(z.addrs, a.Addr())
	}
	return z
}

// answer is the answer to one question.
type answer struct {
	rcode      int
	records    []wire.RR
	additional []wire.RR
	authority  []wire.RR
	// alias is the name outside the cluster that the records end with; it still has to be resolved.
	alias string
}

// domainName checks a name and returns it fully qualified in lower case.
func domainName(text string) (string, error) {
	name := wire.Fqdn(strings.ToLower(text))
	if labels, ok := wire.IsDomainName(name); !ok || labels == 0 {
		return "", fmt.Errorf("%q is not a domain name", text)
	}
	return name, nil
}

// owns reports whether a name, in lower case, is in the cluster's domain.
func (z *zone) owns(name string) bool {
	return name == z.origin || strings.HasSuffix(name, "."+z.origin)
}

// misdirected reports whether a name is one of the cluster's with a foreign domain appended.
// Resolvers append the host's search domains to names that do not exist, and a domain with a
// wildcard record would then answer for a missing service.
func (z *zone) misdirected(name string) bool {
	return strings.Contains(name, ".svc."+z.origin) || strings.Contains(name, ".pod."+z.origin)
}

// question is one question. Its name is there as the client wrote it, and in lower case.
type question struct {
	original, name string
	qtype          uint16
}

// resolve answers a question about a name the zone owns.
func (z *zone) resolve(q question) answer {
	a := z.lookup(q, 0)
	if len(a.records) == 0 && a.alias == "" {
		a.authority = []wire.RR{z.soa()}
	}
	return a
}

// lookup is resolve without the SOA record that limits how long a denial is cached.
func (z *zone) lookup(q question, depth int) answer {
	rest := strings.TrimSuffix(strings.TrimSuffix(q.name, z.origin), ".")
	if rest == "" {
		return z.apex(q)
	}
	labels := strings.Split(rest, ".")
	switch last := labels[len(labels)-1]; {
	case last == "svc":
		return z.services(q, labels[:len(labels)-1], depth)
	case last == "pod":
		return z.pods(q, labels[:len(labels)-1])
	case rest == "dns-version":
		if q.qtype == wire.TypeTXT {
			return answer{records: []wire.RR{&wire.TXT{Hdr: header(q.original, wire.TypeTXT),
				Txt: []string{schemaVersion}}}}
		}
		return answer{}
	case rest == "ns.dns":
		return answer{records: addresses(q.original, q.qtype, z.addrs)}
	case rest == "dns":
		return answer{}
	}
	return answer{rcode: wire.RcodeNameError}
}

// apex answers for the domain itself.
func (z *zone) apex(q question) answer {
	switch q.qtype {
	case wire.TypeSOA:
		return answer{records: []wire.RR{z.soa()}}
	case wire.TypeNS:
		ns := "ns.dns." + z.origin
		return answer{
			records:    []wire.RR{&wire.NS{Hdr: header(q.original, wire.TypeNS), Ns: ns}},
			additional: append(addresses(ns, wire.TypeA, z.addrs), addresses(ns, wire.TypeAAAA, z.addrs)...),
		}
	}
	return answer{}
}

func (z *zone) soa() wire.RR {
	return &wire.SOA{
		Hdr:     header(z.origin, wire.TypeSOA),
		Ns:      "ns.dns." + z.origin,
		Mbox:    "hostmaster." + z.origin,
		Serial:  z.start,
		Refresh: 7200,
		Retry:   1800,
		Expire:  86400,
		Minttl:  recordTTL,
	}
}

// pods answers for dashed addresses: the name contains the address, and only the namespace has to
// exist.
func (z *zone) pods(q question, labels []string) answer {
	switch len(labels) {
	case 0:
		return answer{}
	case 1, 2:
		if !z.index().hasNamespace(labels[len(labels)-1]) {
			return answer{rcode: wire.RcodeNameError}
		}
		if len(labels) == 1 {
			return answer{}
		}
		if ip, ok := undashed(labels[0]); ok {
			return answer{records: addresses(q.original, q.qtype, []netip.Addr{ip})}
		}
	}
	return answer{rcode: wire.RcodeNameError}
}

// services answers for names below svc; labels are those before it.
func (z *zone) services(q question, labels []string, depth int) answer {
	x := z.index()
	switch len(labels) {
	case 0:
		return answer{}
	case 1:
		if !x.hasNamespace(labels[0]) {
			return answer{rcode: wire.RcodeNameError}
		}
		return answer{}
	}
	k := key{ns: labels[len(labels)-1], name: labels[len(labels)-2]}
	s := x.service(k)
	if s == nil {
		return answer{rcode: wire.RcodeNameError}
	}
	before := labels[:len(labels)-2]
	switch {
	case s.Alias != "":
		if len(before) > 0 {
			return answer{rcode: wire.RcodeNameError}
		}
		return z.aliased(q, s.Alias, depth)
	case s.headless():
		return z.headless(q, k, before, x.targets(k))
	}
	return z.clustered(q, s, before)
}

// aliased answers for an ExternalName service, and follows an alias that points back into the
// cluster.
func (z *zone) aliased(q question, alias string, depth int) answer {
	a := answer{records: []wire.RR{&wire.CNAME{Hdr: header(q.original, wire.TypeCNAME), Target: alias}}}
	switch {
	case q.qtype == wire.TypeCNAME:
	case !z.owns(alias):
		a.alias = alias
	case depth < maxAliases:
		next := z.lookup(question{alias, alias, q.qtype}, depth+1)
		if next.rcode == wire.RcodeServerFailure {
			return next
		}
		a.rcode, a.alias = next.rcode, next.alias
		a.records = append(a.records, next.records...)
	default:
		return answer{rcode: wire.RcodeServerFailure}
	}
	return a
}

// clustered answers for a service with cluster addresses.
func (z *zone) clustered(q question, s *service, before []string) answer {
	switch len(before) {
	case 0:
		if q.qtype == wire.TypeSRV {
			return z.clusteredPorts(q, s, func(port) bool { return true })
		}
		return answer{records: addresses(q.original, q.qtype, s.IPs)}
	case 1:
		for _, p := range s.Ports {
			if before[0] == "_"+p.Proto {
				return answer{}
			}
		}
	case 2:
		match := func(p port) bool { return before[0] == "_"+p.Name && before[1] == "_"+p.Proto }
		for _, p := range s.Ports {
			if match(p) {
				if q.qtype != wire.TypeSRV {
					return answer{}
				}
				return z.clusteredPorts(q, s, match)
			}
		}
	}
	return answer{rcode: wire.RcodeNameError}
}

func (z *zone) clusteredPorts(q question, s *service, match func(port) bool) answer {
	labels := wire.SplitDomainName(q.name)
	for strings.HasPrefix(labels[0], "_") {
		labels = labels[1:]
	}
	owner := strings.Join(labels, ".") + "."
	var a answer
	for _, p := range s.Ports {
		if match(p) {
			a.records = append(a.records, srv(q.original, p.Port, owner))
		}
	}
	if len(a.records) > 0 {
		a.additional = append(addresses(owner, wire.TypeA, s.IPs), addresses(owner, wire.TypeAAAA, s.IPs)...)
	}
	return a
}

// headless answers for a headless service, whose endpoints have the names. Without endpoints the
// name does not exist.
func (z *zone) headless(q question, k key, before []string, all []target) answer {
	owner := k.name + "." + k.ns + ".svc." + z.origin
	var ips []netip.Addr
	var a answer
	found := false
	seen := make(map[string]bool)
	for _, t := range all {
		host := t.Host + "." + owner
		switch {
		case len(before) == 0:
			found = true
			ips = append(ips, t.IP)
		case len(before) == 1 && before[0] == t.Host:
			found = true
			ips = append(ips, t.IP)
		}
		for _, p := range t.ports {
			matches := false
			switch len(before) {
			case 0:
				matches = true
			case 1:
				found = found || before[0] == "_"+p.Proto
			case 2:
				matches = before[0] == "_"+p.Name && before[1] == "_"+p.Proto
				found = found || matches
			}
			if !matches || q.qtype != wire.TypeSRV {
				continue
			}
			if id := fmt.Sprintf("%s %d", host, p.Port); !seen[id] {
				seen[id] = true
				a.records = append(a.records, srv(q.original, p.Port, host))
			}
			if id := host + " " + t.IP.String(); !seen[id] {
				seen[id] = true
				a.additional = append(a.additional, addresses(host, wire.TypeA, []netip.Addr{t.IP})...)
				a.additional = append(a.additional, addresses(host, wire.TypeAAAA, []netip.Addr{t.IP})...)
			}
		}
	}
	if !found {
		return answer{rcode: wire.RcodeNameError}
	}
	if q.qtype != wire.TypeSRV {
		slices.SortFunc(ips, netip.Addr.Compare)
		a.records = addresses(q.original, q.qtype, slices.Compact(ips))
	}
	// Clients use the first record: spread them over the endpoints.
	rand.Shuffle(len(a.records), func(i, j int) { a.records[i], a.records[j] = a.records[j], a.records[i] })
	return a
}

// reverse answers a reverse lookup; ok is false if the question has to be forwarded.
func (z *zone) reverse(q question) (a answer, ok bool) {
	ip, isReverse := reverseAddr(q.name)
	if !isReverse {
		return answer{}, false
	}
	names := z.index().namesOf(ip)
	if len(names) == 0 {
		for _, p := range z.ranges {
			if p.Contains(ip) {
				return answer{rcode: wire.RcodeNameError, authority: []wire.RR{z.soa()}}, true
			}
		}
		return answer{}, false
	}
	if q.qtype != wire.TypePTR {
		return answer{authority: []wire.RR{z.soa()}}, true
	}
	for _, n := range names {
		full := n.key.name + "." + n.ns + ".svc." + z.origin
		if n.host != "" {
			full = n.host + "." + full
		}
		a.records = append(a.records, &wire.PTR{Hdr: header(q.original, wire.TypePTR), Ptr: full})
	}
	return a, true
}

// reverseAddr parses the address in a name below in-addr.arpa or ip6.arpa.
func reverseAddr(name string) (netip.Addr, bool) {
	if head, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		parts := strings.Split(head, ".")
		if len(parts) != 4 {
			return netip.Addr{}, false
		}
		ip, err := netip.ParseAddr(parts[3] + "." + parts[2] + "." + parts[1] + "." + parts[0])
		return ip, err == nil
	}
	head, ok := strings.CutSuffix(name, ".ip6.arpa.")
	if !ok || len(head) != 63 {
		return netip.Addr{}, false
	}
	var b strings.Builder
	for i := 62; i >= 0; i -= 2 {
		if i < 62 && head[i+1] != '.' {
			return netip.Addr{}, false
		}
		b.WriteByte(head[i])
		if i%8 == 0 && i > 0 {
			b.WriteByte(':')
		}
	}
	ip, err := netip.ParseAddr(b.String())
	return ip, err == nil
}

func header(name string, rrtype uint16) wire.RR_Header {
	return wire.RR_Header{
		Name:   name,
		Rrtype: rrtype,
		Class:  wire.ClassINET,
		Ttl:    recordTTL,
	}
}

func srv(name string, port uint16, target string) wire.RR {
	return &wire.SRV{
		Hdr:    header(name, wire.TypeSRV),
		Weight: srvWeight,
		Port:   port,
		Target: target,
	}
}

// addresses returns records of type qtype for the addresses that fit it.
func addresses(name string, qtype uint16, ips []netip.Addr) []wire.RR {
	var out []wire.RR
	for _, ip := range ips {
		switch {
		case qtype == wire.TypeA && ip.Is4():
			out = append(out, &wire.A{Hdr: header(name, wire.TypeA), A: ip.AsSlice()})
		case qtype == wire.TypeAAAA && ip.Is6():
			out = append(out, &wire.AAAA{Hdr: header(name, wire.TypeAAAA), AAAA: ip.AsSlice()})
		}
	}
	return out
}
