package members

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/mote-dev/mote/internal/retry"
)

const (
	// prefix is where the entries are, by name.
	prefix = "/mote/servers/"
	// lifetime is how long an entry outlives its server, as with upstream's leases of API servers.
	// It is renewed every ten seconds.
	lifetime = 15 * time.Second
	// turn is the lock for work that one server may do at a time.
	turn = "/mote/turn"
	// firstRetry and lastRetry bound the pauses between attempts to get it, and to write an entry.
	firstRetry, lastRetry = 50 * time.Millisecond, time.Second
	// jitter spreads them, so that servers that start together do not try together.
	jitter = 0.2
)

// ErrNameTaken means that another running server has the name.
var ErrNameTaken = errors.New("another server has this name")

// Config identifies a server.
type Config struct {
	Client *clientv3.Client
	// Name is the server's, unique among those that run.
	Name string
	// ID distinguishes two servers of one name. It survives restarts.
	ID string
}

// Member is this server among those that share an etcd.
type Member struct {
	config Config

	mu    sync.Mutex // guards what follows
	lease clientv3.LeaseID
	// written is the entry stored under lease, addresses are those in it.
	written   string
	addresses []string
}

// entry is what the etcd stores about a server.
type entry struct {
	ID string `json:"id"`
	// Addresses are those of its API; none while it is not served.
	Addresses []string `json:"addresses,omitempty"`
}

// New returns a member without an entry.
func New(c Config) *Member { return &Member{config: c} }

func (m *Member) key() string { return prefix + m.config.Name }

// Claim takes the name, or returns ErrNameTaken. The entry has no addresses yet.
func (m *Member) Claim(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.write(ctx, nil)
}

// Publish stores the addresses of this server's API and returns those of all servers. It has to be
// repeated within lifetime.
func (m *Member) Publish(ctx context.Context, addresses []string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.write(ctx, addresses); err != nil {
		return nil, err
	}
	return m.list(ctx)
}

// Withdraw removes this server's addresses and returns those of the others.
func (m *Member) Withdraw(ctx context.Context) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.write(ctx, nil); err != nil {
		return nil, err
	}
	return m.list(ctx)
}

// Exclusively calls work while no other server is in a call of it. If work takes longer than
// lifetime, or the etcd goes away, others stop waiting.
func (m *Member) Exclusively(ctx context.Context, work func(context.Context) error) (err error) {
	lock, err := m.await(ctx)
	if err != nil {
		return err
	}
	defer func() {
		// Even if ctx has ended: the others wait.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lifetime)
		defer cancel()
		_, unlockErr := m.config.Client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(turn), "=", lock)).Then(
			clientv3.OpDelete(turn)).Commit()
		if unlockErr != nil {
			err = errors.Join(err, fmt.Errorf("end the turn of server %s: %w", m.config.Name, unlockErr))
		}
	}()
	return work(ctx)
}

// await takes the turn and returns its revision.
func (m *Member) await(ctx context.Context) (int64, error) {
	backoff := retry.Backoff{First: firstRetry, Last: lastRetry, Jitter: jitter}
	for {
		m.mu.Lock()
		err := m.write(ctx, m.addresses)
		lease := m.lease
		m.mu.Unlock()
		if err != nil {
			return 0, err
		}
		done, err := m.config.Client.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(turn), "=", 0)).
			Then(clientv3.OpPut(turn, m.config.ID, clientv3.WithLease(lease))).Commit()
		if err != nil {
			return 0, fmt.Errorf("take the turn of server %s: %w", m.config.Name, err)
		}
		if done.Succeeded {
			return done.Header.Revision, nil
		}
		if err := backoff.Wait(ctx); err != nil {
			return 0, fmt.Errorf("take the turn of server %s: %w", m.config.Name, err)
		}
	}
}

// Leave releases the name.
func (m *Member) Leave(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lease == clientv3.NoLease {
		return nil
	}
	// That deletes the entry as well.
	_, err := m.config.Client.Revoke(ctx, m.lease)
	m.lease, m.written = clientv3.NoLease, ""
	if err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return fmt.Errorf("leave the servers of this datastore: %w", err)
	}
	return nil
}

// write updates the entry and keeps its lease alive. Without a change, that writes nothing to the
// etcd's disk. The caller holds mu.
func (m *Member) write(ctx context.Context, addresses []string) error {
	data, err := json.Marshal(entry{ID: m.config.ID, Addresses: addresses})
	if err != nil {
		return fmt.Errorf("encode entry of server %s: %w", m.config.Name, err)
	}
	if m.lease != clientv3.NoLease {
		_, err := m.config.Client.KeepAliveOnce(ctx, m.lease)
		switch {
		case errors.Is(err, rpctypes.ErrLeaseNotFound):
			m.lease, m.written = clientv3.NoLease, ""
		case err != nil:
			return fmt.Errorf("keep entry of server %s: %w", m.config.Name, err)
		case m.written == string(data):
			return nil
		}
	}
	if m.lease == clientv3.NoLease {
		granted, err := m.config.Client.Grant(ctx, int64(lifetime/time.Second))
		if err != nil {
			return fmt.Errorf("make entry of server %s: %w", m.config.Name, err)
		}
		m.lease = granted.ID
	}
	if err := m.put(ctx, string(data)); err != nil {
		return err
	}
	m.written, m.addresses = string(data), addresses
	return nil
}

// put writes the entry. It overwrites only an earlier one of this server.
func (m *Member) put(ctx context.Context, data string) error {
	backoff := retry.Backoff{First: firstRetry, Last: lastRetry, Jitter: jitter}
	for {
		had, err := m.config.Client.Get(ctx, m.key())
		if err != nil {
			return fmt.Errorf("read entry of server %s: %w", m.config.Name, err)
		}
		revision := int64(0)
		if len(had.Kvs) > 0 {
			var other entry
			if err := json.Unmarshal(had.Kvs[0].Value, &other); err != nil {
				// Whose it is cannot be told, so it may be another server's.
				return fmt.Errorf(
					"read entry of server %s: %w: if no server of this name runs, delete the key %s from the datastore",
					m.config.Name, err, m.key())
			}
			if other.ID != m.config.ID {
				return fmt.Errorf(
					"node-name %s: %w, and it runs: choose another with --node-name; a server that was replaced is "+
						"forgotten within %v", m.config.Name, ErrNameTaken, lifetime)
			}
			revision = had.Kvs[0].ModRevision
		}
		done, err := m.config.Client.Txn(ctx).
			If(clientv3.Compare(clientv3.ModRevision(m.key()), "=", revision)).
			Then(clientv3.OpPut(m.key(), data, clientv3.WithLease(m.lease))).Commit()
		if err != nil {
			return fmt.Errorf("write entry of server %s: %w", m.config.Name, err)
		}
		if done.Succeeded {
			return nil
		}
		if err := backoff.Wait(ctx); err != nil {
			return fmt.Errorf("write entry of server %s: %w", m.config.Name, err)
		}
	}
}

// list returns the addresses of all servers, in order. The caller holds mu.
func (m *Member) list(ctx context.Context) ([]string, error) {
	all, err := m.config.Client.Get(ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		return nil, fmt.Errorf("list servers: %w", err)
	}
	var addresses []string
	for _, kv := range all.Kvs {
		var e entry
		if err := json.Unmarshal(kv.Value, &e); err != nil {
			return nil, fmt.Errorf("read entry of server %s: %w", kv.Key[len(prefix):], err)
		}
		addresses = append(addresses, e.Addresses...)
	}
	slices.Sort(addresses)
	return slices.Compact(addresses), nil
}
