package join

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/mote-dev/mote/agent/balancer"
	"github.com/mote-dev/mote/internal/joinapi"
)

const (
	// requestTimeout bounds one exchange with a server.
	requestTimeout = 20 * time.Second
	// maxAnswer bounds what is read of an answer.
	maxAnswer = 1 << 20
	// maxSkew is what two clocks may differ before certificates, leases and
	// tokens make no sense; the server draws the same line.
	maxSkew = time.Hour
)

// ServerName is the name servers are verified by, whatever address they answer
// at: each server's certificate has it and no node's does.
const ServerName = "kubernetes"

// exchange sends one request to a server (HOST:PORT) and reads the answer into
// out. It gives every failure one of the package's errors.
func exchange(ctx context.Context, transport http.RoundTripper, method, server, path, token string, in, out any) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return time.Time{}, fmt.Errorf("write request: %w", err)
		}
		body = bytes.NewReader(data)
	}
	request, err := http.NewRequestWithContext(ctx, method, "https://"+server+path, body)
	if err != nil {
		return time.Time{}, fmt.Errorf("make request to %s: %w", server, err)
	}
	request.Header.Set("Content-Type", "application/json")
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return time.Time{}, connectFault(server, err)
	}
	defer response.Body.Close()
	serverTime, _ := http.ParseTime(response.Header.Get("Date"))
	data, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return serverTime, fmt.Errorf("%w: %s ended its answer early: %w", ErrUnreachable, server, err)
	}
	if response.StatusCode != http.StatusOK {
		refusal := &refusal{server: server, cause: &joinapi.Error{}}
		if json.Unmarshal(data, refusal.cause) != nil || refusal.cause.Code == "" {
			if response.StatusCode >= 500 || response.StatusCode == http.StatusTooManyRequests {
				// A proxy before the server, or a server on its way up or down.
				return serverTime, fmt.Errorf("%w: %s answers %s: waiting for it to come up", ErrUnreachable, server, response.Status)
			}
			return serverTime, fmt.Errorf("%w: %s answers %s to %s: give the address and port of a mote server, usually https://HOST:6443", ErrNotMote, server, response.Status, path)
		}
		return serverTime, refusal
	}
	if raw, ok := out.(*[]byte); ok {
		*raw = data
		return serverTime, nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return serverTime, fmt.Errorf("%w: %s answers something else than a mote server: give its address and port, usually https://HOST:6443", ErrNotMote, server)
	}
	return serverTime, nil
}

// connectFault says what a failed connection means.
func connectFault(server string, err error) error {
	var header tls.RecordHeaderError
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	switch {
	case errors.As(err, &header) && string(header.RecordHeader[:]) == "HTTP/":
		return fmt.Errorf("%w: %s speaks plain HTTP: give the port a mote server listens on, usually https://HOST:6443", ErrNotMote, server)
	case errors.As(err, &header):
		return fmt.Errorf("%w: %s does not speak HTTPS: give the port a mote server listens on, usually https://HOST:6443", ErrNotMote, server)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("%w: certificate of %s: %w", ErrClock, server, err)
	case errors.As(err, &unknown), errors.As(err, &name):
		return fmt.Errorf("%w: %s has no certificate of this node's cluster: give the address of a server of that cluster, or run `mote uninstall --yes` and join anew", ErrWrongServer, server)
	}
	if balancer.OutOfResources(err) {
		return fmt.Errorf("%w: %s: this machine cannot open a connection: %w", ErrUnreachable, server, err)
	}
	return fmt.Errorf("%w: %s: %w: check the address, that the server runs, and firewalls in between", ErrUnreachable, server, err)
}

// unverified returns a transport that trusts anybody, for fetching the CA only.
func unverified() *http.Transport {
	return &http.Transport{
		//nolint:gosec // What comes over it is compared with the token's pin before it is used.
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12, ServerName: ServerName},
		DisableKeepAlives: true,
	}
}

// tlsConfig trusts servers of the CA only, by the given clock.
func tlsConfig(ca *x509.Certificate, now func() time.Time) *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	return &tls.Config{RootCAs: pool, ServerName: ServerName, MinVersion: tls.VersionTLS12, Time: now}
}

// fetchCA asks a server for the cluster's CA certificate and believes it if it
// has the pin; with an empty pin it is believed as it is.
func fetchCA(ctx context.Context, server, pin string, now time.Time) (*x509.Certificate, []byte, error) {
	var data []byte
	serverTime, err := exchange(ctx, unverified(), http.MethodGet, server, joinapi.PathCA, "", nil, &data)
	if err != nil {
		return nil, nil, err
	}
	cert, err := parseCertificate(data)
	if err != nil || !cert.IsCA {
		return nil, nil, fmt.Errorf("%w: %s answers no CA certificate to %s: give the address and port of a mote server, usually https://HOST:6443", ErrNotMote, server, joinapi.PathCA)
	}
	if pin != "" && joinapi.Pin(cert.Raw) != pin {
		return nil, nil, fmt.Errorf("%w: %s is not the one the token was made by (its CA is %s…, the token's %s…): check the address, or that nobody stands in between", ErrWrongServer, server, joinapi.Pin(cert.Raw)[:12], pin[:12])
	}
	if err := checkClock(now, serverTime, server); err != nil {
		return nil, nil, err
	}
	return cert, data, nil
}

// checkClock compares the clocks. Only an untrusted header says the server's, so
// this makes a message and no decision about trust.
func checkClock(now, server time.Time, name string) error {
	if server.IsZero() || now.Sub(server).Abs() <= maxSkew {
		return nil
	}
	return fmt.Errorf("%w: it is %s here and %s at %s: set this machine's clock, or the server's", ErrClock, now.UTC().Format(time.RFC3339), server.UTC().Format(time.RFC3339), name)
}
