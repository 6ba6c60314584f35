package podnet

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
)

// ConflistName is the file the network list is written to. The runtime takes the first file in
// lexical order, so the name sorts early.
const ConflistName = "10-mote.conflist"

// NetworkName is the name of the CNI network and of the folder with its address leases.
const NetworkName = "mote"

// conflistSpec is everything the network list depends on.
type conflistSpec struct {
	bridge    string
	podCIDRs  []netip.Prefix
	mtu       int
	leaseDir  string
	firewall  Firewall
	bandwidth bool
}

type cniRange struct {
	Subnet string `json:"subnet"`
}

type cniRoute struct {
	Dst string `json:"dst"`
}

type cniIPAM struct {
	Type    string       `json:"type"`
	DataDir string       `json:"dataDir"`
	Ranges  [][]cniRange `json:"ranges"`
	Routes  []cniRoute   `json:"routes"`
}

type cniPlugin struct {
	Type         string          `json:"type"`
	Bridge       string          `json:"bridge,omitempty"`
	IsGateway    bool            `json:"isGateway,omitempty"`
	ForceAddress bool            `json:"forceAddress,omitempty"`
	HairpinMode  bool            `json:"hairpinMode,omitempty"`
	PromiscMode  *bool           `json:"promiscMode,omitempty"`
	IPMasq       *bool           `json:"ipMasq,omitempty"`
	MTU          int             `json:"mtu,omitempty"`
	IPAM         *cniIPAM        `json:"ipam,omitempty"`
	Capabilities map[string]bool `json:"capabilities,omitempty"`
	Backend      Firewall        `json:"backend,omitempty"`
	SNAT         bool            `json:"snat,omitempty"`
}

type cniConflist struct {
	CNIVersion   string      `json:"cniVersion"`
	Name         string      `json:"name"`
	DisableCheck bool        `json:"disableCheck"`
	Plugins      []cniPlugin `json:"plugins"`
}

// renderConflist returns the text of the CNI network list for one node.
func renderConflist(s conflistSpec) ([]byte, error) {
	if len(s.podCIDRs) == 0 {
		return nil, errors.New("render network list: the node has no pod CIDR")
	}
	off := false
	ipam := &cniIPAM{Type: "host-local", DataDir: s.leaseDir}
	for _, p := range s.podCIDRs {
		ipam.Ranges = append(ipam.Ranges, []cniRange{{Subnet: p.Masked().String()}})
		dst := "0.0.0.0/0"
		if p.Addr().Is6() {
			dst = "::/0"
		}
		ipam.Routes = append(ipam.Routes, cniRoute{Dst: dst})
	}
	list := cniConflist{CNIVersion: "1.0.0", Name: NetworkName, Plugins: []cniPlugin{
		// The node's own rules masquerade: the plugin would add rules for each pod. forceAddress
		// lets the bridge change to a new pod CIDR; without it every pod would fail until someone
		// deletes the bridge.
		{
			Type:         "bridge",
			Bridge:       s.bridge,
			IsGateway:    true,
			ForceAddress: true,
			HairpinMode:  true,
			PromiscMode:  &off,
			IPMasq:       &off,
			MTU:          s.mtu,
			IPAM:         ipam,
		},
		{
			Type:         "portmap",
			Capabilities: map[string]bool{"portMappings": true},
			Backend:      s.firewall,
			SNAT:         true,
		},
	}}
	if s.bandwidth {
		list.Plugins = append(list.Plugins,
			cniPlugin{Type: "bandwidth", Capabilities: map[string]bool{"bandwidth": true}})
	}
	text, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("render network list: %w", err)
	}
	return append(text, '\n'), nil
}

// writeFile atomically replaces path by text and reports whether it differed. Readers see the old
// or the new file, also after a power cut.
func writeFile(path string, text []byte) (changed bool, err error) {
	old, err := os.ReadFile(path)
	switch {
	case err == nil && bytes.Equal(old, text):
		return false, nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return false, fmt.Errorf("read %s: %w", path, err)
	}
	return replaceFile(path, text)
}

func replaceFile(path string, text []byte) (changed bool, err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return false, fmt.Errorf("make folder %s: %w", dir, err)
	}
	// Not in the same folder yet: the runtime watches it and would log an error for a write that
	// leaves no list.
	tmp, err := os.CreateTemp(filepath.Dir(dir), ".mote-*.tmp")
	if err != nil {
		return false, fmt.Errorf("write %s: %w", path, withoutPath(err))
	}
	defer func() {
		if err == nil {
			return
		}
		err = fmt.Errorf("write %s: %w", path, withoutPath(err))
		if gone := os.Remove(tmp.Name()); !errors.Is(gone, fs.ErrNotExist) {
			err = errors.Join(err, gone)
		}
	}()
	if _, err := tmp.Write(text); err != nil {
		return false, errors.Join(err, tmp.Close())
	}
	if err := errors.Join(tmp.Chmod(0o644), tmp.Sync()); err != nil {
		return false, errors.Join(err, tmp.Close())
	}
	if err := tmp.Close(); err != nil {
		return false, err
	}
	// The runtime (containerd's cni_conf_syncer.go, v2.4.2) ignores files moved into the folder,
	// but not files renamed within it.
	near := filepath.Join(dir, filepath.Base(tmp.Name()))
	if err := os.Rename(tmp.Name(), near); err != nil {
		return false, err
	}
	if err := os.Rename(near, path); err != nil {
		return false, errors.Join(err, os.Remove(near))
	}
	return true, nil
}

// withoutPath drops the name of the temporary file from an error: it differs in each attempt, so
// each would be logged.
func withoutPath(err error) error {
	var path *fs.PathError
	var link *os.LinkError
	switch {
	case errors.As(err, &path):
		return path.Err
	case errors.As(err, &link):
		return link.Err
	}
	return err
}
