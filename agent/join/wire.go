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
	// maxResponse bounds how much of a response is read.
	maxResponse = 1 << 20
	// maxSkew is how far two clocks may differ before certificates, leases and tokens stop working;
	// the server has the same limit.
	maxSkew = time.Hour
)

// ServerName is the name that servers are verified by, whatever their address. Every server's
// certificate contains it, and no node's does.
const ServerName = "kubernetes"

// exchange sends one request to a server (HOST:PORT) and decodes the response into out. Errors of
// the server and of the connection wrap one of the package's errors.
func exchange(ctx context.Context, transport http.RoundTripper, method, server, path, token string, in,
	out any) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return time.Time{}, fmt.Errorf("encode request: %w", err)
		}
		body = bytes.NewReader(data)
	}
	request, err := http.NewRequestWithContext(ctx, method, "https://"+server+path, body)
	if err != nil {
		return time.Time{}, fmt.Errorf("build request to %s: %w", server, err)
	}
	request.Header.Set("Content-Type", "application/json")
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return time.Time{}, connectError(server, err)
	}
	defer response.Body.Close()
	serverTime, _ := http.ParseTime(response.Header.Get("Date"))
	data, err := io.ReadAll(io.LimitReader(response.Body, maxResponse))
	if err != nil {
		return serverTime, fmt.Errorf("%w: %s closed the connection early: %w", ErrUnreachable, server, err)
	}
	if response.StatusCode != http.StatusOK {
		refusal := &refusal{server: server, cause: &joinapi.Error{}}
		if json.Unmarshal(data, refusal.cause) != nil || refusal.cause.Code == "" {
			if response.StatusCode >= 500 || response.StatusCode == http.StatusTooManyRequests {
				// A proxy in front of the server, or a server that starts or stops.
				return serverTime,
					fmt.Errorf("%w: %s answers %s: waiting for it to come up", ErrUnreachable, server, response.Status)
			}
			return serverTime,
				fmt.Errorf(
					"%w: %s answers %s to %s: give the address and port of a mote server, usually https://HOST:6443",
					ErrNotMote, server, response.Status, path)
		}
		return serverTime, refusal
	}
	if raw, ok := out.(*[]byte); ok {
		*raw = data
		return serverTime, nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return serverTime,
			fmt.Errorf(
				"%w: %s does not answer like a mote server: give its address and port, usually https://HOST:6443",
				ErrNotMote, server)
	}
	return serverTime, nil
}

// connectError classifies the error of a failed connection.
func connectError(server string, err error) error {
	var header tls.RecordHeaderError
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	switch {
	case errors.As(err, &header) && string(header.RecordHeader[:]) == "HTTP/":
		return fmt.Errorf("%w: %s speaks plain HTTP: give the port a mote server listens on, usually https://HOST:6443",
			ErrNotMote, server)
	case errors.As(err, &header):
		return fmt.Errorf(
			"%w: %s does not speak HTTPS: give the port a mote server listens on, usually https://HOST:6443",
			ErrNotMote, server)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("%w: certificate of %s: %w", ErrClock, server, err)
	case errors.As(err, &unknown), errors.As(err, &name):
		return fmt.Errorf(
			"%w: %s has no certificate of this node's cluster: give the address of a server of that cluster, or run "+
				"`mote uninstall --yes` and join again", ErrWrongServer, server)
	}
	if balancer.OutOfResources(err) {
		return fmt.Errorf("%w: %s: this machine cannot open a connection: %w", ErrUnreachable, server, err)
	}
	return fmt.Errorf("%w: %s: %w: check the address, that the server runs, and firewalls in between", ErrUnreachable,
		server, err)
}

// unverified returns a transport that trusts any server, for fetching the CA only.
func unverified() *http.Transport {
	return &http.Transport{
		//nolint:gosec // The CA is compared with the token's pin before it is used.
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12, ServerName: ServerName},
		DisableKeepAlives: true,
	}
}

// tlsConfig trusts only servers of the CA, by the given clock.
func tlsConfig(ca *x509.Certificate, now func() time.Time) *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	return &tls.Config{
		RootCAs:    pool,
		ServerName: ServerName,
		MinVersion: tls.VersionTLS12,
		Time:       now,
	}
}

// fetchCA requests the cluster's CA certificate from a server, and compares it with the pin unless
// that is empty.
func fetchCA(ctx context.Context, server, pin string, now time.Time) (*x509.Certificate, []byte, error) {
	var data []byte
	serverTime, err := exchange(ctx, unverified(), http.MethodGet, server, joinapi.PathCA, "", nil, &data)
	if err != nil {
		return nil, nil, err
	}
	cert, err := parseCertificate(data)
	if err != nil || !cert.IsCA {
		return nil, nil,
			fmt.Errorf(
				"%w: %s answers no CA certificate to %s: give the address and port of a mote server, usually "+
					"https://HOST:6443", ErrNotMote, server, joinapi.PathCA)
	}
	if pin != "" && joinapi.Pin(cert.Raw) != pin {
		return nil, nil,
			fmt.Errorf(
				"%w: %s is not the one the token was made by (its CA is %s…, the token's %s…): check the address, "+
					"and that nothing intercepts the connection", ErrWrongServer, server, joinapi.Pin(cert.Raw)[:12],
				pin[:12])
	}
	if err := checkClock(now, serverTime, server); err != nil {
		return nil, nil, err
	}
	return cert, data, nil
}

// checkClock compares the clocks. The server's is from an unverified header, so this is for an
// error message and must not decide about trust.
func checkClock(now, server time.Time, name string) error {
	if server.IsZero() || now.Sub(server).Abs() <= maxSkew {
		return nil
	}
	return fmt.Errorf("%w: it is %s here and %s at %s: set this machine's clock, or the server's", ErrClock,
		now.UTC().Format(time.RFC3339), server.UTC().Format(time.RFC3339), name)
}
