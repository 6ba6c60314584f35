package bundle

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/mote-dev/mote/internal/atomicfile"
	"github.com/mote-dev/mote/internal/datadir"
)

const (
	currentLink = datadir.CurrentLink
	// completeMark is written last, after everything else is on disk: a folder without it is a
	// leftover of an interrupted start.
	completeMark = ".complete"
	tempPrefix   = ".unpack-"
)

// Options configure Unpack.
type Options struct {
	// Dir is the folder that holds one folder for each bundle hash and the link "current".
	// Required.
	Dir string
	// Progress, if set, is called after each file with the bytes written so far and in total.
	Progress func(done, total int64)
	// VerifyContent compares the hash of every file; otherwise sizes and modes are compared. Meant
	// for the start after an unclean stop.
	VerifyContent bool
}

// Bundle is the unpacked bundle.
type Bundle struct {
	// Dir is the folder the current link leads through: <dir>/current. Paths in it stay valid when
	// another version of mote unpacks its own bundle.
	Dir      string
	Manifest Manifest
	// Unpacked says whether this call had to write the files.
	Unpacked bool
}

// Path returns the path of a file of the bundle.
func (b Bundle) Path(name string) string { return filepath.Join(b.Dir, name) }

// Unpack makes sure that the embedded bundle is unpacked and undamaged below o.Dir and that the
// link "current" points to it. A damaged or incomplete folder is replaced. Folders of other
// versions are removed, except the previous one: its shims may still run.
func Unpack(o Options) (Bundle, error) {
	m, err := ReadManifest()
	if err != nil {
		return Bundle{}, err
	}
	return unpack(o, m, func() (io.ReadCloser, error) { return openArchive() })
}

func unpack(o Options, m Manifest, open func() (io.ReadCloser, error)) (Bundle, error) {
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return Bundle{}, fmt.Errorf("create folder for tools: %w", err)
	}
	// One process at a time: files another is still writing look like the leftovers of an
	// interrupted start. The folder itself is locked, so that no lock file is left behind.
	lock, err := os.Open(o.Dir)
	if err != nil {
		return Bundle{}, fmt.Errorf("lock folder for tools: %w", err)
	}
	defer func() { _ = lock.Close() }()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return Bundle{}, fmt.Errorf("lock folder for tools: %w", err)
	}
	name := m.Hash[:16]
	target := filepath.Join(o.Dir, name)
	b := Bundle{Dir: filepath.Join(o.Dir, currentLink), Manifest: m}
	if err := Verify(target, m, o.VerifyContent); errors.Is(err, ErrDamaged) {
		if err := replace(o, m, target, open); err != nil {
			return Bundle{}, err
		}
		b.Unpacked = true
	} else if err != nil {
		return Bundle{}, err
	}
	previous, err := point(o.Dir, name)
	if err != nil {
		return Bundle{}, err
	}
	if b.Unpacked {
		// The decompression window is this process' largest allocation, and is needed once per
		// installed version.
		debug.FreeOSMemory()
	}
	return b, removeOthers(o.Dir, name, previous)
}

// Verify checks the unpacked files in dir. It returns [ErrDamaged] if they are missing or differ
// from the bundle's, and any other error if they could not be checked.
func Verify(dir string, m Manifest, content bool) error {
	if _, err := os.Stat(filepath.Join(dir, completeMark)); missing(err) {
		return fmt.Errorf("%w: unpacking did not finish", ErrDamaged)
	} else if err != nil {
		return fmt.Errorf("check unpacked tools: %w", err)
	}
	for _, f := range m.Files {
		path := filepath.Join(dir, f.Name)
		info, err := os.Lstat(path)
		if missing(err) {
			return fmt.Errorf("%w: %s is missing", ErrDamaged, f.Name)
		}
		if err != nil {
			return fmt.Errorf("check unpacked tool: %w", err)
		}
		if !info.Mode().IsRegular() || info.Size() != f.Size || uint32(info.Mode().Perm()) != f.Mode {
			return fmt.Errorf("%w: size or mode of %s differs from the bundle's", ErrDamaged, f.Name)
		}
		if !content {
			continue
		}
		sum, err := hashFile(path)
		if err != nil {
			return err
		}
		if sum != f.SHA256 {
			return fmt.Errorf("%w: content of %s differs from the bundle's", ErrDamaged, f.Name)
		}
	}
	return nil
}

// missing reports whether err says that a file does not exist, or that a file is where its folder
// should be.
func missing(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) }

