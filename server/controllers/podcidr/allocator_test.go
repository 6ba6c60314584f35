package podcidr

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
)

// fixture is an allocator whose cache a test fills by hand, so that it can be behind.
type fixture struct {
	*Allocator
	client *fake.Clientset
	cache  cache.Indexer
	events *record.FakeRecorder
	logs   *observer.ObservedLogs
}

func ranges(t *testing.T, cidrs ...string) []*net.IPNet {
	t.Helper()
	var nets []*net.IPNet
	for _, c := range cidrs {
		_, n, err := net.ParseCIDR(c)
		if err != nil {
			t.Fatal(err)
		}
		nets = append(nets, n)
	}
	return nets
}

func newFixture(t *testing.T, change func(*Config), nodes ...runtime.Object) *fixture {
	t.Helper()
	client := fake.NewClientset(nodes...)
	refuseChanges(client)
	core, logs := observer.New(zap.DebugLevel)
	c := Config{
		Client:       client,
		Nodes:        informers.NewSharedInformerFactory(client, 0).Core().V1().Nodes(),
		ClusterCIDRs: ranges(t, "10.42.0.0/16"),
		MaskSizes:    []int{24},
		Logger:       zap.New(core),
	}
	if change != nil {
		change(&c)
	}
	a, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{
		Allocator: a,
		client:    client,
		cache:     c.Nodes.Informer().GetIndexer(),
		events:    record.NewFakeRecorder(100),
		logs:      logs,
	}
	a.recorder = f.events
	return f
}

// refuseChanges makes the fake refuse what the API server refuses: another range for a node that
// has one, and a patch for another node of the same name.
func refuseChanges(client *fake.Clientset) {
	client.PrependReactor("patch", "nodes", func(action clienttesting.Action) (bool, runtime.Object, error) {
		patch := action.(clienttesting.PatchAction)
		var want corev1.Node
		if err := json.Unmarshal(patch.GetPatch(), &want); err != nil {
			return true, nil, err
		}
		if len(want.Spec.PodCIDRs) == 0 {
			return false, nil, nil
		}
		obj, err := client.Tracker().Get(patch.GetResource(), "", patch.GetName())
		if err != nil {
			return true, nil, err
		}
		node := obj.(*corev1.Node)
		switch resource := patch.GetResource().GroupResource(); {
		case want.UID != node.UID:
			return true, nil, apierrors.NewConflict(resource, node.Name, errors.New("another UID"))
		case len(node.Spec.PodCIDRs) > 0 && !slices.Equal(want.Spec.PodCIDRs, node.Spec.PodCIDRs):
			return true, nil,
				apierrors.NewInvalid(corev1.SchemeGroupVersion.WithKind("Node").GroupKind(), node.Name, nil)
		}
		return false, nil, nil
	})
}

func node(name, uid string, cidrs ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(uid)},
		Spec: corev1.NodeSpec{PodCIDRs: cidrs}}
	if len(cidrs) > 0 {
		n.Spec.PodCIDR = cidrs[0]
	}
	return n
}

func (f *fixture) cached(t *testing.T, n *corev1.Node) {
	t.Helper()
	if err := f.cache.Update(n); err != nil {
		t.Fatal(err)
	}
}

// want syncs a node and compares what the API server has then; "" is a node without a range.
func (f *fixture) want(t *testing.T, name, want string) {
	t.Helper()
	err := f.sync(t.Context(), name)
	if (err == nil) != (want != "") {
		t.Fatalf("sync %s: %v, want range %q", name, err, want)
	}
	n, err := f.client.CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if n.Spec.PodCIDR != want {
		t.Fatalf("node %s has %q, want %q", name, n.Spec.PodCIDR, want)
	}
}

