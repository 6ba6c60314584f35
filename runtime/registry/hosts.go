package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/pelletier/go-toml/v2"
)

// hostEntry is a host in containerd's hosts.toml.
type hostEntry struct {
	Server       string              `toml:"server,omitempty"`
	Capabilities []string            `toml:"capabilities,omitempty"`
	CA           []string            `toml:"ca,omitempty"`
	Client       [][]string          `toml:"client,omitempty"`
	SkipVerify   *bool               `toml:"skip_verify,omitempty"`
	OverridePath bool                `toml:"override_path,omitempty"`
	Header       map[string][]string `toml:"header,inline,omitempty"`

	// url is the host's own, for entries below [host].
	url *url.URL
}

// hostsFile is the hosts.toml of one registry: the hosts to try in their order, and what holds for
// the registry itself, which containerd tries last.
type hostsFile struct {
	endpoints []hostEntry
	own       hostEntry
}

// hosts returns a hosts.toml for each registry that the file names, and for all others.
func (c Config) hosts(p *Proxy) map[string]hostsFile {
	names := map[string]bool{}
	for name := range c.mirrors {
		names[name] = true
	}
	for name := range c.settings {
		names[name] = true
	}
	files := map[string]hostsFile{}
	for registry := range names {
		for _, name := range c.namesOf(registry) {
			files[name] = c.hostsOf(name, p)
		}
	}
	return files
}

func (c Config) hostsOf(registry string, p *Proxy) hostsFile {
	var f hostsFile
	m := c.mirrorFor(canonical(registry))
	for i, e := range m.endpoints {
		own := registry != anyName && e.isDefault(registry)
		if own && i == len(m.endpoints)-1 {
			break // containerd tries the registry itself last
		}
		if len(m.rewrites) > 0 && !own {
			f.endpoints = append(f.endpoints, p.entry(e, m.rewrites))
			continue
		}
		h := hostEntry{url: e.url, Capabilities: []string{"pull", "resolve"}, OverridePath: e.override}
		h.setTLS(c.settingsFor(e.url).tls)
		f.endpoints = append(f.endpoints, h)
	}
	if registry == anyName {
		f.own.setTLS(c.settings[anyName].tls)
		return f
	}
	own, err := parseEndpoint(registry)
	if err != nil {
		return f // its name was checked
	}
	f.own.setTLS(c.settingsFor(own.url).tls)
	if f.own.hasTLS() && docker.IsLocalhost(registry) {
		// containerd would not verify a certificate on this machine.
		f.own.Server = own.url.String()
	}
	return f
}

func (h *hostEntry) setTLS(t *tlsSettings) {
	if t == nil {
		return
	}
	if t.caFile != "" {
		h.CA = []string{t.caFile}
	}
	if t.certFile != "" {
		h.Client = [][]string{{t.certFile, t.keyFile}}
	}
	h.SkipVerify = &t.skipVerify
}

func (h *hostEntry) hasTLS() bool { return h.SkipVerify != nil }

// render writes the file host by host: their order is the order containerd tries them in.
func (f hostsFile) render() ([]byte, error) {
	own, err := toml.Marshal(f.own)
	if err != nil {
		return nil, fmt.Errorf("encode hosts.toml: %w", err)
	}
	var text bytes.Buffer
	fmt.Fprintf(&text, "# Written by mote at each start.\n%s", own)
	for _, h := range f.endpoints {
		entry, err := toml.Marshal(h)
		if err != nil {
			return nil, fmt.Errorf("encode hosts.toml: %w", err)
		}
		// A URL's text has no character that a string of TOML escapes.
		fmt.Fprintf(&text, "\n[host.\"%s\"]\n%s", h.url, entry)
	}
	return text.Bytes(), nil
}

// Write replaces the folder of hosts.toml files, and reads them back as containerd will: a file it
// cannot parse it takes for an empty one. Credentials are not in them, but passed in memory.
func (c Config) Write(ctx context.Context, dir string, p *Proxy) error {
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove old registry settings: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("create folder for registry settings: %w", err)
	}
	for name, f := range c.hosts(p) {
		folder := filepath.Join(dir, name)
		if name == anyName {
			folder, name = filepath.Join(dir, anyFolder), "registry.invalid"
		}
		text, err := f.render()
		if err != nil {
			return err
		}
		if err := os.Mkdir(folder, 0o700); err != nil {
			return fmt.Errorf("create folder for registry settings: %w", err)
		}
		if err := os.WriteFile(filepath.Join(folder, "hosts.toml"), text, 0o600); err != nil {
			return fmt.Errorf("write registry settings: %w", err)
		}
		if err := f.compare(ctx, dir, name); err != nil {
			return fmt.Errorf("registries file %s: containerd does not take the settings for %s: %w", c.file, name, err)
		}
	}
	return nil
}

var errReadBack = errors.New("it reads other hosts than were written")

// compare reads a registry's settings with containerd's own parser.
func (f hostsFile) compare(ctx context.Context, dir, registry string) error {
	read, err := config.ConfigureHosts(ctx, config.HostOptions{HostDir: config.HostDirFromRoot(dir)})(registry)
	if err != nil {
		return err
	}
	if len(read) != len(f.endpoints)+1 {
		return fmt.Errorf("%w: %d, not %d", errReadBack, len(read), len(f.endpoints)+1)
	}
	for i, h := range f.endpoints {
		if got := read[i]; got.Host != h.url.Host || got.Path != path.Clean(h.url.Path) || !h.sameTLS(got) {
			return fmt.Errorf("%w: %s://%s%s for %s", errReadBack, got.Scheme, got.Host, got.Path, h.url)
		}
	}
	if own := read[len(f.endpoints)]; f.own.hasTLS() && !f.own.sameTLS(own) {
		return fmt.Errorf("%w: those of the registry itself differ", errReadBack)
	}
	return nil
}

// sameTLS reports whether containerd verifies a host's certificate as h says. Where it would fall
// back to HTTP, that cannot be seen.
func (h hostEntry) sameTLS(got docker.RegistryHost) bool {
	t, ok := got.Client.Transport.(*http.Transport)
	if !ok {
		return true
	}
	skips := t.TLSClientConfig != nil && t.TLSClientConfig.InsecureSkipVerify
	return skips == (h.hasTLS() && *h.SkipVerify)
}
