package podnet

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
)

// remembered is what is known of nodes and servers. It is saved: with it a node that boots while
// its server is unreachable finds its peers.
type remembered struct {
	Self  Node
	Peers []Node
	// Servers are addresses of servers, which are never routed to pods.
	Servers []netip.Addr
}

func rememberedPath(stateDir string) string { return filepath.Join(stateDir, "nodes.json") }

// Known reports whether the node of a state folder has ever known its pod ranges, and so may have
// had pods.
func Known(stateDir string) (bool, error) { return fileExists(rememberedPath(stateDir)) }

// remember saves the nodes.
func remember(stateDir string, known remembered) error {
	text, err := json.Marshal(known)
	if err != nil {
		return fmt.Errorf("remember nodes: %w", err)
	}
	if _, err := writeFile(rememberedPath(stateDir), text); err != nil {
		return fmt.Errorf("remember nodes: %w", err)
	}
	return nil
}

// recall returns the nodes last saved by the node of this name; ok is false if there are none.
func recall(stateDir, name string) (r remembered, ok bool, err error) {
	text, err := os.ReadFile(rememberedPath(stateDir))
	if errors.Is(err, fs.ErrNotExist) {
		return r, false, nil
	}
	if err != nil {
		return r, false, fmt.Errorf("recall nodes: %w", err)
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return r, false, fmt.Errorf("recall nodes: %w", err)
	}
	return r, r.Self.Name == name, nil
}
