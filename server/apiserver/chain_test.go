package apiserver

import (
	"net/http"
	"net/http/httptest"
	"testing"

	genericapiserver "k8s.io/apiserver/pkg/server"
)

// Revocation and joining stand in front of whatever filters the last server of the chain has:
// upstream replaces them when its gates StorageVersionAPI and APIServerIdentity are on.
func TestConfig_WrapChain_StaysAroundOtherFilters(t *testing.T) {
	var order []string
	named := func(name string, next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			order = append(order, name)
			next.ServeHTTP(w, r)
		})
	}
	g := &genericapiserver.Config{}
	g.BuildHandlerChainFunc = func(api http.Handler, _ *genericapiserver.Config) http.Handler {
		return named("filters", api)
	}
	c := Config{Wrap: func(next http.Handler) http.Handler { return named("revocation", next) }}
	c.wrapChain(g)
	g.BuildHandlerChainFunc(named("api", http.NotFoundHandler()), g).ServeHTTP(httptest.NewRecorder(),
		httptest.NewRequest(http.MethodGet, "/", http.NoBody))
	if len(order) != 3 || order[0] != "revocation" || order[1] != "filters" || order[2] != "api" {
		t.Errorf("passed %v", order)
	}
}
