package store

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// disk is what is left when the power goes: the synced content of files by name.
type disk map[string][]byte

// diskFS is a file system of one folder that keeps apart what was written and what was synced. A
// file's name counts as synced with its first sync, as on ext4. It can fill up and fail on demand.
type diskFS struct {
	fs.Inode
	mu    sync.Mutex
	files map[string]*diskFile
	// synced names files that a power cut leaves, and removed ones whose removal was not synced
	// yet.
	synced map[string]*diskFile
	room   int64 // bytes that can still be allocated; negative means no limit
	writes func() syscall.Errno
	syncs  func() syscall.Errno
	forget func() bool // whether a failed sync loses a write
	dead   bool        // the power is off: nothing gets through any more
}

// diskFile is a file's content as read, and as synced with the writes since.
type diskFile struct {
	fs.Inode
	d       *diskFS
	now     []byte
	safe    []byte
	pending []write
}

type write struct {
	off  int64
	data []byte // nil for a change of size to off
}

func newDiskFS(content disk) *diskFS {
	none := func() syscall.Errno { return 0 }
	d := &diskFS{
		files:  map[string]*diskFile{},
		synced: map[string]*diskFile{},
		room:   -1,
		writes: none,
		syncs:  none,
		forget: func() bool { return false },
	}
	for name, b := range content {
		f := &diskFile{d: d, now: append([]byte(nil), b...), safe: append([]byte(nil), b...)}
		d.files[name], d.synced[name] = f, f
	}
	return d
}

func (w write) apply(b []byte) []byte {
	if w.data == nil {
		if w.off <= int64(len(b)) {
			return b[:w.off:w.off]
		}
		return append(b, make([]byte, w.off-int64(len(b)))...)
	}
	if need := w.off + int64(len(w.data)); need > int64(len(b)) {
		b = append(b, make([]byte, need-int64(len(b)))...)
	}
	copy(b[w.off:], w.data)
	return b
}

// empty forgets the files' content, which a test of many rounds would otherwise keep until its end.
func (d *diskFS) empty() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, files := range []map[string]*diskFile{d.files, d.synced} {
		for _, f := range files {
			f.now, f.safe, f.pending = nil, nil, nil
		}
	}
}

// cut turns the power off and gives what is left: what was synced, and of each write since any part
// in sectors of 512 bytes or nothing.
func (d *diskFS) cut(rnd *rand.Rand) disk {
	return d.off(func(f *diskFile, b []byte) []byte {
		keep := rnd.IntN(3) // no write, all, or each by chance
		for _, w := range f.pending {
			switch {
			case keep == 0, keep == 2 && rnd.IntN(2) == 0:
			case w.data == nil || keep == 1:
				b = w.apply(b)
			default:
				for o := 0; o < len(w.data); o += 512 {
					if rnd.IntN(4) > 0 {
						b = write{w.off + int64(o), w.data[o:min(o+512, len(w.data))]}.apply(b)
					}
				}
			}
		}
		return b
	})
}

// lose turns the power off and gives what is left at worst: what was synced.
func (d *diskFS) lose() disk {
	return d.off(func(_ *diskFile, b []byte) []byte { return b })
}

// off turns the power off and gives what is left: what add makes of each file and a copy of what
// was synced of it.
func (d *diskFS) off(add func(f *diskFile, b []byte) []byte) disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dead = true
	left := disk{}
	for name, f := range d.synced {
		left[name] = add(f, append([]byte(nil), f.safe...))
	}
	return left
}

var (
	_ fs.NodeOnAdder   = (*diskFS)(nil)
	_ fs.NodeCreater   = (*diskFS)(nil)
	_ fs.NodeUnlinker  = (*diskFS)(nil)
	_ fs.NodeFsyncer   = (*diskFS)(nil)
	_ fs.NodeGetattrer = (*diskFS)(nil)
	_ fs.NodeStatfser  = (*diskFS)(nil)
	_ fs.NodeOpener    = (*diskFile)(nil)
	_ fs.NodeReader    = (*diskFile)(nil)
	_ fs.NodeWriter    = (*diskFile)(nil)
	_ fs.NodeFsyncer   = (*diskFile)(nil)
	_ fs.NodeGetattrer = (*diskFile)(nil)
	_ fs.NodeSetattrer = (*diskFile)(nil)
)

func (d *diskFS) OnAdd(ctx context.Context) {
	for name, f := range d.files {
		d.AddChild(name, d.NewPersistentInode(ctx, f, fs.StableAttr{Mode: fuse.S_IFREG}), true)
	}
}

