package apiserver

import (
	"context"
	"testing"
	"testing/synctest"

	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
)

// decisions is an authorizer that gives its decisions in order and then the last one.
type decisions struct {
	authorizer.Authorizer
	list  []authorizer.Decision
	asked int
}

func (d *decisions) Authorize(context.Context, authorizer.Attributes) (authorizer.Decision, string, error) {
	decision := d.list[min(d.asked, len(d.list)-1)]
	d.asked++
	return decision, "no relationship found", nil
}

func (d *decisions) ConditionsAwareAuthorize(ctx context.Context,
	a authorizer.Attributes) authorizer.ConditionsAwareDecision {
	return authorizer.ConditionsAwareDecisionFromParts(d.Authorize(ctx, a))
}

func TestNodeAuthorizer_WaitsForTheBinding(t *testing.T) {
	const refuse, allow = authorizer.DecisionNoOpinion, authorizer.DecisionAllow
	node := &user.DefaultInfo{Name: "system:node:n1", Groups: []string{user.NodesGroup}}
	person := &user.DefaultInfo{Name: "jane", Groups: []string{"dev"}}
	for _, row := range []struct {
		name       string
		attributes authorizer.AttributesRecord
		list       []authorizer.Decision
		want       authorizer.Decision
		asked      int
	}{
		{"a list of a config map", authorizer.AttributesRecord{User: node, Verb: "list", Resource: "configmaps"},
			[]authorizer.Decision{refuse, refuse, allow}, allow, 3},
		{"a secret", authorizer.AttributesRecord{User: node, Verb: "get", Resource: "secrets"},
			[]authorizer.Decision{refuse}, refuse, nodeRetries + 1},
		{"a token", authorizer.AttributesRecord{
			User:        node,
			Verb:        "create",
			Resource:    "serviceaccounts",
			Subresource: "token",
		}, []authorizer.Decision{refuse, allow}, allow, 2},
		{"allowed at once", authorizer.AttributesRecord{User: node, Verb: "get", Resource: "secrets"},
			[]authorizer.Decision{allow}, allow, 1},
		{"a write", authorizer.AttributesRecord{User: node, Verb: "update", Resource: "secrets"},
			[]authorizer.Decision{refuse, allow}, refuse, 1},
		{"something else", authorizer.AttributesRecord{User: node, Verb: "list", Resource: "deployments"},
			[]authorizer.Decision{refuse, allow}, refuse, 1},
		{"somebody else", authorizer.AttributesRecord{User: person, Verb: "get", Resource: "secrets"},
			[]authorizer.Decision{refuse, allow}, refuse, 1},
		{"nobody", authorizer.AttributesRecord{Verb: "get", Resource: "secrets"}, []authorizer.Decision{refuse, allow},
			refuse, 1},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				next := &decisions{list: row.list}
				got, _, err := nodeAuthorizer{next}.Authorize(t.Context(), row.attributes)
				if err != nil || got != row.want || next.asked != row.asked {
					t.Errorf("%v after %d questions, %v; want %v after %d", got, next.asked, err, row.want, row.asked)
				}
				next = &decisions{list: row.list}
				aware := nodeAuthorizer{next}.ConditionsAwareAuthorize(t.Context(), row.attributes)
				if aware.IsAllow() != (row.want == allow) || next.asked != row.asked {
					t.Errorf("with conditions: %v after %d questions, want %v after %d", aware, next.asked, row.want,
						row.asked)
				}
			})
		})
	}
}

func TestNodeAuthorizer_GivesUpWithTheRequest(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	next := &decisions{list: []authorizer.Decision{authorizer.DecisionNoOpinion}}
	attributes := authorizer.AttributesRecord{User: &user.DefaultInfo{Groups: []string{user.NodesGroup}}, Verb: "get",
		Resource: "secrets"}
	if got, _, _ := (nodeAuthorizer{next}).Authorize(ctx, attributes); got != authorizer.DecisionNoOpinion ||
		next.asked != 1 {
		t.Errorf("%v after %d questions", got, next.asked)
	}
}