// replace unpacks beside the target and renames, so that a power cut leaves either nothing or
// everything under the final name.
func replace(o Options, m Manifest, target string, open func() (io.ReadCloser, error)) error {
	temp, err := os.MkdirTemp(o.Dir, tempPrefix)
	if err != nil {
		return fmt.Errorf("create folder to unpack to: %w", err)
	}
	defer os.RemoveAll(temp)
	if err := os.Chmod(temp, 0o755); err != nil {
		return fmt.Errorf("open up folder to unpack to: %w", err)
	}
	if err := extract(o, m, temp, open); err != nil {
		return err
	}
	// Executables of a damaged folder may be running. Renaming and removing it leaves them their
	// open files.
	if _, err := os.Lstat(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("find damaged tools: %w", err)
	} else if err == nil {
		damaged := temp + ".old"
		if err := os.Rename(target, damaged); err != nil {
			return fmt.Errorf("move damaged tools away: %w", err)
		}
		defer os.RemoveAll(damaged)
	}
	if err := os.Rename(temp, target); err != nil {
		return fmt.Errorf("put tools in place: %w", err)
	}
	return atomicfile.SyncDir(o.Dir)
}

func extract(o Options, m Manifest, dir string, open func() (io.ReadCloser, error)) error {
	archive, err := open()
	if err != nil {
		return err
	}
	defer archive.Close()
	// One goroutine decodes: several would each hold a window.
	dec, err := zstd.NewReader(archive, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(1<<WindowLog),
		zstd.WithDecoderLowmem(true))
	if err != nil {
		return fmt.Errorf("open bundle: %w", err)
	}
	defer dec.Close()

	want := map[string]File{}
	var total, done int64
	for _, f := range m.Files {
		want[f.Name] = f
		total += f.Size
	}
	tr := tar.NewReader(dec)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("unpack bundle: %w", err)
		}
		f, ok := want[h.Name]
		if !ok {
			return fmt.Errorf("unpack bundle: %q is not in its manifest", h.Name)
		}
		delete(want, h.Name)
		if err := writeFile(filepath.Join(dir, f.Name), f, tr); err != nil {
			return err
		}
		done += f.Size
		if o.Progress != nil {
			o.Progress(done, total)
		}
	}
	for name := range want {
		return fmt.Errorf("unpack bundle: %q is missing in the archive", name)
	}
	if err := os.WriteFile(filepath.Join(dir, completeMark), []byte(m.Hash+"\n"), 0o644); err != nil {
		return fmt.Errorf("mark bundle complete: %w", err)
	}
	return atomicfile.SyncDir(dir)
}

func writeFile(path string, f File, r io.Reader) (err error) {
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fs.FileMode(f.Mode))
	if err != nil {
		return fmt.Errorf("create tool: %w", err)
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(out, sum), r); err != nil {
		return fmt.Errorf("unpack %s: %w", f.Name, err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != f.SHA256 {
		return fmt.Errorf("unpack %s: hash is %s, want %s", f.Name, got, f.SHA256)
	}
	// The umask may have narrowed the mode Verify compares.
	if err := out.Chmod(fs.FileMode(f.Mode)); err != nil {
		return fmt.Errorf("set mode of %s: %w", f.Name, err)
	}
	if err := out.Sync(); err != nil {
		return fmt.Errorf("write %s to disk: %w", f.Name, err)
	}
	return nil
}

// point makes the link "current" point to name and returns its previous target.
func point(dir, name string) (previous string, err error) {
	link := filepath.Join(dir, currentLink)
	previous, err = os.Readlink(link)
	switch {
	case err == nil, errors.Is(err, fs.ErrNotExist):
	case errors.Is(err, unix.EINVAL):
		// A file or folder is in the link's place. Everything in this folder is ours.
		if err := os.RemoveAll(link); err != nil {
			return "", fmt.Errorf("remove what is in place of the tools' link: %w", err)
		}
	default:
		return "", fmt.Errorf("find current tools: %w", err)
	}
	if previous == name {
		return previous, nil
	}
	temp := filepath.Join(dir, tempPrefix+"link")
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("remove old link: %w", err)
	}
	if err := os.Symlink(name, temp); err != nil {
		return "", fmt.Errorf("link current tools: %w", err)
	}
	if err := os.Rename(temp, link); err != nil {
		return "", fmt.Errorf("link current tools: %w", err)
	}
	return previous, atomicfile.SyncDir(dir)
}

// removeOthers removes leftovers of interrupted starts and, if this start changed the current
// bundle, all others except the previous one.
func removeOthers(dir, current, previous string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list tools: %w", err)
	}
	if previous == current {
		return removeMatching(dir, entries, func(name string) bool { return strings.HasPrefix(name, tempPrefix) })
	}
	return removeMatching(dir, entries, func(name string) bool {
		return name != current && name != previous && name != currentLink
	})
}

func removeMatching(dir string, entries []fs.DirEntry, match func(string) bool) error {
	var errs []error
	for _, e := range entries {
		if match(e.Name()) {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				errs = append(errs, fmt.Errorf("remove old tools: %w", err))
			}
		}
	}
	return errors.Join(errs...)
}

func hashFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("open tool: %w", err)
	}
	defer f.Close()
	sum := sha256.New()
	_, err = io.Copy(sum, f)
	if errors.Is(err, unix.EIO) {
		// The disk has lost this copy, but may well take a new one.
		return "", fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if err != nil {
		return "", fmt.Errorf("read tool: %w", err)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}
