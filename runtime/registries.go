package runtime

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"sigs.k8s.io/yaml"
)

// registries is registries.yaml: mirrors tried in place of a registry, and how to connect and log
// in to one. The format is that of k3s.
type registries struct {
	Mirrors map[string]registryMirror `json:"mirrors,omitempty"`
	Configs map[string]registryConfig `json:"configs,omitempty"`
}

type registryMirror struct {
	// Endpoints are tried in order, the registry itself last.
	Endpoints []string `json:"endpoint"`
}

type registryConfig struct {
	Auth *registryAuth `json:"auth,omitempty"`
	TLS  *registryTLS  `json:"tls,omitempty"`
}

type registryAuth struct {
	Username      string `json:"username,omitempty" toml:"username,omitempty"`
	Password      string `json:"password,omitempty" toml:"password,omitempty"`
	Auth          string `json:"auth,omitempty" toml:"auth,omitempty"`
	IdentityToken string `json:"identity_token,omitempty" toml:"identitytoken,omitempty"`
}

type registryTLS struct {
	CAFile             string `json:"ca_file,omitempty"`
	CertFile           string `json:"cert_file,omitempty"`
	KeyFile            string `json:"key_file,omitempty"`
	InsecureSkipVerify bool   `json:"insecure_skip_verify,omitempty"`
}

// anyRegistry is the name for mirrors of all registries without their own. containerd's folder for
// them has another name.
const (
	anyRegistry     = "*"
	anyRegistryHost = "_default"
)

// readRegistries reads and checks the file; a missing one is an empty one.
func readRegistries(file string) (registries, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return registries{}, nil
	}
	if err != nil {
		return registries{}, fmt.Errorf("read registries file: %w", err)
	}
	var r registries
	if err := yaml.UnmarshalStrict(data, &r); err != nil {
		return registries{}, fmt.Errorf("parse registries file %s: %w", file, err)
	}
	if err := r.validate(); err != nil {
		return registries{}, fmt.Errorf("registries file %s: %w", file, err)
	}
	return r, nil
}

func (r registries) validate() error {
	var errs []error
	for name, m := range r.Mirrors {
		if name != anyRegistry && !validRegistryHost(name) {
			errs = append(errs, fmt.Errorf("mirrors: %q is not a registry host", name))
		}
		if len(m.Endpoints) == 0 {
			errs = append(errs, fmt.Errorf("mirrors: %q has no endpoint", name))
		}
		for _, e := range m.Endpoints {
			if u, err := url.Parse(e); err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
				errs = append(errs, fmt.Errorf("mirrors: %q: endpoint %q is not an http or https URL", name, e))
			}
		}
	}
	for name, c := range r.Configs {
		if !validRegistryHost(name) {
			errs = append(errs, fmt.Errorf("configs: %q is not a registry host", name))
		}
		if c.TLS == nil {
			continue
		}
		if (c.TLS.CertFile == "") != (c.TLS.KeyFile == "") {
			errs = append(errs, fmt.Errorf("configs: %q: cert_file and key_file must be given together", name))
		}
		for _, f := range []string{c.TLS.CAFile, c.TLS.CertFile, c.TLS.KeyFile} {
			if f == "" {
				continue
			}
			if _, err := os.Stat(f); err != nil {
				errs = append(errs, fmt.Errorf("configs: %q: %w", name, err))
			}
		}
	}
	return errors.Join(errs...)
}

// validRegistryHost keeps names, which become file names, inside their folder.
func validRegistryHost(name string) bool {
	u, err := url.Parse("//" + name)
	return err == nil && u.Host == name && name != "" && !strings.HasPrefix(name, ".")
}

// hostsFile is containerd's hosts.toml.
type hostsFile struct {
	Host map[string]hostEntry `toml:"host"`
}

type hostEntry struct {
	Capabilities []string   `toml:"capabilities"`
	CA           []string   `toml:"ca,omitempty"`
	Client       [][]string `toml:"client,omitempty"`
	SkipVerify   bool       `toml:"skip_verify,omitempty"`
	OverridePath bool       `toml:"override_path,omitempty"`
}

// writeHosts replaces the folder of hosts.toml files. Credentials are not in them, but passed in
// memory.
func (r registries) writeHosts(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove old registry settings: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("create folder for registry settings: %w", err)
	}
	for host, text := range r.hosts() {
		if err := os.Mkdir(filepath.Join(dir, host), 0o700); err != nil {
			return fmt.Errorf("create folder for registry settings: %w", err)
		}
		if err := os.WriteFile(filepath.Join(dir, host, "hosts.toml"), text, 0o600); err != nil {
			return fmt.Errorf("write registry settings: %w", err)
		}
	}
	return nil
}

// hosts renders one hosts.toml for each registry with mirrors or TLS settings. containerd tries the
// hosts in the order of the file, so each file is put together host by host.
func (r registries) hosts() map[string][]byte {
	files := map[string][]byte{}
	for name, m := range r.Mirrors {
		var text bytes.Buffer
		for _, e := range m.Endpoints {
			u, err := url.Parse(e)
			if err != nil {
				continue // rejected by validate
			}
			text.Write(r.hostText(u))
		}
		if name != anyRegistry {
			if c := r.Configs[name]; c.TLS != nil {
				text.Write(r.hostText(&url.URL{Scheme: "https", Host: name}))
			}
			files[name] = text.Bytes()
			continue
		}
		files[anyRegistryHost] = text.Bytes()
	}
	for name, c := range r.Configs {
		if _, done := files[name]; !done && c.TLS != nil {
			files[name] = r.hostText(&url.URL{Scheme: "https", Host: name})
		}
	}
	return files
}

func (r registries) hostText(u *url.URL) []byte {
	entry := hostEntry{Capabilities: []string{"pull", "resolve"}}
	// An endpoint with a path of its own names the whole API root.
	if p := strings.Trim(u.Path, "/"); p != "" && p != "v2" {
		entry.OverridePath = true
	}
	if t := r.Configs[u.Host].TLS; t != nil {
		if t.CAFile != "" {
			entry.CA = []string{t.CAFile}
		}
		if t.CertFile != "" {
			entry.Client = [][]string{{t.CertFile, t.KeyFile}}
		}
		entry.SkipVerify = t.InsecureSkipVerify
	}
	text, err := toml.Marshal(hostsFile{Host: map[string]hostEntry{u.String(): entry}})
	if err != nil {
		// Plain strings and booleans always encode.
		panic(fmt.Sprintf("encode hosts.toml: %v", err))
	}
	return text
}

// credentials returns the logins as containerd's CRI settings have them.
func (r registries) credentials() map[string]any {
	out := map[string]any{}
	for name, c := range r.Configs {
		if c.Auth != nil {
			out[name] = map[string]any{"auth": *c.Auth}
		}
	}
	return out
}
