package revocation

import (
	"crypto/x509"
	"maps"
	"slices"
)

// list is what is refused at a moment. It is never changed, only replaced.
type list struct {
	// version is the object's resource version.
	version string
	// raw is the object's data as it was; entries what could be read of it, now or before.
	raw     map[string]string
	entries map[string]Entry
	// serials and users find entries by what they refuse.
	serials map[string]*Entry
	users   map[string][]*Entry
}

// next is the list that follows from the object's data. An entry that cannot be
// read stays what it was, if it could be read before.
func (l *list) next(version string, data map[string]string) (n *list, faults []error) {
	n = &list{version: version, raw: data, entries: make(map[string]Entry, len(data))}
	for _, key := range slices.Sorted(maps.Keys(data)) {
		e, err := ParseEntry(data[key])
		if err == nil {
			n.entries[key] = e
			continue
		}
		old, known := l.entries[key]
		if known {
			n.entries[key] = old
		}
		// What has been told of once stays as it is until somebody edits it.
		if text, seen := l.raw[key]; !seen || text != data[key] {
			faults = append(faults, faultOf(key, err))
		}
	}
	n.serials = make(map[string]*Entry)
	n.users = make(map[string][]*Entry)
	for _, e := range n.entries {
		if e.Serial != "" {
			n.serials[e.Serial] = &e
		} else {
			n.users[e.User] = append(n.users[e.User], &e)
		}
	}
	return n, faults
}

// find returns the entry that refuses cert, or nil.
func (l *list) find(cert *x509.Certificate) *Entry {
	if len(l.serials) > 0 {
		if e := l.serials[Serial(cert)]; e != nil {
			return e
		}
	}
	for _, e := range l.users[cert.Subject.CommonName] {
		if e.Refuses(cert) {
			return e
		}
	}
	return nil
}
