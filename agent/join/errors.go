package join

import (
	"errors"

	"github.com/mote-dev/mote/internal/joinapi"
)

var (
	// ErrWrongServer means that the server's CA is not the one of the token or of
	// the cluster this node belongs to.
	ErrWrongServer = errors.New("wrong server")
	// ErrNotMote means that something else answers at the server's address.
	ErrNotMote = errors.New("no mote server answers there")
	// ErrUnreachable means that nobody answers, which may change.
	ErrUnreachable = errors.New("server cannot be reached")
	// ErrClock means that this machine's clock is too far from the server's for
	// certificates to be valid, which may change once the clock is set.
	ErrClock = errors.New("clock is far off")
	// ErrOtherIdentity means that the node has joined before, as something else.
	ErrOtherIdentity = errors.New("this machine has joined before")
	// ErrNoToken means that a first join was tried without a token.
	ErrNoToken = errors.New("token is missing")
)

// refusal is an answer of a server that is not a success.
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

// refused reports whether err is a server's answer with the code.
func refused(err error, code joinapi.Code) bool {
	var e *joinapi.Error
	return errors.As(err, &e) && e.Code == code
}

// waitable reports whether trying again later can help without anyone's doing
// anything at this node's command line.
func waitable(err error) bool {
	var e *joinapi.Error
	if errors.As(err, &e) {
		switch e.Code {
		case joinapi.CodeTooManyRequests, joinapi.CodeNotReady, joinapi.CodeClockSkew:
			return true
		}
		return false
	}
	return errors.Is(err, ErrUnreachable) || errors.Is(err, ErrClock)
}
