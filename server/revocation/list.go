package revocation

import (
	"crypto/x509"
	"maps"
	"slices"
)

// list is the set of revocations at one moment. It is immutable; a change replaces it.
type list struct {
	// version is the object's resource version.
	version string
	// raw is the object's data; entries is what could be parsed of it, now or in an earlier
	// version.
	raw     map[string]string
	entries map[string]Entry
	// serials and users find entries by what they refuse.
	serials map[string]*Entry
	users   map[string][]*Entry
}

// next returns the list for the object's new data, and an error for each entry that does not parse
// and was not reported with the same text before. Such an entry keeps its last version that did.
func (l *list) next(version string, data map[string]string) (n *list, errs []error) {
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
		if text, seen := l.raw[key]; !seen || text != data[key] {
			errs = append(errs, entryError(key, err))
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
	return n, errs
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
