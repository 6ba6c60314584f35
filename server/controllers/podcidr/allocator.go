package podcidr

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	coreinformers "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
	controllerutil "k8s.io/kubernetes/pkg/controller/util/node"

	"github.com/mote-dev/mote/internal/retry"
)

// Pauses before another attempt for one node.
const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = time.Minute
)

// Config is what an allocator needs.
type Config struct {
	// Client may list, get and patch nodes and create events.
	Client kubernetes.Interface
	Nodes  coreinformers.NodeInformer
	// ClusterCIDRs are cut into node ranges of MaskSizes bits, index by index. A node gets one of
	// each.
	ClusterCIDRs []*net.IPNet
	MaskSizes    []int
	// Reserved are ranges, such as the services', that no node gets where they overlap
	// ClusterCIDRs.
	Reserved []*net.IPNet
	Logger   *zap.Logger
}

// Validate refuses sizes that the ranges cannot be cut into.
func (c Config) Validate() error {
	_, err := newPools(c.ClusterCIDRs, c.MaskSizes, c.Reserved)
	return err
}

// Allocator gives each node its pod ranges.
//
// Upstream runs 30 workers on an informer's cache. The event of a node's next change, usually its
// first status, often arrives before the one that brings its ranges. The worker finds none in the
// cache, takes new ones, is refused since a node's ranges cannot change, and leaves an error, an
// event and a gap. Here one worker remembers what it granted, and nothing is granted or released on
// the word of the cache if the two disagree: then the API server itself is asked.
type Allocator struct {
	config Config
	nodes  corelisters.NodeLister
	synced cache.InformerSynced
	queue  workqueue.TypedRateLimitingInterface[string]

	// What follows belongs to Run's goroutine.
	recorder record.EventRecorder
	pools    *pools
	grants   map[string]grant // by node
	// waiting are nodes for which there was no range left.
	waiting  map[string]bool
	failures map[string]*retry.Failures
}

// grant is what a node has, or will have once its patch succeeds.
type grant struct {
	uid   types.UID
	cidrs []*net.IPNet
	// confirmed means that the API server has it. If not, the outcome of the patch is unknown: it
	// is repeated with the same ranges, so whatever became of the first, none is lost or given
	// twice.
	confirmed bool
}

// New checks c and returns an allocator that follows the informer. Run allocates.
func New(c Config) (*Allocator, error) {
	pools, err := newPools(c.ClusterCIDRs, c.MaskSizes, c.Reserved)
	if err != nil {
		return nil, err
	}
	a := &Allocator{
		config: c,
		nodes:  c.Nodes.Lister(),
		queue: workqueue.NewTypedRateLimitingQueueWithConfig(
			workqueue.NewTypedItemExponentialFailureRateLimiter[string](firstRetry, lastRetry),
			workqueue.TypedRateLimitingQueueConfig[string]{Name: "cidrallocator_node"}),
		pools:    pools,
		grants:   make(map[string]grant),
		waiting:  make(map[string]bool),
		failures: make(map[string]*retry.Failures),
	}
	enqueue := func(obj any) {
		if key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(obj); err == nil {
			a.queue.Add(key)
		}
	}
	registration, err := c.Nodes.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    enqueue,
		UpdateFunc: func(_, obj any) { enqueue(obj) },
		DeleteFunc: enqueue,
	})
	if err != nil {
		return nil, fmt.Errorf("watch nodes: %w", err)
	}
	a.synced = registration.HasSynced
	return a, nil
}

// Run allocates until ctx ends.
func (a *Allocator) Run(ctx context.Context) {
	defer a.queue.ShutDown()
	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	defer broadcaster.Shutdown()
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: a.config.Client.CoreV1().Events("")})
	a.recorder = broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "cidrAllocator"})

	// The cache may lack what the leader before this one granted last.
	if err := a.restore(ctx); err != nil {
		return // ctx ended
	}
	if !cache.WaitForCacheSync(ctx.Done(), a.synced) {
		return
	}
	stop := context.AfterFunc(ctx, a.queue.ShutDown)
	defer stop()
	for a.next(ctx) {
	}
}

// restore takes over what nodes have, until it succeeds or ctx ends.
func (a *Allocator) restore(ctx context.Context) error {
	backoff, failures := retry.Backoff{First: firstRetry, Last: lastRetry}, retry.Failures{}
	for {
		list, err := a.config.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err == nil {
			for i := range list.Items {
				if node := &list.Items[i]; len(node.Spec.PodCIDRs) > 0 {
					a.accept(node)
					// It may be gone before the informer's first list.
					a.queue.Add(node.Name)
				}
			}
			return nil
		}
		if ctx.Err() == nil && failures.News(err) {
			a.config.Logger.Warn("cannot list nodes to learn their pod ranges; retrying", zap.Error(err))
		}
		if err := backoff.Wait(ctx); err != nil {
			return err
		}
	}
}

// next handles one node, and reports false at the end of the queue.
func (a *Allocator) next(ctx context.Context) bool {
	name, shutdown := a.queue.Get()
	if shutdown {
		return false
	}
	defer a.queue.Done(name)
	err := a.sync(ctx, name)
	if err == nil || ctx.Err() != nil {
		a.queue.Forget(name)
		delete(a.failures, name)
		return true
	}
	if a.failures[name] == nil {
		a.failures[name] = &retry.Failures{}
	}
	if a.failures[name].News(err) {
		a.config.Logger.Warn("node has no pod range yet; retrying", zap.String("node", name), zap.Error(err))
	}
	a.queue.AddRateLimited(name)
	return true
}

