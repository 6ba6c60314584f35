package registry

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.uber.org/zap"
)

// pulls are registries files that work, each with the registries there are, an image, and the first
// request to each registry that took part.
var pulls = []struct {
	name string
	// keys are those whose effect the row shows.
	keys     string
	servers  [][]string
	text     string
	image    string
	secret   []string
	want     []string
	negative string // the same file without its effect: the pull must fail
}{
	{
		name:    "several endpoints of one registry, in order",
		keys:    "mirrors mirrors.*.endpoint",
		servers: [][]string{{"mirror.example:5000", "only=none"}, {"second.example:443", "only=hub/library/app"}},
		text: `{mirrors: {docker.io: {endpoint: ["https://mirror.example:5000", "https://second.example/v2/hub"]}},
			configs: {"*": {tls: {ca_file: DIR/ca.pem}}}}`,
		image: "docker.io/library/app:1",
		want:  []string{"mirror.example:5000/v2/library/app", "second.example:443/v2/hub/library/app"},
	},
	{
		name:    "names and endpoints with capitals",
		servers: [][]string{{"mirror.example:443", "login=user:pass"}},
		text: `{mirrors: {R.Example: {endpoint: ["https://Mirror.EXAMPLE"]}}, configs: {MIRROR.example:
			{tls: {ca_file: DIR/ca.pem}, auth: {username: user, password: pass}}}}`,
		image: "r.example/app:1",
		want:  []string{"mirror.example:443/v2/app"},
	},
	{
		name:    "an image with the capitals of the file",
		servers: [][]string{{"mirror.example:443"}},
		text: `{mirrors: {R.Example: {endpoint: ["https://mirror.example"]}}, configs: {mirror.example:
			{tls: {ca_file: DIR/ca.pem}}}}`,
		image: "R.Example/app:1",
		want:  []string{"mirror.example:443/v2/app"},
	},
	{
		name:    "three endpoints on one host",
		servers: [][]string{{"a.example:443", "only=c/app"}},
		text: `{mirrors: {r.example: {endpoint: ["https://a.example/v2/a", "https://a.example/v2/b", "https://a.example/c"]}},
			configs: {a.example: {tls: {ca_file: DIR/ca.pem}}}}`,
		image: "r.example/app:1",
		want:  []string{"a.example:443/v2/a/app", "a.example:443/v2/b/app", "a.example:443/c/app"},
	},
	{
		name:    "the same endpoint twice, in several spellings",
		servers: [][]string{{"a.example:443"}},
		text: `{mirrors: {r.example: {endpoint: ["https://a.example", "https://a.example/", "https://a.example/v2",
			"https://a.example/v2/", "a.example"]}}, configs: {a.example: {tls: {ca_file: DIR/ca.pem}}}}`,
		image: "r.example/app:1",
		want:  []string{"a.example:443/v2/app"},
	},
	{
		name:    "a registry as its own mirror, with TLS settings",
		servers: [][]string{{"r.example:5000"}},
		text: `{mirrors: {"r.example:5000": {endpoint: ["https://r.example:5000"]}},
			configs: {"r.example:5000": {tls: {ca_file: DIR/ca.pem}}}}`,
		image: "r.example:5000/app:1",
		want:  []string{"r.example:5000/v2/app"},
		negative: `{mirrors: {"r.example:5000": {endpoint: ["https://r.example:5000"]}},
			configs: {"r.example:5000": {}}}`,
	},
	{
		name:    "a registry as its own first mirror",
		servers: [][]string{{"r.example:443", "only=none"}, {"a.example:443"}},
		text: `{mirrors: {r.example: {endpoint: ["https://r.example", "https://a.example"]}},
			configs: {"*": {tls: {ca_file: DIR/ca.pem}}}}`,
		image: "r.example/app:1",
		want:  []string{"r.example:443/v2/app", "a.example:443/v2/app"},
	},
	{
		name:    "the registry itself after its mirrors",
		servers: [][]string{{"r.example:443"}, {"a.example:443", "only=none"}},
		text: `{mirrors: {r.example: {endpoint: ["https://a.example"]}},
			configs: {"*": {tls: {ca_file: DIR/ca.pem}}}}`,
		image: "r.example/app:1",
		want:  []string{"a.example:443/v2/app", "r.example:443/v2/app"},
	},
	{
		name:    "bare host and port",
		servers: [][]string{{"a.example:5000"}},
		text: `{mirrors: {r.example: {endpoint: ["a.example:5000"]}},
			configs: {"a.example:5000": {tls: {ca_file: DIR/ca.pem}}}}`,
		image: "r.example/app:1",
		want:  []string{"a.example:5000/v2/app"},
	},
	{
		name:    "http",
		servers: [][]string{{"a.example:5000", "http"}},
		text:    `{mirrors: {r.example: {endpoint: ["http://a.example:5000"]}}}`,
		image:   "r.example/app:1",
		want:    []string{"a.example:5000/v2/app"},
	},
	{
		name:    "http with TLS settings",
		servers: [][]string{{"a.example:5000", "http"}},
		text: `{mirrors: {r.example: {endpoint: ["http://a.example:5000"]}},
			configs: {"a.example:5000": {tls: {insecure_skip_verify: true}}}}`,
		image: "r.example/app:1",
		want:  []string{"a.example:5000/v2/app"},
	},
	{
		name:    "this machine without a scheme",
		servers: [][]string{{"localhost:5000", "http"}},
		text:    `{mirrors: {r.example: {endpoint: ["localhost:5000"]}}}`,
		image:   "r.example/app:1",
		want:    []string{"localhost:5000/v2/app"},
	},
	{
		name:    "this machine with a certificate",
		servers: [][]string{{"localhost:5000"}},
		text:    `{configs: {"localhost:5000": {tls: {ca_file: DIR/ca.pem}}}}`,
		image:   "localhost:5000/app:1",
		want:    []string{"localhost:5000/v2/app"},
	},
	{
		name:    "mirrors of all registries",
		servers: [][]string{{"a.example:443"}},
		text: `{mirrors: {"*": {endpoint: ["https://a.example"]}},
			configs: {a.example: {tls: {ca_file: DIR/ca.pem}}}}`,
		image: "r.example/app:1",
		want:  []string{"a.example:443/v2/app"},
	},
	{
		name:    "mirrors of all registries, for one with settings of its own",
		servers: [][]string{{"a.example:443"}},
		text: `{mirrors: {"*": {endpoint: ["https://a.example"]}},
			configs: {a.example: {tls: {ca_file: DIR/ca.pem}}, r.example: {auth: {username: u, password: p}}}}`,
		image: "r.example/app:1",
		want:  []string{"a.example:443/v2/app"},
	},
	{
		name:     "settings of all registries, except one",
		keys:     "configs configs.*.tls configs.*.tls.insecure_skip_verify",
		servers:  [][]string{{"r.example:443"}},
		text:     `{configs: {"*": {tls: {insecure_skip_verify: true}}, docker.io: }}`,
		image:    "r.example/app:1",
		want:     []string{"r.example:443/v2/app"},
		negative: `{configs: {"*": {tls: {insecure_skip_verify: true}}, r.example: }}`,
	},
	{
		name:     "one authority",
		keys:     "configs.*.tls.ca_file",
		servers:  [][]string{{"r.example:443"}},
		text:     `{configs: {r.example: {tls: {ca_file: DIR/ca.pem, cert_file: , key_file: }}}}`,
		image:    "r.example/app:1",
		want:     []string{"r.example:443/v2/app"},
		negative: `{configs: {r.example: {tls: {ca_file: , cert_file: , key_file: }}}}`,
	},
	{
		name:    "a client's certificate",
		keys:    "configs.*.tls.cert_file configs.*.tls.key_file",
		servers: [][]string{{"r.example:443", "client"}},
		text: `{configs: {r.example: {tls: {ca_file: DIR/ca.pem, cert_file: DIR/client.pem,
			key_file: DIR/client-key.pem}}}}`,
		image:    "r.example/app:1",
		want:     []string{"r.example:443/v2/app"},
		negative: `{configs: {r.example: {tls: {ca_file: DIR/ca.pem}}}}`,
	},
	{
		name:     "username and password, as text",
		keys:     "configs.*.auth configs.*.auth.username configs.*.auth.password",
		servers:  [][]string{{"r.example:443", "login=007:0123"}},
		text:     `{configs: {r.example: {auth: {username: 007, password: 0123}, tls: {ca_file: DIR/ca.pem}}}}`,
		image:    "r.example/app:1",
		want:     []string{"r.example:443/v2/app"},
		negative: `{configs: {r.example: {auth: {username: 7, password: 0123}, tls: {ca_file: DIR/ca.pem}}}}`,
	},
	{
		name:     "auth",
		keys:     "configs.*.auth.auth",
		servers:  [][]string{{"r.example:443", "login=me:pass:word"}},
		text:     `{configs: {r.example: {auth: {auth: bWU6cGFzczp3b3Jk}, tls: {ca_file: DIR/ca.pem}}}}`,
		image:    "r.example/app:1",
		want:     []string{"r.example:443/v2/app"},
		negative: `{configs: {r.example: {tls: {ca_file: DIR/ca.pem}}}}`,
	},
	{
		name:     "identity token",
		keys:     "configs.*.auth.identity_token",
		servers:  [][]string{{"r.example:443", "login=token:refresh", "bearer"}},
		text:     `{configs: {r.example: {auth: {identity_token: refresh}, tls: {ca_file: DIR/ca.pem}}}}`,
		image:    "r.example/app:1",
		want:     []string{"r.example:443/v2/app"},
		negative: `{configs: {r.example: {auth: {identity_token: other}, tls: {ca_file: DIR/ca.pem}}}}`,
	},
	{
		name:    "rewrite, first that matches",
		keys:    "mirrors.*.rewrite",
		servers: [][]string{{"a.example:5000", "only=mirrorproject/rancher-images/pause"}},
		text: `{mirrors: {docker.io: {endpoint: ["https://a.example:5000"],
			rewrite: {"^other/(.*)": "wrong/$1", "^rancher/(.*)": "mirrorproject/rancher-images/$1", "^r(.*)": "late/$1"}}},
			configs: {"a.example:5000": {tls: {ca_file: DIR/ca.pem}}}}`,
		image: "docker.io/rancher/pause:3.6",
		want:  []string{"a.example:5000/v2/mirrorproject/rancher-images/pause"},
		negative: `{mirrors: {docker.io: {endpoint: ["https://a.example:5000"]}},
			configs: {"a.example:5000": {tls: {ca_file: DIR/ca.pem}}}}`,
	},
	{
		name:    "rewrite, with a login, an override path, and two endpoints",
		servers: [][]string{{"a.example:5000", "http", "only=none"}, {"b.example:443", "login=me:secret"}},
		text: `{mirrors: {r.example: {endpoint: ["http://a.example:5000", "https://b.example/v2/proxy"],
			rewrite: {"^(.*)$": "all/$1"}}},
			configs: {b.example: {auth: {username: me, password: secret}, tls: {ca_file: DIR/ca.pem}}}}`,
		image: "r.example/app:1",
		want:  []string{"a.example:5000/v2/all/app", "b.example:443/v2/proxy/all/app"},
	},
	{
		name:    "rewrite, with a token for the new name",
		servers: [][]string{{"a.example:443", "login=me:secret", "bearer"}},
		text: `{mirrors: {"*": {endpoint: ["https://a.example"], rewrite: {"^": "all/"}}},
			configs: {a.example: {auth: {username: me, password: secret}, tls: {ca_file: DIR/ca.pem}}}}`,
		image: "r.example/app:1",
		want:  []string{"a.example:443/v2/all/app"},
	},
	{
		name:    "rewrite, with the secret of a pod before that of the file",
		servers: [][]string{{"a.example:443", "login=pod:its"}},
		text: `{mirrors: {r.example: {endpoint: ["https://a.example"], rewrite: {"^": "all/"}}},
			configs: {a.example: {auth: {username: me, password: secret}, tls: {ca_file: DIR/ca.pem}}}}`,
		image:  "r.example/app:1",
		secret: []string{"pod", "its"},
		want:   []string{"a.example:443/v2/all/app"},
	},
	{
		name:    "rewrite, of the registry itself by its port",
		servers: [][]string{{"r.example:443", "only=all/app", "login=me:secret"}},
		text: `{mirrors: {r.example: {endpoint: ["https://r.example:443"], rewrite: {"^": "all/"}}},
			configs: {r.example: {auth: {username: me, password: secret}, tls: {ca_file: DIR/ca.pem}}}}`,
		image: "r.example/app:1",
		want:  []string{"r.example:443/v2/all/app"},
	},
	{
		name:    "Docker Hub without settings of its name",
		servers: [][]string{{"registry-1.docker.io:443"}},
		text:    `{configs: {"*": {tls: {ca_file: DIR/ca.pem}}}}`,
		image:   "docker.io/library/app:1",
		want:    []string{"registry-1.docker.io:443/v2/library/app"},
	},
}

