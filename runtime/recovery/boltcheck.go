package recovery

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
)

// errDamagedDB is wrapped when a bbolt file cannot be trusted.
var errDamagedDB = errors.New("database file is damaged")

// The on-disk format of bbolt v2 (go.etcd.io/bbolt v1.3 to v1.5), as far as
// checking it needs.
const (
	boltMagic   = 0xED0CDAED
	boltVersion = 2

	boltPageHeader = 16
	boltElement    = 16
	boltMetaSize   = 64
	boltBucketSize = 16

	boltBranchPage   = 0x01
	boltLeafPage     = 0x02
	boltFreelistPage = 0x10
	boltBucketFlag   = 0x01

	boltNoFreelist = ^uint64(0)
	// boltMaxDepth is far more than any tree of ours has; a loop has more.
	boltMaxDepth = 64
)

// checkBolt walks every page of a bbolt file and reports the first thing wrong
// with it. bbolt's own check maps the file and reads through the map: on a file
// that was cut short that is a fatal signal, in a goroutine nobody can guard.
// This one reads, so the worst a bad file can do is to be reported.
func checkBolt(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("open database file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("open database file: %w", err)
	}
	c := boltChecker{r: f, size: uint64(info.Size()), seen: map[uint64]bool{}}
	if err := c.check(); err != nil {
		return fmt.Errorf("check %s: %w", file, err)
	}
	return nil
}

type boltMeta struct {
	pageSize uint64
	root     uint64
	freelist uint64
	pages    uint64 // pages in use; all ids are below
	txid     uint64
}

type boltChecker struct {
	r    io.ReaderAt
	size uint64
	meta boltMeta
	seen map[uint64]bool
}

func damagedDB(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errDamagedDB, fmt.Sprintf(format, args...))
}

func (c *boltChecker) check() error {
	if err := c.readMeta(); err != nil {
		return err
	}
	if need := c.meta.pages * c.meta.pageSize; c.size < need {
		return damagedDB("it has %d bytes, its pages need %d", c.size, need)
	}
	if c.meta.freelist != boltNoFreelist {
		page, err := c.page(c.meta.freelist)
		if err != nil {
			return err
		}
		if flags := binary.LittleEndian.Uint16(page[8:]); flags != boltFreelistPage {
			return damagedDB("page %d is no freelist", c.meta.freelist)
		}
	}
	return c.tree(c.meta.root, 0)
}

// readMeta finds the newer of the two meta pages that is whole. The second
// stands one page in, and the page size is only known from a meta page, so for
// a damaged first one the usual sizes are tried.
func (c *boltChecker) readMeta() error {
	first, err := c.metaAt(0)
	sizes := []uint64{4096, 8192, 16384, 32768, 65536}
	if err == nil {
		sizes = []uint64{first.pageSize}
		c.meta = first
	}
	for _, s := range sizes {
		second, err2 := c.metaAt(s)
		if err2 == nil && second.pageSize == s && (err != nil || second.txid > first.txid) {
			c.meta, err = second, nil
			break
		}
	}
	return err
}

func (c *boltChecker) metaAt(offset uint64) (boltMeta, error) {
	var buf [boltPageHeader + boltMetaSize]byte
	if _, err := c.r.ReadAt(buf[:], int64(offset)); err != nil {
		return boltMeta{}, damagedDB("its meta page cannot be read: %v", err)
	}
	m := buf[boltPageHeader:]
	le := binary.LittleEndian
	if le.Uint32(m) != boltMagic || le.Uint32(m[4:]) != boltVersion {
		return boltMeta{}, damagedDB("it has no valid meta page")
	}
	sum := fnv.New64a()
	sum.Write(m[:boltMetaSize-8])
	if sum.Sum64() != le.Uint64(m[boltMetaSize-8:]) {
		return boltMeta{}, damagedDB("its meta page has a wrong checksum")
	}
	meta := boltMeta{
		pageSize: uint64(le.Uint32(m[8:])),
		root:     le.Uint64(m[16:]),
		freelist: le.Uint64(m[32:]),
		pages:    le.Uint64(m[40:]),
		txid:     le.Uint64(m[48:]),
	}
	if meta.pageSize < 512 || meta.pageSize > 1<<20 || meta.pages > 1<<40 {
		return boltMeta{}, damagedDB("its meta page is implausible")
	}
	return meta, nil
}

