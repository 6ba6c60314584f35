package registry

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

// Config is registries.yaml: mirrors tried in place of a registry, and how to connect and log in to
// one. The format is that of k3s.
type Config struct {
	file    string
	mirrors map[string]mirror
	// settings is keyed by registry; all names of Docker Hub are [dockerHub].
	settings map[string]settings
	// written are other spellings of names in the file: containerd compares names as text.
	written map[string][]string
}

// mirror is what stands in for a registry.
type mirror struct {
	endpoints []endpoint
	rewrites  []rewrite
	line      int
}

// endpoint is where a mirror's API is.
type endpoint struct {
	url *url.URL
	// override is set if the URL's path is the whole root of the API.
	override bool
	line     int
}

// rewrite renames the repositories that match.
type rewrite struct {
	match   *regexp.Regexp
	replace string
}

// settings are those of one registry, as itself and as an endpoint of a mirror.
type settings struct {
	login *Login
	tls   *tlsSettings
	line  int
}

// Login is a credential. CRI's settings have the same fields.
type Login struct {
	Username      string `toml:"username,omitempty"`
	Password      string `toml:"password,omitempty"`
	Auth          string `toml:"auth,omitempty"`
	IdentityToken string `toml:"identitytoken,omitempty"`
}

type tlsSettings struct {
	caFile, certFile, keyFile string
	skipVerify                bool
}

const (
	// anyName stands for all registries without an entry of their own. containerd's folder for them
	// has another name.
	anyName   = "*"
	anyFolder = "_default"

	dockerHub = "docker.io"
	// dockerHubHost is the host that containerd connects to for Docker Hub.
	dockerHubHost = "registry-1.docker.io"
)

// namesOf returns all names of a registry, for which containerd's settings are looked up.
func (c Config) namesOf(registry string) []string {
	names := []string{registry}
	if registry == dockerHub {
		names = []string{dockerHub, "index.docker.io", dockerHubHost}
	}
	return append(names, c.written[registry]...)
}

// canonical returns the one name of a registry. Capitals make no other host, but "Name/app" is an
// image of a registry, and "name/app" one of Docker Hub.
func canonical(name string) string {
	if lower := strings.ToLower(name); inImageNames(lower) {
		name = lower
	}
	switch name {
	case "index.docker.io", dockerHubHost:
		return dockerHub
	}
	return name
}

// registryHost keeps names, which become the names of folders, to hosts with or without a port.
var registryHost = regexp.MustCompile(
	`^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)(:[0-9]{1,5})?$`)

// validPort reports whether the port of a host, if it has one, is one.
func validPort(host string) bool {
	i := strings.LastIndexByte(host, ':')
	if i < 0 || strings.HasSuffix(host, "]") {
		return true
	}
	port, err := strconv.ParseUint(host[i+1:], 10, 16)
	return err == nil && port > 0
}

var errPort = errors.New("a port is a number from 1 to 65535")

// inImageNames reports whether an image's name can begin with a registry's: "app/web" is of Docker
// Hub.
func inImageNames(registry string) bool {
	return registry == anyName || registry == "localhost" || strings.ContainsAny(registry, ".:") ||
		strings.ToLower(registry) != registry
}

// errEndpoint is what is wrong with an endpoint that is not one.
var errEndpoint = errors.New("it must be an http:// or https:// URL, or HOST:PORT")

// parseEndpoint reads the URL of an endpoint. Without a scheme it is https, on this machine http
// unless the port says otherwise, as containerd connects to a registry of that name.
func parseEndpoint(text string) (endpoint, error) {
	full := text
	if !strings.Contains(text, "://") {
		full = "//" + text
	}
	u, err := url.Parse(full)
	if err != nil || !registryHost.MatchString(u.Host) {
		return endpoint{}, errEndpoint
	}
	if !validPort(u.Host) {
		return endpoint{}, errPort
	}
	u.Host = strings.ToLower(u.Host)
	switch u.Scheme {
	case "http", "https":
	case "":
		u.Scheme = "https"
		if port := u.Port(); docker.IsLocalhost(u.Host) && port != "" && port != "443" {
			u.Scheme = "http"
		}
	default:
		return endpoint{}, errEndpoint
	}
	switch {
	case u.User != nil:
		return endpoint{}, errors.New("credentials do not belong in it: give them under configs")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return endpoint{}, errors.New("containerd sends no query or fragment: remove what follows the path")
	}
	if u.Host == dockerHub {
		u.Host = dockerHubHost
	}
	switch strings.Trim(u.Path, "/") {
	case "", "v2":
		u.Path, u.RawPath = "/v2", ""
		return endpoint{url: u}, nil
	}
	return endpoint{url: u, override: true}, nil
}

// isDefault reports whether containerd asks an endpoint anyway, as the registry itself.
func (e endpoint) isDefault(registry string) bool {
	own, err := parseEndpoint(registry)
	return err == nil && !e.override && e.url.Scheme == own.url.Scheme &&
		canonical(e.url.Host) == canonical(own.url.Host)
}

// spellings returns the names under which a file may have settings for the host of a URL: as it is,
// and with the scheme's port left out or spelled out.
func spellings(u *url.URL) []string {
	host := canonical(u.Host)
	port := map[string]string{"http": ":80", "https": ":443"}[u.Scheme]
	if u.Port() == "" {
		return []string{host, host + port}
	}
	return []string{host, canonical(strings.TrimSuffix(host, port))}
}

// settingsFor returns the settings for the host of a URL, or else those for all registries.
func (c Config) settingsFor(u *url.URL) settings {
	for _, name := range append(spellings(u), anyName) {
		if s, ok := c.settings[name]; ok {
			return s
		}
	}
	return settings{}
}

// mirrorFor returns what stands in for a registry.
func (c Config) mirrorFor(registry string) mirror {
	if m, ok := c.mirrors[registry]; ok {
		return m
	}
	return c.mirrors[anyName]
}

// Credentials returns the logins by host, as containerd's CRI settings have them.
func (c Config) Credentials(p *Proxy) map[string]Login {
	out := map[string]Login{}
	if p != nil {
		out[p.host()] = Login{Username: proxyUser, Password: p.secret}
	}
	for name, s := range c.settings {
		for _, host := range c.namesOf(name) {
			if s.login != nil {
				out[host] = *s.login
			}
		}
	}
	for _, m := range c.mirrors {
		for _, e := range m.endpoints {
			if s := c.settingsFor(e.url); s.login != nil {
				out[e.url.Host] = *s.login
			}
		}
	}
	return out
}

// load returns the settings for crypto/tls.
func (t *tlsSettings) load() (*tls.Config, error) {
	config := &tls.Config{}
	if t == nil {
		return config, nil
	}
	config.InsecureSkipVerify = t.skipVerify
	if t.caFile != "" {
		pool, err := loadCA(t.caFile)
		if err != nil {
			return nil, fmt.Errorf("ca_file: %w", err)
		}
		config.RootCAs = pool
	}
	if t.certFile != "" {
		pair, err := tls.LoadX509KeyPair(t.certFile, t.keyFile)
		if err != nil {
			return nil, fmt.Errorf("cert_file %s with key_file %s: %w", t.certFile, t.keyFile, err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}