func hubRows() (texts []string) {
	for _, name := range []string{"docker.io", "index.docker.io", "registry-1.docker.io"} {
		texts = append(texts, `{configs: {`+name+`: {auth: {username: me, password: secret},
			tls: {ca_file: DIR/ca.pem}}}}`)
		for _, host := range []string{"docker.io", "index.docker.io", "registry-1.docker.io/v2"} {
			texts = append(texts, `{mirrors: {`+name+`: {endpoint: ["https://`+host+`"]}},
				configs: {docker.io: {auth: {username: me, password: secret}, tls: {ca_file: DIR/ca.pem}}}}`)
		}
	}
	return texts
}

// Each key of a registries file has the effect its documentation promises: an image is pulled from
// registries with certificates and logins, through containerd's own parser and resolver.
func TestPull(t *testing.T) {
	for _, row := range pulls {
		t.Run(row.name, func(t *testing.T) {
			w := newWorld(t)
			for _, s := range row.servers {
				w.add(t, s[0], s[1:]...)
			}
			asked, err := w.pull(t, row.text, row.image, row.secret...)
			if err != nil {
				t.Fatalf("%v, asked %q", err, asked)
			}
			i := 0
			for _, got := range asked {
				if i < len(row.want) && strings.HasPrefix(got, row.want[i]+"/manifests/") {
					i++
				}
			}
			if i < len(row.want) {
				t.Errorf("asked %q, want %q", asked, row.want)
			}
			if row.negative == "" {
				return
			}
			if asked, err := w.pull(t, row.negative, row.image, row.secret...); err == nil {
				t.Errorf("pulled without the setting, asked %q", asked)
			}
		})
	}
}

