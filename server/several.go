package server

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/mote-dev/mote/internal/atomicfile"
	"github.com/mote-dev/mote/internal/clusterconfig"
	"github.com/mote-dev/mote/internal/datadir"
	"github.com/mote-dev/mote/internal/part"
	"github.com/mote-dev/mote/server/apiserver"
	"github.com/mote-dev/mote/server/cluster/election"
	"github.com/mote-dev/mote/server/cluster/members"
	"github.com/mote-dev/mote/server/cluster/sharedkeys"
	"github.com/mote-dev/mote/server/pki"
)

// leaveTimeout bounds how long a server that stops tries to say so.
const leaveTimeout = 5 * time.Second

// share makes this server one of the servers of its etcd: it claims its name there, and has the
// keys that they share in dir.
func (s *Server) share(ctx context.Context, data *datastore, dir string) error {
	c := s.config
	own, err := pki.ReadShared(dir)
	if err != nil {
		return err
	}
	keys, err := sharedkeys.Agree(ctx, sharedkeys.Config{
		KV:     data.client.Client,
		Secret: s.token.Secret,
		Dir:    dir,
		Settings: map[string]string{
			"cluster-cidr":   clusterconfig.Join(c.Cluster.ClusterCIDRs),
			"service-cidr":   clusterconfig.Join(c.Cluster.ServiceCIDRs),
			"cluster-dns":    clusterconfig.Join(c.Cluster.ClusterDNS),
			"cluster-domain": c.Cluster.ClusterDomain, "network-backend": string(c.Cluster.NetworkBackend),
			"https-listen-port": strconv.Itoa(c.HTTPSListenPort),
		},
	}, own, func(own map[string][]byte) (map[string][]byte, error) { return pki.CompleteShared(own, time.Now()) })
	if err != nil {
		return err
	}
	if err := pki.WriteShared(dir, keys); err != nil {
		return err
	}
	id, err := ensureID(datadir.At(c.DataDir).ServerID())
	if err != nil {
		return err
	}
	member := members.New(members.Config{Client: data.client.Client, Name: c.NodeName, ID: id})
	if err := member.Claim(ctx); err != nil {
		return err
	}
	s.member = member
	return nil
}

// ensureID returns what tells this server from another of its name, and keeps it.
func ensureID(file string) (string, error) {
	data, err := os.ReadFile(file)
	if id := strings.TrimSpace(string(data)); err == nil && id != "" {
		return id, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read this server's id: %w", err)
	}
	random := make([]byte, 16)
	if _, err := rand.Read(random); err != nil {
		return "", fmt.Errorf("make this server's id: %w", err)
	}
	id := hex.EncodeToString(random)
	return id, atomicfile.Write(file, []byte(id+"\n"), 0o600)
}

// inTurn calls ensure, which makes what every cluster has, while no other server does.
func (s *Server) inTurn(ctx context.Context, ensure func(context.Context) error) error {
	if s.member == nil {
		return ensure(ctx)
	}
	return s.member.Exclusively(ctx, ensure)
}

// servers is what the API server knows the others by; nil if there can be none.
func (s *Server) servers() apiserver.Servers {
	if s.member == nil {
		return nil
	}
	return s.member
}

// leave tells the other servers that this one is gone. If it cannot, they find out a few seconds
// later.
func (s *Server) leave(ctx context.Context) {
	if s.member == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
	defer cancel()
	if err := s.member.Leave(ctx); err != nil {
		s.config.Logger.Warn("the other servers have to find out themselves that this one is gone", zap.Error(err))
	}
}

// lead returns how a part that only one server may run gets its turn: by upstream's lease, as the
// user that upstream's rules let write it.
func (s *Server) lead(lease string) part.Lead {
	return func(ctx context.Context, work func(context.Context) error) error {
		client, err := s.client(leaders[lease])
		if err != nil {
			return fmt.Errorf("make client of lease %s: %w", lease, err)
		}
		return election.Lead(ctx, election.Config{
			Client:   client,
			Lease:    lease,
			NodeName: s.config.NodeName,
			Timing:   election.Default,
			Logger:   s.config.Logger.Named("election"),
		}, work)
	}
}
