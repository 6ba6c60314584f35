package dns

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
)

// key names a namespaced object.
type key struct{ ns, name string }

// port is a named port of a service or of a headless service's endpoints.
type port struct {
	Name  string
	Proto string // lower case
	Port  uint16
}

// service is the part of a Service that DNS needs.
type service struct {
	// IPs are its cluster addresses; a headless service and an alias have none.
	IPs []netip.Addr `json:",omitempty"`
	// Ports are its named ports. Those of a headless service come from its endpoints, and may
	// differ between them.
	Ports []port `json:",omitempty"`
	// Alias is the external name, fully qualified, or empty.
	Alias string `json:",omitempty"`
	// Unready publishes endpoints that are not ready.
	Unready bool `json:",omitempty"`
}

func (s *service) headless() bool { return len(s.IPs) == 0 && s.Alias == "" }

// endpoint is one address of a headless service.
type endpoint struct {
	Host  string // the label below the service's name, never empty
	IP    netip.Addr
	Ready bool
}

// slice is the part of a headless service's EndpointSlice that DNS needs.
type slice struct {
	Endpoints []endpoint
	Ports     []port `json:",omitempty"`
}

// index holds all names of the cluster.
type index struct {
	mu         sync.RWMutex // guards the fields below
	namespaces map[string]struct{}
	services   map[key]*service
	slices     map[key]map[string]*slice // by service, then by the slice's name
	byIP       map[netip.Addr][]key      // services by their addresses and those of their endpoints
	changed    func()                    // called after each change, outside the lock
}

func newIndex(changed func()) *index {
	return &index{
		namespaces: make(map[string]struct{}),
		services:   make(map[key]*service),
		slices:     make(map[key]map[string]*slice),
		byIP:       make(map[netip.Addr][]key),
		changed:    changed,
	}
}

func (x *index) setNamespace(name string, exists bool) {
	x.mu.Lock()
	_, had := x.namespaces[name]
	if exists {
		x.namespaces[name] = struct{}{}
	} else {
		delete(x.namespaces, name)
	}
	x.mu.Unlock()
	if had != exists {
		x.changed()
	}
}

// setService stores a service, or removes it if s is nil.
func (x *index) setService(k key, s *service) {
	x.mu.Lock()
	if old := x.services[k]; old != nil {
		for _, ip := range old.IPs {
			x.unlink(ip, k)
		}
	}
	if s == nil {
		delete(x.services, k)
	} else {
		x.services[k] = s
		for _, ip := range s.IPs {
			x.link(ip, k)
		}
	}
	x.mu.Unlock()
	x.changed()
}

// setSlice stores one slice of a service, or removes it if s is nil.
func (x *index) setSlice(k key, name string, s *slice) {
	x.mu.Lock()
	if old := x.slices[k][name]; old != nil {
		for _, e := range old.Endpoints {
			x.unlink(e.IP, k)
		}
	}
	if s == nil {
		delete(x.slices[k], name)
		if len(x.slices[k]) == 0 {
			delete(x.slices, k)
		}
	} else {
		if x.slices[k] == nil {
			x.slices[k] = make(map[string]*slice)
		}
		x.slices[k][name] = s
	}
	// An address may be in several slices of the service while an endpoint moves between them.
	for _, each := range x.slices[k] {
		for _, e := range each.Endpoints {
			x.link(e.IP, k)
		}
	}
	x.mu.Unlock()
	x.changed()
}

// link and unlink maintain byIP; the lock is held.
func (x *index) link(ip netip.Addr, k key) {
	if !slices.Contains(x.byIP[ip], k) {
		x.byIP[ip] = append(x.byIP[ip], k)
	}
}

func (x *index) unlink(ip netip.Addr, k key) {
	rest := slices.DeleteFunc(slices.Clone(x.byIP[ip]), func(o key) bool { return o == k })
	if len(rest) == 0 {
		delete(x.byIP, ip)
		return
	}
	x.byIP[ip] = rest
}

func (x *index) hasNamespace(name string) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	_, ok := x.namespaces[name]
	return ok
}

// service returns a service or nil.
func (x *index) service(k key) *service {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.services[k]
}

// target is an endpoint with the ports its slice names.
type target struct {
	endpoint
	ports []port
}

// targets returns the endpoints of a headless service that DNS publishes, in a stable order.
func (x *index) targets(k key) []target {
	x.mu.RLock()
	defer x.mu.RUnlock()
	s := x.services[k]
	if s == nil {
		return nil
	}
	var out []target
	for _, name := range slices.Sorted(maps.Keys(x.slices[k])) {
		each := x.slices[k][name]
		for _, e := range each.Endpoints {
			if e.Ready || s.Unready {
				out = append(out, target{e, each.Ports})
			}
		}
	}
	return out
}

// name is one name of an address, below the domain of services.
type name struct {
	key
	host string // empty for a service's own address
}

// namesOf returns the names of an address.
func (x *index) namesOf(ip netip.Addr) []name {
	x.mu.RLock()
	keys := x.byIP[ip]
	x.mu.RUnlock()
	var out []name
	for _, k := range keys {
		s := x.service(k)
		if s == nil {
			continue
		}
		if slices.Contains(s.IPs, ip) {
			out = append(out, name{key: k})
			continue
		}
		if !s.headless() {
			continue
		}
		for _, t := range x.targets(k) {
			if n := (name{k, t.Host}); t.IP == ip && !slices.Contains(out, n) {
				out = append(out, n)
			}
		}
	}
	slices.SortFunc(out, func(a, b name) int {
		return strings.Compare(a.ns+"/"+a.key.name+"/"+a.host, b.ns+"/"+b.key.name+"/"+b.host)
	})
	return out
}
