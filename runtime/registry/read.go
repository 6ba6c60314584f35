package registry

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v3"
)

// ErrMissing means that a registries file does not exist. A file of certificates that it names and
// that does not exist is a fault of the file.
var ErrMissing = errors.New("it does not exist")

// Read reads and checks a registries file. It reports all faults, each with its line.
func Read(file string) (Config, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return Config{}, fmt.Errorf("registries file %s: %w: create it, or leave the setting out", file, ErrMissing)
	}
	if err != nil {
		return Config{}, fmt.Errorf("read registries file: %w", err)
	}
	c := Config{
		file:     file,
		mirrors:  map[string]mirror{},
		settings: map[string]settings{},
		written:  map[string][]string{},
	}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var doc, second yaml.Node
	switch err := decoder.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return c, nil
	case err != nil:
		return Config{}, fmt.Errorf("registries file %s is not YAML: %s", file, oneLine(err))
	}
	if err := decoder.Decode(&second); !errors.Is(err, io.EOF) {
		return Config{}, fmt.Errorf("registries file %s: it holds more than one document: remove all after the first "+
			"`---` between them", file)
	}
	r := reader{file: file, written: c.written}
	r.fields(doc.Content[0], "the file", map[string]func(*yaml.Node){
		"mirrors": func(n *yaml.Node) {
			r.entries(n, "mirrors", func(k, v *yaml.Node) { r.mirror(c.mirrors, k, v) })
		},
		"configs": func(n *yaml.Node) {
			r.entries(n, "configs", func(k, v *yaml.Node) { r.settings(c.settings, k, v) })
		},
	})
	r.checkUsed(c)
	if err := r.err(); err != nil {
		return Config{}, err
	}
	return c, nil
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

// reader walks the nodes of a file, so that a fault can name its line and a scalar keeps the text
// it has in the file: the password 0123 is not the number 83.
type reader struct {
	file    string
	faults  []fault
	written map[string][]string // the Config's
}

type fault struct {
	line int
	err  error
}

func (r *reader) fault(n *yaml.Node, format string, args ...any) {
	r.faultAt(n.Line, format, args...)
}

func (r *reader) faultAt(line int, format string, args ...any) {
	r.faults = append(r.faults, fault{line, fmt.Errorf(format, args...)})
}

// err returns all faults in the order of their lines.
func (r *reader) err() error {
	slices.SortStableFunc(r.faults, func(a, b fault) int { return a.line - b.line })
	var errs []error
	for _, f := range r.faults {
		errs = append(errs, fmt.Errorf("registries file %s, line %d: %w", r.file, f.line, f.err))
	}
	return errors.Join(errs...)
}

func resolved(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

// entries calls each for every pair of a mapping. Null is an empty one.
func (r *reader) entries(n *yaml.Node, what string, each func(k, v *yaml.Node)) {
	n = resolved(n)
	if isNull(n) {
		return
	}
	if n.Kind != yaml.MappingNode {
		r.fault(n, "%s must be a mapping, lines of the form `key: value`", what)
		return
	}
	lines := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := resolved(n.Content[i]), resolved(n.Content[i+1])
		switch {
		case k.Kind != yaml.ScalarNode:
			r.fault(k, "a key of %s must be a word", what)
		case k.Tag == "!!merge":
			r.fault(k, "%s: merge keys (<<) are not supported: write the keys out, or use an alias", what)
		case lines[k.Value] != 0:
			r.fault(k, "%s: %q is already on line %d: remove one of them", what, k.Value, lines[k.Value])
		default:
			lines[k.Value] = k.Line
			each(k, v)
		}
	}
}

// fields calls the function of each key of a mapping, and refuses other keys.
func (r *reader) fields(n *yaml.Node, what string, known map[string]func(*yaml.Node)) {
	r.entries(n, what, func(k, v *yaml.Node) {
		if read, ok := known[k.Value]; ok {
			read(v)
			return
		}
		var keys []string
		for key := range known {
			keys = append(keys, key)
		}
		slices.Sort(keys)
		r.fault(k, "unknown key %q in %s: it may hold %s", k.Value, what, strings.Join(keys, ", "))
	})
}

// text reads a scalar as it is written.
func (r *reader) text(what string, into *string) func(*yaml.Node) {
	return func(n *yaml.Node) {
		switch {
		case isNull(n):
		case n.Kind != yaml.ScalarNode:
			r.fault(n, "%s must be a single value", what)
		default:
			*into = n.Value
		}
	}
}