// Docker Hub has three names; settings under any of them are for the host containerd connects to.
func TestPull_DockerHub_ByAnyName(t *testing.T) {
	for _, text := range hubRows() {
		w := newWorld(t)
		w.add(t, "registry-1.docker.io:443", "login=me:secret", "bearer")
		w.add(t, "index.docker.io:443", "login=me:secret", "bearer")
		if asked, err := w.pull(t, text, "docker.io/library/app:1"); err != nil || len(asked) == 0 {
			t.Errorf("%s: %v, asked %q", text, err, asked)
		}
	}
}

// refusals are registries files that are refused, with the line and a part of the reason.
var refusals = []struct{ name, keys, text, want string }{
	{"no YAML", "", "mirrors: [", "is not YAML"},
	{"no mapping", "", "- a\n", "line 1: the file must be a mapping"},
	{"two documents", "", "mirrors: {}\n---\nmirrors: {}\n", "more than one document"},
	{"unknown key", "", "\nmirors: {}\n", `line 2: unknown key "mirors" in the file: it may hold configs, mirrors`},
	{"unknown key of a mirror", "", "mirrors:\n  a.b:\n    endpoints: []\n", `line 3: unknown key "endpoints"`},
	{"unknown key of a registry", "", "configs:\n  a.b:\n    user: x\n", `line 3: unknown key "user"`},
	{"unknown key of a login", "", "configs:\n  a.b:\n    auth:\n      user: x\n", `line 4: unknown key "user"`},
	{"unknown key of TLS", "", "configs:\n  a.b:\n    tls:\n      ca: x\n", `line 4: unknown key "ca"`},
	{"key twice", "", "mirrors: {}\nmirrors: {}\n", `line 2: the file: "mirrors" is already on line 1`},
	{"merge key", "", "mirrors:\n  a.b: &a\n    endpoint: [x.y]\n  c.d:\n    <<: *a\n", "line 5: "},
	{"one registry in two spellings", "", "mirrors:\n  A.b:\n    endpoint: [x.y]\n  a.B:\n    endpoint: [x.z]\n",
		"line 4: mirrors: \"a.B\" is the same registry as on line 2"},
	{"port of a registry", "", "configs:\n  a.b:99999:\n    tls:\n", "line 2: configs: \"a.b:99999\": a port is"},
	{"port of an endpoint", "", "mirrors:\n  a.b:\n    endpoint: [\"https://[::1]:0\"]\n", "a port is a number"},
	{"password with a line break", "", "configs:\n  a.b:\n    auth:\n      username: u\n      password: |\n        p\n",
		"password holds a line break"},
	{"username with a colon", "", "configs:\n  a.b:\n    auth: {username: \"u:v\", password: p}\n",
		"username must not hold a colon"},
	{"no endpoint", "", "mirrors:\n  docker.io:\n", "line 2: mirrors: \"docker.io\" has no endpoint"},
	{"endpoint that is no list", "", "mirrors:\n  a.b:\n    endpoint: x.y\n",
		"line 3: mirrors: \"a.b\": endpoint must be a list"},
	{"endpoint of another scheme", "", "mirrors:\n  a.b:\n    endpoint:\n    - ftp://x.y\n", "line 4: "},
	{"endpoint with credentials", "", "mirrors:\n  a.b:\n    endpoint: ['https://u:p@x.y']\n",
		"give them under configs"},
	{"endpoint with a query", "", "mirrors:\n  a.b:\n    endpoint: ['https://x.y/?a=b']\n", "no query"},
	{"empty endpoint", "", "mirrors:\n  a.b:\n    endpoint: ['']\n", "HOST:PORT"},
	{"wildcard", "", "mirrors:\n  '*.example.com':\n    endpoint: [x.y]\n",
		`line 2: mirrors: "*.example.com" is not supported`},
	{"wildcard in configs", "", "configs:\n  '*.example.com':\n",
		`line 2: configs: "*.example.com" is not supported`},
	{"auth for all", "", "configs:\n  '*':\n    auth: {username: u, password: p}\n",
		"auth for all registries is not supported"},
	{"mirror that is a path", "", "mirrors:\n  ../../etc:\n    endpoint: [x.y]\n", "is not a registry"},
	{"mirror of one repository", "", "mirrors:\n  a.b/c:\n    endpoint: [x.y]\n", "is not a registry"},
	{"mirror that is containerd's folder", "", "mirrors:\n  _default:\n    endpoint: [x.y]\n", "is not a registry"},
	{"mirror that is a URL", "", "mirrors:\n  https://a.b:\n    endpoint: [x.y]\n", "is a URL"},
	{"mirror that no image names", "", "mirrors:\n  team:\n    endpoint: [x.y]\n", "no image is of this registry"},
	{"settings that nothing uses", "", "configs:\n  team:\n    tls: {insecure_skip_verify: true}\n",
		"line 2: configs: \"team\" is used by nothing"},
	{"one registry by two names", "",
		"mirrors:\n  docker.io: {endpoint: [x.y]}\n  index.docker.io: {endpoint: [x.z]}\n",
		"line 3: mirrors: \"index.docker.io\" is the same registry as on line 2"},
	{"two settings of one registry", "", "configs:\n  docker.io:\n    auth: {username: a, password: b}\n" +
		"  registry-1.docker.io:\n    auth: {username: a, password: c}\n", "line 4: "},
	{"rewrite of the default alone", "", "mirrors:\n  a.b:\n    endpoint: ['https://a.b']\n    rewrite: {a: b}\n",
		"rewrite changes nothing"},
	{"rewrite that is no expression", "", "mirrors:\n  a.b:\n    endpoint: [x.y]\n    rewrite: {'(': b}\n",
		"line 4: "},
	{"rewrite to nothing", "", "mirrors:\n  a.b:\n    endpoint: [x.y]\n    rewrite:\n      a:\n", "line 5: "},
	{"token", "configs.*.auth.token", "configs:\n  a.b:\n    auth:\n      token: x\n",
		"line 4: configs: \"a.b\": auth: token is not supported"},
	{"password alone", "", "configs:\n  a.b:\n    auth: {password: p}\n", "given together"},
	{"username alone", "", "configs:\n  a.b:\n    auth: {username: p}\n", "given together"},
	{"identity token with a username", "",
		"configs:\n  a.b:\n    auth: {username: p, password: q, identity_token: r}\n",
		"exclude each other"},
	{"auth that is no base64", "", "configs:\n  a.b:\n    auth: {auth: '!'}\n", "base64"},
	{"auth of another user", "", "configs:\n  a.b:\n    auth: {auth: bWU6cGFzczp3b3Jk, username: u, password: p}\n",
		"another user"},
	{"certificate without a key", "", "configs:\n  a.b:\n    tls: {cert_file: DIR/client.pem}\n", "given together"},
	{"key of something else", "", "configs:\n  a.b:\n    tls: {cert_file: DIR/client.pem, key_file: DIR/ca.pem}\n",
		"client.pem"},
	{"missing authority", "", "configs:\n  a.b:\n    tls: {ca_file: /no/such/file}\n", "/no/such/file"},
	{"authority that is none", "", "configs:\n  a.b:\n    tls: {ca_file: DIR/registries.yaml}\n", "no certificate"},
	{"relative path", "", "configs:\n  a.b:\n    tls: {ca_file: ca.pem}\n", "not an absolute path"},
	{"no boolean", "", "configs:\n  a.b:\n    tls: {insecure_skip_verify: maybe}\n", "true or false"},
}

