package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	etcdkubernetes "go.etcd.io/etcd/client/v3/kubernetes"
	"go.uber.org/zap"
	"google.golang.org/grpc/status"
	"k8s.io/apiserver/pkg/storage/storagebackend"
)

const (
	// etcdPatience is how long a real etcd may take to answer at start: after a power cut it starts
	// at the same time as its servers.
	etcdPatience = 20 * time.Second
	// etcdRetry is the pause between attempts to reach it.
	etcdRetry = 500 * time.Millisecond
	// etcdTimeout bounds one attempt, and the first read.
	etcdTimeout = 5 * time.Second
)

// ErrEtcd says that the etcd of datastore-endpoint cannot be used.
var ErrEtcd = errors.New("datastore cannot be used")

// errEtcdRefused marks what waiting does not mend.
var errEtcdRefused = errors.New("refused")

// openEtcd connects to a real etcd.
func openEtcd(ctx context.Context, c Config) (*datastore, error) {
	endpoints := c.datastoreEndpoints()
	secure, err := c.etcdTLS()
	if err != nil {
		return nil, err
	}
	if err := awaitEtcd(ctx, endpoints, secure); err != nil {
		return nil, err
	}
	client, err := etcdkubernetes.New(clientv3.Config{
		Context:              context.WithoutCancel(ctx),
		Endpoints:            endpoints,
		TLS:                  secure,
		DialTimeout:          etcdPatience,
		DialKeepAliveTime:    30 * time.Second,
		DialKeepAliveTimeout: 10 * time.Second,
		// The client tries again what it warns of.
		Logger: c.Logger.Named("etcd").WithOptions(zap.IncreaseLevel(zap.ErrorLevel)),
	})
	if err != nil {
		return nil, fmt.Errorf("make client of etcd at %s: %w", strings.Join(endpoints, ","), err)
	}
	probe, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	if _, err := client.Client.Get(probe, "/registry/health"); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %s answers, and not as an etcd that may be read: %s", ErrEtcd,
			strings.Join(endpoints, ","), rpcWords(err)), client.Close())
	}
	return &datastore{
		client: client,
		transport: storagebackend.TransportConfig{
			ServerList:    endpoints,
			TrustedCAFile: c.DatastoreCAFile,
			CertFile:      c.DatastoreCertFile,
			KeyFile:       c.DatastoreKeyFile,
		},
		run: func(ctx context.Context) error {
			<-ctx.Done()
			return nil
		},
		close: client.Close,
	}, nil
}

// rpcWords is an etcd's own words, or the code alone of what is none: its words may be a page.
func rpcWords(err error) string {
	var own rpctypes.EtcdError
	if errors.As(err, &own) || errors.Is(err, context.DeadlineExceeded) {
		return err.Error()
	}
	return status.Code(err).String()
}

// etcdTLS is how to talk to an etcd with https URLs; nil for one with http URLs.
func (c Config) etcdTLS() (*tls.Config, error) {
	if !strings.HasPrefix(c.datastoreEndpoints()[0], "https://") {
		return nil, nil
	}
	secure := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.DatastoreCAFile != "" {
		data, err := os.ReadFile(c.DatastoreCAFile)
		if err != nil {
			return nil, fmt.Errorf("read datastore-cafile: %w", err)
		}
		secure.RootCAs = x509.NewCertPool()
		if !secure.RootCAs.AppendCertsFromPEM(data) {
			return nil, fmt.Errorf(
				"datastore-cafile %s has no certificate in it: give the authority of the etcd's certificates, as PEM",
				c.DatastoreCAFile)
		}
	}
	if c.DatastoreCertFile == "" {
		return secure, nil
	}
	load := func() (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(c.DatastoreCertFile, c.DatastoreKeyFile)
		if err != nil {
			return nil, fmt.Errorf("read datastore-certfile and datastore-keyfile: %w", err)
		}
		return &pair, nil
	}
	if _, err := load(); err != nil {
		return nil, err
	}
	// For each connection anew: the files may be renewed without a restart.
	secure.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	return secure, nil
}

