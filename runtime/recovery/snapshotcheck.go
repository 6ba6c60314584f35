package recovery

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"go.etcd.io/bbolt"
)

// kindCommitted marks the layers of images in a snapshotter's database. The others are writable
// layers of containers: losing one costs its own container, which CRI and the kubelet handle.
const kindCommitted = 3

// checkSnapshotFolders compares a snapshotter's database, which [checkBolt] has accepted, with the
// folders beside it. Otherwise a layer without its folder would only be noticed when a container
// starts from it.
func checkSnapshotFolders(db string) (err error) {
	b, err := bbolt.Open(db, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return fmt.Errorf("open snapshot database: %w", err)
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	folders := filepath.Join(filepath.Dir(db), snapshotsFolder)
	return b.View(func(tx *bbolt.Tx) error {
		v1 := tx.Bucket([]byte("v1"))
		if v1 == nil {
			return nil
		}
		list := v1.Bucket([]byte("snapshots"))
		if list == nil {
			return nil
		}
		return list.ForEachBucket(func(key []byte) error {
			if kind := list.Bucket(key).Get([]byte("kind")); len(kind) != 1 || kind[0] != kindCommitted {
				return nil
			}
			id, _ := binary.Uvarint(list.Bucket(key).Get([]byte("id")))
			_, err := os.Stat(filepath.Join(folders, strconv.FormatUint(id, 10)))
			if errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("%w: snapshot %s: %w", ErrDamaged, key, err)
			}
			if err != nil {
				return fmt.Errorf("find snapshot %s: %w", key, err)
			}
			return nil
		})
	})
}
