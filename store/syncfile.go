package store

import (
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
)

// syncFile is a file that SQLite writes and that the store syncs itself. After a failed sync Linux
// takes pages for clean that never reached the disk, and SQLite does not write them a second time.
// So the file is torn then, until repair has written all of it again.
type syncFile struct {
	f    *os.File
	torn atomic.Bool
	// copying is held during a checkpoint or a repair. The log and the store file share it.
	copying *sync.Mutex
}

func (s *syncFile) sync() error {
	err := syncData(s.f)
	if err != nil {
		s.torn.Store(true)
	}
	return err
}

// repair writes a torn file again.
func (s *syncFile) repair() error {
	if !s.torn.Load() {
		return nil
	}
	s.copying.Lock()
	defer s.copying.Unlock()
	if err := rewrite(s.f); err != nil {
		return err
	}
	s.torn.Store(false)
	return nil
}

// rewrite writes the content of a file to the disk, also where the kernel thinks that it is there.
func rewrite(f *os.File) error {
	buf := make([]byte, 64<<10)
	for off := int64(0); ; {
		n, err := f.ReadAt(buf, off)
		if n > 0 {
			if _, err := f.WriteAt(buf[:n], off); err != nil {
				return err
			}
		}
		off += int64(n)
		if errors.Is(err, io.EOF) {
			return syncData(f)
		}
		if err != nil {
			return err
		}
	}
}
