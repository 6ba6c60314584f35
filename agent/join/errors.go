package join

import (
	"errors"

	"github.com/mote-dev/mote/internal/joinapi"
)

var (
	// ErrWrongServer means that the server's CA is neither the one of the token nor that of this
	// node's cluster.
	ErrWrongServer = errors.New("wrong server")
	// ErrNotMote means that another service answers at the server's address.
	ErrNotMote = errors.New("no mote server answers there")
	// ErrUnreachable means that no connection was possible, which may change.
	ErrUnreachable = errors.New("server cannot be reached")
	// ErrClock means that this machine's clock differs too much from the server's for certificates
	// to be valid, which may change once the clock is set.
	ErrClock = errors.New("clock is far off")
	// ErrOtherIdentity means that the node has joined before under another name.
	ErrOtherIdentity = errors.New("this machine has joined before")
	// ErrNoToken means that a first join was attempted without a token.
	ErrNoToken = errors.New("token is missing")
)

// refusal is an error response of a server.
type refusal struct {
	server string
	cause  *joinapi.Error
}

func (r *refusal) Error() string {
	text := r.cause.Message
	if text == "" {
		text = "refused without a reason (" + string(r.cause.Code) + ")"
	}
	return "server " + r.server + ": " + text
}

func (r *refusal) Unwrap() error { return r.cause }

// refused reports whether err is an error response with the code.
func refused(err error, code joinapi.Code) bool {
	var e *joinapi.Error
	return errors.As(err, &e) && e.Code == code
}

// retryable reports whether an attempt may succeed later without a change to this node's command
// line.
func retryable(err error) bool {
	var e *joinapi.Error
	if errors.As(err, &e) {
		switch e.Code {
		case joinapi.CodeTooManyRequests, joinapi.CodeNotReady, joinapi.CodeClockSkew, joinapi.CodeIncomplete:
			return true
		}
		return false
	}
	return errors.Is(err, ErrUnreachable) || errors.Is(err, ErrClock)
}
