package server

import (
	"net/http"
	"strings"
	"time"

	"github.com/mote-dev/mote/internal/joinapi"
)

// The Node authorizer lets a kubelet read the secrets and config maps of pods
// bound to its node, as far as its own informers have heard of the binding. A
// kubelet in the same process often hears first, is refused, and by then has
// told its pod's user of a failed mount. It is asked again for as long as those
// informers may take.
const (
	refusalRetries = 6
	refusalPause   = 20 * time.Millisecond
)

// patient repeats reads of what pods refer to while the authorizer refuses them.
type patient struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (p patient) RoundTrip(r *http.Request) (*http.Response, error) {
	pause := refusalPause
	for try := 0; ; try++ {
		response, err := p.next.RoundTrip(r)
		if err != nil || response.StatusCode != http.StatusForbidden || try == refusalRetries || !ofPods(r) {
			return response, err
		}
		if err := response.Body.Close(); err != nil {
			return nil, err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-r.Context().Done():
			timer.Stop()
			return nil, r.Context().Err()
		}
		pause *= 2
	}
}

// ofPods tells whether r reads objects whose use by a pod gives the right to.
func ofPods(r *http.Request) bool {
	if r.Method != http.MethodGet {
		return false
	}
	for _, resource := range []string{"/secrets", "/configmaps", "/persistentvolumeclaims", "/persistentvolumes", "/resourceclaims"} {
		if strings.Contains(r.URL.Path, resource) {
			return true
		}
	}
	return false
}

// Pin is the fingerprint of the cluster's CA that nodes know it by. It is known
// once Open has returned.
func (s *Server) Pin() string { return joinapi.Pin(s.pki.CA.Cert.Raw) }