// sync gives a node its ranges if it has none, and takes them back if it is gone.
func (a *Allocator) sync(ctx context.Context, name string) error {
	delete(a.waiting, name)
	held, granted := a.grants[name]
	node, err := a.nodes.Get(name)
	switch {
	case apierrors.IsNotFound(err) && !granted:
		return nil
	case apierrors.IsNotFound(err), err == nil && granted && held.uid != node.UID:
		// Either it was deleted, or the cache is behind.
		if node, err = a.observe(ctx, name); node == nil {
			return err
		}
		held, granted = a.grants[name]
	case err != nil:
		return fmt.Errorf("get node %s from the cache: %w", name, err)
	}
	if len(node.Spec.PodCIDRs) > 0 {
		a.accept(node)
		return nil
	}
	if !node.DeletionTimestamp.IsZero() || granted && held.confirmed {
		return nil
	}
	if !granted {
		cidrs, err := a.pools.allocate()
		if err != nil {
			a.waiting[name] = true
			a.record(ctx, node, "CIDRNotAvailable")
			return err
		}
		held = grant{uid: node.UID, cidrs: cidrs}
		a.grants[name] = held
	}
	return a.assign(ctx, node, held)
}

// assign writes a node's ranges.
func (a *Allocator) assign(ctx context.Context, node *corev1.Node, g grant) error {
	err := a.patch(ctx, node, g.cidrs)
	if err == nil {
		g.confirmed = true
		a.grants[node.Name] = g
		a.config.Logger.Debug("node has its pod ranges", zap.String("node", node.Name),
			zap.Stringers("ranges", g.cidrs))
		return nil
	}
	// It may have been written all the same, or the node has others or is another one by now.
	fresh, observeErr := a.observe(ctx, node.Name)
	if observeErr == nil && (fresh == nil || fresh.UID != node.UID || len(fresh.Spec.PodCIDRs) > 0) {
		return nil
	}
	a.record(ctx, node, "CIDRAssignmentFailed")
	return errors.Join(fmt.Errorf("write pod ranges of node %s: %w", node.Name, err), observeErr)
}

// patch is upstream's PatchNodeCIDRs, but refused if the node was deleted and created again.
func (a *Allocator) patch(ctx context.Context, node *corev1.Node, cidrs []*net.IPNet) error {
	ranges := make([]string, len(cidrs))
	for i, c := range cidrs {
		ranges[i] = c.String()
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": node.UID},
		"spec":     map[string]any{"podCIDR": ranges[0], "podCIDRs": ranges},
	})
	if err != nil {
		return err
	}
	_, err = a.config.Client.CoreV1().Nodes().Patch(ctx, node.Name, types.StrategicMergePatchType, patch,
		metav1.PatchOptions{})
	return err
}

// observe takes over what the API server itself says of a node, and returns it; nil if it is gone.
func (a *Allocator) observe(ctx context.Context, name string) (*corev1.Node, error) {
	node, err := a.config.Client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		a.release(name)
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("get node %s: %w", name, err)
	case len(node.Spec.PodCIDRs) > 0:
		a.accept(node)
	case a.grants[name].uid != node.UID:
		a.release(name)
	}
	return node, nil
}

// accept takes over the ranges that a node has, whoever gave them.
func (a *Allocator) accept(node *corev1.Node) {
	cidrs := make([]*net.IPNet, 0, len(node.Spec.PodCIDRs))
	for _, s := range node.Spec.PodCIDRs {
		// The API server checks them.
		if _, cidr, err := net.ParseCIDR(s); err == nil {
			cidrs = append(cidrs, cidr)
		}
	}
	held, granted := a.grants[node.Name]
	if granted && equal(held.cidrs, cidrs) {
		a.grants[node.Name] = grant{uid: node.UID, cidrs: cidrs, confirmed: true}
		return
	}
	a.release(node.Name)
	for _, c := range cidrs {
		for other, g := range a.grants {
			if overlapAny(c, g.cidrs) {
				a.config.Logger.Warn("two nodes have the same pod range: delete and re-create one of them",
					zap.String("node", node.Name), zap.String("other", other), zap.Stringer("range", c))
			}
		}
		if !a.pools.occupy(c) {
			a.config.Logger.Warn("node has a pod range outside the cluster's ranges",
				zap.String("node", node.Name), zap.Stringer("range", c))
		}
	}
	a.grants[node.Name] = grant{uid: node.UID, cidrs: cidrs, confirmed: true}
}

// release makes the ranges of a node free, for nodes that wait first.
func (a *Allocator) release(name string) {
	held, granted := a.grants[name]
	if !granted {
		return
	}
	delete(a.grants, name)
	for _, c := range held.cidrs {
		a.pools.release(c)
	}
	// What was released may in part be another node's, whose range someone else gave it.
	for _, g := range a.grants {
		for _, c := range g.cidrs {
			if overlapAny(c, held.cidrs) {
				a.pools.occupy(c)
			}
		}
	}
	for waiting := range a.waiting {
		a.queue.Forget(waiting)
		a.queue.Add(waiting)
	}
}

// record writes upstream's event.
func (a *Allocator) record(ctx context.Context, node *corev1.Node, reason string) {
	if ctx.Err() == nil {
		controllerutil.RecordNodeStatusChange(klog.FromContext(ctx), a.recorder, node, reason)
	}
}
