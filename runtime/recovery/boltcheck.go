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

// The parts of bbolt's on-disk format v2 (go.etcd.io/bbolt v1.3 to v1.5) that the check needs.
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
	// boltMaxDepth is far deeper than any tree of containerd; only a loop exceeds it.
	boltMaxDepth = 64
)

// checkBolt walks every page of a bbolt file and returns the first damage as [ErrDamaged]; a
// failure to read is returned as it is. bbolt's own check reads through a memory map: on a
// truncated file that is a fatal signal, in a goroutine nobody can guard. Reading the file turns it
// into an error.
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
	return fmt.Errorf("%w: %s", ErrDamaged, fmt.Sprintf(format, args...))
}

func (c *boltChecker) check() error {
	if err := c.readMeta(); err != nil {
		return err
	}
	if need := c.meta.pages * c.meta.pageSize; c.size < need {
		return damagedDB("file has %d bytes, its pages need %d", c.size, need)
	}
	if c.meta.freelist != boltNoFreelist {
		page, err := c.page(c.meta.freelist)
		if err != nil {
			return err
		}
		if flags := binary.LittleEndian.Uint16(page[8:]); flags != boltFreelistPage {
			return damagedDB("page %d is not a freelist", c.meta.freelist)
		}
	}
	return c.tree(c.meta.root, 0)
}

// readAt fills buf. A file that ends too early is damaged; any other failure says nothing about the
// file's content.
func (c *boltChecker) readAt(buf []byte, offset uint64, what string) error {
	_, err := c.r.ReadAt(buf, int64(offset))
	switch {
	case err == nil:
		return nil
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return damagedDB("%s is cut off", what)
	}
	return fmt.Errorf("read %s: %w", what, err)
}

// readMeta picks the newer valid one of the two meta pages. The second is one page into the file,
// and only a meta page says how large a page is, so if the first is damaged the usual sizes are
// tried.
func (c *boltChecker) readMeta() error {
	first, err := c.metaAt(0)
	if err != nil && !Damaged(err) {
		return err
	}
	sizes := []uint64{4096, 8192, 16384, 32768, 65536}
	if err == nil {
		sizes = []uint64{first.pageSize}
		c.meta = first
	}
	for _, s := range sizes {
		second, err2 := c.metaAt(s)
		if err2 != nil && !Damaged(err2) {
			return err2
		}
		if err2 == nil && second.pageSize == s && (err != nil || second.txid > first.txid) {
			c.meta, err = second, nil
			break
		}
	}
	return err
}

func (c *boltChecker) metaAt(offset uint64) (boltMeta, error) {
	var buf [boltPageHeader + boltMetaSize]byte
	if err := c.readAt(buf[:], offset, "meta page"); err != nil {
		return boltMeta{}, err
	}
	m := buf[boltPageHeader:]
	le := binary.LittleEndian
	if le.Uint32(m) != boltMagic || le.Uint32(m[4:]) != boltVersion {
		return boltMeta{}, damagedDB("meta page is invalid")
	}
	sum := fnv.New64a()
	sum.Write(m[:boltMetaSize-8])
	if sum.Sum64() != le.Uint64(m[boltMetaSize-8:]) {
		return boltMeta{}, damagedDB("checksum of the meta page is wrong")
	}
	meta := boltMeta{
		pageSize: uint64(le.Uint32(m[8:])),
		root:     le.Uint64(m[16:]),
		freelist: le.Uint64(m[32:]),
		pages:    le.Uint64(m[40:]),
		txid:     le.Uint64(m[48:]),
	}
	if meta.pageSize < 512 || meta.pageSize > 1<<20 || meta.pages > 1<<40 {
		return boltMeta{}, damagedDB("meta page is implausible")
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
	offset, what := id*c.meta.pageSize, fmt.Sprintf("page %d", id)
	if err := c.readAt(header[:], offset, what); err != nil {
		return nil, err
	}
	if got := binary.LittleEndian.Uint64(header[:]); got != id {
		return nil, damagedDB("page %d carries the number %d", id, got)
	}
	overflow := uint64(binary.LittleEndian.Uint32(header[12:]))
	if id+overflow >= c.meta.pages {
		return nil, damagedDB("page %d extends past the end of the file", id)
	}
	page := make([]byte, (overflow+1)*c.meta.pageSize)
	if err := c.readAt(page, offset, what); err != nil {
		return nil, err
	}
	return page, nil
}

// tree checks a page and all below it.
func (c *boltChecker) tree(id uint64, depth int) error {
	if depth > boltMaxDepth {
		return damagedDB("tree is too deep")
	}
	page, err := c.page(id)
	if err != nil {
		return err
	}
	return c.node(page, fmt.Sprintf("page %d", id), depth)
}

// node checks the elements of a page, or of a small bucket stored inside a value.
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
			return damagedDB("%s: keys are out of order", where)
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
		return damagedDB("%s holds a truncated bucket", where)
	}
	if root := binary.LittleEndian.Uint64(value); root != 0 {
		return c.tree(root, depth+1)
	}
	inline := value[boltBucketSize:]
	if len(inline) < boltPageHeader {
		return damagedDB("%s holds a truncated bucket", where)
	}
	return c.node(inline, where, depth+1)
}
