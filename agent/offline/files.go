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

// record is the first line of a file; the answer's body follows.
type record struct {
	Key         string `json:"key"`
	Status      int    `json:"status"`
	ContentType string `json:"contentType"`
}

func (c *Cache) path(key string) string {
	sum := sha256.Sum256([]byte(key))
	return filepath.Join(c.config.Dir, hex.EncodeToString(sum[:16]))
}

// keep writes the answer to the request of a number if it says something else
// than the one before.
func (c *Cache) keep(key string, number uint64, r record, data []byte) {
	sum := sha256.Sum256(data)
	var nodes map[string]digest
	if ofNodes(key) {
		// What cannot be decoded is compared as it is.
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
		// What the file holds is not known now.
		sum = digest{}
		c.log.Warn("what the cluster said was not kept: this node may not come back without its server", zap.Error(err))
	}
	c.mu.Lock()
	e.sum = sum
	c.mu.Unlock()
}

// recall returns the kept answer, or nil if there is none.
func (c *Cache) recall(r *http.Request, key string) *http.Response {
	data, err := os.ReadFile(c.path(key))
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			c.log.Warn("cached answer cannot be read", zap.Error(err))
		}
		return nil
	}
	kept, body, err := decode(data)
	if err == nil && kept.Key != key {
		err = fmt.Errorf("it is for %s", kept.Key)
	}
	if err != nil {
		c.log.Warn("cached answer is damaged", zap.String("file", c.path(key)), zap.String("key", key), zap.Error(err))
		return nil
	}
	c.mu.Lock()
	c.entry(key)
	c.mu.Unlock()
	return answer(r, kept.Status, kept.ContentType, io.NopCloser(bytes.NewReader(body)))
}

// kept reports whether there is an answer for a key, of whatever age.
func (c *Cache) kept(key string) bool {
	_, err := os.Lstat(c.path(key))
	return err == nil
}

func decode(data []byte) (record, []byte, error) {
	var r record
	head, body, ok := bytes.Cut(data, []byte("\n"))
	if !ok {
		return r, nil, errors.New("it is cut short")
	}
	return r, body, json.Unmarshal(head, &r)
}

// forget removes the answer to a key, which the response to the request of a number says is gone.
// The entry stays until the next sweep: an earlier request may still be under way, whose response
// must not be stored after this one.
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
		c.log.Warn("remove cached answer", zap.Error(err))
	}
}

// sweep removes entries and files that nobody has used during their life. A file that an earlier
// process left counts as used when this process began.
func (c *Cache) sweep(now time.Time) {
	files, err := os.ReadDir(c.config.Dir)
	if err != nil {
		c.log.Warn("list cached answers", zap.Error(err))
	}
	for _, f := range files {
		path := filepath.Join(c.config.Dir, f.Name())
		data, err := os.ReadFile(path)
		if err != nil {
			// It may be readable next time.
			continue
		}
		kept, _, err := decode(data)
		if err != nil || c.path(kept.Key) != path {
			c.removeStray(path)
			continue
		}
		if !c.inUse(kept.Key, now) {
			c.drop(kept.Key)
		}
	}
	// What is left never had a file, or lost it.
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

// removeStray removes a file that holds no answer: one of a write that a power cut interrupted. A
// write of this process may be under way, and has its file.
func (c *Cache) removeStray(path string) {
	info, err := os.Lstat(path)
	if err != nil || !info.ModTime().Before(c.began) {
		return
	}
	c.log.Debug("removed a file that holds no answer", zap.String("file", path))
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
