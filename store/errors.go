package store

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/mattn/go-sqlite3"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Met when opening or restoring.
var (
	// ErrDamaged means the file is not readable as a store: restore the newest snapshot.
	ErrDamaged = errors.New("store file is damaged")
	// ErrForeign means the file is a database, but not a store.
	ErrForeign = errors.New("file is not a mote store")
	// ErrNewer means the file was written by a newer mote.
	ErrNewer = errors.New("store file was written by a newer mote")
	// ErrInUse means another process has the store open.
	ErrInUse = errors.New("store is in use by another process")
)

// Met in operation. The edge turns them into etcd's codes.
var (
	// ErrCompacted means the revision asked for is older than the last compaction.
	ErrCompacted = errors.New("revision is compacted")
	// ErrFutureRevision means the revision asked for was not made yet.
	ErrFutureRevision = errors.New("revision is in the future")
	// ErrKeyNotFound means a put that keeps the value or lease of a key found none.
	ErrKeyNotFound = errors.New("key is not there")
	// ErrLeaseNotFound means the lease was never granted, was revoked or has expired.
	ErrLeaseNotFound = errors.New("lease is not there")
	// ErrLeaseExists means a lease with that id is there already.
	ErrLeaseExists = errors.New("lease is there already")
	// ErrLeaseTTLTooLarge means the lease was asked to live longer than a lease can.
	ErrLeaseTTLTooLarge = errors.New("lease time to live is too large")
	// ErrTooLarge means the request is larger than Options.MaxRequestBytes, or changes too many
	// keys at once.
	ErrTooLarge = errors.New("request is too large")
	// ErrNoSpace means the disk is full or Options.MaxBytes reached. Reads go on, and so do writes
	// once there is room.
	ErrNoSpace = errors.New("no space left for the store")
	// ErrClosed means the store is closed.
	ErrClosed = errors.New("store is closed")
)

var grpcErrors = []struct{ err, grpc error }{
	{ErrCompacted, rpctypes.ErrGRPCCompacted},
	{ErrFutureRevision, rpctypes.ErrGRPCFutureRev},
	{ErrKeyNotFound, rpctypes.ErrGRPCKeyNotFound},
	{ErrLeaseNotFound, rpctypes.ErrGRPCLeaseNotFound},
	{ErrLeaseExists, rpctypes.ErrGRPCLeaseExist},
	{ErrLeaseTTLTooLarge, rpctypes.ErrGRPCLeaseTTLTooLarge},
	{ErrTooLarge, rpctypes.ErrGRPCRequestTooLarge},
	{ErrNoSpace, rpctypes.ErrGRPCNoSpace},
	{ErrClosed, rpctypes.ErrGRPCStopped},
	{ErrDamaged, rpctypes.ErrGRPCCorrupt},
}

// toGRPC gives the status an etcd server would answer with.
func toGRPC(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	for _, e := range grpcErrors {
		if errors.Is(err, e.err) {
			return e.grpc
		}
	}
	switch {
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, err.Error())
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, err.Error())
	}
	return status.Error(codes.Unknown, err.Error())
}

// fault names the two errors of SQLite that a caller can act on: no space and damage. Every other
// one (a failed read, no file descriptor left, no permission) stays what it is: it says nothing
// about the file's content.
func fault(err error) error {
	var se sqlite3.Error
	if err == nil || !errors.As(err, &se) || errors.Is(err, ErrNoSpace) || errors.Is(err, ErrDamaged) {
		return err
	}
	switch {
	case se.Code == sqlite3.ErrFull, se.SystemErrno == syscall.ENOSPC, se.SystemErrno == syscall.EDQUOT:
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	case se.Code == sqlite3.ErrCorrupt, se.Code == sqlite3.ErrNotADB:
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return err
}

// isFault reports whether err came from SQLite, so that the open transaction cannot be kept.
func isFault(err error) bool {
	var se sqlite3.Error
	return errors.As(err, &se)
}
