package joinapi

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestFrames_AnyLength_ComeBack(t *testing.T) {
	for _, n := range []int{0, 1, maxFrame - 1, maxFrame, maxFrame + 1, 5*maxFrame + 17} {
		data := bytes.Repeat([]byte("0123456789abcdef!"), n/17+1)[:n]
		var wire, got bytes.Buffer
		flushes := 0
		if err := WriteFrames(&wire, func() error { flushes++; return nil }, bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
		whole := wire.Bytes()
		// Bytes after the last frame are not this stream's.
		if err := ReadFrames(&got,
			iotest.OneByteReader(io.MultiReader(bytes.NewReader(whole), strings.NewReader("more")))); err != nil ||
			!bytes.Equal(got.Bytes(), data) {
			t.Errorf("%d bytes: %d came back, %v", n, got.Len(), err)
		}
		if flushes == 0 {
			t.Error("never flushed")
		}
		for _, cut := range []int{0, 1, len(whole) / 2, len(whole) - 1} {
			if err := ReadFrames(io.Discard, bytes.NewReader(whole[:cut])); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%d bytes cut to %d: %v, want io.ErrUnexpectedEOF", len(whole), cut, err)
			}
		}
	}
}

func TestFrames_Faults_AreReturned(t *testing.T) {
	fault := errors.New("broken")
	if err := WriteFrames(io.Discard, func() error { return nil }, iotest.ErrReader(fault)); !errors.Is(err, fault) {
		t.Errorf("source: %v", err)
	}
	if err := WriteFrames(io.Discard, func() error { return fault }, strings.NewReader("x")); !errors.Is(err, fault) {
		t.Errorf("flush: %v", err)
	}
	if err := ReadFrames(io.Discard, bytes.NewReader([]byte{0xff, 0xff, 1})); err == nil ||
		errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a frame too long: %v", err)
	}
}