func (f *fixture) gone(t *testing.T, name string) {
	t.Helper()
	if err := f.client.CoreV1().Nodes().Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if obj, exists, err := f.cache.GetByKey(name); err == nil && exists {
		if err := f.cache.Delete(obj); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.sync(t.Context(), name); err != nil {
		t.Fatal(err)
	}
}

// quiet fails if anything above INFO was logged or any event recorded.
func (f *fixture) quiet(t *testing.T) {
	t.Helper()
	for _, l := range f.logs.Filter(func(e observer.LoggedEntry) bool { return e.Level > zapcore.InfoLevel }).All() {
		t.Errorf("logged: %s %v", l.Message, l.ContextMap())
	}
	for len(f.events.Events) > 0 {
		t.Errorf("event: %s", <-f.events.Events)
	}
}

func patches(client *fake.Clientset) (n int) {
	for _, a := range client.Actions() {
		if a.GetVerb() == "patch" && a.GetSubresource() == "" {
			n++
		}
	}
	return n
}

func TestAllocator_Sync_CacheBehind_OneRange(t *testing.T) {
	a, b := node("a", "1"), node("b", "2")
	f := newFixture(t, nil, a, b)
	f.cached(t, a)
	f.cached(t, b)
	f.want(t, "a", "10.42.0.0/24")
	f.want(t, "a", "10.42.0.0/24") // its status changed, and the cache does not have the range yet
	f.want(t, "b", "10.42.1.0/24")
	f.cached(t, node("a", "1", "10.42.0.0/24"))
	f.want(t, "a", "10.42.0.0/24")
	if n := patches(f.client); n != 2 {
		t.Errorf("%d patches, want one a node", n)
	}
	f.quiet(t)
}

func TestAllocator_Sync_OutcomeOfPatchUnknown_NoRangeLost(t *testing.T) {
	for _, written := range []bool{true, false} {
		t.Run(fmt.Sprintf("written=%v", written), func(t *testing.T) {
			a, b := node("a", "1"), node("b", "2")
			f := newFixture(t, nil, a, b)
			f.cached(t, a)
			f.cached(t, b)
			fail, unreachable := true, false
			f.client.PrependReactor("patch", "nodes", func(action clienttesting.Action) (bool, runtime.Object, error) {
				if !fail {
					return false, nil, nil
				}
				fail = false
				if written {
					if err := f.client.Tracker().Update(action.GetResource(), node("a", "1", "10.42.0.0/24"),
						""); err != nil {
						t.Error(err)
					}
				}
				unreachable = true
				return true, nil, errors.New("connection reset")
			})
			f.client.PrependReactor("get", "nodes", func(clienttesting.Action) (bool, runtime.Object, error) {
				return unreachable, nil, errors.New("connection refused")
			})
			if err := f.sync(t.Context(), "a"); err == nil {
				t.Fatal("no error to retry for")
			}
			unreachable = false
			f.want(t, "b", "10.42.1.0/24")
			f.want(t, "a", "10.42.0.0/24")
		})
	}
}

func TestAllocator_Sync_RangeGivenByOthers_IsKept(t *testing.T) {
	a, b := node("a", "1"), node("b", "2")
	f := newFixture(t, nil, node("a", "1", "10.42.7.0/24"), b)
	f.cached(t, a) // behind
	f.cached(t, b)
	f.want(t, "a", "10.42.7.0/24")
	f.want(t, "b", "10.42.1.0/24")
	for i := 2; i < 257; i++ {
		cidrs, err := f.pools.allocate()
		if i == 256 {
			if err != nil || cidrs[0].String() != "10.42.0.0/24" {
				t.Errorf("the refused range was not released: %v, %v", cidrs, err)
			}
			break
		}
		if err != nil {
			break
		}
		if cidrs[0].String() == "10.42.7.0/24" {
			t.Error("a range in use was allocated")
		}
		if cidrs[0].String() == "10.42.0.0/24" {
			break
		}
	}
	f.quiet(t)
}

func TestAllocator_Sync_PoolExhausted_NothingLeaks(t *testing.T) {
	nodes := []*corev1.Node{node("a", "1"), node("b", "2"), node("c", "3")}
	f := newFixture(t, func(c *Config) {
		c.ClusterCIDRs, c.MaskSizes = ranges(t, "10.42.0.0/22", "fd00:42::/63"), []int{24, 64}
	}, nodes[0], nodes[1], nodes[2])
	for _, n := range nodes {
		f.cached(t, n)
	}
	f.want(t, "a", "10.42.0.0/24")
	f.want(t, "b", "10.42.1.0/24")
	for range 5 {
		f.want(t, "c", "") // there is no third IPv6 range; the IPv4 one goes back
	}
	if event := <-f.events.Events; event != "Normal CIDRNotAvailable Node c status is now: CIDRNotAvailable" {
		t.Errorf("event: %s", event)
	}
	for f.queue.Len() > 0 {
		name, _ := f.queue.Get()
		f.queue.Done(name)
	}
	f.gone(t, "a")
	if f.queue.Len() != 1 {
		t.Errorf("%d nodes are queued after a range was released, want the one that waits", f.queue.Len())
	}
	if err := f.sync(t.Context(), "c"); err != nil {
		t.Error(err)
	}
}

func TestAllocator_Sync_NodeCreatedAgain_OldRangeIsReleased(t *testing.T) {
	a := node("a", "1")
	f := newFixture(t, func(c *Config) { c.ClusterCIDRs = ranges(t, "10.42.0.0/24") }, a)
	f.cached(t, a)
	f.want(t, "a", "10.42.0.0/24")
	// The informer sees an update, not a deletion.
	if err := f.client.Tracker().Update(corev1.SchemeGroupVersion.WithResource("nodes"), node("a", "2"),
		""); err != nil {
		t.Fatal(err)
	}
	f.cached(t, node("a", "2"))
	f.want(t, "a", "10.42.0.0/24")
	f.quiet(t)
}

func TestAllocator_Sync_NodeReplacedWhilePatching_IsLeftToItsEvent(t *testing.T) {
	a := node("a", "1")
	f := newFixture(t, func(c *Config) { c.ClusterCIDRs = ranges(t, "10.42.0.0/24") }, node("a", "2"))
	f.cached(t, a)
	if err := f.sync(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	f.cached(t, node("a", "2"))
	f.want(t, "a", "10.42.0.0/24")
	f.quiet(t)
}

func TestAllocator_New_LeavesReservedRangesOut(t *testing.T) {
	a, b := node("a", "1"), node("b", "2", "10.42.1.0/24")
	f := newFixture(t, func(c *Config) { c.Reserved = ranges(t, "10.42.0.0/23") }, a, b)
	f.cached(t, b)
	f.want(t, "b", "10.42.1.0/24")
	f.gone(t, "b") // what it had is still reserved
	f.cached(t, a)
	f.want(t, "a", "10.42.2.0/24")
}

func TestAllocator_Sync_SharedRange_StaysTaken(t *testing.T) {
	a, b, c := node("a", "1", "10.42.0.0/24"), node("b", "2", "10.42.0.0/24"), node("c", "3")
	f := newFixture(t, func(c *Config) { c.ClusterCIDRs = ranges(t, "10.42.0.0/23") }, a, b, c)
	for _, n := range []*corev1.Node{a, b, c} {
		f.cached(t, n)
	}
	f.want(t, "a", "10.42.0.0/24")
	f.want(t, "b", "10.42.0.0/24")
	if f.logs.FilterMessageSnippet("two nodes have the same pod range").Len() != 1 {
		t.Error("two nodes with one range are not logged")
	}
	f.gone(t, "a")
	f.want(t, "c", "10.42.1.0/24")
	if _, err := f.pools.allocate(); err == nil {
		t.Error("the range that a node still has was allocated")
	}
}

// delayWatches makes events arrive late, as they do when many arrive.
func delayWatches(client *fake.Clientset, delay time.Duration) {
	client.PrependWatchReactor("nodes", func(action clienttesting.Action) (bool, watch.Interface, error) {
		now, err := client.Tracker().Watch(action.GetResource(), "")
		if err != nil {
			return true, nil, err
		}
		type arrival struct {
			event watch.Event
			at    time.Time
		}
		queue := make(chan arrival, 10000)
		go func() {
			defer close(queue)
			for e := range now.ResultChan() {
				queue <- arrival{e, time.Now().Add(delay)}
			}
		}()
		late := watch.NewRaceFreeFake()
		go func() {
			for a := range queue {
				time.Sleep(time.Until(a.at))
				late.Action(a.event.Type, a.event.Object)
			}
		}()
		return true, late, nil
	})
}

// TestAllocator_Run_NodesJoinAtOnce runs an allocator on a live informer while kubelets register.
func TestAllocator_Run_NodesJoinAtOnce(t *testing.T) {
	const joining = 50
	client := fake.NewClientset(node("there", "there", "10.42.0.0/24"))
	refuseChanges(client)
	delayWatches(client, 20*time.Millisecond)
	factory := informers.NewSharedInformerFactory(client, 0)
	core, logs := observer.New(zap.InfoLevel)
	a, err := New(Config{
		Client:       client,
		Nodes:        factory.Core().V1().Nodes(),
		ClusterCIDRs: ranges(t, "10.42.0.0/18"),
		MaskSizes:    []int{24},
		Logger:       zap.New(core),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	factory.StartWithContext(ctx)
	factory.WaitForCacheSync(ctx.Done())
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.Run(ctx)
	}()
	defer func() {
		cancel()
		<-done
		factory.Shutdown()
	}()

	join := func(round int) map[string]bool {
		var kubelets sync.WaitGroup
		for i := range joining {
			kubelets.Go(func() {
				n := node(fmt.Sprintf("node%d", i), fmt.Sprintf("%d-%d", round, i))
				if _, err := client.CoreV1().Nodes().Create(ctx, n, metav1.CreateOptions{}); err != nil {
					t.Error(err)
				}
				for status := range 5 {
					patch := fmt.Appendf(nil, `{"status":{"nodeInfo":{"bootID":"%d"}}}`, status)
					if _, err := client.CoreV1().Nodes().PatchStatus(ctx, n.Name, patch); err != nil {
						t.Error(err)
					}
				}
			})
		}
		kubelets.Wait()
		given := map[string]bool{"10.42.0.0/24": true}
		for i := range joining {
			var cidr string
			if err := wait.PollUntilContextCancel(ctx, time.Millisecond, true, func(ctx context.Context) (bool, error) {
				n, err := client.CoreV1().Nodes().Get(ctx, fmt.Sprintf("node%d", i), metav1.GetOptions{})
				if err == nil {
					cidr = n.Spec.PodCIDR
				}
				return cidr != "", err
			}); err != nil {
				t.Fatal(err)
			}
			if given[cidr] {
				t.Errorf("range %s was given twice", cidr)
			}
			given[cidr] = true
		}
		return given
	}
	given := join(0)
	if n := patches(client); n != joining {
		t.Errorf("%d patches, want one for each of %d nodes", n, joining)
	}
	for i := range joining + 1 {
		if c := fmt.Sprintf("10.42.%d.0/24", i); !given[c] {
			t.Errorf("range %s was skipped", c)
		}
	}
	for i := range joining {
		if err := client.CoreV1().Nodes().Delete(ctx, fmt.Sprintf("node%d", i), metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	// There are 64 ranges: these need the ones of the nodes that are gone.
	join(1)
	for _, l := range logs.FilterLevelExact(zapcore.WarnLevel).All() {
		if l.ContextMap()["error"] == nil ||
			!slices.Contains([]string{"node has no pod range yet; retrying"}, l.Message) {
			t.Errorf("logged: %s %v", l.Message, l.ContextMap())
		}
	}
	events, err := client.CoreV1().Events("").List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events.Items {
		if e.Reason != "CIDRNotAvailable" {
			t.Errorf("event: %s %s", e.Reason, e.Message)
		}
	}
}
