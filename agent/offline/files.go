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
	c.mu.Lock()
	c.entry(key)
	c.mu.Unlock()
	data, err := os.ReadFile(c.path(key))
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			c.log.Warn("kept answer cannot be read", zap.Error(err))
		}
		return nil
	}
	kept, body, err := decode(data)
	if err != nil || kept.Key != key {
		return nil
	}
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

func (c *Cache) forget(key string) {
	c.mu.Lock()
	e := c.entry(key)
	c.mu.Unlock()
	e.writing.Lock()
	defer e.writing.Unlock()
	c.mu.Lock()
	delete(c.entries, key)
	c.mu.Unlock()
	if err := os.Remove(c.path(key)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.log.Warn("remove kept answer", zap.Error(err))
	}
}

// sweep removes what nobody has asked for during its life. What an earlier
// process kept counts as asked for when this one began.
func (c *Cache) sweep(now time.Time) {
	files, err := os.ReadDir(c.config.Dir)
	if err != nil {
		c.log.Warn("list kept answers", zap.Error(err))
		return
	}
	for _, f := range files {
		path := filepath.Join(c.config.Dir, f.Name())
		data, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		kept, _, err := decode(data)
		if err != nil || c.path(kept.Key) != path {
			// Left by a power cut.
			_ = os.Remove(path)
			continue
		}
		c.mu.Lock()
		used, watched := c.began, false
		if e := c.entries[kept.Key]; e != nil {
			used, watched = e.used, e.watches > 0
		}
		c.mu.Unlock()
		if !watched && now.Sub(used) > life(kept.Key) {
			c.forget(kept.Key)
		}
	}
}

// write replaces a file by a record and its data.
func write(path string, r record, data []byte) error {
	head, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return atomicfile.Write(path, append(append(head, '\n'), data...), 0o600)
}
