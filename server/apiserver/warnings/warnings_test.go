package warnings

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	"k8s.io/apiserver/pkg/endpoints/handlers/finisher"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	apirequest "k8s.io/apiserver/pkg/endpoints/request"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/filters"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/apiserver/pkg/warning"
	"k8s.io/klog/v2"
)

func TestMain(m *testing.M) {
	// Upstream logs each request whose client has gone.
	klog.SetLogger(logr.Discard())
	goleak.VerifyTestMain(m, goleak.IgnoreCurrent(),
		goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"))
}

var codecs = func() serializer.CodecFactory {
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		panic(err)
	}
	return serializer.NewCodecFactory(scheme)
}()

// chain is upstream's whole chain of filters in front of api.
func chain(t *testing.T, api http.Handler) http.Handler {
	t.Helper()
	c := genericapiserver.NewConfig(codecs)
	c.Authentication.Authenticator = authenticator.RequestFunc(
		func(*http.Request) (*authenticator.Response, bool, error) {
			return &authenticator.Response{User: &user.DefaultInfo{Name: "somebody"}}, true, nil
		})
	c.Authorization.Authorizer = authorizerfactory.NewAlwaysAllowAuthorizer()
	c.FeatureGate = utilfeature.DefaultFeatureGate
	c.LongRunningFunc = filters.BasicLongRunningRequestCheck(sets.NewString("watch"), sets.NewString("exec"))
	c.RequestInfoResolver = &apirequest.RequestInfoFactory{APIPrefixes: sets.NewString("api", "apis"),
		GrouplessAPIPrefixes: sets.NewString("api")}
	return genericapiserver.DefaultBuildHandlerChain(api, c)
}

// patch answers as upstream's handlers of writes do: the work runs in a goroutine that is left
// behind when the request ends before it does.
func patch(work func(*http.Request)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		result, err := finisher.FinishRequest(r.Context(), func() (runtime.Object, error) {
			work(r)
			return &corev1.Namespace{}, nil
		})
		if err != nil {
			responsewriters.ErrorNegotiated(err, codecs, schema.GroupVersion{Version: "v1"}, w, r)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		// The client may be gone.
		_ = json.NewEncoder(w).Encode(result)
	})
}

const namespace = "/api/v1/namespaces/default?dryRun=All"

// Without Wrap this ends the test's process: concurrent map writes. The runtime notices that once
// in thousands of requests; the race detector, under which scripts/unit runs it as well, at once.
func TestWrap_CancelledPatchesThatAddWarnings_DoNotMeetInTheHeader(t *testing.T) {
	requests := int64(10_000)
	if testing.Short() {
		requests = 1_000
	}
	var cancels sync.Map // of the requests, by their number
	server := httptest.NewUnstartedServer(chain(t, Wrap(patch(func(r *http.Request) {
		for i := range 20 {
			warning.AddWarning(r.Context(), "", fmt.Sprintf("warning %d of a kind", i))
			if i == 10 {
				cancel, _ := cancels.Load(r.Header.Get("X-Number"))
				cancel.(context.CancelFunc)()
				<-r.Context().Done()
			}
		}
	}))))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	client := server.Client()
	defer client.CloseIdleConnections()

	var started atomic.Int64
	var clients sync.WaitGroup
	for range 16 {
		clients.Go(func() {
			for n := started.Add(1); n <= requests; n = started.Add(1) {
				ctx, cancel := context.WithCancel(t.Context())
				number := strconv.FormatInt(n, 10)
				cancels.Store(number, cancel)
				r, err := http.NewRequestWithContext(ctx, http.MethodPatch, server.URL+namespace,
					strings.NewReader("{}"))
				if err != nil {
					t.Error(err)
					return
				}
				r.Header.Set("X-Number", number)
				if response, err := client.Do(r); !errors.Is(err, context.Canceled) {
					t.Errorf("request %d was not cancelled: %v, %v", n, response, err)
				}
				cancels.Delete(number)
			}
		})
	}
	clients.Wait()
	t.Logf("%d requests were cancelled while they worked", requests)
}

