package sharedkeys

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	keysKey     = "/mote/bootstrap/keys"
	settingsKey = "/mote/bootstrap/settings"
	// objects is where API servers keep a cluster's objects.
	objects = "/registry/"
)

// Why a server is refused.
var (
	// ErrToken: the token differs from that of the cluster's servers.
	ErrToken = errors.New("token is not the one this datastore's servers have")
	// ErrOtherKeys: the server has keys of another cluster.
	ErrOtherKeys = errors.New("keys are of another cluster")
	// ErrNoKeys: the etcd holds a cluster, and neither it nor this server has its keys.
	ErrNoKeys = errors.New("keys of the cluster in this datastore are missing")
	// ErrOtherSettings: a setting that all servers must share differs here.
	ErrOtherSettings = errors.New("setting is not the cluster's")
)

// Config is what a server has before it agrees with the others.
type Config struct {
	KV clientv3.KV
	// Secret is the token that all servers share.
	Secret string
	// Dir is where the server's keys are, for messages.
	Dir string
	// Settings are those that all servers must share, by name.
	Settings map[string]string
}

// Agree returns the keys that all servers of an etcd share, files by name. own are this server's:
// all of them, some or none. The first server stores what complete makes of its own. If several
// start at once, one of them is the first.
func Agree(ctx context.Context, c Config, own map[string][]byte,
	complete func(own map[string][]byte) (map[string][]byte, error)) (map[string][]byte, error) {
	keys, err := c.keys(ctx, own, complete)
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(own)) {
		if !bytes.Equal(own[name], keys[name]) {
			return nil, fmt.Errorf(
				"%s in %s is not this datastore's: %w: give another --data-dir, or move that folder away to take "+
					"over the datastore's keys", name, c.Dir, ErrOtherKeys)
		}
	}
	return keys, c.agreeOnSettings(ctx)
}

// keys returns the datastore's keys, which may have become this server's.
func (c Config) keys(ctx context.Context, own map[string][]byte,
	complete func(own map[string][]byte) (map[string][]byte, error)) (map[string][]byte, error) {
	// One transaction sees one revision: if there are objects, their keys were stored before.
	now, err := c.KV.Txn(ctx).Then(
		clientv3.OpGet(keysKey),
		clientv3.OpGet(objects, clientv3.WithPrefix(), clientv3.WithLimit(1), clientv3.WithKeysOnly()),
	).Commit()
	if err != nil {
		return nil, fmt.Errorf("read keys from the datastore: %w", err)
	}
	if have := now.Responses[0].GetResponseRange().Kvs; len(have) > 0 {
		return c.open(have[0].Value)
	}
	all, err := complete(own)
	if err != nil {
		return nil, err
	}
	if len(own) < len(all) && len(now.Responses[1].GetResponseRange().Kvs) > 0 {
		return nil, fmt.Errorf(
			"%w, and %s has not all of them: start the server that made the cluster first, or give an etcd that no "+
				"other cluster uses", ErrNoKeys, c.Dir)
	}
	data, err := seal(c.Secret, all)
	if err != nil {
		return nil, err
	}
	done, err := c.KV.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(keysKey), "=", 0)).
		Then(clientv3.OpPut(keysKey, string(data))).Else(clientv3.OpGet(keysKey)).Commit()
	if err != nil {
		return nil, fmt.Errorf("write keys to the datastore: %w", err)
	}
	if done.Succeeded {
		return all, nil
	}
	return c.open(done.Responses[0].GetResponseRange().Kvs[0].Value)
}

func (c Config) open(data []byte) (map[string][]byte, error) {
	keys, err := unseal(c.Secret, data)
	if errors.Is(err, errDoesNotOpen) {
		return nil, fmt.Errorf("%w: give the --token that the first of them was started with", ErrToken)
	}
	return keys, err
}

// agreeOnSettings refuses a server whose settings differ from those of the first that stored them.
func (c Config) agreeOnSettings(ctx context.Context) error {
	for {
		now, err := c.KV.Get(ctx, settingsKey)
		if err != nil {
			return fmt.Errorf("read settings from the datastore: %w", err)
		}
		all, revision := map[string]string(nil), int64(0)
		if len(now.Kvs) > 0 {
			revision = now.Kvs[0].ModRevision
			if err := json.Unmarshal(now.Kvs[0].Value, &all); err != nil {
				return fmt.Errorf("read settings from the datastore: %w", err)
			}
		}
		var wrong []string
		for _, name := range slices.Sorted(maps.Keys(c.Settings)) {
			if value, known := all[name]; known && value != c.Settings[name] {
				wrong = append(wrong, fmt.Sprintf("%s is %s here and %s there", name, c.Settings[name], value))
			}
		}
		if len(wrong) > 0 {
			return fmt.Errorf("%w: %s: give all servers of a datastore the same", ErrOtherSettings,
				strings.Join(wrong, ", "))
		}
		// A setting that only another version has stays as it is. One that the first server's
		// version lacked is stored from here.
		merged := make(map[string]string)
		maps.Copy(merged, all)
		maps.Copy(merged, c.Settings)
		if len(merged) == len(all) {
			return nil
		}
		data, err := json.Marshal(merged)
		if err != nil {
			return fmt.Errorf("encode settings: %w", err)
		}
		done, err := c.KV.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(settingsKey), "=", revision)).
			Then(clientv3.OpPut(settingsKey, string(data))).Commit()
		if err != nil {
			return fmt.Errorf("write settings to the datastore: %w", err)
		}
		if done.Succeeded {
			return nil
		}
	}
}
