package election

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"
	clienttesting "k8s.io/client-go/testing"
)

// cluster is an API with leases that can be away.
type cluster struct {
	client *fake.Clientset
	away   atomic.Bool
}

func newCluster() *cluster {
	c := &cluster{client: fake.NewClientset()}
	c.client.PrependReactor("*", "leases", func(clienttesting.Action) (bool, runtime.Object, error) {
		if c.away.Load() {
			return true, nil, errors.New("datastore is away")
		}
		return false, nil, nil
	})
	return c
}

func (c *cluster) config(node string) Config {
	return Config{
		Client:   c.client,
		Lease:    "kube-scheduler",
		NodeName: node,
		Timing:   Default,
		Logger:   zap.NewNop(),
	}
}

func (c *cluster) lease(t *testing.T) *coordinationv1.Lease {
	t.Helper()
	l, err := c.client.CoordinationV1().Leases(metav1.NamespaceSystem).Get(t.Context(), "kube-scheduler",
		metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// candidate is a server that stands; working tells when it leads.
type candidate struct {
	working chan struct{}
	stop    context.CancelFunc
	done    chan error
	// stopped is when work was told to.
	stopped time.Time
}

// stand starts a candidate whose work takes a second to end.
func stand(t *testing.T, c Config) *candidate {
	ctx, stop := context.WithCancel(context.Background())
	s := &candidate{working: make(chan struct{}), stop: stop, done: make(chan error, 1)}
	go func() {
		s.done <- Lead(ctx, c, func(ctx context.Context) error {
			close(s.working)
			<-ctx.Done()
			s.stopped = time.Now()
			time.Sleep(time.Second)
			return ctx.Err()
		})
	}()
	t.Cleanup(stop)
	return s
}

func leads(s *candidate) bool {
	synctest.Wait()
	select {
	case <-s.working:
		return true
	default:
		return false
	}
}

func TestLead_OnlyOne_AndTheNextAtOnceAfterAStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster()
		first := stand(t, c.config("a"))
		<-first.working
		second := stand(t, c.config("b"))
		time.Sleep(5 * time.Minute)
		if leads(second) {
			t.Fatal("two lead at once")
		}
		first.stop()
		// Its work is still ending.
		time.Sleep(900 * time.Millisecond)
		if leads(second) {
			t.Fatal("the second leads before the first's work has ended")
		}
		if err := <-first.done; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("the first ended with %v", err)
		}
		released := time.Now()
		<-second.working
		if took := time.Since(released); took > 4*time.Second {
			t.Errorf("the second leads %v after the first has gone", took)
		}
		second.stop()
		<-second.done
		if l := c.lease(t); l.Spec.HolderIdentity != nil && *l.Spec.HolderIdentity != "" {
			t.Errorf("the lease is still held by %q", *l.Spec.HolderIdentity)
		}
	})
}

// A leader that vanishes without a word is followed within 20 seconds.
func TestLead_LeaderVanishes_FollowedInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster()
		gone := "gone_1"
		seconds := int32(Default.Lease / time.Second)
		now := metav1.NewMicroTime(time.Now())
		_, err := c.client.CoordinationV1().Leases(metav1.NamespaceSystem).Create(t.Context(), &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Name: "kube-scheduler"},
			Spec: coordinationv1.LeaseSpec{
				HolderIdentity:       &gone,
				LeaseDurationSeconds: &seconds,
				AcquireTime:          &now,
				RenewTime:            &now,
			},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		s := stand(t, c.config("b"))
		<-s.working
		if took := time.Since(begin); took < Default.Lease || took > 20*time.Second {
			t.Errorf("leads after %v, want 15 to 20 s", took)
		}
		s.stop()
		<-s.done
	})
}

// hanging is a way to the API on which nothing answers while the datastore is away: requests end
// when those who make them give up.
type hanging struct {
	cluster *cluster
	next    http.RoundTripper
}

