package registry

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"go.uber.org/zap"
)

const (
	// proxyUser is whom containerd logs in to the proxy as when a pull brings no secret of its own.
	proxyUser = "mote"
	// proxyHeader carries the proxy's secret. hosts.toml, which only root can read, has it.
	proxyHeader = "Mote-Mirror-Secret"
	// proxyStopTime is how long a stopping proxy waits for its requests, whose context has ended.
	proxyStopTime = 5 * time.Second
)

// Proxy renames repositories on the way to mirrors with rewrites, which containerd cannot do. It
// listens on the loopback interface, where only containerd knows its secret.
//
// It asks for a login first: a pull that has a secret of its own then sends it, and the proxy hands
// it on to the mirror; otherwise containerd sends [proxyUser], and the proxy uses the login of the
// registries file.
type Proxy struct {
	listener net.Listener
	secret   string
	mux      *http.ServeMux
	routes   int
	config   Config
	log      *zap.Logger

	// dial is replaced in tests.
	dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Listen opens the proxy, or returns nil if no mirror needs it. It serves once Run is called.
func (c Config) Listen(log *zap.Logger) (*Proxy, error) {
	for _, m := range c.mirrors {
		if len(m.rewrites) == 0 {
			continue
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("open the proxy for mirrors with rewrites: %w", err)
		}
		return &Proxy{
			listener: l,
			secret:   rand.Text(),
			mux:      http.NewServeMux(),
			config:   c,
			log:      log,
		}, nil
	}
	return nil, nil
}

// Close closes a proxy, whether it runs or not. That of nil does nothing.
func (p *Proxy) Close() error {
	if p == nil {
		return nil
	}
	if err := p.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close the proxy for mirrors: %w", err)
	}
	return nil
}

// Run serves until the context ends. That of nil returns at once.
func (p *Proxy) Run(ctx context.Context) error {
	if p == nil {
		return nil
	}
	s := &http.Server{
		Handler:           p,
		ReadHeaderTimeout: time.Minute,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          zap.NewStdLog(p.log),
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(p.listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve the proxy for mirrors: %w", err)
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), proxyStopTime)
	defer cancel()
	err := s.Shutdown(stop)
	if err != nil {
		err = s.Close()
	}
	<-served
	return err
}

func (p *Proxy) host() string { return p.listener.Addr().String() }

// entry makes a route for an endpoint and returns containerd's settings for it. The path names the
// endpoint, as errors of pulls show it.
func (p *Proxy) entry(e endpoint, rewrites []rewrite) hostEntry {
	prefix := path.Join("/", strconv.Itoa(p.routes), e.url.Host, e.url.Path)
	p.routes++
	p.mux.Handle(prefix+"/", p.route(e, rewrites, prefix))
	return hostEntry{
		url:          &url.URL{Scheme: "http", Host: p.host(), Path: prefix},
		Capabilities: []string{"pull", "resolve"},
		OverridePath: true,
		Header:       map[string][]string{proxyHeader: {p.secret}},
	}
}

// ServeHTTP implements [http.Handler].
func (p *Proxy) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	switch {
	case !same(req.Header.Get(proxyHeader), p.secret):
		http.Error(w, "only mote's container runtime may use this proxy", http.StatusForbidden)
	case req.Method != http.MethodGet && req.Method != http.MethodHead:
		http.Error(w, "this proxy only reads", http.StatusMethodNotAllowed)
	case req.Header.Get("Authorization") == "":
		w.Header().Set("WWW-Authenticate", `Basic realm="mote"`)
		http.Error(w, "log in", http.StatusUnauthorized)
	default:
		p.mux.ServeHTTP(w, req)
	}
}

