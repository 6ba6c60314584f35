package join

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/mote-dev/mote/internal/joinapi"
)

// checkTimeout bounds the connection to a server that the user gave and the node does not know. A
// start waits for it.
const checkTimeout = 4 * time.Second

// given are the servers of the command line of a node that has joined before.
type given struct {
	// confirmed are known to belong to the node's cluster, from earlier starts or by their
	// certificate.
	confirmed []string
	// silent did not answer, which may change.
	silent []string
}

// checkGiven connects to those of servers that are not known, and reports each that is of no use in
// one line. If a server answers for another cluster and none is this node's, the user wants another
// cluster than the one the node is in, which is refused. An address that is known already may have
// gone to another cluster's machine meanwhile, and does not keep a node from starting.
func checkGiven(ctx context.Context, servers, known []string, ca *x509.Certificate, now func() time.Time,
	log *zap.Logger) (given, error) {
	errs := make([]error, len(servers))
	var g errgroup.Group
	for i, server := range servers {
		if !slices.Contains(known, server) {
			g.Go(func() error {
				errs[i] = checkServer(ctx, server, ca, now)
				return nil
			})
		}
	}
	_ = g.Wait() // none of them returns an error
	if err := ctx.Err(); err != nil {
		return given{}, err
	}
	var out given
	var foreign error
	for i, server := range servers {
		switch err := errs[i]; {
		case err == nil:
			out.confirmed = append(out.confirmed, server)
		case errors.Is(err, ErrWrongServer):
			foreign = errors.Join(foreign, err)
		default:
			out.silent = append(out.silent, server)
		}
	}
	if foreign != nil && len(out.confirmed) == 0 {
		return given{}, foreign
	}
	for i, err := range errs {
		if err != nil {
			log.Warn("the server given is not used: "+err.Error(), zap.String("given", servers[i]),
				zap.Strings("known", known))
		}
	}
	return out, nil
}

// checkServer reports whether a server of the node's own cluster answers.
func checkServer(ctx context.Context, server string, ca *x509.Certificate, now func() time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	dialer := tls.Dialer{Config: tlsConfig(ca, now)}
	conn, err := dialer.DialContext(ctx, "tcp", server)
	if err == nil {
		return conn.Close()
	}
	err = connectError(server, err)
	if errors.Is(err, ErrWrongServer) {
		pin := joinapi.Pin(ca.Raw)
		return fmt.Errorf("%w: %s is not a server of the cluster this machine has joined (its CA is %s…): leave "+
			"--server out to stay in that one, or run `mote uninstall --yes` to leave it first", ErrWrongServer, server,
			pin[:12])
	}
	return err
}