// awaitEtcd waits until one of the endpoints answers, or none can.
func awaitEtcd(ctx context.Context, endpoints []string, secure *tls.Config) error {
	patience, cancel := context.WithTimeout(ctx, etcdPatience)
	defer cancel()
	end, _ := patience.Deadline()
	var said []string
	for {
		errs := make([]error, len(endpoints))
		var all sync.WaitGroup
		for i, e := range endpoints {
			all.Go(func() { errs[i] = greet(patience, e, secure) })
		}
		all.Wait()
		waiting := false
		var words []string
		for i, err := range errs {
			if err == nil {
				return nil
			}
			waiting = waiting || !errors.Is(err, errEtcdRefused)
			words = append(words, endpoints[i]+": "+err.Error())
		}
		// What the end cut short says less than the attempt before.
		if said == nil || time.Now().Before(end) {
			said = words
		}
		timer := time.NewTimer(etcdRetry)
		select {
		case <-patience.Done():
			waiting = false
		case <-timer.C:
		}
		timer.Stop()
		if !waiting {
			return fmt.Errorf("%w: %s", ErrEtcd, strings.Join(said, "; "))
		}
	}
}

const (
	// http2Hello is what every HTTP/2 client, and so every gRPC client, says first: the preface and
	// empty settings.
	http2Hello = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
	// http2Header is the length of what precedes each frame, settingsFrame the type of the one
	// every server answers with.
	http2Header, settingsFrame = 9, 4
)

// greet finds out whether a gRPC server answers that trusts and is trusted. The etcd client would
// only say that time ran out.
func greet(ctx context.Context, endpoint string, secure *tls.Config) error {
	u, err := url.Parse(endpoint)
	if err != nil {
		return fmt.Errorf("%w: %w", errEtcdRefused, err)
	}
	ctx, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return fmt.Errorf("cannot be reached (%w): check the address, and that etcd runs", err)
	}
	defer func() { _ = conn.Close() }()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	if secure != nil {
		own := secure.Clone()
		own.ServerName, own.NextProtos = u.Hostname(), []string{"h2"}
		wrapped := tls.Client(conn, own)
		if err := wrapped.HandshakeContext(ctx); errors.Is(err, context.DeadlineExceeded) ||
			errors.Is(err, os.ErrDeadlineExceeded) {
			return errors.New(
				"it takes a connection and does not answer in TLS: check that it is an etcd, and http or https in " +
					"the URL")
		} else if err != nil {
			return explainTLS(err)
		}
		conn = wrapped
	}
	if _, err := io.WriteString(conn, http2Hello); err != nil {
		return explainTLS(err)
	}
	var header [http2Header]byte
	if _, err := io.ReadFull(conn, header[:]); err != nil {
		return explainTLS(err)
	}
	if header[3] != settingsFrame {
		return fmt.Errorf("%w: what answers is no etcd, or speaks TLS where the URL says http: check the URL",
			errEtcdRefused)
	}
	return nil
}

// explainTLS says what to do about a connection that came about and ended.
func explainTLS(err error) error {
	var notTLS tls.RecordHeaderError
	var untrusted *tls.CertificateVerificationError
	var alert tls.AlertError
	var remote *net.OpError
	switch {
	case errors.As(err, &notTLS):
		return fmt.Errorf("%w: it does not speak TLS: write the URL as http://, or let etcd have a certificate",
			errEtcdRefused)
	case errors.As(err, &untrusted):
		return fmt.Errorf("%w: its certificate is not trusted (%w): give its authority with --datastore-cafile",
			errEtcdRefused, untrusted.Err)
	case errors.As(err, &alert), errors.As(err, &remote) && remote.Op == "remote error":
		return fmt.Errorf(
			"%w: it does not accept this server's certificate (%w): give one it trusts with --datastore-certfile and "+
				"--datastore-keyfile", errEtcdRefused, err)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("it ends the connection: check that it is an etcd, and http or https in the URL")
	}
	return fmt.Errorf("what answers is no etcd (%w): check the URL", err)
}
