package offline

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"

	"github.com/mote-dev/mote/internal/atomicfile"
)

// record is the first line of a file; the body of the response follows.
type record struct {
	Key         string `json:"key"`
	Status      int    `json:"status"`
	ContentType string `json:"contentType"`
}

func (c *Cache) path(key string) string {
	sum := sha256.Sum256([]byte(key))
	return filepath.Join(c.config.Dir, hex.EncodeToString(sum[:16]))
}

// store writes the response to the request of a number, unless it equals the previous one.
func (c *Cache) store(key string, number uint64, r record, data []byte) {
	sum := sha256.Sum256(data)
	var nodes map[string]digest
	if ofNodes(key) {
		// A list that cannot be decoded is compared as bytes.
		if meaning, each, err := digestNodes(data); err == nil {
			sum, nodes = meaning, each
		}
	}
	c.mu.Lock()
	e := c.entry(key)
	c.mu.Unlock()
	e.writing.Lock()
	defer e.writing.Unlock()
	c.mu.Lock()
	later, same := number > e.written, e.sum == sum
	if later {
		e.written, e.nodes = number, nodes
	}
	c.mu.Unlock()
	if !later || same {
		return
	}
	err := write(c.path(key), r, data)
	if err != nil {
		// The content of the file is now unknown.
		sum = digest{}
		c.log.Warn("response not cached: this node may not restart while no server answers", zap.Error(err))
	}
	c.mu.Lock()
	e.sum = sum
	c.mu.Unlock()
}

// load returns the cached response, or nil if there is none.
func (c *Cache) load(r *http.Request, key string) *http.Response {
	data, err := os.ReadFile(c.path(key))
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			c.log.Warn("cached response cannot be read", zap.Error(err))
		}
		return nil
	}
	cached, body, err := decode(data)
	if err == nil && cached.Key != key {
		err = fmt.Errorf("it is for %s", cached.Key)
	}
	if err != nil {
		c.log.Warn("cached response is damaged", zap.String("file", c.path(key)), zap.String("key", key),
			zap.Error(err))
		return nil
	}
	c.mu.Lock()
	c.entry(key)
	c.mu.Unlock()
	return newResponse(r, cached.Status, cached.ContentType, io.NopCloser(bytes.NewReader(body)))
}

// has reports whether there is a response for a key, of whatever age.
func (c *Cache) has(key string) bool {
	_, err := os.Lstat(c.path(key))
	return err == nil
}

func decode(data []byte) (record, []byte, error) {
	var r record
	head, body, ok := bytes.Cut(data, []byte("\n"))
	if !ok {
		return r, nil, errors.New("it is truncated")
	}
	return r, body, json.Unmarshal(head, &r)
}

// forget removes the response for a key, after the request of a number found the object gone. The
// entry stays until the next sweep: the response to an earlier request, still in flight, must not
// be stored after this.
func (c *Cache) forget(key string, number uint64) {
	c.mu.Lock()
	e := c.entry(key)
	c.mu.Unlock()
	e.writing.Lock()
	defer e.writing.Unlock()
	c.mu.Lock()
	later := number > e.written
	if later {
		e.written, e.sum = number, digest{}
	}
	c.mu.Unlock()
	if later {
		c.remove(key)
	}
}

func (c *Cache) remove(key string) {
	if err := os.Remove(c.path(key)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.log.Warn("remove cached response", zap.Error(err))
	}
}

// sweep removes entries and files that were not used during their life. A file that an earlier
// process left counts as used when this process began.
func (c *Cache) sweep(now time.Time) {
	files, err := os.ReadDir(c.config.Dir)
	if err != nil {
		c.log.Warn("list cached responses", zap.Error(err))
	}
	for _, f := range files {
		path := filepath.Join(c.config.Dir, f.Name())
		data, err := os.ReadFile(path)
		if err != nil {
			// It may be readable next time.
			continue
		}
		cached, _, err := decode(data)
		if err != nil || c.path(cached.Key) != path {
			c.removeStray(path, now)
			continue
		}
		if !c.inUse(cached.Key, now) {
			c.drop(cached.Key)
		}
	}
	// These never had a file, or lost it.
	c.mu.Lock()
	var rest []string
	for key := range c.entries {
		rest = append(rest, key)
	}
	c.mu.Unlock()
	for _, key := range rest {
		if !c.inUse(key, now) {
			c.drop(key)
		}
	}
}

// removeStray removes a file without a response: one of a write that a power cut interrupted. A
// recent file stays, as it may be of a write in progress.
func (c *Cache) removeStray(path string, now time.Time) {
	info, err := os.Lstat(path)
	if err != nil || now.Sub(info.ModTime()) < idleLife {
		return
	}
	c.log.Debug("removed a file without a response", zap.String("file", path))
	_ = os.Remove(path)
}

// inUse reports whether a key is watched or was used during its life.
func (c *Cache) inUse(key string, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	used := c.began
	if e := c.entries[key]; e != nil {
		if e.watches > 0 {
			return true
		}
		used = e.used
	}
	return now.Sub(used) <= life(key)
}

// drop removes the entry and the file of a key.
func (c *Cache) drop(key string) {
	c.mu.Lock()
	e := c.entry(key)
	c.mu.Unlock()
	e.writing.Lock()
	defer e.writing.Unlock()
	c.mu.Lock()
	delete(c.entries, key)
	c.mu.Unlock()
	c.remove(key)
}

// write replaces a file by a record and its data.
func write(path string, r record, data []byte) error {
	head, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return atomicfile.Write(path, append(append(head, '\n'), data...), 0o600)
}