// What is not supported is refused with the file and the line.
func TestRead_Refuses(t *testing.T) {
	for _, row := range refusals {
		t.Run(row.name, func(t *testing.T) {
			w := newWorld(t)
			_, err := w.read(t, row.text)
			if errors.Is(err, ErrMissing) {
				t.Error("the fault counts as a missing file, which means no settings")
			}
			if err == nil || !strings.Contains(err.Error(), row.want) ||
				!strings.Contains(err.Error(), filepath.Join(w.dir, "registries.yaml")) {
				t.Errorf("error is %v, want one with %q that names the file", err, row.want)
			}
		})
	}
}

// All faults are reported, in the order of their lines.
func TestRead_ReportsAllFaults(t *testing.T) {
	w := newWorld(t)
	_, err := w.read(t, "a: 1\nmirrors:\n  x:\n    b: 1\n\n\n\n\n\nconfigs:\n  y.z:\n    c: 1\n")
	lines := regexp.MustCompile(`line (\d+):`).FindAllString(err.Error(), -1)
	if want := []string{"line 1:", "line 3:", "line 12:"}; !slices.Equal(lines, want) {
		t.Errorf("lines are %q, want %q: %v", lines, want, err)
	}
}

// Nothing is accepted and then ignored: every key the reader knows has a row that shows its effect
// or its refusal.
func TestRead_EveryKey_HasARow(t *testing.T) {
	shown := map[string]bool{}
	for _, row := range pulls {
		for _, key := range strings.Fields(row.keys) {
			shown[key] = true
		}
	}
	for _, row := range refusals {
		for _, key := range strings.Fields(row.keys) {
			shown[key] = true
		}
	}
	known := 0
	for prefix, format := range map[string]string{
		"":                "?: 1\n",
		"mirrors.*.":      "mirrors: {a.b: {?: 1}}\n",
		"configs.*.":      "configs: {a.b: {?: 1}}\n",
		"configs.*.auth.": "configs: {a.b: {auth: {?: 1}}}\n",
		"configs.*.tls.":  "configs: {a.b: {tls: {?: 1}}}\n",
	} {
		_, err := newWorld(t).read(t, strings.ReplaceAll(format, "?", "unknown"))
		if err == nil {
			t.Fatalf("%s: an unknown key is accepted", format)
		}
		_, list, ok := strings.Cut(err.Error(), "it may hold ")
		if !ok {
			t.Fatalf("%s: %v", format, err)
		}
		for _, key := range strings.Split(strings.TrimSpace(list), ", ") {
			known++
			if !shown[prefix+key] {
				t.Errorf("no row shows what %s%s does", prefix, key)
			}
		}
	}
	if known != 15 {
		t.Errorf("the file has %d keys", known)
	}
}

