package offline

import (
	"bytes"
	"encoding/binary"
	"io"
	"math"
	"strings"
)

// headBytes is how much of an event is looked at: its type comes first.
const headBytes = 32

// events passes a watch's body through and tells of each event that is not a
// bookmark. It finds where events begin and does not decode them.
type events struct {
	io.ReadCloser
	binary bool
	limit  int // how much of an event heard is given
	heard  func(event []byte)
	closed func()

	head []byte // the beginning of the present event, up to limit
	left int    // what is left of it, in binary streams
	size []byte // the length in front of it, in binary streams
	told bool
}

// newEvents follows a body. heard is given the beginning of each event, or all
// of it if whole; it must not hold on to it.
func newEvents(body io.ReadCloser, contentType string, whole bool, heard func(event []byte), closed func()) *events {
	e := &events{ReadCloser: body, binary: isBinary(contentType), limit: headBytes, heard: heard, closed: closed}
	if whole {
		e.limit = math.MaxInt
	}
	return e
}

func isBinary(contentType string) bool {
	return strings.HasPrefix(contentType, "application/vnd.kubernetes.protobuf")
}

// modified reports whether an event is about an object that was there before.
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

// lines follows events that end with a line break each.
func (e *events) lines(p []byte) {
	for len(p) > 0 {
		line, rest, ended := bytes.Cut(p, []byte("\n"))
		e.look(line)
		if ended {
			e.end()
		}
		p = rest
	}
}

// frames follows events with a length in front of each.
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
		e.look(p[:n])
		e.left, p = e.left-n, p[n:]
		if e.left == 0 {
			e.end()
		}
	}
}

func (e *events) look(p []byte) {
	if n := e.limit - len(e.head); n > 0 {
		e.head = append(e.head, p[:min(n, len(p))]...)
	}
	if len(e.head) == e.limit {
		e.tell()
	}
}

func (e *events) end() {
	if len(e.head) > 0 {
		e.tell()
	}
	e.head, e.told = e.head[:0], false
}

func (e *events) tell() {
	if !e.told && !bytes.Contains(e.head[:min(headBytes, len(e.head))], []byte("BOOKMARK")) {
		e.heard(e.head)
	}
	e.told = true
}
