package join

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"go.uber.org/zap"
	"k8s.io/component-base/version"

	"github.com/mote-dev/mote/internal/atomicfile"
	"github.com/mote-dev/mote/internal/joinapi"
	"github.com/mote-dev/mote/internal/retry"
)

// firstRetry and lastRetry are the shortest and longest pause between attempts to join.
const (
	firstRetry = time.Second
	lastRetry  = 10 * time.Second
)

// Config configures a join.
type Config struct {
	// Dir is the folder of the identity, <data-dir>/agent/pki.
	Dir string
	// Servers are those the user gave, in a form that [joinapi.ParseServer] reads. May be empty
	// once the node has joined.
	Servers []string
	// Token is needed for the first join only.
	Token string
	// NodeName is the name to join as.
	NodeName string
	// MoteVersion is the version of this executable, for display.
	MoteVersion string
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Discover searches the local network for servers of the CA with this pin when none of the
	// known ones answers; nil means no search.
	Discover func(ctx context.Context, pin string) []string
	// Logger may be nil for no log.
	Logger *zap.Logger
}

// Name returns the name that a node has joined under, or "" if it has not joined.
func Name(dir string) (string, error) {
	s, _, err := folder(dir).load()
	return s.NodeName, err
}

// Servers returns the servers that a node knows, as https://HOST:PORT; none if it has not joined.
func Servers(dir string) ([]string, error) {
	s, _, err := folder(dir).load()
	if err != nil {
		return nil, err
	}
	out := make([]string, len(s.Cluster.Servers))
	for i, server := range s.Cluster.Servers {
		out[i] = "https://" + server
	}
	return out, nil
}

// Cluster returns what is known of the cluster that a node has joined; ok is false if it has not.
func Cluster(dir string) (c joinapi.Cluster, ok bool, err error) {
	s, ok, err := folder(dir).load()
	return s.Cluster, ok, err
}

// Join returns the node's membership. A node that has joined before needs no server for it, so that
// it starts while its server is away. Otherwise Join tries the servers until one accepts the node
// or refuses it for good.
func Join(ctx context.Context, c Config) (*Membership, error) {
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	var given []string
	for _, s := range c.Servers {
		server, err := joinapi.ParseServer(s)
		if err != nil {
			return nil, fmt.Errorf("server %q is %w", s, err)
		}
		given = merge(given, []string{server})
	}
	f := folder(c.Dir)
	if err := f.make(); err != nil {
		return nil, err
	}
	j := &joiner{config: c, folder: f, servers: given}
	if c.Token != "" {
		var err error
		if j.token, err = joinapi.ParseToken(c.Token); err != nil {
			return nil, err
		}
	}
	was, joined, err := f.load()
	if err != nil {
		return nil, err
	}
	ca, err := f.ca()
	if err != nil {
		return nil, err
	}
	if err := j.checkSame(was, joined, ca); err != nil {
		return nil, err
	}
	var silent []string
	if joined && ca != nil {
		checked, err := checkGiven(ctx, given, was.Cluster.Servers, ca,
			func() time.Time { return plausible(c.Now(), was.Cluster.Time) }, c.Logger)
		if err != nil {
			return nil, err
		}
		given, silent = checked.confirmed, checked.silent
	} else {
		if c.Token == "" {
			return nil, fmt.Errorf(
				"%w: this machine has not joined yet: give --token or --token-file, as `mote token create` on the "+
					"server prints it", ErrNoToken)
		}
		if was, ca, err = j.retry(ctx); err != nil {
			return nil, err
		}
	}
	// As the user wrote them: a host name stays right when its server moves to another address.
	if all := merge(given, was.Cluster.Servers); !slices.Equal(all, was.Cluster.Servers) {
		was.Cluster.Servers = all
		if err := f.save(was); err != nil {
			return nil, err
		}
	}
	own, err := f.certificate(c.Logger)
	if err != nil {
		return nil, err
	}
	return newMembership(c, f, was, ca, own, silent), nil
}

type joiner struct {
	config  Config
	folder  folder
	servers []string
	token   joinapi.Token
	// ca is trusted from the first response on, and written to disk once a server has accepted the
	// node.
	ca    *x509.Certificate
	caPEM []byte
}

// checkSame refuses to turn a node into another one or move it to another cluster: it still has the
// pods of the old one.
func (j *joiner) checkSame(was stored, joined bool, ca *x509.Certificate) error {
	if joined && was.NodeName != j.config.NodeName {
		return fmt.Errorf(
			"%w as node %s and cannot become %s: leave --node-name out, or run `mote uninstall --yes` and `mote node "+
				"forget %s` on the server first", ErrOtherIdentity, was.NodeName, j.config.NodeName, was.NodeName)
	}
	if joined && ca != nil && j.token.Pin != "" && joinapi.Pin(ca.Raw) != j.token.Pin {
		return fmt.Errorf(
			"%w: this machine belongs to another cluster than the token (its CA is %s…, the token's %s…): run `mote "+
				"uninstall --yes` to leave that one first", ErrWrongServer, joinapi.Pin(ca.Raw)[:12], j.token.Pin[:12])
	}
	return nil
}

