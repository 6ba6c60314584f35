package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"
)

// pack compresses a file. The compressed form carries a checksum of the content.
func pack(ctx context.Context, src, dest string) error {
	in, err := os.Open(src)
	if err != nil {
		return fmt.Errorf("open copy: %w", err)
	}
	defer in.Close()
	out, err := os.OpenFile(dest, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("create snapshot: %w", err)
	}
	defer out.Close()
	z, err := zstd.NewWriter(out, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
	if err != nil {
		return fmt.Errorf("start compression: %w", err)
	}
	if _, err := io.Copy(z, &source{ctx: ctx, r: in}); err != nil {
		return fmt.Errorf("compress snapshot: %w", err)
	}
	if err := z.Close(); err != nil {
		return fmt.Errorf("finish snapshot: %w", err)
	}
	if err := out.Sync(); err != nil {
		return fmt.Errorf("sync snapshot: %w", err)
	}
	return out.Close()
}

// unpack writes the database in a snapshot to dest. It knows the compressed form, a plain database,
// and what `etcdctl snapshot save` wrote: a database with its SHA-256 behind it.
func unpack(ctx context.Context, src, dest string) error {
	in, err := os.Open(src)
	if err != nil {
		return fmt.Errorf("open snapshot: %w", err)
	}
	defer in.Close()
	var head [4]byte
	if _, err := io.ReadFull(in, head[:]); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%s is shorter than a snapshot: %w", src, ErrDamaged)
	} else if err != nil {
		return fmt.Errorf("read snapshot: %w", err)
	}
	if _, err := in.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("rewind snapshot: %w", err)
	}
	out, err := os.OpenFile(dest, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("create file: %w", err)
	}
	defer out.Close()
	switch {
	case head == [4]byte{0x28, 0xb5, 0x2f, 0xfd}:
		if err := decompress(ctx, out, in); err != nil {
			return fmt.Errorf("decompress snapshot: %w", err)
		}
	case string(head[:]) == fileMagic[:4]:
		if err := copyPlain(ctx, in, out); err != nil {
			return err
		}
	default:
		return ErrForeign
	}
	if err := out.Sync(); err != nil {
		return fmt.Errorf("sync file: %w", err)
	}
	return out.Close()
}

// source reads from r until ctx ends, and remembers the error that ended it.
type source struct {
	ctx context.Context
	r   io.Reader
	err error
}

func (s *source) Read(b []byte) (int, error) {
	if s.err = s.ctx.Err(); s.err != nil {
		return 0, s.err
	}
	n, err := s.r.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// sink writes to w and remembers the error of that.
type sink struct {
	w   io.Writer
	err error
}

func (s *sink) Write(b []byte) (int, error) {
	n, err := s.w.Write(b)
	s.err = err
	return n, err
}

// decompress fails with ErrDamaged only when reading and writing worked, so that the contents of
// src must be wrong.
func decompress(ctx context.Context, dest io.Writer, src io.Reader) error {
	in, out := &source{ctx: ctx, r: src}, &sink{w: dest}
	z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<20))
	if err != nil {
		return err
	}
	defer z.Close()
	_, err = io.Copy(out, z)
	switch {
	case err == nil:
		return nil
	case in.err != nil:
		return in.err
	case out.err != nil:
		return out.err
	case errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, zstd.ErrDecoderSizeExceeded):
		return fmt.Errorf("%w: %w", ErrForeign, err) // compressed in a way that pack does not
	}
	return fmt.Errorf("%w: %w", ErrDamaged, err)
}

func copyPlain(ctx context.Context, in, out *os.File) error {
	h := sha256.New()
	st, err := in.Stat()
	if err != nil {
		return fmt.Errorf("look at snapshot: %w", err)
	}
	size, trailer := st.Size(), st.Size()%512 == sha256.Size
	if trailer {
		size -= sha256.Size
	}
	if _, err := io.CopyN(io.MultiWriter(out, h), &source{ctx: ctx, r: in}, size); err != nil {
		return fmt.Errorf("copy snapshot: %w", err)
	}
	if !trailer {
		return nil
	}
	want, err := io.ReadAll(in)
	if err != nil {
		return fmt.Errorf("read checksum of snapshot: %w", err)
	}
	if !bytes.Equal(want, h.Sum(nil)) {
		return fmt.Errorf("checksum of snapshot does not match: %w", ErrDamaged)
	}
	return nil
}
