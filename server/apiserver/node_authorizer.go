package apiserver

import (
	"context"
	"slices"
	"time"

	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	"github.com/mote-dev/mote/internal/retry"
)

// The Node authorizer lets a kubelet read what the pods bound to its node refer to, as far as its
// own informers have seen the binding. A kubelet often sees the binding before the Node authorizer
// does, gets a 403, and emits a FailedMount event: one in the same process nearly always, and one
// on another machine now and then. So a refusal is looked at again for as long as those informers
// may take, 1.3 s together.
const (
	nodeRetries    = 6
	nodeFirstRetry = 20 * time.Millisecond
	nodeLastRetry  = 640 * time.Millisecond
)

// nodeAuthorizer asks next again while it refuses a node what a pod may give it the right to.
type nodeAuthorizer struct{ authorizer.Authorizer }

var _ authorizer.Authorizer = nodeAuthorizer{}

// Authorize implements authorizer.Authorizer.
func (n nodeAuthorizer) Authorize(ctx context.Context,
	a authorizer.Attributes) (decision authorizer.Decision, reason string, err error) {
	untilAllowed(ctx, a, func() bool {
		decision, reason, err = n.Authorizer.Authorize(ctx, a)
		return decision == authorizer.DecisionAllow
	})
	return decision, reason, err
}

// ConditionsAwareAuthorize implements authorizer.Authorizer. Upstream's Node authorizer has no
// conditions, so that what it refuses is asked again is enough.
func (n nodeAuthorizer) ConditionsAwareAuthorize(ctx context.Context,
	a authorizer.Attributes) (decision authorizer.ConditionsAwareDecision) {
	untilAllowed(ctx, a, func() bool {
		decision = n.Authorizer.ConditionsAwareAuthorize(ctx, a)
		return decision.IsAllow()
	})
	return decision
}

// untilAllowed calls decide once, and again while it returns false if a pod may change that.
func untilAllowed(ctx context.Context, a authorizer.Attributes, decide func() bool) {
	backoff := retry.Backoff{First: nodeFirstRetry, Last: nodeLastRetry}
	for try := 0; !decide(); try++ {
		if try == nodeRetries || !grantedByPods(a) || backoff.Wait(ctx) != nil {
			return
		}
	}
}

// grantedByPods reports whether a node asks for an object that a pod bound to it gives the right
// to.
func grantedByPods(a authorizer.Attributes) bool {
	if a.GetUser() == nil || !slices.Contains(a.GetUser().GetGroups(), user.NodesGroup) {
		return false
	}
	switch a.GetResource() {
	case "configmaps", "secrets", "persistentvolumeclaims", "persistentvolumes", "resourceclaims":
		return a.IsReadOnly()
	case "serviceaccounts":
		return a.GetVerb() == "create" && a.GetSubresource() == "token"
	}
	return false
}
