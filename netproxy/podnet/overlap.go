package podnet

import (
	"errors"
	"slices"
	"strings"

	"go.uber.org/zap"

	"github.com/mote-dev/mote/internal/hostnets"
)

// Own is what a node makes of the host's networks itself; interfaces are those beside the pod
// network's.
func Own(bridge string, interfaces ...string) hostnets.Own {
	return hostnets.Own{
		Interfaces: append([]string{bridge, overlayName(bridge)}, interfaces...),
		Protocols:  []int{routeProtocol, serviceProtocol},
	}
}

// checkOverlaps refuses to start beside another network of the host that takes the pods' addresses.
func checkOverlaps(c Config) error {
	known, err := Known(c.StateDir)
	if err != nil {
		return err
	}
	uses, err := hostnets.List(Own(c.Bridge, c.OwnInterfaces...))
	if err != nil {
		return err
	}
	var errs []error
	for _, o := range hostnets.Find(uses, c.Cluster) {
		if o.Breaks(!known) {
			errs = append(errs, errors.New(o.String()+": "+o.Remedy()))
		}
	}
	return errors.Join(errs...)
}

// watchOverlaps logs networks of the host that overlap the cluster's ranges, each set of them once.
// They may appear at any time: a VPN connects, a tool makes a bridge. A wide route that contains a
// range is left out, as many LANs have one and pods are reached all the same.
func (n *Network) watchOverlaps() error {
	uses, err := hostnets.List(Own(n.cfg.Bridge, n.cfg.OwnInterfaces...))
	if err != nil {
		return err
	}
	overlaps := slices.DeleteFunc(hostnets.Find(uses, n.cfg.Cluster), func(o hostnets.Overlap) bool {
		return !o.Inside || o.Down
	})
	texts := make([]string, len(overlaps))
	for i, o := range overlaps {
		texts[i] = o.String() + ": " + o.Remedy()
	}
	note := ""
	if len(texts) > 0 {
		note = "pods or services may not be reachable from this node: " + strings.Join(texts, "; ")
	}
	n.mu.Lock()
	was := n.note
	n.note = note
	n.mu.Unlock()
	switch {
	case note == was:
	case note == "":
		n.log.Info("no network of the host overlaps the cluster's ranges any more")
	default:
		n.log.Warn(note, zap.Int("overlaps", len(texts)))
	}
	return nil
}

// Note says which networks of the host keep pods from being reached; empty if none does.
func (n *Network) Note() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.note
}
