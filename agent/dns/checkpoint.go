package dns

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/mote-dev/mote/internal/atomicfile"
)

const (
	// checkpointDelay batches changes, to spare flash storage.
	checkpointDelay = 30 * time.Second
	// checkpointVersion is raised when the format changes; files of other versions are ignored.
	checkpointVersion = 1
)

// checkpoint is the format of the file: everything in an index.
type checkpoint struct {
	Version    int
	Domain     string
	Namespaces []string
	Services   []checkpointService
}

type checkpointService struct {
	Namespace, Name string
	service
	Slices map[string]*slice `json:",omitempty"`
}

// restore makes the server answer from the checkpoint until the informers have synced, and reports
// whether there is one.
func (s *Server) restore() bool {
	if s.cfg.CheckpointFile == "" {
		return false
	}
	x, err := readCheckpoint(s.cfg.CheckpointFile, s.cfg.ClusterDomain)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false
	case err != nil:
		// Nothing is lost: the API server has it all.
		s.log.Warn("DNS checkpoint ignored", zap.Error(err))
		return false
	}
	// Most starts find the cluster unchanged, and then write nothing.
	if text, err := x.encode(s.cfg.ClusterDomain); err == nil {
		s.onDisk = sha256.Sum256(text)
	}
	s.names.Store(x)
	s.log.Info("DNS answers from its checkpoint", zap.Int("services", len(x.services)))
	return true
}

// keepCheckpoint writes the checkpoint a while after changes, and at the end.
func (s *Server) keepCheckpoint(ctx context.Context) error {
	if s.cfg.CheckpointFile == "" {
		return nil
	}
	last := s.onDisk
	write := func() {
		// An incomplete index must not replace a complete file.
		if s.names.Load() != s.live {
			return
		}
		select {
		case <-s.ready:
		default:
			return
		}
		text, err := s.live.encode(s.cfg.ClusterDomain)
		if err == nil {
			sum := sha256.Sum256(text)
			if sum == last {
				return
			}
			if err = writeCheckpoint(s.cfg.CheckpointFile, text); err == nil {
				last = sum
			}
		}
		if err != nil {
			s.log.Warn("DNS checkpoint not written", zap.Error(err))
		}
	}
	for {
		select {
		case <-ctx.Done():
			write()
			return nil
		case <-s.dirty:
		}
		select {
		case <-ctx.Done():
		case <-time.After(checkpointDelay):
			write()
		}
	}
}

// encode returns the index in the checkpoint's format, equal for equal indexes.
func (x *index) encode(domain string) ([]byte, error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	c := checkpoint{Version: checkpointVersion, Domain: domain}
	for n := range x.namespaces {
		c.Namespaces = append(c.Namespaces, n)
	}
	slices.Sort(c.Namespaces)
	for k, s := range x.services {
		c.Services = append(c.Services, checkpointService{
			Namespace: k.ns,
			Name:      k.name,
			service:   *s,
			Slices:    x.slices[k],
		})
	}
	slices.SortFunc(c.Services, func(a, b checkpointService) int {
		return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name)
	})
	return json.Marshal(c)
}

// readCheckpoint returns the index in a file.
func readCheckpoint(path, domain string) (*index, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open checkpoint: %w", err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, fmt.Errorf("read checkpoint: %w", err)
	}
	var c checkpoint
	if err := json.NewDecoder(z).Decode(&c); err != nil {
		return nil, fmt.Errorf("read checkpoint: %w", err)
	}
	if c.Version != checkpointVersion || c.Domain != domain {
		return nil, fmt.Errorf("read checkpoint: it is version %d for %s, not version %d for %s", c.Version, c.Domain,
			checkpointVersion, domain)
	}
	x := newIndex(func() {})
	for _, n := range c.Namespaces {
		x.setNamespace(n, true)
	}
	for _, each := range c.Services {
		k := key{each.Namespace, each.Name}
		record := each.service
		x.setService(k, &record)
		for name, s := range each.Slices {
			x.setSlice(k, name, s)
		}
	}
	return x, nil
}

// writeCheckpoint replaces the file atomically.
func writeCheckpoint(path string, text []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make folder of checkpoint: %w", err)
	}
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(text); err != nil {
		return fmt.Errorf("pack checkpoint: %w", err)
	}
	if err := z.Close(); err != nil {
		return fmt.Errorf("pack checkpoint: %w", err)
	}
	return atomicfile.Write(path, packed.Bytes(), 0o600)
}