func (d *diskFS) Create(ctx context.Context, name string, _, _ uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle,
	uint32, syscall.Errno) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead {
		return nil, nil, 0, syscall.EIO
	}
	f := &diskFile{d: d}
	d.files[name] = f
	f.attr(&out.Attr)
	return d.NewPersistentInode(ctx, f, fs.StableAttr{Mode: fuse.S_IFREG}), nil, 0, 0
}

func (d *diskFS) Unlink(_ context.Context, name string) syscall.Errno {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead {
		return syscall.EIO
	}
	if d.room >= 0 {
		d.room += int64(len(d.files[name].now))
	}
	delete(d.files, name)
	return 0
}

// Fsync of the folder makes its names what they are now.
func (d *diskFS) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead {
		return syscall.EIO
	}
	clear(d.synced)
	for name, f := range d.files {
		d.synced[name] = f
	}
	return 0
}

func (d *diskFS) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode = fuse.S_IFDIR | 0o700
	return 0
}

func (d *diskFS) Statfs(_ context.Context, out *fuse.StatfsOut) syscall.Errno {
	out.Bsize, out.Blocks, out.Bfree, out.Bavail, out.NameLen = 4096, 1<<20, 1<<19, 1<<19, 255
	return 0
}

func (f *diskFile) attr(out *fuse.Attr) {
	out.Mode, out.Size, out.Blksize, out.Blocks = fuse.S_IFREG|0o600, uint64(len(f.now)), 4096,
		uint64(len(f.now)+511)/512
}

func (f *diskFile) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, 0, 0
}

func (f *diskFile) Read(_ context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if off >= int64(len(f.now)) {
		return fuse.ReadResultData(nil), 0
	}
	return fuse.ReadResultData(append([]byte(nil), f.now[off:min(off+int64(len(dest)), int64(len(f.now)))]...)), 0
}

func (f *diskFile) change(w write) syscall.Errno {
	grow := w.off + int64(len(w.data)) - int64(len(f.now))
	if w.data != nil && grow < 0 {
		grow = 0
	}
	if f.d.room >= 0 {
		if grow > f.d.room {
			return syscall.ENOSPC
		}
		f.d.room -= grow
	}
	f.now = w.apply(f.now)
	f.pending = append(f.pending, w)
	return 0
}

func (f *diskFile) Write(_ context.Context, _ fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.d.dead {
		return 0, syscall.EIO
	}
	if errno := f.d.writes(); errno != 0 {
		return 0, errno
	}
	if errno := f.change(write{off, append([]byte(nil), data...)}); errno != 0 {
		return 0, errno
	}
	return uint32(len(data)), 0
}

func (f *diskFile) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.d.dead {
		return syscall.EIO
	}
	if errno := f.d.syncs(); errno != 0 {
		// As on Linux: what could not be written stays readable and counts as clean from now on.
		f.pending = slices.DeleteFunc(f.pending, func(w write) bool { return w.data != nil && f.d.forget() })
		return errno
	}
	for _, w := range f.pending {
		f.safe = w.apply(f.safe)
	}
	f.pending = nil
	for name, g := range f.d.files {
		if g == f {
			f.d.synced[name] = f
		}
	}
	return 0
}

func (f *diskFile) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	f.attr(&out.Attr)
	return 0
}

func (f *diskFile) Setattr(_ context.Context, _ fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.d.dead {
		return syscall.EIO
	}
	if size, ok := in.GetSize(); ok {
		if errno := f.change(write{off: int64(size)}); errno != 0 {
			return errno
		}
	}
	f.attr(&out.Attr)
	return 0
}

// mount mounts a file system with the given content and gives the path of a store file on it.
func mount(t *testing.T, content disk) (d *diskFS, path string, unmount func()) {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil || os.Geteuid() != 0 {
		t.Skip("needs root and /dev/fuse")
	}
	dir := filepath.Join(t.TempDir(), "mnt")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	d = newDiskFS(content)
	srv, err := fs.Mount(dir, d,
		&fs.Options{MountOptions: fuse.MountOptions{DirectMount: true, FsName: "mote-test", MaxWrite: 1 << 16}})
	if err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	unmount = func() {
		once.Do(func() {
			// By force, which ends the connection as well: a mount namespace made meanwhile may
			// have a copy of the mount.
			if err := syscall.Unmount(dir, syscall.MNT_FORCE); err != nil {
				_ = syscall.Unmount(dir, syscall.MNT_DETACH)
			}
			srv.Wait()
			d.empty()
		})
	}
	t.Cleanup(unmount)
	return d, filepath.Join(dir, "state.db"), unmount
}