func same(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// route returns what serves the requests to one endpoint.
func (p *Proxy) route(e endpoint, rewrites []rewrite, prefix string) http.Handler {
	s := p.config.settingsFor(e.url)
	target := *e.url
	tlsConfig, err := s.tls.load()
	if err != nil {
		// The files were there when the settings were checked.
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { p.failed(w, e, err) })
	}
	base := docker.DefaultHTTPTransport(tlsConfig)
	if p.dial != nil {
		base.DialContext = p.dial
	}
	var transport http.RoundTripper = base
	if target.Scheme == "http" && s.tls != nil && target.Port() != "80" {
		// As containerd does for http with TLS settings.
		target.Scheme, transport = "https", docker.NewHTTPFallback(transport)
	}
	client := &http.Client{Transport: transport}
	fromFile := newAuthorizer(client, s.login)
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		authorizer := fromFile
		user, password, _ := req.BasicAuth()
		if user != proxyUser || !same(password, p.secret) {
			authorizer = newAuthorizer(client, &Login{Username: user, Password: password})
		}
		repository, rest := splitRepository(strings.TrimPrefix(req.URL.Path, prefix+"/"))
		repository = rename(repository, rewrites)
		proxy := httputil.ReverseProxy{
			Rewrite: func(r *httputil.ProxyRequest) {
				r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = target.Scheme, target.Host, ""
				r.Out.URL.Path, r.Out.URL.RawPath = path.Join(target.Path, repository, rest), ""
				r.Out.Header.Del("Authorization")
				r.Out.Header.Del(proxyHeader)
			},
			Transport: &authorizing{client, authorizer, "repository:" + repository + ":pull"},
			ModifyResponse: func(r *http.Response) error {
				if r.StatusCode == http.StatusUnauthorized {
					// containerd would answer the challenge with the login to this proxy.
					r.StatusCode = http.StatusForbidden
					r.Header.Del("WWW-Authenticate")
				}
				return nil
			},
			ErrorHandler: func(w http.ResponseWriter, req *http.Request, err error) {
				if req.Context().Err() == nil {
					p.failed(w, e, err)
				}
			},
			ErrorLog: zap.NewStdLog(p.log),
		}
		proxy.ServeHTTP(w, req)
	})
}

// failed answers a request that did not reach its endpoint. containerd reports the status alone.
func (p *Proxy) failed(w http.ResponseWriter, e endpoint, err error) {
	p.log.Warn("mirror did not answer", zap.Stringer("endpoint", e.url), zap.Error(err))
	http.Error(w, err.Error(), http.StatusBadGateway)
}

// splitRepository splits the path of a request to a registry's API, without the root of the API.
func splitRepository(p string) (repository, rest string) {
	for _, kind := range []string{"/manifests/", "/blobs/", "/referrers/"} {
		if i := strings.LastIndex(p, kind); i >= 0 {
			return p[:i], p[i:]
		}
	}
	return "", p
}

// rename applies the first rewrite that changes a repository.
func rename(repository string, rewrites []rewrite) string {
	for _, r := range rewrites {
		if to := r.match.ReplaceAllString(repository, r.replace); to != repository {
			return to
		}
	}
	return repository
}

func newAuthorizer(client *http.Client, l *Login) docker.Authorizer {
	return docker.NewDockerAuthorizer(docker.WithAuthClient(client),
		docker.WithAuthCreds(func(string) (string, string, error) {
			switch {
			case l == nil:
				return "", "", nil
			case l.IdentityToken != "":
				return "", l.IdentityToken, nil
			}
			return l.Username, l.Password, nil
		}))
}

// authorizing follows redirects, and answers the challenges of a registry.
type authorizing struct {
	client     *http.Client
	authorizer docker.Authorizer
	scope      string
}

// maxChallenges is the number of times one request is authorized: a token may have expired.
const maxChallenges = 3

// RoundTrip implements [http.RoundTripper].
func (t *authorizing) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx := docker.WithScope(req.Context(), t.scope)
	var responses []*http.Response
	for {
		out := req.Clone(ctx)
		out.RequestURI = ""
		if err := t.authorizer.Authorize(ctx, out); err != nil {
			return nil, fmt.Errorf("log in: %w", err)
		}
		resp, err := t.client.Do(out)
		if err != nil || resp.StatusCode != http.StatusUnauthorized || len(responses) == maxChallenges-1 {
			return resp, err
		}
		responses = append(responses, resp)
		if err := t.authorizer.AddResponses(ctx, responses); err != nil {
			return resp, nil // the registry's refusal says more
		}
		if err := resp.Body.Close(); err != nil {
			return nil, fmt.Errorf("read challenge: %w", err)
		}
	}
}