// retry tries the servers until one accepts the node.
func (j *joiner) retry(ctx context.Context) (stored, *x509.Certificate, error) {
	log := j.config.Logger
	backoff := retry.Backoff{First: firstRetry, Last: lastRetry}
	var failures retry.Failures
	for {
		var errs []error
		for _, server := range j.servers {
			was, err := j.attempt(ctx, server)
			if err == nil {
				if failures.Recovered() {
					log.Info("the server answers", zap.String("server", server))
				}
				return was, j.ca, nil
			}
			if ctx.Err() != nil {
				return stored{}, nil, ctx.Err()
			}
			if !retryable(err) {
				return stored{}, nil, err
			}
			errs = append(errs, err)
		}
		if len(errs) == 0 {
			return stored{}, nil, errors.New("server is missing: give --server https://HOST:6443")
		}
		// Not for each attempt: a server that is off for a day must not fill the log.
		if failures.News(errors.Join(errs...)) {
			for _, err := range errs {
				log.Warn("not joined yet, trying again: " + err.Error())
			}
		}
		if err := backoff.Wait(ctx); err != nil {
			return stored{}, nil, err
		}
	}
}

// attempt tries to join through one server.
func (j *joiner) attempt(ctx context.Context, server string) (was stored, err error) {
	if j.ca == nil {
		if j.ca, j.caPEM, err = fetchCA(ctx, server, j.token.Pin, j.config.Now()); err != nil {
			return was, err
		}
		if j.token.Pin == "" {
			j.config.Logger.Warn(
				"the token has no CA pin, so the first server is trusted: use a token that begins with M10 to pin "+
					"the CA", zap.String("server", server), zap.String("ca", joinapi.Pin(j.ca.Raw)))
		}
	}
	transport := &http.Transport{TLSClientConfig: tlsConfig(j.ca, j.config.Now), DisableKeepAlives: true}
	response, _, err := requestCertificate(ctx, j.folder, transport, server, joinapi.PathJoin, j.token.Secret, j.config)
	if err != nil {
		return was, err
	}
	if err := atomicfile.Write(j.folder.path(caName), j.caPEM, 0o644); err != nil {
		return was, err
	}
	was = stored{NodeName: j.config.NodeName, Cluster: response.Cluster}
	// Last, because with this file the node counts as joined.
	return was, j.folder.save(was)
}

// requestCertificate sends a new certificate request to PathJoin or PathRejoin, and stores the
// certificate.
func requestCertificate(ctx context.Context, f folder, transport http.RoundTripper, server, path, token string,
	c Config) (joinapi.Response, *tls.Certificate, error) {
	var response joinapi.Response
	secret, err := f.secret()
	if err != nil {
		return response, nil, err
	}
	_, keyPEM, csrPEM, err := newRequest(c.NodeName)
	if err != nil {
		return response, nil, err
	}
	request := joinapi.Request{
		NodeName:          c.NodeName,
		NodeSecret:        secret,
		CSR:               csrPEM,
		MoteVersion:       c.MoteVersion,
		KubernetesVersion: version.Get().GitVersion,
		Time:              c.Now(),
	}
	if _, err := exchange(ctx, transport, http.MethodPost, server, path, token, request, &response); err != nil {
		return response, nil, clockError(ctx, err, server, c.Now())
	}
	certificate, err := f.saveCertificate(response.Certificate, keyPEM)
	return response, certificate, err
}

// clockError adds both clocks to an error that a wrong clock may have caused.
func clockError(ctx context.Context, err error, server string, now time.Time) error {
	expired, ok := errors.AsType[x509.CertificateInvalidError](err)
	if !errors.Is(err, ErrClock) || !ok {
		return err
	}
	var ignored []byte
	// Unverified, as only its Date header is used.
	serverTime, dateErr := exchange(ctx, unverified(), http.MethodGet, server, joinapi.PathCA, "", nil, &ignored)
	if dateErr != nil || serverTime.IsZero() {
		return err
	}
	if clock := checkClock(now, serverTime, server); clock != nil {
		return clock
	}
	return fmt.Errorf("%w: %s: its certificate is not valid, although its clock agrees with this machine's: %w: "+
		"look in its log for why it was not renewed", ErrUnreachable, server, expired)
}