func TestWrap_WarningsReachTheClient(t *testing.T) {
	for name, handle := range map[string]func(w http.ResponseWriter, r *http.Request){
		"header": func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusTeapot) },
		"body":   func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "answer") },
		"flush": func(w http.ResponseWriter, r *http.Request) {
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		},
		"flush by controller": func(w http.ResponseWriter, r *http.Request) {
			if err := http.NewResponseController(w).Flush(); err != nil {
				panic(err)
			}
			<-r.Context().Done()
		},
		"hijack": func(w http.ResponseWriter, r *http.Request) {
			hijacker, ok := w.(http.Hijacker)
			if !ok { // HTTP/2
				w.WriteHeader(http.StatusOK)
				return
			}
			conn, _, err := hijacker.Hijack()
			if err != nil {
				panic(err)
			}
			defer func() { _ = conn.Close() }()
			_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n")
			_ = w.Header().Write(conn)
			_, _ = io.WriteString(conn, "\r\n")
		},
	} {
		for _, two := range []bool{false, true} {
			for kind, path := range map[string]string{"short": namespace, "watch": "/api/v1/namespaces?watch=1",
				"exec": "/api/v1/namespaces/a/pods/b/exec"} {
				t.Run(fmt.Sprintf("%s, %s, HTTP/2 %t", name, kind, two), func(t *testing.T) {
					t.Parallel()
					server := httptest.NewUnstartedServer(chain(t, Wrap(http.HandlerFunc(
						func(w http.ResponseWriter, r *http.Request) {
							for _, text := range []string{"one", "two", "one"} {
								warning.AddWarning(r.Context(), "", text)
							}
							handle(w, r)
						}))))
					server.EnableHTTP2 = two
					server.StartTLS()
					defer server.Close()
					client := server.Client()
					defer client.CloseIdleConnections()
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					r, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL+path, http.NoBody)
					if err != nil {
						t.Fatal(err)
					}
					response, err := client.Do(r)
					if err != nil {
						t.Fatal(err)
					}
					cancel()
					_ = response.Body.Close()
					want := []string{`299 - "one"`, `299 - "two"`}
					if got := response.Header.Values("Warning"); !slices.Equal(got, want) {
						t.Errorf("warnings are %q, want %q", got, want)
					}
				})
			}
		}
	}
}

// The wrapper offers what the connection offers: a watch needs to flush, exec needs to hijack.
func TestWrap_OffersWhatTheConnectionDoes(t *testing.T) {
	for _, two := range []bool{false, true} {
		server := httptest.NewUnstartedServer(Wrap(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, flushes := w.(http.Flusher)
			_, hijacks := w.(http.Hijacker)
			//nolint:staticcheck // upstream's wrappers ask for it
			_, notifies := w.(http.CloseNotifier)
			if err := http.NewResponseController(w).SetWriteDeadline(time.Time{}); err != nil {
				t.Errorf("set a deadline: %v", err)
			}
			fmt.Fprint(w, flushes, notifies, hijacks)
		})))
		server.EnableHTTP2 = two
		server.StartTLS()
		response, err := server.Client().Get(server.URL)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		if want := fmt.Sprint(true, true, !two); err != nil || string(body) != want {
			t.Errorf("HTTP/2 %t: flushes, notifies, hijacks: %s, %v, want %s", two, body, err, want)
		}
		_ = response.Body.Close()
		server.Client().CloseIdleConnections()
		server.Close()
	}
}

func TestWrap_WarningAfterTheAnswer_IsDropped(t *testing.T) {
	var late context.Context
	recorder := httptest.NewRecorder()
	chain(t, Wrap(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { late = r.Context() }))).
		ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, namespace, http.NoBody))
	warning.AddWarning(late, "", "late")
	if got := recorder.Header().Values("Warning"); len(got) > 0 {
		t.Errorf("warnings are %q", got)
	}
}