func (h hanging) RoundTrip(r *http.Request) (*http.Response, error) {
	if h.cluster.away.Load() {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	return h.next.RoundTrip(r)
}

// api serves one lease, as JSON.
type api struct {
	mu    sync.Mutex
	lease *coordinationv1.Lease
}

func (a *api) RoundTrip(r *http.Request) (*http.Response, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	w := httptest.NewRecorder()
	w.Header().Set("Content-Type", "application/json")
	switch r.Method {
	case http.MethodPost, http.MethodPut:
		a.lease = &coordinationv1.Lease{}
		if err := json.NewDecoder(r.Body).Decode(a.lease); err != nil {
			return nil, err
		}
	}
	if a.lease == nil {
		w.WriteHeader(http.StatusNotFound)
		_ = json.NewEncoder(w).Encode(metav1.Status{
			TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
			Status:   metav1.StatusFailure,
			Reason:   metav1.StatusReasonNotFound,
			Code:     http.StatusNotFound,
		})
		return w.Result(), nil
	}
	a.lease.TypeMeta = metav1.TypeMeta{Kind: "Lease", APIVersion: "coordination.k8s.io/v1"}
	_ = json.NewEncoder(w).Encode(a.lease)
	return w.Result(), nil
}

func TestLead_Lost_WorkStopsInTimeAndTheEndWaitsForTheAPI(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster()
		client, err := kubernetes.NewForConfig(&rest.Config{
			Host:          "http://api",
			Transport:     hanging{c, &api{}},
			QPS:           -1,
			ContentConfig: rest.ContentConfig{ContentType: "application/json", AcceptContentTypes: "application/json"},
		})
		if err != nil {
			t.Fatal(err)
		}
		config := c.config("a")
		config.Client = client
		s := stand(t, config)
		<-s.working
		time.Sleep(time.Minute)
		away := time.Now()
		c.away.Store(true)
		time.Sleep(time.Minute)
		synctest.Wait()
		// Others count it as gone a lease's time after it renewed last, which may have been a pause
		// before.
		if took := s.stopped.Sub(away); s.stopped.IsZero() || took > Default.Lease-3*Default.Retry {
			t.Errorf("work was told to stop %v after the datastore went away", took)
		}
		select {
		case err := <-s.done:
			t.Fatalf("it ended while the API was away: %v", err)
		default:
		}
		c.away.Store(false)
		if err := <-s.done; !errors.Is(err, ErrLost) {
			t.Errorf("ended with %v, want ErrLost", err)
		}
	})
}

// A lease that was deleted meanwhile must not keep a server that lost it waiting for ever.
func TestLead_Lost_LeaseDeleted_Ends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster()
		s := stand(t, c.config("a"))
		<-s.working
		c.away.Store(true)
		time.Sleep(time.Minute)
		c.away.Store(false)
		if err := c.client.CoordinationV1().Leases(metav1.NamespaceSystem).Delete(t.Context(), "kube-scheduler",
			metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		select {
		case err := <-s.done:
			if !errors.Is(err, ErrLost) {
				t.Errorf("ended with %v, want ErrLost", err)
			}
		default:
			t.Error("it still waits")
			s.stop()
			<-s.done
		}
	})
}

func TestLead_WorkFails_LeaseIsGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster()
		broken := errors.New("broken")
		err := Lead(t.Context(), c.config("a"), func(context.Context) error { return broken })
		if !errors.Is(err, broken) {
			t.Errorf("ended with %v", err)
		}
		if l := c.lease(t); l.Spec.HolderIdentity != nil && *l.Spec.HolderIdentity != "" {
			t.Errorf("the lease is still held by %q", *l.Spec.HolderIdentity)
		}
	})
}

func TestLead_StoppedWhileWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster()
		first := stand(t, c.config("a"))
		<-first.working
		second := stand(t, c.config("b"))
		time.Sleep(time.Minute)
		second.stop()
		if err := <-second.done; err != nil {
			t.Errorf("ended with %v", err)
		}
		if leads(second) {
			t.Error("it led")
		}
		first.stop()
		<-first.done
	})
}
