package offline

import (
	"bytes"
	"encoding/binary"
	"io"
	"math"
	"strings"
)

// headBytes is how much of an event is read: its type comes first.
const headBytes = 32

// events passes the body of a watch through, and calls onEvent for each event that is not a
// bookmark. It only finds where events begin, and does not decode them.
type events struct {
	io.ReadCloser
	binary  bool
	limit   int // how much of an event onEvent gets
	onEvent func(event []byte)
	closed  func()

	head     []byte // the beginning of the present event, up to limit
	left     int    // bytes left of it, in binary streams
	size     []byte // its length prefix so far, in binary streams
	reported bool   // onEvent was called for it
}

// newEvents follows a body. onEvent gets the beginning of each event, or all of it if whole, and
// must not retain it.
func newEvents(body io.ReadCloser, contentType string, whole bool, onEvent func(event []byte), closed func()) *events {
	e := &events{
		ReadCloser: body,
		binary:     isBinary(contentType),
		limit:      headBytes,
		onEvent:    onEvent,
		closed:     closed,
	}
	if whole {
		e.limit = math.MaxInt
	}
	return e
}

func isBinary(contentType string) bool {
	return strings.HasPrefix(contentType, "application/vnd.kubernetes.protobuf")
}

// modified reports whether an event is about an object that existed before.
func modified(event []byte) bool {
	return bytes.Contains(event[:min(headBytes, len(event))], []byte("MODIFIED"))
}

func (e *events) Read(p []byte) (int, error) {
	n, err := e.ReadCloser.Read(p)
	if e.binary {
		e.frames(p[:n])
	} else {
		e.lines(p[:n])
	}
	return n, err
}

func (e *events) Close() error {
	if e.closed != nil {
		e.closed()
		e.closed = nil
	}
	return e.ReadCloser.Close()
}

// lines follows events that end with a line break.
func (e *events) lines(p []byte) {
	for len(p) > 0 {
		line, rest, ended := bytes.Cut(p, []byte("\n"))
		e.collect(line)
		if ended {
			e.end()
		}
		p = rest
	}
}

// frames follows events with a length prefix.
func (e *events) frames(p []byte) {
	for len(p) > 0 {
		if e.left == 0 {
			n := min(4-len(e.size), len(p))
			e.size, p = append(e.size, p[:n]...), p[n:]
			if len(e.size) == 4 {
				e.left, e.size = int(binary.BigEndian.Uint32(e.size)), e.size[:0]
			}
			continue
		}
		n := min(e.left, len(p))
		e.collect(p[:n])
		e.left, p = e.left-n, p[n:]
		if e.left == 0 {
			e.end()
		}
	}
}

func (e *events) collect(p []byte) {
	if n := e.limit - len(e.head); n > 0 {
		e.head = append(e.head, p[:min(n, len(p))]...)
	}
	if len(e.head) == e.limit {
		e.report()
	}
}

func (e *events) end() {
	if len(e.head) > 0 {
		e.report()
	}
	e.head, e.reported = e.head[:0], false
}

func (e *events) report() {
	if !e.reported && !bytes.Contains(e.head[:min(headBytes, len(e.head))], []byte("BOOKMARK")) {
		e.onEvent(e.head)
	}
	e.reported = true
}