// name reads the name of a registry, or refuses it.
func (r *reader) name(n *yaml.Node, section string) (string, bool) {
	name := n.Value
	switch {
	case registryHost.MatchString(name) && !validPort(name):
		r.fault(n, "%s: %q: %w", section, name, errPort)
	case name == anyName, registryHost.MatchString(name):
		one := canonical(name)
		if strings.ToLower(name) != name && one != name {
			r.written[one] = append(r.written[one], name)
		}
		return one, true
	case strings.Contains(name, "*"):
		r.fault(n, `%s: %q is not supported: name each registry, or use "*" for all others`, section, name)
	case strings.Contains(name, "://"):
		r.fault(n, "%s: %q is a URL: a registry is named as in images, HOST or HOST:PORT", section, name)
	default:
		r.fault(n, "%s: %q is not a registry: it must be HOST or HOST:PORT, as in the names of images", section, name)
	}
	return "", false
}

func (r *reader) mirror(into map[string]mirror, k, v *yaml.Node) {
	name, ok := r.name(k, "mirrors")
	if !ok {
		return
	}
	what := fmt.Sprintf("mirrors: %q", k.Value)
	if !inImageNames(name) {
		r.fault(k, "%s: no image is of this registry: without a dot or a port, the first part of an image's name is a "+
			"folder of docker.io", what)
		return
	}
	if old, ok := into[name]; ok {
		r.fault(k, "%s is the same registry as on line %d: remove one of them", what, old.line)
		return
	}
	m := mirror{line: k.Line}
	before := len(r.faults)
	r.fields(v, what, map[string]func(*yaml.Node){
		"endpoint": func(n *yaml.Node) { m.endpoints = r.endpoints(n, what) },
		"rewrite": func(n *yaml.Node) {
			r.entries(n, what+": rewrite", func(k, v *yaml.Node) {
				m.rewrites = append(m.rewrites, r.rewrite(what, k, v))
			})
		},
	})
	into[name] = m
	own := func(e endpoint) bool { return name != anyName && e.isDefault(name) }
	switch {
	case len(r.faults) > before:
	case len(m.endpoints) == 0:
		r.fault(k, "%s has no endpoint: list at least one, or remove the entry (mote has no embedded registry)", what)
	case len(m.rewrites) > 0 && !slices.ContainsFunc(m.endpoints, func(e endpoint) bool { return !own(e) }):
		r.fault(k, "%s: rewrite changes nothing: it does not apply to the registry itself; list an endpoint with the "+
			"port spelled out, as in https://HOST:443", what)
	}
}

// endpoints reads a list of endpoints, each once.
func (r *reader) endpoints(n *yaml.Node, what string) []endpoint {
	if isNull(n) {
		return nil
	}
	if n.Kind != yaml.SequenceNode {
		r.fault(n, "%s: endpoint must be a list, also of one: [%q]", what, n.Value)
		return nil
	}
	var out []endpoint
	for _, item := range n.Content {
		item = resolved(item)
		var text string
		r.text(what+": endpoint", &text)(item)
		e, err := parseEndpoint(text)
		if err != nil {
			r.fault(item, "%s: endpoint %q: %w", what, text, err)
			continue
		}
		e.line = item.Line
		if !slices.ContainsFunc(out, func(o endpoint) bool { return o.url.String() == e.url.String() }) {
			out = append(out, e)
		}
	}
	return out
}

func (r *reader) rewrite(what string, k, v *yaml.Node) rewrite {
	var replace string
	r.text(what+": rewrite", &replace)(v)
	match, err := regexp.Compile(k.Value)
	if err != nil {
		r.fault(k, "%s: rewrite %q is not a regular expression: %w", what, k.Value, err)
	}
	if replace == "" {
		r.fault(v, "%s: rewrite %q: the new name is empty", what, k.Value)
	}
	return rewrite{match: match, replace: replace}
}

func (r *reader) settings(into map[string]settings, k, v *yaml.Node) {
	name, ok := r.name(k, "configs")
	if !ok {
		return
	}
	what := fmt.Sprintf("configs: %q", k.Value)
	s := settings{line: k.Line}
	r.fields(v, what, map[string]func(*yaml.Node){
		"auth": func(n *yaml.Node) { s.login = r.login(n, what) },
		"tls":  func(n *yaml.Node) { s.tls = r.tls(n, what) },
	})
	if name == anyName && s.login != nil {
		r.fault(k, `%s: auth for all registries is not supported, as each would learn the password: name the `+
			`registries it is for`, what)
	}
	if old, ok := into[name]; ok && !old.equal(s) {
		r.fault(k, "%s is the same registry as on line %d, with other settings: remove one of them", what, old.line)
	}
	into[name] = s
}

