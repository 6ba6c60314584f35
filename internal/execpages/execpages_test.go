package execpages

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestReadOnly_Map_OnlyUnwritableOfTheFile(t *testing.T) {
	const maps = `00400000-00401000 r--p 00000000 fe:00 12 /opt/my tools/mote
00401000-04de9000 r-xp 00001000 fe:00 12 /opt/my tools/mote
0b431000-0b600000 rw-p 0b030000 fe:00 12 /opt/my tools/mote
0d000000-0d100000 rw-p 00000000 00:00 0
c000000000-c004000000 rw-p 00000000 00:00 0 
7f0000000000-7f0000010000 r--s 00000000 fe:00 77                         /opt/my tools/mote.db
7ffc1000-7ffc3000 r-xp 00000000 00:00 0                                  [vdso]
`
	found, err := readOnly(strings.NewReader(maps), "/opt/my tools/mote")
	if err != nil {
		t.Fatal(err)
	}
	want := []mapping{{0x400000, 0x401000}, {0x401000, 0x4de9000}}
	if !slices.Equal(found, want) {
		t.Errorf("found %x, want %x", found, want)
	}
}

func TestReadOnly_BrokenMap_IsAnError(t *testing.T) {
	if _, err := readOnly(strings.NewReader("zz-401000 r-xp 0 fe:00 12 /mote\n"), "/mote"); err == nil {
		t.Error("no error")
	}
}

// TestRelease_MappedFile_IsDroppedAndComesBack looks at a file of its own: the test's executable is
// still being written to disk.
func TestRelease_MappedFile_IsDroppedAndComesBack(t *testing.T) {
	file := filepath.Join(t.TempDir(), "mapped")
	content := bytes.Repeat([]byte("mote"), 1<<20)
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, len(content), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Munmap(mem); err != nil {
			t.Error(err)
		}
	}()
	if !bytes.Equal(mem, content) {
		t.Fatal("the map is not the file")
	}
	before := resident(t, mem)
	if err := release(file); errors.Is(err, unix.EINVAL) {
		t.Skip("the kernel is older than 5.4")
	} else if err != nil {
		t.Fatal(err)
	}
	if after := resident(t, mem); after > before/2 {
		var fs unix.Statfs_t
		if err := unix.Statfs(file, &fs); err == nil && fs.Type == unix.TMPFS_MAGIC {
			t.Skip("a file in memory cannot be dropped from it")
		}
		t.Errorf("%d of %d pages stayed", after, before)
	}
	if !bytes.Equal(mem, content) {
		t.Error("the map is no longer the file")
	}
}

// resident counts the pages of mem that are in memory.
func resident(t *testing.T, mem []byte) int {
	t.Helper()
	pages := make([]byte, (len(mem)+os.Getpagesize()-1)/os.Getpagesize())
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&mem[0])), uintptr(len(mem)),
		uintptr(unsafe.Pointer(&pages[0]))); errno != 0 {
		t.Fatal(errno)
	}
	n := 0
	for _, p := range pages {
		n += int(p & 1)
	}
	return n
}
