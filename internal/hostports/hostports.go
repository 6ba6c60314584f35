package hostports

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode"

	corev1 "k8s.io/api/core/v1"
)

// Annotation on a Node holds the ports its host listens on, in the form of [Format]. A node without
// it does not serve load balancers.
const Annotation = "mote.dev/host-ports"

// maxListeners bounds an annotation. A host with more listeners than this reports those with the
// lowest ports; its node still refuses to give up any of them.
const maxListeners = 1000

// Listener is a port that a program of the host listens on.
type Listener struct {
	Port     uint16          `json:"port"`
	Protocol corev1.Protocol `json:"protocol"`
	// Address is the one the program listens on; the zero value means all of the host's.
	Address netip.Addr `json:"address,omitzero"`
	// Owner is the name of the program, for messages; empty if unknown.
	Owner string `json:"owner,omitempty"`
}

// Covers reports whether connections to a port of an address reach the listener.
func (l Listener) Covers(address netip.Addr, port uint16, protocol corev1.Protocol) bool {
	return l.Port == port && l.Protocol == protocol && (!l.Address.IsValid() || l.Address == address)
}

// Find returns the first listener that a port of an address belongs to.
func Find(listeners []Listener, address netip.Addr, port uint16, protocol corev1.Protocol) (Listener, bool) {
	i := slices.IndexFunc(listeners, func(l Listener) bool { return l.Covers(address, port, protocol) })
	if i < 0 {
		return Listener{}, false
	}
	return listeners[i], true
}

// Format returns the annotation for listeners. The same listeners always give the same text.
func Format(listeners []Listener) (string, error) {
	sorted := slices.Clone(listeners)
	slices.SortFunc(sorted, func(a, b Listener) int {
		return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol), a.Address.Compare(b.Address),
			cmp.Compare(a.Owner, b.Owner))
	})
	sorted = slices.Compact(sorted)
	if len(sorted) > maxListeners {
		sorted = sorted[:maxListeners]
	}
	if sorted == nil {
		sorted = []Listener{}
	}
	text, err := json.Marshal(sorted)
	if err != nil {
		return "", fmt.Errorf("write the host's ports: %w", err)
	}
	return string(text), nil
}

// maxOwner bounds a program's name, which is at most 15 bytes in Linux.
const maxOwner = 32

// Parse reads an annotation. A node may have written anything: names of programs end up in events
// of services, so they are cut to what a name can be.
func Parse(text string) ([]Listener, error) {
	var listeners []Listener
	if err := json.Unmarshal([]byte(text), &listeners); err != nil {
		return nil, fmt.Errorf("annotation %s: %w", Annotation, err)
	}
	if len(listeners) > maxListeners {
		listeners = listeners[:maxListeners]
	}
	for i := range listeners {
		listeners[i].Owner = Printable(listeners[i].Owner)
	}
	return listeners, nil
}

// Printable returns the name of a program as it may stand in an event.
func Printable(name string) string {
	name = strings.ToValidUTF8(name[:min(len(name), maxOwner)], "?")
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, name)
}