func (s settings) equal(o settings) bool {
	return (s.login == nil) == (o.login == nil) && (s.login == nil || *s.login == *o.login) &&
		(s.tls == nil) == (o.tls == nil) && (s.tls == nil || *s.tls == *o.tls)
}

func (r *reader) login(n *yaml.Node, what string) *Login {
	var l Login
	what += ": auth"
	r.fields(n, what, map[string]func(*yaml.Node){
		"username":       r.text(what+": username", &l.Username),
		"password":       r.text(what+": password", &l.Password),
		"auth":           r.text(what+": auth", &l.Auth),
		"identity_token": r.text(what+": identity_token", &l.IdentityToken),
		"token": func(n *yaml.Node) {
			if !isNull(n) {
				r.fault(n, "%s: token is not supported: containerd fetches its own bearer tokens; give "+
					"identity_token, or username and password", what)
			}
		},
	})
	for key, value := range map[string]string{"username": l.Username, "password": l.Password,
		"identity_token": l.IdentityToken} {
		if strings.ContainsFunc(value, unicode.IsControl) {
			r.fault(n, "%s: %s holds a line break or another control character: write it on the line of its key", what,
				key)
		}
	}
	if strings.Contains(l.Username, ":") {
		r.fault(n, "%s: username must not hold a colon: registries are sent USERNAME:PASSWORD", what)
	}
	if l.Auth != "" {
		decoded, err := base64.StdEncoding.DecodeString(l.Auth)
		user, password, ok := strings.Cut(string(decoded), ":")
		switch {
		case err != nil || !ok || user == "" || password == "":
			r.fault(n, "%s: auth must be the base64 encoding of USERNAME:PASSWORD", what)
			return nil
		case l.Username != "" && (l.Username != user || l.Password != password):
			r.fault(n, "%s: auth is of another user than username and password: remove one of them", what)
		}
		l.Username, l.Password, l.Auth = user, password, ""
	}
	switch {
	case l == Login{}:
		return nil
	case l.IdentityToken != "" && l.Username+l.Password != "":
		r.fault(n, "%s: identity_token and a username with a password exclude each other: remove one of them", what)
	case l.IdentityToken == "" && (l.Username == "" || l.Password == ""):
		r.fault(n, "%s: username and password must be given together", what)
	}
	return &l
}

func (r *reader) tls(n *yaml.Node, what string) *tlsSettings {
	var t tlsSettings
	what += ": tls"
	file := func(key string, into *string) func(*yaml.Node) {
		return func(n *yaml.Node) {
			r.text(what+": "+key, into)(n)
			if *into != "" && !filepath.IsAbs(*into) {
				r.fault(n, "%s: %s %q is not an absolute path: give one that starts with /", what, key, *into)
				*into = ""
			}
		}
	}
	before := len(r.faults)
	r.fields(n, what, map[string]func(*yaml.Node){
		"ca_file":   file("ca_file", &t.caFile),
		"cert_file": file("cert_file", &t.certFile),
		"key_file":  file("key_file", &t.keyFile),
		"insecure_skip_verify": func(n *yaml.Node) {
			if err := n.Decode(&t.skipVerify); err != nil {
				r.fault(n, "%s: insecure_skip_verify must be true or false", what)
			}
		},
	})
	if len(r.faults) > before {
		return &t
	}
	if (t.certFile == "") != (t.keyFile == "") {
		r.fault(n, "%s: cert_file and key_file must be given together", what)
	} else if _, err := t.load(); err != nil {
		r.fault(n, "%s: %w", what, err)
	}
	if t == (tlsSettings{}) {
		return nil
	}
	return &t
}

// checkUsed refuses settings of a registry that nothing can connect to.
func (r *reader) checkUsed(c Config) {
	used := map[string]bool{}
	for _, m := range c.mirrors {
		for _, e := range m.endpoints {
			for _, name := range spellings(e.url) {
				used[name] = true
			}
		}
	}
	for name, s := range c.settings {
		if !inImageNames(name) && !used[name] {
			r.faultAt(s.line, "configs: %q is used by nothing: no endpoint has this host, and without a dot or a port "+
				"no image is of it", name)
		}
	}
}

var errNoCertificates = errors.New("it holds no certificate in PEM format")

// loadCA adds the certificates of a file to the system's, as containerd does.
func loadCA(file string) (*x509.CertPool, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("read the system's certificates: %w", err)
	}
	if !pool.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("%s: %w", file, errNoCertificates)
	}
	return pool, nil
}