// page reads a page with its overflow.
func (c *boltChecker) page(id uint64) ([]byte, error) {
	if id < 2 || id >= c.meta.pages {
		return nil, damagedDB("page %d is out of range", id)
	}
	if c.seen[id] {
		return nil, damagedDB("page %d is used twice", id)
	}
	c.seen[id] = true
	var header [boltPageHeader]byte
	offset := int64(id * c.meta.pageSize)
	if _, err := c.r.ReadAt(header[:], offset); err != nil {
		return nil, damagedDB("page %d cannot be read: %v", id, err)
	}
	if got := binary.LittleEndian.Uint64(header[:]); got != id {
		return nil, damagedDB("page %d says it is page %d", id, got)
	}
	overflow := uint64(binary.LittleEndian.Uint32(header[12:]))
	if id+overflow >= c.meta.pages {
		return nil, damagedDB("page %d runs out of the file", id)
	}
	page := make([]byte, (overflow+1)*c.meta.pageSize)
	if _, err := c.r.ReadAt(page, offset); err != nil {
		return nil, damagedDB("page %d cannot be read: %v", id, err)
	}
	return page, nil
}

// tree checks a page and all below it.
func (c *boltChecker) tree(id uint64, depth int) error {
	if depth > boltMaxDepth {
		return damagedDB("its tree is too deep")
	}
	page, err := c.page(id)
	if err != nil {
		return err
	}
	return c.node(page, fmt.Sprintf("page %d", id), depth)
}

// node checks the elements of a page, or of a small bucket kept inside a value.
func (c *boltChecker) node(page []byte, where string, depth int) error {
	le := binary.LittleEndian
	flags, count := le.Uint16(page[8:]), int(le.Uint16(page[10:]))
	if flags != boltBranchPage && flags != boltLeafPage {
		return damagedDB("%s has the unknown type %#x", where, flags)
	}
	if boltPageHeader+count*boltElement > len(page) {
		return damagedDB("%s claims %d elements", where, count)
	}
	var last []byte
	for i := range count {
		start := boltPageHeader + i*boltElement
		e := page[start : start+boltElement]
		var pos, ksize, vsize uint64
		if flags == boltBranchPage {
			pos, ksize = uint64(le.Uint32(e)), uint64(le.Uint32(e[4:]))
		} else {
			pos, ksize, vsize = uint64(le.Uint32(e[4:])), uint64(le.Uint32(e[8:])), uint64(le.Uint32(e[12:]))
		}
		at := uint64(start) + pos
		if at+ksize+vsize > uint64(len(page)) {
			return damagedDB("%s: element %d lies outside of it", where, i)
		}
		key := page[at : at+ksize]
		if i > 0 && bytes.Compare(last, key) >= 0 {
			return damagedDB("%s: its keys are out of order", where)
		}
		last = key
		switch {
		case flags == boltBranchPage:
			if err := c.tree(le.Uint64(e[8:]), depth+1); err != nil {
				return err
			}
		case le.Uint32(e)&boltBucketFlag != 0:
			if err := c.bucket(page[at+ksize:at+ksize+vsize], where, depth); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *boltChecker) bucket(value []byte, where string, depth int) error {
	if len(value) < boltBucketSize {
		return damagedDB("%s holds a cut bucket", where)
	}
	if root := binary.LittleEndian.Uint64(value); root != 0 {
		return c.tree(root, depth+1)
	}
	inline := value[boltBucketSize:]
	if len(inline) < boltPageHeader {
		return damagedDB("%s holds a cut bucket", where)
	}
	return c.node(inline, where, depth+1)
}
