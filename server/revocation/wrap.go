package revocation

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/responsewriter"

	"github.com/mote-dev/mote/internal/joinapi"
)

// joinPaths begins the paths of joinapi.
const joinPaths = "/mote/"

const (
	// logInterval limits how often the use of one revoked certificate is logged.
	logInterval = time.Minute
	// maxLogged bounds what is remembered for that. A certificate with a revoked user's name need
	// not be signed by anybody, so its serial number may be a stranger's choice. While the table is
	// full, further certificates are refused without a log line.
	maxLogged = 1024
)

// Wrap puts the guard in front of a handler. Requests without a client certificate pass: those from
// this process and those with tokens.
func (g *Guard) Wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
			next.ServeHTTP(w, r)
			return
		}
		if err := g.wait(r.Context()); err != nil {
			w.Header().Set("Retry-After", "5")
			answer(w, r, http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable, joinapi.CodeNotReady,
				"this server is starting: "+ErrNotRead.Error()+"; try again")
			return
		}
		g.serve(w, r, next)
	})
}

// serve lets the request through unless its certificate is revoked, now or while it runs.
func (g *Guard) serve(w http.ResponseWriter, r *http.Request, next http.Handler) {
	f, r := g.register(w, r)
	defer g.end(f)
	if e := g.list.Load().find(f.cert); e != nil {
		g.refuse(w, r, e)
		return
	}
	next.ServeHTTP(responsewriter.WrapForHTTP1Or2(f), r)
	if !f.isCut() || f.isHijacked() {
		return
	}
	e := g.list.Load().find(f.cert)
	if f.started.Load() || e == nil {
		// The client must not take a partial response for a complete one.
		panic(http.ErrAbortHandler)
	}
	clear(w.Header())
	g.refuse(w, r, e)
}

// refuse answers a request with a revoked certificate.
func (g *Guard) refuse(w http.ResponseWriter, r *http.Request, e *Entry) {
	cert := r.TLS.PeerCertificates[0]
	serial, now := Serial(cert), time.Now()
	if g.due(serial, now) {
		g.config.Logger.Warn("refused a revoked certificate", zap.String("user", cert.Subject.CommonName),
			zap.String("serial", serial),
			zap.String("from", r.RemoteAddr), zap.String("why", e.why()))
	}
	text := fmt.Sprintf("the client certificate of %q (serial %s) was revoked", cert.Subject.CommonName, serial)
	if t := e.since(); !t.IsZero() {
		text += " at " + t.UTC().Format(time.RFC3339)
	}
	// A node that may join again does so by itself on this code.
	code := joinapi.CodeCertificateInvalid
	if e.Node() != "" && !e.MayReturn {
		code = joinapi.CodeNodeRevoked
	}
	switch {
	case strings.HasPrefix(cert.Subject.CommonName, nodePrefix):
		text += ": to let the machine join again, run `mote node forget " + strings.TrimPrefix(cert.Subject.CommonName,
			nodePrefix) + "` on a server"
	case slices.Contains(cert.Subject.Organization, user.SystemPrivilegedGroup):
		text += ": the server has written a new kubeconfig on its own machine"
	default:
		text += ": ask an administrator of the cluster for a new kubeconfig (`mote kubeconfig create`)"
	}
	// kubectl prints a warning even where it replaces the status message with its own text.
	w.Header().Set("Warning", `299 - `+strconv.Quote(text))
	answer(w, r, http.StatusUnauthorized, metav1.StatusReasonUnauthorized, code, text)
}

// due reports whether the refusal of a serial number is worth a log line.
func (g *Guard) due(serial string, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if last, ok := g.logged[serial]; ok && now.Sub(last) < logInterval {
		return false
	}
	if len(g.logged) >= maxLogged {
		maps.DeleteFunc(g.logged, func(_ string, last time.Time) bool { return now.Sub(last) >= logInterval })
	}
	if len(g.logged) >= maxLogged {
		return false
	}
	g.logged[serial] = now
	return true
}

// answer writes a Status as the API does or, on the paths for nodes, a joinapi.Error.
func answer(w http.ResponseWriter, r *http.Request, code int, reason metav1.StatusReason, forNodes joinapi.Code,
	text string) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-cache, private")
	w.WriteHeader(code)
	var body any = metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status:   metav1.StatusFailure,
		Code:     int32(code),
		Reason:   reason,
		Message:  text,
	}
	if strings.HasPrefix(r.URL.Path, joinPaths) {
		body = &joinapi.Error{Code: forNodes, Message: text, ServerTime: time.Now().UTC()}
	}
	// The client being gone is all that can go wrong.
	_ = json.NewEncoder(w).Encode(body)
}
