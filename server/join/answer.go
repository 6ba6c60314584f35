package join

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"go.uber.org/zap"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/mote-dev/mote/internal/joinapi"
)

// refusal is an answer that is not a success. The node gets it as it is.
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
	case joinapi.CodeInternal:
		status = http.StatusInternalServerError
	}
	return &refusal{status: status, code: code, text: fmt.Sprintf(format, args...)}
}

// refuseAs makes a refusal with a status of its own.
func refuseAs(status int, code joinapi.Code, format string, args ...any) error {
	return &refusal{status: status, code: code, text: fmt.Sprintf(format, args...)}
}

const (
	// logInterval limits how often the same refusal of one address is logged.
	logInterval = time.Minute
	// maxLogged bounds what is remembered for that. While the table is full, further addresses are
	// not logged: a crowd of strangers must not fill the log.
	maxLogged = 1024
)

// refused is what makes two refusals the same to the log.
type refused struct {
	from netip.Prefix
	path string
	code joinapi.Code
}

// due reports whether r is worth a log line.
func (s *Service) due(r refused) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.config.Now()
	if last, ok := s.logged[r]; ok && now.Sub(last).Abs() < logInterval {
		return false
	}
	if len(s.logged) >= maxLogged {
		maps.DeleteFunc(s.logged, func(_ refused, last time.Time) bool { return now.Sub(last).Abs() >= logInterval })
	}
	if len(s.logged) >= maxLogged {
		return false
	}
	s.logged[r] = now
	return true
}

// fail answers with err. An error that is no refusal is a fault of this server: its log has the
// cause, and the code tells the node whether trying again can help.
func (s *Service) fail(w http.ResponseWriter, r *http.Request, err error) {
	var answer *refusal
	log := s.config.Logger.With(zap.String("path", r.URL.Path), zap.String("from", r.RemoteAddr))
	switch {
	case errors.As(err, &answer):
		if s.due(refused{origin(r.RemoteAddr), r.URL.Path, answer.code}) {
			log.Info("refused a node", zap.String("code", string(answer.code)), zap.String("reason", answer.text))
		}
	case transient(err):
		log.Warn("could not answer a node", zap.Error(err))
		answer = &refusal{http.StatusServiceUnavailable, joinapi.CodeNotReady,
			"the server could not do it just now; its log says why: try again"}
	default:
		log.Error("cannot answer a node", zap.Error(err))
		answer = &refusal{http.StatusInternalServerError, joinapi.CodeInternal,
			"the server has a fault that retrying does not cure: its log has the cause; fix that, then try again"}
	}
	write(w, answer.status, joinapi.Error{Code: answer.code, Message: answer.text, ServerTime: s.config.Now()})
}

// transient reports whether err may be gone when the node tries again: time ran out, or the API
// server did not answer, was busy or has a fault of its own. An error it does not know is not: it
// is this program's, and would come again.
func transient(err error) bool {
	// client-go wraps what a transport returns in a url.Error.
	var transport *url.Error
	if errors.As(err, &transport) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) ||
		wait.Interrupted(err) {
		return true
	}
	var api apierrors.APIStatus
	if !errors.As(err, &api) {
		return false
	}
	switch code := api.Status().Code; code {
	case http.StatusRequestTimeout, http.StatusConflict, http.StatusTooManyRequests:
		return true
	case http.StatusForbidden:
		// The authorizer reads its rules from caches, which lag behind after the start.
		return true
	default:
		return code >= http.StatusInternalServerError
	}
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