// An empty file, one of comments, and aliases are fine.
func TestRead_Accepts(t *testing.T) {
	for _, text := range []string{"", "# nothing\n", "---\n", "mirrors:\nconfigs:\n",
		"configs:\n  a.b:\n    auth:\n    tls:\n",
		"mirrors:\n  a.b: &m\n    endpoint: [x.y]\n  c.d: *m\n",
		"configs:\n  docker.io: &c\n    auth: {username: a, password: b}\n  index.docker.io: *c\n"} {
		if _, err := newWorld(t).read(t, text); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// Passwords stay out of the files, and a second start replaces what the first wrote.
func TestWrite_Replaces_WithoutPasswords(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Join(w.dir, "hosts")
	for _, text := range []string{
		"mirrors:\n  old.example: {endpoint: [x.y]}\n",
		"mirrors:\n  new.example: {endpoint: [x.y]}\nconfigs:\n  x.y: {auth: {username: me, password: pass-word}}\n",
	} {
		c, err := w.read(t, text)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Write(t.Context(), dir, nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "old.example")); !os.IsNotExist(err) {
		t.Errorf("old settings are left: %v", err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "new.example", "hosts.toml"))
	if err != nil || strings.Contains(string(data), "pass-word") {
		t.Errorf("%v: %s", err, data)
	}
}

// A file that containerd would take for an empty one is not used.
func TestHostsFile_Compare_SeesWhatContainerdDoesNot(t *testing.T) {
	dir := t.TempDir()
	e, err := parseEndpoint("https://a.example")
	if err != nil {
		t.Fatal(err)
	}
	f := hostsFile{endpoints: []hostEntry{{url: e.url}}}
	if err := os.Mkdir(filepath.Join(dir, "r.example"), 0o700); err != nil {
		t.Fatal(err)
	}
	for text, ok := range map[string]bool{
		"[host.\"https://a.example/v2\"]\n":                   true,
		"[host]\n[host.\"https://a.example/v2\"]\n[host]\n":   false,
		"[host.\"https://b.example/v2\"]\n":                   false,
		"[host.\"https://a.example/v2\"]\nskip_verify=true\n": false,
	} {
		if err := os.WriteFile(filepath.Join(dir, "r.example", "hosts.toml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := f.compare(t.Context(), dir, "r.example"); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// Only containerd may use the proxy, which has the logins of the file: its secret is in a file that
// only root can read.
func TestProxy_RefusesStrangers(t *testing.T) {
	w := newWorld(t)
	c, err := w.read(t, `{mirrors: {r.example: {endpoint: ["https://a.example"], rewrite: {"^": "all/"}}}}`)
	if err != nil {
		t.Fatal(err)
	}
	p, err := c.Listen(zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	dir := filepath.Join(w.dir, "hosts")
	if err := c.Write(t.Context(), dir, p); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "r.example", "hosts.toml")
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the proxy's secret can be read: %v, %v", info, err)
	}
	for _, row := range []struct {
		method, secret string
		want           int
	}{
		{http.MethodGet, "", http.StatusForbidden},
		{http.MethodGet, "guess", http.StatusForbidden},
		{http.MethodPut, p.secret, http.StatusMethodNotAllowed},
		{http.MethodGet, p.secret, http.StatusUnauthorized},
	} {
		req := httptest.NewRequest(row.method, "/0/a.example/v2/app/manifests/1", nil)
		req.Header.Set(proxyHeader, row.secret)
		answer := httptest.NewRecorder()
		p.ServeHTTP(answer, req)
		if answer.Code != row.want {
			t.Errorf("%s with secret %q gave %d, want %d", row.method, row.secret, answer.Code, row.want)
		}
	}
}
