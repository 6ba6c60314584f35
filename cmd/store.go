package cmd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"
	"go.uber.org/zap"

	"github.com/mote-dev/mote/cmd/settings"
	"github.com/mote-dev/mote/internal/datadir"
	"github.com/mote-dev/mote/server"
	"github.com/mote-dev/mote/store"
)

func (p program) storeCommand() *cli.Command {
	all := []settings.Setting{
		dataDirSetting, formatSetting, debugSetting,
		{Name: "datastore-durability", Default: server.DefaultDatastoreDurability,
			Usage: "full, or relaxed: see `mote help server`"},
	}
	return &cli.Command{
		Name:  "store",
		Usage: "run the store alone, for any etcd client",
		Description: "Serves etcd's v3 API over gRPC on the store file of the data folder. No server may run on that " +
			"folder at the same time.\nWithout --cert-file, anyone who can reach the port can read and write " +
			"everything.",
		Flags: append(flags(all), flag(configSetting),
			&cli.StringFlag{Name: "listen", Value: "127.0.0.1:2379", Usage: "`HOST:PORT` to listen on"},
			&cli.StringFlag{Name: "cert-file", Usage: "certificate `FILE` for TLS"},
			&cli.StringFlag{Name: "key-file", Usage: "key `FILE` for TLS"},
			&cli.StringFlag{Name: "trusted-ca-file",
				Usage: "`FILE` of the CA that client certificates must be signed by"},
		),
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			v, err := p.settings(c, all)
			if err != nil {
				return err
			}
			_, log, closeUI, err := p.ui(v.Bool("debug"), v.String("log-format"))
			if err != nil {
				return err
			}
			defer closeUI()
			security, err := tlsConfig(c.String("cert-file"), c.String("key-file"), c.String("trusted-ca-file"))
			if err != nil {
				return err
			}
			return serveStore(c.Context, v, c.String("listen"), security, log)
		},
	}
}

func serveStore(ctx context.Context, v settings.Values, address string, security *tls.Config,
	log *zap.Logger) (err error) {
	dataDir := v.String("data-dir")
	if !filepath.IsAbs(dataDir) {
		return fmt.Errorf("data-dir %q is not an absolute path: give one that starts with /", dataDir)
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("listen on %s: %w: choose another address with --listen", address, err)
	}
	// The store's Serve closes it; a second close is harmless.
	defer func() { _ = listener.Close() }()
	dir, err := datadir.Open(dataDir, dataVersions())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	if err := dir.Commit(dataVersions()); err != nil {
		return err
	}
	file := datadir.At(dataDir).StoreFile()
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return fmt.Errorf("create folder of the store: %w", err)
	}
	s, err := store.Open(ctx, store.Options{Path: file, Logger: log.Named("store"),
		Durability: store.Durability(v.String("datastore-durability"))})
	if err != nil {
		return fmt.Errorf("open store %s: %w", file, err)
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if security != nil {
		listener = tls.NewListener(listener, security)
	}
	log.Info("store serves etcd clients", zap.String("address", listener.Addr().String()), zap.String("file", file),
		zap.Int64("revision", s.Revision()))
	return s.Serve(ctx, listener)
}

// tlsConfig is nil without a certificate.
func tlsConfig(certFile, keyFile, caFile string) (*tls.Config, error) {
	if certFile == "" && keyFile == "" && caFile == "" {
		return nil, nil
	}
	if certFile == "" || keyFile == "" {
		return nil, errors.New("cert-file and key-file belong together: give both")
	}
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("read certificate and key: %w", err)
	}
	c := &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS12}
	if caFile == "" {
		return c, nil
	}
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("read authority: %w", err)
	}
	c.ClientCAs, c.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
	if !c.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("trusted-ca-file %s holds no certificate", caFile)
	}
	return c, nil
}
