package join

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"time"

	"go.uber.org/zap"

	"github.com/mote-dev/mote/internal/joinapi"
)

// refusal is an answer that is not a success. It is told to the node as it is.
type refusal struct {
	status int
	code   joinapi.Code
	text   string
}

func (r *refusal) Error() string { return r.text }

// refuse makes a refusal with the status that goes with its code.
func refuse(code joinapi.Code, format string, args ...any) error {
	status := http.StatusBadRequest
	switch code {
	case joinapi.CodeTokenInvalid, joinapi.CodeCertificateInvalid:
		status = http.StatusUnauthorized
	case joinapi.CodeNodeRevoked:
		status = http.StatusForbidden
	case joinapi.CodeNodeUnknown:
		status = http.StatusNotFound
	case joinapi.CodeNameTaken:
		status = http.StatusConflict
	case joinapi.CodeTooManyRequests:
		status = http.StatusTooManyRequests
	case joinapi.CodeNotReady:
		status = http.StatusServiceUnavailable
	}
	return &refusal{status: status, code: code, text: fmt.Sprintf(format, args...)}
}

// refuseAs makes a refusal with a status of its own.
func refuseAs(status int, code joinapi.Code, format string, args ...any) error {
	return &refusal{status: status, code: code, text: fmt.Sprintf(format, args...)}
}

const (
	// tellEvery limits how often the log hears the same refusal of one address.
	tellEvery = time.Minute
	// maxTold bounds what is remembered for that. Who comes when it is full is
	// not told of: a crowd of strangers must not fill the log.
	maxTold = 1024
)

// refused is what counts as the same refusal.
type refused struct {
	from netip.Prefix
	path string
	code joinapi.Code
}

// due reports whether the log shall hear of r again.
func (s *Service) due(r refused) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.config.Now()
	if last, ok := s.told[r]; ok && now.Sub(last).Abs() < tellEvery {
		return false
	}
	if len(s.told) >= maxTold {
		maps.DeleteFunc(s.told, func(_ refused, last time.Time) bool { return now.Sub(last).Abs() >= tellEvery })
	}
	if len(s.told) >= maxTold {
		return false
	}
	s.told[r] = now
	return true
}

// fail answers with err. What is no refusal is a fault of this server: the log
// has it, and the node tries again.
func (s *Service) fail(w http.ResponseWriter, r *http.Request, err error) {
	var told *refusal
	log := s.config.Logger.With(zap.String("path", r.URL.Path), zap.String("from", r.RemoteAddr))
	if errors.As(err, &told) {
		if s.due(refused{origin(r.RemoteAddr), r.URL.Path, told.code}) {
			log.Info("refused a node", zap.String("code", string(told.code)), zap.String("reason", told.text))
		}
	} else {
		log.Warn("could not answer a node", zap.Error(err))
		told = &refusal{http.StatusServiceUnavailable, joinapi.CodeNotReady, "the server could not do it just now; its log says why: try again"}
	}
	write(w, told.status, joinapi.Error{Code: told.code, Message: told.text, ServerTime: s.config.Now()})
}

func write(w http.ResponseWriter, status int, body any) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	// A node that is gone has no use for an error.
	_ = json.NewEncoder(w).Encode(body)
}
